"""Normalisations: three passes over one row, which stays in L1 or L2: its sum, that of its squares, and the result."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import NormalizeConfig
from tvmcnn.schedule.steps import reduce_in_lanes


def normalize(sch: Schedule, config: NormalizeConfig, lanes: int) -> None:
    """Blocks: "total" and "squares" with their stages of ops/lanes.py, "mean", "variance" and "inverse", all of a row,
    and "out" (row, part, vector, lane).
    """
    row, _, _, lane = sch.get_loops(sch.get_sblock("out"))
    inner, lane = sch.split(lane, [None, lanes])
    sch.unroll(inner)
    sch.vectorize(lane)
    for name in ("inverse", "variance", "squares", "mean", "total"):
        if name in ("squares", "total"):
            reduce_in_lanes(sch, name, row, lanes)
        else:
            block = sch.get_sblock(name)
            sch.set_scope(block, 0, "local")
            sch.compute_at(block, row, preserve_unit_loops=True)
