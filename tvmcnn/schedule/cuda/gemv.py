"""Products of few rows with a matrix, which comes from memory once: a warp's lanes have 32 neighbouring columns, the
warps of a block a part of the sum each."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import GemvConfig
from tvmcnn.schedule.cuda.loops import tiles

LANES = 32
UNROLL = 8  # loads under way at once


def gemv(sch: Schedule, config: GemvConfig) -> None:
    """Blocks: "sum" (row, part, column) and "out" (row, column) of ops/cuda/gemm.py."""
    out, sums = sch.get_sblock("out"), sch.get_sblock("sum")
    row, column = sch.get_loops(out)
    tile, lane = tiles(sch, column, LANES)
    _, warp = sch.split(sch.add_unit_loop(out), [None, config.parts])  # the first warp alone has a column's total
    sch.bind(row, "blockIdx.y")
    sch.bind(tile, "blockIdx.x")
    sch.bind(lane, "threadIdx.x")
    sch.bind(warp, "threadIdx.y")
    copy = sch.cache_write(sums, 0, "local")
    sch.set_scope(copy, 0, "shared")
    sch.compute_at(copy, tile, preserve_unit_loops=True)
    part, column = sch.get_loops(copy)[-2:]
    sch.bind(part, "threadIdx.y")
    sch.bind(column, "threadIdx.x")
    sch.compute_at(sums, column, preserve_unit_loops=True)
    term = sch.get_loops(sums)[-1]
    outer, term = sch.split(term, [None, UNROLL])
    sch.decompose_reduction(sums, outer)
    sch.unroll(term)
