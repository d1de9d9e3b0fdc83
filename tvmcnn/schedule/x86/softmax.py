"""Softmax: three passes over one row, which stays in L1."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import SoftmaxConfig
from tvmcnn.schedule.x86.vectors import extent, vectorize_inner

ROW_LIMIT = 8192  # elements: a longer row of exponentials would fill the stack, and is computed twice instead


def softmax(sch: Schedule, config: SoftmaxConfig, lanes: int) -> None:
    """Blocks: "maximum", "exponentials", "total" and "out", all computed for one row along the axis at a time."""
    loops = sch.get_loops(sch.get_sblock("out"))
    along = loops.pop(config.axis)
    if loops:
        sch.reorder(*loops, along)
    names = ["total", "exponentials", "maximum"]
    if extent(sch, along) > ROW_LIMIT:
        sch.compute_inline(sch.get_sblock(names.pop(1)))
    if loops:
        for name in names:
            sch.compute_at(sch.get_sblock(name), loops[-1], preserve_unit_loops=True)
    for name in ("maximum", "total"):
        block = sch.get_sblock(name)
        sch.decompose_reduction(block, sch.get_loops(block)[-1])
    if config.contiguous:
        vectorize_inner(sch, along, lanes)
