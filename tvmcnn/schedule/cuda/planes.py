"""Winograd's transforms: a thread has a tile of a channel, all of it in registers.

    for channel, tile, by blocks and threads: patch, rows; for e in 36: out[e] = …

Neighbouring threads have neighbouring tiles, so that a warp stores runs of each plane; of the image they read runs with
two columns of six in common, which the L1 cache has.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import PlanesConfig
from tvmcnn.schedule.cuda.loops import tiles
from tvmcnn.schedule.steps import Loop


def planes(sch: Schedule, config: PlanesConfig) -> None:
    """Blocks, see ops/cuda/winograd_planes.py: "patch", "rows" and "out" (e, c, p); or "lines", "tile" and "out"
    (n, o, h, w), of which a tile is config.rows x config.columns."""
    out = sch.get_sblock("out")
    stages = [block for block in sch.get_child_blocks(sch.get_sblock("root")) if sch.get(block).name_hint != "out"]
    loops = sch.get_loops(out)
    if sch.get(stages[0]).name_hint == "patch":
        element, channel, tile = loops
        own, inner = [channel, tile], [element]
    else:
        image, map_, height, width = loops
        row, y = tiles(sch, height, config.rows)
        column, z = tiles(sch, width, config.columns)
        own, inner = [image, map_, row, column], [y, z]
    sch.reorder(*own, *inner)
    block, thread = sch.split(sch.fuse(*own), [None, config.threads])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    for stage in reversed(stages):
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        _unroll(sch, sch.get_loops(stage)[2:])
    _unroll(sch, inner)


def _unroll(sch: Schedule, loops: list[Loop]) -> None:
    """An index that is a number becomes a register, and the choice of a row of the matrix no code."""
    for loop in loops:
        sch.unroll(loop)
