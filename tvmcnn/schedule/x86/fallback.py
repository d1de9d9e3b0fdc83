"""What no rule takes: right, single loops, scalar code that LLVM may vectorise. Counted, and printed by compile."""

from __future__ import annotations

from tvm.s_tir import Schedule


def fallback(sch: Schedule, config: None, lanes: int) -> None:
    """Split every reduction's initialisation from its update, so that the inner loop is branch-free; no more."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        reductions = [axis for axis in sch.get(block).iter_vars if axis.iter_type == axis.CommReduce]
        if reductions:
            sch.decompose_reduction(block, sch.get_loops(block)[-len(reductions)])
