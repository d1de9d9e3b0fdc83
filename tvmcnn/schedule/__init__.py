"""Schedule: a declared PrimFunc and a rule's config become a scheduled PrimFunc. Rules hold steps, configs hold
numbers."""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from tvmcnn.network import Choice
from tvmcnn.schedule.x86 import RULES


def schedule(func: tirx.PrimFunc, choice: Choice, lanes: int) -> tirx.PrimFunc:
    """The PrimFunc of `choice` after its rule. `lanes` is the number of float32 values in one vector register."""
    sch = Schedule(func)
    RULES[choice.rule](sch, choice.config, lanes)
    return sch.mod["main"]
