"""Softmax: three passes over one row, which stays in L1."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.x86.vectors import extent, vectorize_inner


def softmax(sch: Schedule, config: None, lanes: int) -> None:
    """Blocks: "maximum", "exponentials", "total" and "out", all computed for one position of the outer axes at a time."""
    out = sch.get_sblock("out")
    loops = sch.get_loops(out)
    reduced = next(
        (i for i, loop in enumerate(sch.get_loops(sch.get_sblock("maximum"))[: len(loops)]) if extent(sch, loop) == 1),
        len(loops) - 1,
    )
    if reduced > 0:
        for name in ("total", "exponentials", "maximum"):
            sch.compute_at(sch.get_sblock(name), loops[reduced - 1], preserve_unit_loops=True)
    for name in ("maximum", "total"):
        block = sch.get_sblock(name)
        sch.decompose_reduction(block, sch.get_loops(block)[-1])
    vectorize_inner(sch, sch.get_loops(out)[-1], lanes)
