"""Mutate a valid model by its bytes or by its fields, and see that import refuses or accepts it: a program of its own.

    python tests/mutate_models.py MODEL.onnx bytes|fields FIRST COUNT

Each line tells a seed and what came of it. A crash ends the lines at its seed, and so do a hang, by an alarm, and too
much memory, by a limit on the address space: test_mutations.py reads them.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

MEMORY = 6 << 30  # bytes of address space
SECONDS = 120  # of the CPU for one model; a tenth of one is usual
GUARD = 900  # of the clock
NUMBERS = (0, 1, -1, 2, 7, 16, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
WORDS = (
    "",
    "Relu",
    "Conv",
    "Gemm",
    "Resize",
    "Concat",
    "Split",
    "MaxPool",
    "nearest",
    "SAME_UPPER",
    "no",
    "\x00",
    "a b",
)


def messages(message: Any) -> Iterator[Any]:
    """The message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from messages(inner)


def mutate_fields(data: bytes, rng: random.Random) -> bytes:
    """One to three fields changed: numbers, names, edges, types; elements dropped, doubled or swapped."""
    model = onnx.load_model_from_string(data)
    places = [m for m in messages(model) if not isinstance(m, onnx.StringStringEntryProto) and m.ListFields()]
    words = [*WORDS, *(name for node in model.graph.node for name in (*node.input, *node.output, node.op_type))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        message = rng.choice(places)
        if not message.ListFields():  # the last change has emptied it
            continue
        field, value = rng.choice(message.ListFields())
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # a number that the field cannot hold
            _mutate_field(message, field, value, words, rng)
    return bytes(model.SerializeToString())


def _mutate_field(message: Any, field: Any, value: Any, words: list[str], rng: random.Random) -> None:
    if field.is_repeated:
        place = rng.randrange(len(value))
        kind = rng.choice(("drop", "double", "swap", "change"))
        if kind == "drop" or (kind == "change" and field.message_type is not None):
            del value[place]
        elif kind == "double":
            value.append(value[place])
        elif kind == "swap" and field.message_type is None:
            other = rng.randrange(len(value))
            value[place], value[other] = value[other], value[place]
        elif field.message_type is None:
            value[place] = _other(value[place], words, rng)
    elif field.message_type is not None or rng.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _other(value, words, rng))


def _other(value: Any, words: list[str], rng: random.Random) -> Any:
    if isinstance(value, bool | int):
        return rng.choice((*NUMBERS, value + 1, value - 1, value * 2, rng.randrange(30)))
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, bytes):
        return value[: rng.randrange(len(value) + 1)] if rng.random() < 0.3 else rng.choice(words).encode()
    return rng.choice(words)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, dropped or put in, most of them outside the weights; now and then the end is cut."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(changed))
        kind = rng.choice(("set", "set", "flip", "drop", "insert", "cut"))
        if kind == "set":
            changed[place] = rng.randrange(256)
        elif kind == "flip":
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == "drop":
            del changed[place]
        elif kind == "insert":
            changed.insert(place, rng.randrange(256))
        elif rng.random() < 0.1:
            del changed[place:]
    return bytes(changed)


def keep_rehearsals() -> None:
    """Let all rehearsals have one process, which is started again when a model ends it: a second less for each."""
    from tvmcnn import worker_process
    from tvmcnn.importer import crash_guard

    process = worker_process.Isolated(quiet=True)
    vars(crash_guard).update(Isolated=lambda **_: process, closing=contextlib.nullcontext)


def outcome(data: bytes) -> dict[str, Any]:
    """What came of a model: whether it parses, and the class and text of its refusal, or that it was laid out."""
    from tvmcnn.choose.cpu import choose
    from tvmcnn.choose.records import Records
    from tvmcnn.errors import TvmcnnError
    from tvmcnn.fuse import fuse
    from tvmcnn.fuse.passes import simplified
    from tvmcnn.importer import import_model
    from tvmcnn.layout import Weights, lay_out
    from tvmcnn.targets import TARGETS

    parses = True
    try:
        onnx.load_model_from_string(data)
    except Exception:  # protobuf's own classes
        parses = False
    try:
        network = simplified(import_model(data))
        lay_out(network, choose(network, fuse(network), TARGETS["x86-64-v3"], Records({})), Weights())
    except TvmcnnError as error:
        return {"parses": parses, "refused": type(error).__name__, "text": str(error)}
    except Exception as error:
        return {"parses": parses, "broke": f"{type(error).__name__}: {error}"}
    return {"parses": parses, "accepted": True}


def main() -> None:
    """Print one JSON object a seed."""
    path, kind, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    keep_rehearsals()
    data = path.read_bytes()
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed}), end=" ", flush=True)
        changed = {"bytes": mutate_bytes, "fields": mutate_fields}[kind](data, random.Random(seed))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the CPU: on a busy machine a clock sees hangs that are none
        signal.alarm(GUARD)  # and of the clock, should a rehearsal hang
        print(json.dumps(outcome(changed)), flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)


if __name__ == "__main__":
    main()
