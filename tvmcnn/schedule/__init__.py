"""Schedule: a declared PrimFunc and a rule's config become a scheduled PrimFunc. Rules hold steps, configs hold
numbers."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvmcnn.network import Choice
from tvmcnn.schedule.x86 import RULES
from tvmcnn.schedule.x86.vectors import Loop, extent


def schedule(func: tirx.PrimFunc, choice: Choice, lanes: int) -> tirx.PrimFunc:
    """The PrimFunc of `choice` after its rule. `lanes` is the number of float32 values in one vector register."""
    sch = Schedule(func)
    RULES[choice.rule](sch, choice.config, lanes)
    return shared(sch, choice.tasks) if choice.tasks > 1 else sch.mod["main"]


def shared(sch: Schedule, tasks: int) -> tirx.PrimFunc:
    """The scheduled PrimFunc with the outermost loops, as many as make `tasks` iterations, as one parallel loop.

    for n in 2, block in 4, row in 14: …    -->    for task in parallel(112): …

    Raises ValueError if the loops do not make that number: the choice and the rule disagree.
    """
    leading: list[Loop] = []
    made = 1
    for loop in sch.get_loops(sch.get_sblock("out")):
        if made == tasks:
            break
        leading.append(loop)
        made *= extent(sch, loop)
    if made != tasks:
        raise ValueError(f"{tasks} tasks chosen; the outer loops make {made}")
    outer = sch.get(sch.fuse(*leading) if len(leading) > 1 else leading[0])

    def mark(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(outer.loop_var):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.PARALLEL, loop.body)

    # Not by sch.parallel, which refuses a nest whose reduction has its initial value apart.
    return tvm_ffi.structural_map(sch.mod["main"], (tirx.For, mark))
