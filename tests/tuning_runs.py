"""Runs of the tuner that end when a test has seen enough: by what they tell, never by the clock.

A budget of seconds is filled by as many trials as the machine has time for, on a busy one by none. These runs have a
day, and count.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers import GUARD

from tvmcnn.tuning.search import Search

DAY = "24h"

Event = Mapping[str, Any]


def trials(events: Sequence[Event]) -> list[Event]:
    return [each for each in events if each["event"] == "trial"]


def ops_with_a_final(events: Sequence[Event]) -> set[str]:
    """Operators of the kernels that may have records by now: conv, gemm."""
    return {each["kernel"].split()[0] for each in events if each["event"] == "final"}


def rules_with_a_record(events: Sequence[Event], kernel: str) -> set[str]:
    return {rule for each in events if each["event"] == "final" and each["kernel"] == kernel for rule in each["held"]}


class Enough:
    """Receives what a search tells, as its `event` and `watch`, and ends it when that is enough."""

    def __init__(self, enough: Callable[[Sequence[Event]], bool]) -> None:
        self.enough, self.events = enough, list[Event]()
        self.search: Search | None = None

    def event(self, entry: Event) -> None:
        self.events.append(entry)
        assert self.search is not None
        if self.enough(self.events):
            self.search.deadline = 0.0

    @contextlib.contextmanager
    def watch(self, search: Search, seconds: float) -> Iterator[None]:
        self.search = search
        yield

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of `tune`."""
        return {"budget": DAY, "event": self.event, "watch": self.watch}


class Running:
    """`tvmcnn tune --json` in a process of its own, whose events are read as they come."""

    def __init__(self, folder: Path, *words: str, before: Sequence[str] = ()) -> None:
        """`before` is what starts it, for example "env"; its errors go to a file, which no pipe can fill."""
        self.errors = folder / "errors.txt"
        command = [*before, sys.executable, "-m", "tvmcnn", "tune", *words, "--budget", DAY, "--from-scratch", "--json"]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ}
            )
        self.events: list[Event] = []
        self._guard = threading.Timer(GUARD, self.process.kill)
        self._guard.start()

    def until(self, enough: Callable[[Sequence[Event]], bool]) -> None:
        """Read on until what it has told is enough."""
        assert self.process.stdout is not None
        while not enough(self.events):
            line = self.process.stdout.readline()
            assert line, f"it ended too early: {self.errors.read_text()}"
            self.events.append(json.loads(line))

    def children(self) -> list[int]:
        """The processes that it has started."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """Send a signal and read to the end: the exit status, and the whole lines that were still told."""
        self.process.send_signal(how)
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        self.process.stdout.close()
        status = self.process.wait()
        self._guard.cancel()
        return status, rest[: rest.rfind("\n") + 1]
