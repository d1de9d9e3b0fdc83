"""Tune: a time budget in, verified records out.

    problems (distinct kernels) ─▶ space (candidates in order) ─▶ build (isolated) ─▶ measure: check, time, final
        ▲                                                                                  │ journal, synced
        └──────── search: which kernel next, until the budget is spent ◀──────────────────┘ records, rewritten whole

A candidate counts only if its output agrees with NumPy. At any moment the file of records has the best answer so far,
and the journal beside it every measurement: the same command goes on where it ended, however it did.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tvmcnn.artifact import write_file
from tvmcnn.choose import choose
from tvmcnn.codegen import scratch_folder
from tvmcnn.codegen.jobs import code_digest
from tvmcnn.codegen.trials import Linker
from tvmcnn.errors import TargetError, ToolError
from tvmcnn.fusion import fuse
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Program, Shape
from tvmcnn.onnx_file import Model
from tvmcnn.records import NONE, Record, distance, own_records, read_records, schedules_folder, unfit, versions_here
from tvmcnn.targets import NATIVE, Target, resolve, usable_cpus
from tvmcnn.tuning.before_after import Latency, latency
from tvmcnn.tuning.build import Builder
from tvmcnn.tuning.journal import FAILED, WRONG, Journal
from tvmcnn.tuning.measure import Measurer, PlaceLostError
from tvmcnn.tuning.place import Place
from tvmcnn.tuning.plot import check_path
from tvmcnn.tuning.plot import plot as picture
from tvmcnn.tuning.problem import Problem, problems, weights_bytes
from tvmcnn.tuning.search import Search, State, Watch
from tvmcnn.tuning.space import Key

NEAREST = 2  # records of other kernels that are tried first
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


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


def tune(
    model: Model,
    target: str = "native",
    budget: str | float = "10m",
    records: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | None = None,
    seed: int = 0,
    cold: bool = True,
    known_records: bool = True,
    plot: str | PathLike[str] | None = None,
    rpc_tracker: str | None = None,
    rpc_key: str | None = None,
    jobs: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    event: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    watch: Watch = lambda search, seconds: contextlib.nullcontext(),
    measure: bool = True,
) -> Tuned:
    """Search the configs of a model's kernels for about `budget` (seconds, or "90s", "10m", "2h").

    The best go to the file `records` (the user's own, which `compile` reads, without it), every measurement to the
    journal beside it; the same call again goes on. `cold` measures with weights as cold as in the network, else with
    weights in cache. `known_records` starts from the records that there are, else from computed configs alone.
    `plot` is a picture of the best so far over time. `rpc_tracker` ("HOST:PORT") and `rpc_key` measure on other
    machines, by TVM's RPC. `report` receives sentences, `event` each measurement; `watch` shows the search; `measure`
    compares the network's latency at the end.

    Raises ModelError, UnsupportedError, TargetError, ToolError; VerifyError if the network does not agree with NumPy.
    """
    seconds, started = parse_budget(budget), time.monotonic()
    if plot is not None:
        check_path(Path(plot))
    machine, places = resolve(target), _places(target, rpc_tracker, rpc_key)
    if not rpc_tracker and (missing := machine.missing()):
        lacks = f"this CPU lacks {', '.join(missing)}"
        raise TargetError(f"cannot measure for {machine.name} here: {lacks}; --rpc-tracker measures on other machines")
    path = _records_path(records)
    network = import_model(model, input_shapes, batch=batch)
    program = lay_out(network, choose(network, fuse(network), machine, NONE), Weights())
    with scratch_folder() as folder, contextlib.ExitStack() as stack:
        linker = Linker(folder, machine)
        measurers = [Measurer(place) for place in places]
        cpu = _same_machine(measurers, linker)
        conditions = {"isa": machine.name, "machine": cpu, "cache": "cold" if cold else "warm", "code": code_digest()}
        journal = Journal(journal_path(path), conditions)
        stack.callback(journal.close)
        before = _snapshot(path, folder) if known_records else None
        states = _states(program, machine, cpu, path, journal, seed, known=known_records)
        for line in _opening(machine, cpu, states, program, path, journal, seconds, conditions["cache"]):
            report(line)
        command = f"tvmcnn tune {_name(model)} --target {target} --budget {budget}{f' --seed {seed}' if seed else ''}"
        journal.write({"event": "start", **conditions, "seed": seed, "command": command, "budget": seconds})
        builder = Builder(jobs or usable_cpus())
        stack.callback(builder.close)
        facts = {"command": command, "cache": conditions["cache"], "target": described_target(machine, cpu)}
        search = Search(
            network, states, journal, builder, linker, measurers, machine, folder, weights_bytes(program), cold,
            deadline=started + seconds, began=journal.elapsed - started, event=event,
            records=lambda state: write_records(path, state, facts),
        )  # fmt: skip
        resumed = journal.resumed
        with watch(search, seconds):
            try:
                search.run()
            except PlaceLostError as error:
                raise ToolError(f"nothing is left to measure on: {error}; what was measured is kept") from error
        spent = time.monotonic() - started
        if plot is not None:
            picture(states, Path(plot), f"{network.name} for {machine.name} on {cpu}")
        figures = None
        if measure and not rpc_tracker and any(state.log.finals for state in states):
            given = [] if before is None else [before]
            figures = latency(model, target, input_shapes, batch, given, path, folder, known=known_records)
    kernels = tuple(_tuned(state, search.peak) for state in states if state.log.finals)
    measured = sum(len(state.log.trials) for state in states) - resumed
    finished = all(state.done for state in states)
    return Tuned(path, journal.path, machine.name, cpu, kernels, spent, measured, finished, search.peak, figures)


# ---- what is given --------------------------------------------------------------------------------------------------


def parse_budget(budget: str | float) -> float:
    """Seconds: of 90, "90s", "10m", "1.5h". Raises ToolError for anything else, and for none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(budget))
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ToolError(f"the budget '{budget}' is no time above 0; write 90s, 10m or 2h")
    return seconds


