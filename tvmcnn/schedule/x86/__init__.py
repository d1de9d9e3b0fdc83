"""Schedules for x86, one rule a family of kernels: (Schedule, config, lanes), scheduled in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvmcnn.network import Choice
from tvmcnn.schedule.steps import Block, Loop, extent
from tvmcnn.schedule.x86.amx import amx
from tvmcnn.schedule.x86.columns import columns
from tvmcnn.schedule.x86.dense import dense, dense_dots, dense_pairs
from tvmcnn.schedule.x86.direct import direct
from tvmcnn.schedule.x86.fallback import fallback
from tvmcnn.schedule.x86.few_maps import few_maps
from tvmcnn.schedule.x86.images import images
from tvmcnn.schedule.x86.in_order import in_order
from tvmcnn.schedule.x86.lanes import lanes
from tvmcnn.schedule.x86.matmul import matmul
from tvmcnn.schedule.x86.memory import memory
from tvmcnn.schedule.x86.normalize import normalize
from tvmcnn.schedule.x86.pairs import pairs
from tvmcnn.schedule.x86.pixels import pixels
from tvmcnn.schedule.x86.pool import pool
from tvmcnn.schedule.x86.recurrent import recurrent
from tvmcnn.schedule.x86.rows import rows
from tvmcnn.schedule.x86.softmax import softmax
from tvmcnn.schedule.x86.winograd import streamed, winograd, winograd_data

RULES: dict[str, Callable[[Schedule, Any, int], None]] = {
    "direct": direct,
    "dots": direct,
    "amx": amx,
    "pairs": pairs,
    "winograd": winograd,
    "winograd_data": winograd_data,
    "streamed": streamed,
    "columns": columns,
    "pixels": pixels,
    "few_maps": few_maps,
    "dense": dense,
    "dense_dots": dense_dots,
    "dense_pairs": dense_pairs,
    "matmul": matmul,
    "images": images,
    "pool": pool,
    "lanes": lanes,
    "softmax": softmax,
    "normalize": normalize,
    "recurrent": recurrent,
    "memory": memory,
    "rows": rows,
    "in_order": in_order,
    "fallback": fallback,
}


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
    for loop in sch.get_loops(_last(sch)):
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


def _last(sch: Schedule) -> Block:
    """The block that stores the output: TVM names it "out_o" once an instruction stores a part of it."""
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    return next(block for block in blocks if sch.get(block).name_hint in ("out", "out_o"))
