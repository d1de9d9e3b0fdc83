"""Kernels that move or map elements one by one: bound by memory, so that a contiguous vector store is all they need."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.x86.vectors import vectorize_inner


def memory(sch: Schedule, config: None, lanes: int) -> None:
    """Vectorise the innermost axis of the one block, "out"."""
    for loop in sch.get_loops(sch.get_sblock("out"))[-1:]:  # a scalar has none
        vectorize_inner(sch, loop, lanes)
