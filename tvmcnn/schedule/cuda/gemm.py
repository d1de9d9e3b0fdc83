"""Products of matrices: a block of threads makes a tile of maps by pixels from tiles of both matrices in shared memory,
each thread a smaller one in registers.

    for each tile, by blocks; for each part of it, by threads:
      for every 8 terms: both tiles into shared memory, all threads together
        for each term: for map in 4, pixel in 4: sum += weight · gathered

A product of 4 by 4 takes 8 loads from shared memory for 16 FMAs, 8 by 8 takes 16 for 64.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import GemmConfig
from tvmcnn.schedule.cuda.loops import tiles, together

VECTOR = 4  # floats: 16 bytes, the widest load


def gemm(sch: Schedule, config: GemmConfig) -> None:
    """Blocks: "gathered", "sum" and "out" of ops/cuda/gemm.py, which is (n, group, map, pixel) or (row, column)."""
    out, sums, gathered = (sch.get_sblock(name) for name in ("out", "sum", "gathered"))
    window = int(sch.get(sums).annotations["window"])
    *images, first, second = sch.get_loops(out)
    maps, pixels = (first, second) if images else (second, first)
    map_tile, map_thread, map_inner = tiles(sch, maps, config.maps // config.thread_maps, config.thread_maps)
    pixel_tile, pixel_thread, pixel_inner = tiles(
        sch, pixels, config.pixels // config.thread_pixels, config.thread_pixels // window
    )
    sch.reorder(*images, map_tile, pixel_tile, map_thread, pixel_thread, map_inner, pixel_inner)
    if images:
        sch.bind(sch.fuse(*images), "blockIdx.z")
    sch.bind(map_tile, "blockIdx.y")
    sch.bind(pixel_tile, "blockIdx.x")
    thread = sch.fuse(map_thread, pixel_thread)
    sch.bind(thread, "threadIdx.x")

    sch.set_scope(sums, 0, "local")
    sch.compute_at(sums, thread, preserve_unit_loops=True)
    *_, o, p, term = sch.get_loops(sums)
    step, term = sch.split(term, [None, config.depth])
    sch.reorder(step, term, o, p)
    weight = sch.cache_read(sums, 0, "shared")
    sch.set_scope(gathered, 0, "shared")
    threads = {"threadIdx.x": config.maps // config.thread_maps * (config.pixels // config.thread_pixels)}
    together(sch, gathered, step, threads)
    together(sch, weight, step, threads, VECTOR)
    sch.decompose_reduction(sums, step)
    for loop in (term, o, p):
        sch.unroll(loop)
