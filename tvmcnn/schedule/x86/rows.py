"""Reductions in plain layout, a row of the output at a time: the columns innermost, in memory order, for LLVM to
vectorise.

The row of sums lies in L1. Every term of the reduction is one pass over it, a scalar times a run of memory: a load, an
FMA and a store a vector, so that the one store a cycle bounds it at half the FMA peak. Where several terms share a pass
(`unroll`), they share the store; where several rows do, they share the loads (512x512x512 on AVX2: 32 GFLOP/s with one
row and term, 87 with four of each).
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import RowsConfig
from tvmcnn.schedule.steps import EXPANDED, Block, extent, unroll, vectorize_inner


def rows(sch: Schedule, config: RowsConfig, lanes: int) -> None:
    """Tile "out" by rows and columns, compute all before it inside the tile, reductions outside the columns.

    for i, j: for k: y[i, j] += a[i, k]·b[k, j]    -->    for i, tile of j: for k: for j in tile: y[i, j] += …
    """
    root = sch.get_sblock("root")
    out = sch.get_sblock("out")
    loops = sch.get_loops(out)
    at = None
    if loops:
        *outer, column = loops
        at, column = sch.split(column, [None, config.columns])
        if outer and config.rows > 1:
            row_o, row_i = sch.split(outer[-1], [None, config.rows])
            sch.reorder(row_o, at, row_i, column)
    for block in reversed(sch.get_child_blocks(root)):
        if sch.get(block).name_hint == EXPANDED:  # once for all tiles
            vectorize_inner(sch, sch.get_loops(block)[-1], lanes)
        elif sch.get(block).name_hint != "out":
            if at is not None:
                sch.compute_at(block, at, preserve_unit_loops=True)
            _reductions_outside(sch, block, config)


def _reductions_outside(sch: Schedule, block: Block, config: RowsConfig) -> None:
    """Zero the block's tile, then add the terms of its reduction one after another to all of it."""
    axes = [axis.iter_type == axis.CommReduce for axis in sch.get(block).iter_vars]
    loops = sch.get_loops(block)[-len(axes) :] if axes else []
    spatial = [loop for loop, reduced in zip(loops, axes, strict=True) if not reduced]
    reduced = [loop for loop, reduced in zip(loops, axes, strict=True) if reduced]
    if not reduced:
        return
    if config.unroll > 1:
        last, terms = sch.split(reduced.pop(), [None, config.unroll])
        sch.reorder(*reduced, last, *spatial, terms)
        sch.unroll(terms)
        reduced.append(last)
    elif spatial:
        sch.reorder(*reduced, *spatial)
    if 1 < config.rows <= extent(sch, spatial[-2]):
        unroll(sch, spatial[-2:-1])
    sch.decompose_reduction(block, reduced[0])
