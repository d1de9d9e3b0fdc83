"""Reductions along the last axes: a row at a time, bound by the memory that it comes from."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.steps import reduce_in_lanes


def lanes(sch: Schedule, config: None, lanes: int) -> None:
    """Blocks: "total_lanes", "total_quarters" and "total" of ops/lanes.py, and "out", one element a row."""
    reduce_in_lanes(sch, "total", sch.get_loops(sch.get_sblock("out"))[-1], lanes)
