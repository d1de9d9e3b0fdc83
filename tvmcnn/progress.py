"""The progress bar of long work, for a person at a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

QUIET_SECONDS = 1.0  # seconds before a bar appears

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is, of how much (0: who knows)


def silent(doing: str, done: int, total: int) -> None:
    """No bar."""


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal that knows how to move its cursor; one without a TERM counts as one that does not.

    The rule of every live display: rich alone would write escapes where TERM is empty or not set.
    """
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """A bar on standard error that appears after a second and leaves no trace; none where nothing can be drawn."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Display
    except ImportError:
        yield silent
        return
    if not can_draw(sys.stderr):
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    display = Display(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    began = time.monotonic()

    def show(doing: str, done: int, total: int) -> None:
        task = next((task.id for task in display.tasks if task.description == doing), None)
        if task is None:
            for old in display.task_ids:
                display.remove_task(old)
            task = display.add_task(doing, total=total or None)
        display.update(task, completed=done)
        if done >= total > 0:
            display.stop()  # before anybody prints
        elif time.monotonic() - began > QUIET_SECONDS or not total:
            display.start()

    try:
        yield show
    finally:
        display.stop()