def journal_path(records: Path) -> Path:
    """Beside my.jsonl lies my.trials.jsonl."""
    return records.with_suffix(f".trials{records.suffix}")


def _records_path(records: str | PathLike[str] | None) -> Path:
    path = own_records() if records is None else Path(records)
    if path is None:
        raise ToolError("there is no place for your own records ($TVMCNN_RECORDS is off, or $HOME is missing): give -o")
    if path.suffix != ".jsonl":
        raise ToolError(f"the records '{path}' end in '{path.suffix}'; a file of records ends in .jsonl")
    if records is not None and not path.parent.is_dir():
        raise ToolError(f"cannot write {path}: the folder {path.parent} does not exist")
    return path


def _places(target: str, tracker: str | None, key: str | None) -> list[Place]:
    """This machine, or one place for each server that the tracker has under the key."""
    if tracker is None and key is None:
        return [None]
    if tracker is None or key is None:
        raise ToolError("--rpc-tracker HOST:PORT and --rpc-key KEY belong together")
    if target in NATIVE:
        raise TargetError("with --rpc-tracker, name the target of the other machines: x86-64-v3 or x86-64-v4")
    from tvmcnn.tuning.remote import servers

    host, port, count = servers(tracker, key)
    return [(host, port, key)] * count


def _same_machine(measurers: Sequence[Measurer], linker: Linker) -> str:
    """The CPU's name at every place. Raises TargetError where two differ: their times cannot be compared."""
    library = linker.link("probe", [], {})
    for measurer in measurers:
        try:
            measurer.open(library, 0)
        except PlaceLostError as error:
            where = "this machine" if measurer.place is None else f"a server of '{measurer.place[2]}'"
            raise TargetError(f"cannot measure on {where}: {error}") from error
    names = sorted({measurer.machine for measurer in measurers})
    if len(names) > 1:
        raise TargetError(f"the servers are different machines ({', '.join(names)}): give each kind a key of its own")
    return names[0]


def _name(model: Model) -> str:
    return Path(model).name if isinstance(model, str | PathLike) else "MODEL"


def _snapshot(path: Path, folder: Path) -> Path:
    """A copy of the records as they are now."""
    copy = folder / "before.jsonl"
    copy.write_bytes(path.read_bytes() if path.exists() else b"")
    return copy


# ---- where the search starts ----------------------------------------------------------------------------------------


