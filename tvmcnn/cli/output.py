"""Output: what commands say, to people and to programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from tvmcnn.network import Array


def fail(sentence: str) -> int:
    """Say what is wrong; the exit status."""
    print(f"tvmcnn: {sentence}", file=sys.stderr)
    return 1


def reporter(options: argparse.Namespace, stream: TextIO | None = None) -> Callable[[str], None]:
    """Lines for a person: on `stream`, by default standard output, or standard error where that belongs to JSON.

    A terminal gets long ones folded at its width, a file or a pipe gets them whole.
    """
    target = stream or (sys.stderr if options.json else sys.stdout)
    width = shutil.get_terminal_size().columns if target.isatty() else 0

    def say(line: str) -> None:
        try:
            print(folded(line, width), file=target, flush=True)
        except BrokenPipeError:  # the reader, `head` say, has seen enough; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())

    return say


@contextlib.contextmanager
def answers_ctrl_c() -> Iterator[None]:
    """Within it SIGINT raises KeyboardInterrupt, also where the process has inherited that it be ignored.

    A shell without job control starts what it runs in the background so, and long work must still be stoppable.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set a handler
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def folded(line: str, width: int) -> str:
    """A line in as many of `width` columns as it takes, the further ones indented; 0 leaves it as it is."""
    if not width or len(line) <= width:
        return line
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def print_line(value: Any) -> None:
    """One JSON object a line, as it happens."""
    print(json.dumps(value, default=list), flush=True)


def print_json(value: Any) -> None:
    """An object for programs; what is no number in JSON, NaN and infinities, is null."""
    print(json.dumps(_finite(value), indent=2, default=list, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def best_of(scores: Array, count: int, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The highest scores of each row (each leading index), best first, with index and label."""
    rows = scores.reshape(scores.shape[0] if scores.ndim > 1 else 1, -1)
    found = []
    for row in rows:
        best = np.argsort(-row, kind="stable")[:count]
        found.append(
            [
                {"index": int(i), "score": float(row[i]), "label": labels[i] if i < len(labels) else str(int(i))}
                for i in best
            ]
        )
    return found
