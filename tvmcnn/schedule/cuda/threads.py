"""What has no rule of its own, and what needs none: one thread an element of the output, which computes all before it.

Neighbouring threads have neighbouring elements, so that a warp's loads and stores are runs of memory.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import ThreadsConfig
from tvmcnn.schedule.steps import reduction_axes


def threads(sch: Schedule, config: ThreadsConfig) -> None:
    """Blocks: any, the last "out". One that belongs to some leading axes of it ("at") is computed by each thread that
    has a position of those, which then makes the whole of the rest."""
    out = sch.get_sblock("out")
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    marked = [int(sch.get(block).annotations["at"]) for block in blocks if "at" in sch.get(block).annotations]
    empty = any(axis.dom.extent == 0 for block in blocks for axis in sch.get(block).iter_vars)
    loops = sch.get_loops(out)
    if not loops:
        loops = [sch.add_unit_loop(out)]
    owned = loops[: min(marked)] if marked else loops
    if not owned:
        owned = [sch.add_unit_loop(loops[0])]
    fused = sch.fuse(*owned) if len(owned) > 1 else owned[0]
    block, thread = sch.split(fused, [None, 1 if empty else config.threads])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    for each in reversed(blocks):
        info = sch.get(each)
        if info.name_hint == "out":
            continue
        reduced = reduction_axes(sch, each)
        if not reduced and "at" not in info.annotations:
            sch.compute_inline(each)
            continue
        sch.set_scope(each, 0, "local")
        at = thread if "at" in info.annotations else sch.get_loops(sch.get_consumers(each)[-1])[-1]
        sch.compute_at(each, at, preserve_unit_loops=True)
        if empty:  # of a reduction of nothing the first term, which would set the initial value, never comes
            sch.decompose_reduction(each, sch.get_loops(each)[-len(reduced)])
