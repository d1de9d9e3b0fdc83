"""The loop over time around a scheduled step of an LSTM, GRU or RNN (ops/recurrent.py).

    for tile:                               for tile:
        start_h = …                             start_h = …
        out = f(start_h, t)         -->         for t in 50:
        y[t] = out                                  out = f(start_h, t)
        next_h = out                                out_of_kernel[t] = out
                                                    start_h = out

Put around it before, the loop would make each step depend on the last, and TVM's schedule would refuse every move.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock

from tvmcnn.ops.recurrent import OUTPUTS, STATES, TIMES
from tvmcnn.ops.tiles import stored_elsewhere

BECOMES = {"next_h": "start_h", "next_c": "start_c"}  # by name the state of a step, and what the next one begins with


def over_time(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function of all steps of a step (t, operands…, parts of the output…, next states…); any other as it is."""
    if func.attrs is None or TIMES not in func.attrs:
        return func
    times, outputs, states = (int(func.attrs[name]) for name in (TIMES, OUTPUTS, STATES))
    time, *params = func.params
    operands, parts, following = params[: -outputs - states], params[-outputs - states : -states], params[-states:]
    body, output = _in_one(func.body, parts)
    body = _following(body, following)
    result = tirx.PrimFunc([*operands, output], _looped(body, time, times), func.ret_type, func.attrs)
    return result.without_attr(TIMES).without_attr(OUTPUTS).without_attr(STATES)


def _in_one(body: tirx.Stmt, parts: Sequence[Any]) -> tuple[tirx.Stmt, Any]:
    """The parts of the output as rows of one buffer: T rows of (T, D, B, H), then one of each (D, B, H)."""
    shapes = [tuple(int(extent) for extent in part.shape) for part in parts]
    firsts = list(itertools.accumulate((shape[0] if len(shape) == 4 else 1 for shape in shapes), initial=0))
    output = tirx.decl_buffer((firsts[-1], *shapes[0][-3:]), parts[0].dtype, "out")
    for part, first in zip(parts, firsts, strict=False):
        body = stored_elsewhere(body, part, output, functools.partial(_row, first))
    return body, output


def _row(first: int, at: Sequence[Any]) -> Sequence[Any]:
    """Where an element lies: Y comes first, and has the time as an axis already."""
    return at if len(at) == 4 else [first, *at]


def _following(body: tirx.Stmt, states: Sequence[Any]) -> tirx.Stmt:
    """The next states where the step reads those before it."""
    starts = _stages(body)
    for state in states:
        body = stored_elsewhere(body, state, starts[BECOMES[state.name]], lambda at: at)
    return body


def _stages(body: tirx.Stmt) -> dict[str, Any]:
    """The buffer that each block writes, by the block's name."""
    found: dict[str, Any] = {}

    def note(block: SBlock) -> SBlock:
        found.update({str(block.name_hint): region.source for region in block.writes})
        return block

    tvm_ffi.structural_map(body, (SBlock, note))
    return found


def _looped(body: tirx.Stmt, time: Any, times: int) -> tirx.Stmt:
    """The statements of a tile that follow its first states, in a loop."""
    looped = 0

    def around(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
        nonlocal looped
        names = [_block_names(each) for each in sequence]
        first = sum(1 for each in names if any(name.startswith("start_") for name in each))
        if not first or first == len(names) or not any("out" in each for each in names[first:]):
            return sequence
        looped += 1
        rest = sequence[first:]
        inner = rest[0] if len(rest) == 1 else tirx.SeqStmt(list(rest))
        return tirx.SeqStmt([*sequence[:first], tirx.For(time, 0, times, tirx.ForKind.SERIAL, inner)])

    result = tvm_ffi.structural_map(body, (tirx.SeqStmt, around), order="post")
    if looped != 1:
        raise RuntimeError(
            f"a step has {looped} places for the loop over time, not one: its schedule lacks a compute_at"
        )
    return result


def _block_names(statement: tirx.Stmt) -> set[str]:
    """The names of the blocks in it."""
    found: set[str] = set()

    def note(block: SBlock) -> SBlock:
        found.add(str(block.name_hint))
        return block

    tvm_ffi.structural_map(statement, (SBlock, note))
    return found
