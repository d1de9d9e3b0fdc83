"""What a run of the tuner leaves: the file of records, rewritten whole with every gain, and the figures at the end."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvmcnn.choose.records import versions_here
from tvmcnn.files import write_file
from tvmcnn.machine import usable_cpus
from tvmcnn.targets import Target
from tvmcnn.tuning.before_after import Latency
from tvmcnn.tuning.journal import FAILED, WRONG
from tvmcnn.tuning.search import Search, State
from tvmcnn.tuning.space import Key


@dataclass(frozen=True)
class TunedKernel:
    """One kernel at the end: µs a call of the default and of the best, which has so much of the FMA peak."""

    kernel: str
    count: int
    rule: str
    config: Mapping[str, Any]
    default_us: float
    best_us: float
    gflops: float
    peak_share: float
    tried: int
    wrong: int
    failed: int


@dataclass(frozen=True)
class Tuned:
    """What a run of the tuner left: files, kernels, and the latency of the network before and after, if it runs here.

    `seconds` is what this run took, `measured` the trials that it added, `finished` says that nothing was left to try.
    """

    records: Path
    journal: Path
    target: str
    machine: str
    kernels: tuple[TunedKernel, ...]
    seconds: float
    measured: int
    finished: bool
    peak: float
    latency: Latency | None

    @property
    def default_us(self) -> float:
        """µs of all kernels one after the other, with the computed configs."""
        return sum(kernel.count * kernel.default_us for kernel in self.kernels)

    @property
    def best_us(self) -> float:
        """µs of all kernels one after the other, with the records."""
        return sum(kernel.count * kernel.best_us for kernel in self.kernels)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        paths = {"records": str(self.records), "journal": str(self.journal)}
        return {**asdict(self), **paths, "default_us": self.default_us, "best_us": self.best_us}


# ---- records --------------------------------------------------------------------------------------------------------


def described_target(machine: Target, cpu: str) -> dict[str, Any]:
    """The target of a record."""
    caches = {"l1_bytes": machine.l1_bytes, "l2_bytes": machine.l2_bytes}
    return {"isa": machine.isa, "lanes": machine.lanes("float32"), **caches, "cores": usable_cpus(), "machine": cpu}


def write_records(path: Path, state: State, facts: Mapping[str, Any]) -> None:
    """The file with the records that the kernel's holders have now; every other line stays what it is."""
    made = [_record(state, rule, key, facts) for rule, key in sorted(state.log.held.items())]
    write_file(path, replaced(path, made))


def replaced(path: Path, made: Sequence[Mapping[str, Any]]) -> str:
    """The lines of a file of records with those just made, instead of what it had of the same kernels and targets."""
    lines = path.read_text().splitlines() if path.exists() else []
    keys = {_line_key(json.dumps(each)) for each in made}
    kept = [line for line in lines if line.strip() and _line_key(line) not in keys]
    return "".join(f"{line}\n" for line in (*kept, *map(json.dumps, made)))


def _record(state: State, rule: str, key: Key, facts: Mapping[str, Any]) -> dict[str, Any]:
    final, tried = state.log.finals[key], state.log.trials[key]
    gflops = state.problem.flops / final.median / 1e3
    low, high = final.quartiles
    entry = {"kernel": state.problem.words, "rule": rule, "config": asdict(key[1]), "time_us": round(final.median, 3)}
    entry |= {"spread_us": round(high - low, 3), "default_time_us": round(state.default_time, 3) or None}
    entry |= {"gflops": round(gflops, 1), "peak_share": round(gflops / final.peak, 3)}
    entry |= {"max_rel_error": float(f"{tried.error:.3g}"), "cache": facts["cache"], "target": facts["target"]}
    return entry | stamp(versions_here(), facts["command"])


def stamp(versions: Sequence[str], command: str) -> dict[str, str]:
    """The end of a record: with what it was made, versions of tvmcnn and TVM first, when, and how."""
    tvmcnn, tvm = versions
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"tvmcnn": tvmcnn, "tvm": tvm, "date": date, "command": command}


def _line_key(line: str) -> tuple[str, ...] | None:
    try:
        entry = json.loads(line)
        return entry["kernel"], entry["rule"], entry["target"]["isa"], entry["target"].get("machine", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not ours to judge: it stays


def _kernel(state: State, peak: float) -> TunedKernel:
    log = state.log
    key = min(log.held.values(), key=lambda held: log.finals[held].median)
    gflops = state.problem.flops / log.finals[key].median / 1e3
    return TunedKernel(
        state.problem.words,
        state.problem.count,
        key[0],
        asdict(key[1]),
        state.default_time,
        state.best,
        gflops,
        gflops / (log.finals[key].peak or peak),
        len(log.trials),
        log.count(WRONG),
        log.count(FAILED),
    )


def tuned(path: Path, search: Search, cpu: str, seconds: float, resumed: int, latency: Latency | None) -> Tuned:
    """What a search has come to, of which `resumed` trials were known before."""
    kernels = tuple(_kernel(state, search.peak) for state in search.states if state.log.finals)
    measured = sum(len(state.log.trials) for state in search.states) - resumed
    finished = all(state.done for state in search.states)
    target = search.target.name
    return Tuned(path, search.journal.path, target, cpu, kernels, seconds, measured, finished, search.peak, latency)
