"""Kernels that move or map elements one by one: bound by memory, so that a contiguous vector store is all they need."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.x86.vectors import vectorize_inner


def memory(sch: Schedule, config: None, lanes: int) -> None:
    """Vectorise the innermost axis of the one block, "out"; one that only moves elements says so by its "run".

    That is how many of its last axes are neighbours on both sides: they become one loop, of which LLVM makes a memcpy
    or vectors. Where there is no such axis, a border, a seam or a stride crosses the last one: it is cut at its tests.
    """
    block = sch.get_sblock("out")
    loops, run = sch.get_loops(block), sch.get(block).annotations.get("run")
    if not loops:
        return  # a scalar
    if run is None:
        vectorize_inner(sch, loops[-1], lanes)
    elif int(run) > 1:
        sch.fuse(*loops[-int(run) :])
    elif int(run) == 0:
        sch.annotate(loops[-1], "pragma_loop_partition_hint", True)
