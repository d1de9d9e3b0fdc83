"""Trace: when each kernel of one run began and ended, and what each thread did of it, for Perfetto.

The library notes the times itself (`{name}_trace`), between the kernels of the very chain that runs: reading the clock
takes 20 ns, so that LeNet-5's 3 µs can be seen too.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array
from tvmcnn.run.arrays import random_array
from tvmcnn.run.runner import Runner

WARM = 5  # runs before the one that counts
SPAN = np.dtype([("begin", "i8"), ("end", "i8"), ("thread", "i4"), ("first", "i4"), ("last", "i4"), ("", "i4")])


@dataclass(frozen=True)
class Span:
    """Something that took from `begin` to `end`, in µs from the start of the run, on `thread` (0 is the caller's).

    `kernel` is its index. Tasks `first` to `last` - 1 of it, or all of it (None) for the chain's own call.
    """

    kernel: int
    thread: int
    begin: float
    end: float
    first: int | None = None
    last: int | None = None


def trace(net: Runner, *arrays: Any) -> tuple[Span, ...]:
    """The spans of one run on `arrays` (random ones if none are given), after a few that warm up.

    Raises InputError for arrays that do not fit, and for a network on a GPU.
    """
    if not hasattr(net._symbols, symbol := f"{net.symbol}_trace"):
        raise InputError(f"{net.path.name} cannot be traced: it is for GPUs")
    given = arrays or tuple(random_array(info, seed) for seed, info in enumerate(net.inputs))
    addresses = net._addresses(given, net._allocate())
    arena, _memory = net._new_arena()
    kernels = net.manifest["kernels"]
    most = sum(kernel["tasks"] for kernel in kernels)
    stamps, spans = np.zeros(len(kernels) + 1, np.int64), np.zeros(most, SPAN)
    numbers = (ctypes.c_int32(most), ctypes.c_int32(net.threads))
    for _ in range(WARM + 1):
        count = net._symbols[symbol](
            ctypes.c_void_p(stamps.ctypes.data), ctypes.c_void_p(spans.ctypes.data), *numbers, *addresses,
            ctypes.c_void_p(arena),
        )  # fmt: skip
    return (*_calls(stamps), *_tasks(stamps, spans[: min(count, most)]))


def _calls(stamps: Array) -> list[Span]:
    at = (stamps - stamps[0]) / 1e3
    return [Span(index, 0, float(at[index]), float(at[index + 1])) for index in range(len(at) - 1)]


def _tasks(stamps: Array, spans: Array) -> list[Span]:
    found = []
    for each in np.sort(spans, order="begin"):
        kernel = int(np.searchsorted(stamps, each["begin"], side="right")) - 1
        begin, end = ((each[name] - stamps[0]) / 1e3 for name in ("begin", "end"))
        found.append(Span(kernel, int(each["thread"]), float(begin), float(end), int(each["first"]), int(each["last"])))
    return found


def chrome_trace(net: Runner, spans: Sequence[Span]) -> str:
    """The spans as a Chrome trace, for ui.perfetto.dev: a row for the chain, and one for each thread's tasks."""
    kernels = net.manifest["kernels"]
    rows = {0: "chain"} | {1 + thread: f"thread {thread}: tasks" for thread in range(net.threads)}
    events: list[dict[str, Any]] = [_named("process_name", 0, f"{net.name} for {net.target}, {net.threads} threads")]
    events += [_named("thread_name", row, text) for row, text in rows.items()]
    for span in spans:
        kernel = kernels[span.kernel]
        seconds = max(span.end - span.begin, 1e-3) / 1e6
        facts: dict[str, Any] = {"nodes": kernel["nodes"], "algorithm": kernel["algorithm"], "rule": kernel["rule"]}
        if span.first is None:
            facts |= {"GFLOP/s": round(2 * kernel["macs"] / seconds / 1e9, 1)}
            facts |= {"GB/s": round(kernel["bytes"] / seconds / 1e9, 1)}
        else:
            facts |= {"tasks": f"{span.first} to {(span.last or 0) - 1} of {kernel['tasks']}"}
        row = 0 if span.first is None else 1 + span.thread
        title = f"{kernel['name']} {'+'.join(kernel['ops'])}" if span.first is None else kernel["name"]
        length = {"ts": round(span.begin, 3), "dur": round(span.end - span.begin, 3)}
        events.append({"name": title, "ph": "X", "pid": 1, "tid": row, **length, "args": facts})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}, indent=1) + "\n"


def _named(what: str, row: int, text: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 1, "tid": row, "args": {"name": text}}
