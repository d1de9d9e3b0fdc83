"""What no rule takes: right, single loops, scalar code that LLVM may vectorise. Counted, and printed by compile."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.steps import reduction_axes


def fallback(sch: Schedule, config: None, lanes: int) -> None:
    """Compute each intermediate where it is read, one element at a time, and zero it ahead of its reduction.

    A block that says how many leading axes of the output it is "at" is computed once for each position of those. No
    block but the last ones, which write the parameters, may keep a whole tensor: it would lie on the stack.
    """
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    outputs = {sch.get(block).name_hint for block in sch.get_output_blocks(sch.get_sblock("root"))}
    for block in reversed(blocks):
        info = sch.get(block)
        reductions = reduction_axes(sch, block)
        if info.name_hint not in outputs:
            consumers, at = sch.get_consumers(block), info.annotations.get("at")
            loops = sch.get_loops(consumers[-1] if at is None else sch.get_sblock("out"))
            loops = loops if at is None else loops[: int(at)]
            if not reductions and at is None:
                sch.compute_inline(block)
                continue
            if loops:
                sch.compute_at(block, loops[-1], preserve_unit_loops=True)
        if reductions:
            sch.decompose_reduction(block, sch.get_loops(block)[-len(reductions)])