def _states(
    program: Program, machine: Target, cpu: str, path: Path, journal: Journal, seed: int, *, known: bool
) -> list[State]:
    """The kernels with more than one candidate, each with what records say of it and of the nearest others."""
    ours = [record for record in _fitting(path, machine.name) if record.machine == cpu]
    others = _known(path, machine.name) if known else []
    states = []
    for problem in problems(program):
        mine = {record.rule: (record.rule, record.config) for record in ours if record.kernel == problem.words}
        state = State(problem, journal.log(problem.words), machine, _nearest(problem, others), mine, seed)
        if len(state.order) > 1:
            states.append(state)
    return states


def _fitting(path: Path, isa: str) -> list[Record]:
    """The records of a file that are for this ISA and these versions."""
    return [record for record in read_records(path)[0] if unfit(record, isa) is None] if path.exists() else []


def _known(path: Path, isa: str) -> list[Record]:
    """Every record there is: of the file to fill, the user's own, the shipped ones."""
    own = own_records()
    files = dict.fromkeys([path, *([own] if own else []), *sorted(schedules_folder().glob("*.jsonl"))])
    return [record for file in files for record in _fitting(file, isa)]


def _nearest(problem: Problem, records: Sequence[Record]) -> list[Key]:
    """Configs of the same kernel, then of those most like it."""
    apart = [(distance(problem.words, record.kernel), i) for i, record in enumerate(records)]
    same = [i for far, i in apart if far == 0]
    near = [i for far, i in sorted(apart) if 0 < far < float("inf")][:NEAREST]
    return list(dict.fromkeys((records[i].rule, records[i].config) for i in (*same, *near)))


def _opening(
    machine: Target,
    cpu: str,
    states: Sequence[State],
    program: Program,
    path: Path,
    journal: Journal,
    seconds: float,
    cache: str,
) -> Iterator[str]:
    """What is going to happen."""
    count = sum(len(state.order) for state in states)
    yield f"target {machine}, measured on {cpu}, float32, one thread, weights {cache}"
    yield f"{len(states)} kernels of {program.network.name} have {count} candidates; {seconds:g} s to try them"
    yield f"records go to {path}, every measurement to {journal.path}"
    if journal.resumed:
        yield f"{journal.resumed} trials of an earlier run are known and not measured again"
    if journal.foreign:
        yield f"{journal.foreign} trials there are of another machine, target, cache mode or version: not used"


# ---- what is written ------------------------------------------------------------------------------------------------


def described_target(machine: Target, cpu: str) -> dict[str, Any]:
    """The target of a record."""
    caches = {"l1_bytes": machine.l1_bytes, "l2_bytes": machine.l2_bytes}
    return {"isa": machine.name, "lanes": machine.lanes, **caches, "cores": usable_cpus(), "machine": cpu}


def write_records(path: Path, state: State, facts: Mapping[str, Any]) -> None:
    """The file with the records that the kernel's holders have now; every other line stays what it is."""
    made = [_record(state, rule, key, facts) for rule, key in sorted(state.log.held.items())]
    target = facts["target"]
    keys = {(each["kernel"], each["rule"], target["isa"], target["machine"]) for each in made}
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.strip() and _line_key(line) not in keys]
    write_file(path, "".join(f"{line}\n" for line in (*kept, *map(json.dumps, made))))


def _record(state: State, rule: str, key: Key, facts: Mapping[str, Any]) -> dict[str, Any]:
    final, tried = state.log.finals[key], state.log.trials[key]
    gflops = state.problem.flops / final.median / 1e3
    low, high = final.quartiles
    entry = {"kernel": state.problem.words, "rule": rule, "config": asdict(key[1]), "time_us": round(final.median, 3)}
    entry |= {"spread_us": round(high - low, 3), "default_time_us": round(state.default_time, 3) or None}
    entry |= {"gflops": round(gflops, 1), "peak_share": round(gflops / final.peak, 3)}
    entry |= {"max_rel_error": float(f"{tried.error:.3g}"), "cache": facts["cache"], "target": facts["target"]}
    tvmcnn, tvm = versions_here()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return entry | {"tvmcnn": tvmcnn, "tvm": tvm, "date": date, "command": facts["command"]}


def _line_key(line: str) -> tuple[str, ...] | None:
    try:
        entry = json.loads(line)
        return entry["kernel"], entry["rule"], entry["target"]["isa"], entry["target"].get("machine", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not ours to judge: it stays


def _tuned(state: State, peak: float) -> TunedKernel:
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
