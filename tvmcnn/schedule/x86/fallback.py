"""What no rule takes: right, single loops, scalar code that LLVM may vectorise. Counted, and printed by compile."""

from __future__ import annotations

from tvm.s_tir import Schedule


def fallback(sch: Schedule, config: None, lanes: int) -> None:
    """Compute each intermediate where it is read, one element at a time, and zero it ahead of its reduction.

    No block but the last ones, which write the parameters, may keep a whole tensor: it would lie on the stack.
    """
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    outputs = {sch.get(block).name_hint for block in sch.get_output_blocks(sch.get_sblock("root"))}
    for block in reversed(blocks):
        reductions = [axis for axis in sch.get(block).iter_vars if axis.iter_type == axis.CommReduce]
        if sch.get(block).name_hint not in outputs:
            (consumer,) = sch.get_consumers(block)
            sch.compute_at(block, sch.get_loops(consumer)[-1], preserve_unit_loops=True)
        if reductions:
            sch.decompose_reduction(block, sch.get_loops(block)[-len(reductions)])
