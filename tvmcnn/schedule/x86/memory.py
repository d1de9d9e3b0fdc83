"""Kernels that move or map elements one by one: bound by memory, so that a contiguous vector store is all they need."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.x86.vectors import vectorize_inner


def memory(sch: Schedule, config: None, lanes: int) -> None:
    """Vectorise the one block, "out", along the axes that it says to be a run of neighbours; without it the last axis.

    Where there is no run a border or a seam crosses the last axis, or a stride: that loop is cut at its tests, and
    LLVM makes vectors of what is left.
    """
    block = sch.get_sblock("out")
    loops = sch.get_loops(block)
    run = int(sch.get(block).annotations.get("run", 1))
    if loops and run:  # a scalar has none
        vectorize_inner(sch, sch.fuse(*loops[-run:]) if run > 1 else loops[-1], lanes)
    elif loops:
        sch.annotate(loops[-1], "pragma_loop_partition_hint", True)
