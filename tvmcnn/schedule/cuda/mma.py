"""Products of matrices by tensor cores: as gemm.py, but a warp makes 16 by 16 of the sum, 16 or 8 terms at once.

    for each tile, by blocks; for each part of it, by warps:
      for every 32 terms: both tiles into shared memory, all threads together
        for each 16 or 8 terms: fragments of both; sum fragments += products
      sums into shared memory; for each element, by threads: bias, epilogue, pool

Rows in shared memory are 8 elements longer than a tile, so that those a fragment takes lie in different banks.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import MmaConfig
from tvmcnn.schedule.cuda.fragments import SIDE, intrinsics
from tvmcnn.schedule.cuda.loops import tiles, together
from tvmcnn.schedule.steps import Block, Loop

WARP = 32
BYTES = 16  # of the widest load
SPARE = 8  # elements at the end of a row


def mma(sch: Schedule, config: MmaConfig) -> None:
    """Blocks: "gathered", "left", "right", "sum" and "out" of ops/cuda/gemm.py."""
    out, sums, left, right, gathered = (sch.get_sblock(name) for name in ("out", "sum", "left", "right", "gathered"))
    window, terms = int(sch.get(sums).annotations["window"]), config.fragment_terms
    across = config.pixels // config.warp_pixels
    threads = {"threadIdx.y": config.maps // config.warp_maps * across, "threadIdx.x": WARP}

    *images, first, second = sch.get_loops(out)
    maps, pixels = (first, second) if images else (second, first)
    map_tile, map_inner = tiles(sch, maps, config.maps)
    pixel_tile, pixel_inner = tiles(sch, pixels, config.pixels // window)
    sch.reorder(*images, map_tile, pixel_tile, map_inner, pixel_inner)
    if images:
        sch.bind(sch.fuse(*images), "blockIdx.z")
    sch.bind(map_tile, "blockIdx.y")
    sch.bind(pixel_tile, "blockIdx.x")
    _, *bound = sch.split(sch.fuse(map_inner, pixel_inner), [None, *threads.values()])
    for name, loop in zip(threads, bound, strict=True):
        sch.bind(loop, name)

    made = sch.cache_write(sums, 0, "wmma.accumulator")
    sch.set_scope(made, 0, "shared")
    sch.compute_at(made, pixel_tile, preserve_unit_loops=True)
    o, p = sch.get_loops(made)[-2:]
    o_warp, o, o_in = sch.split(o, [None, config.warp_maps // SIDE, SIDE])
    p_warp, p, p_in = sch.split(p, [None, config.warp_pixels // SIDE, SIDE])
    sch.reorder(o_warp, p_warp, o, p, o_in, p_in)
    warp = sch.fuse(o_warp, p_warp)
    sch.bind(warp, "threadIdx.y")

    sch.compute_at(sums, warp, preserve_unit_loops=True)
    o, p, term = sch.get_loops(sums)[-3:]
    step, term, t_in = sch.split(term, [None, config.depth // terms, terms])
    (o, o_in), (p, p_in) = (sch.split(loop, [None, SIDE]) for loop in (o, p))
    sch.reorder(step, term, o, p, o_in, p_in, t_in)
    weight = sch.cache_read(left, 0, "shared")
    for factor, scope in ((left, "wmma.matrix_a"), (right, "wmma.matrix_b")):
        sch.set_scope(factor, 0, scope)
        sch.compute_at(factor, term, preserve_unit_loops=True)
    sch.set_scope(gathered, 0, "shared")
    together(sch, gathered, step, threads)
    together(sch, weight, step, threads, BYTES // config.item_bytes)
    for stage in (gathered, weight):
        sch.storage_align(stage, 0, axis=-2, factor=2 * SPARE, offset=SPARE)
    start = sch.decompose_reduction(sums, step)

    names = intrinsics(config.precision, terms)
    _fragments(sch, left, SIDE, terms, names.left)
    _fragments(sch, right, terms, SIDE, names.right)
    sch.tensorize(sch.get_loops(start)[-2], names.zero)
    sch.tensorize(sch.get_loops(sums)[-3], names.products)
    sch.tensorize(sch.get_loops(made)[-2], names.store)
    for loop in (term, o, p):
        sch.unroll(loop)


def _fragments(sch: Schedule, factor: Block, rows: int, columns: int, load: str) -> Loop:
    """A warp's part of a factor as fragments of rows by columns, each one load."""
    row, column = sch.get_loops(factor)[-2:]
    (row, row_in), (column, column_in) = sch.split(row, [None, rows]), sch.split(column, [None, columns])
    sch.reorder(row, column, row_in, column_in)
    sch.tensorize(row_in, load)
    sch.unroll(row)
    sch.unroll(column)
    return row
