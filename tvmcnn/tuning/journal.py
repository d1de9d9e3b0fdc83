"""The journal: every measurement of a tuning run, one JSON line each, on disk before the next begins.

    {"event": "start", "isa": …, "machine": …, "code": …, "cache": "cold", "seed": 0, "command": …}
    {"event": "trial", "kernel": …, "rule": …, "config": {…}, "outcome": "ok", "time_us": 395.1, "error": …, "at": 3.1}
    {"event": "final", "kernel": …, "entries": [{"rule": …, "config": {…}, "samples": […]}, …], "held": {"direct": 2}}

`kill -9` loses what is being measured and nothing else: a line is appended whole and synced, a torn one is cut off.
A run that finds a journal goes on where it ended; lines of another machine, target, cache mode or version of the code
count for nothing.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.configs import CONFIGS, Config
from tvmcnn.errors import ToolError
from tvmcnn.network import Choice
from tvmcnn.tuning.space import Key

OK, WRONG, FAILED = "ok", "wrong", "failed"  # outcomes of a trial


@dataclass(frozen=True)
class Tried:
    """The outcome of one trial: µs a call if it is ok, else the reason."""

    outcome: str
    microseconds: float = 0.0
    error: float = 0.0  # max |difference| from NumPy, and what is allowed, relative to max |value|
    tolerance: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Final:
    """Repeated measurements of a candidate in µs, interleaved with its rivals'; the FMA peak in the same rounds."""

    samples: tuple[float, ...]
    peak: float  # GFLOP/s

    @property
    def median(self) -> float:
        """µs a call."""
        return float(np.median(self.samples))

    @property
    def quartiles(self) -> tuple[float, float]:
        """µs a call: a quarter of the samples is below the first, a quarter above the second."""
        low, high = np.percentile(self.samples, [25, 75])
        return float(low), float(high)


@dataclass
class Log:
    """What is known of one kernel: trials in their order, and the last final of each candidate that had one."""

    trials: dict[Key, Tried] = dataclasses.field(default_factory=dict)
    finals: dict[Key, Final] = dataclasses.field(default_factory=dict)
    held: dict[str, Key] = dataclasses.field(default_factory=dict)  # by rule who has the record
    history: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)  # s, µs of best and default

    def count(self, outcome: str) -> int:
        """How many trials ended so."""
        return sum(tried.outcome == outcome for tried in self.trials.values())


class Journal:
    """An open journal: what it says by kernel in words, and where the next lines go. Only one process has it."""

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        """Read what was measured under the same `conditions`. Raises ToolError for a file that cannot be had."""
        self.path, self.logs, self.elapsed, self.foreign = path, dict[str, Log](), 0.0, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ToolError(f"{path} is in use: another tvmcnn tune writes there") from None
        except OSError as error:
            raise ToolError(f"cannot write {path}: {error.strerror}") from error
        self._read(conditions)

    def _read(self, conditions: Mapping[str, Any]) -> None:
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # killed in the middle of a line
            os.ftruncate(self._file, whole)
        ours = False
        for line in data[:whole].splitlines():
            try:
                entry = json.loads(line)
                if entry["event"] == "start":
                    ours = all(entry.get(name) == value for name, value in conditions.items())
                elif ours:
                    self._take(entry)
                else:
                    self.foreign += entry["event"] == "trial"
            except (ValueError, KeyError, TypeError):
                self.foreign += 1

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line, on disk when this returns, and take it into account."""
        if entry["event"] != "start":
            self._take(entry)
        os.write(self._file, (json.dumps(entry) + "\n").encode())
        os.fdatasync(self._file)

    def log(self, words: str) -> Log:
        """What is known of a kernel."""
        return self.logs.setdefault(words, Log())

    def close(self) -> None:
        """Let others have the file."""
        os.close(self._file)

    def _take(self, entry: Mapping[str, Any]) -> None:
        log, at = self.log(entry["kernel"]), float(entry["at"])
        self.elapsed = max(self.elapsed, at)
        if entry["event"] == "trial":
            names = {field.name for field in dataclasses.fields(Tried)} - {"microseconds"}
            given = {name: value for name, value in entry.items() if name in names}
            given |= {"error": float("nan")} if given.get("error", 0.0) is None else {}  # JSON has no NaN
            log.trials[_key(entry)] = Tried(microseconds=entry.get("time_us", 0.0), **given)
        elif entry["event"] == "final":
            keys = [_key(each) for each in entry["entries"]]
            for key, each in zip(keys, entry["entries"], strict=True):
                log.finals[key] = Final(tuple(each["samples"]), entry["peak"])
            log.held |= {rule: keys[index] for rule, index in entry["held"].items()}
            best = min(log.finals[key].median for key in log.held.values())
            log.history.append((at, best, log.finals[keys[entry["default"]]].median if "default" in entry else best))


def trial_entry(words: str, choice: Choice, tried: Tried, at: float) -> dict[str, Any]:
    """The line of a trial, `at` seconds of tuning."""
    entry: dict[str, Any] = {"event": "trial", "kernel": words, **described(choice), "outcome": tried.outcome}
    if tried.outcome == OK:
        entry["time_us"] = round(tried.microseconds, 4)
    if tried.outcome != FAILED:
        entry |= {"error": tried.error if np.isfinite(tried.error) else None, "tolerance": tried.tolerance}
    return entry | ({"reason": tried.reason} if tried.reason else {}) | {"at": round(at, 3)}


def described(choice: Choice) -> dict[str, Any]:
    """Rule and config of a candidate, for JSON."""
    return {"rule": choice.rule, "config": dataclasses.asdict(choice.numbers(Config))}


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["rule"], CONFIGS[entry["rule"]](**entry["config"])
