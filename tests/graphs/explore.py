"""Explore: hypothesis draws models, a worker checks each, and what fails is shrunk to the smallest that fails alike."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.errors import HypothesisException

from graphs.models import Drawn, models
from tvmcnn.worker_process import Isolated, LostError

CHECK = "graphs.worker:check"
SECONDS = 120.0  # of one model: a hang, on a machine however busy
SHRINKING = 100  # models to be tried for one failure
LOST = ("crash", "hang")
LIFE = 400  # models of one worker, whose libraries stay mapped
MEMORY = 8 << 30
NOISE = 1 << 14  # bytes: more than a model of 12 nodes takes
PLAIN: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False}


class Failure(AssertionError):  # noqa: N818 (hypothesis' word)
    """A model that failed."""


@dataclass(frozen=True)
class Failing:
    """A model that fails, the kind of failure and what is said of it."""

    kind: str
    text: str
    drawn: Drawn


@dataclass
class Explored:
    """What was found."""

    graphs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    failures: list[Failing] = field(default_factory=list)
    excused: int = 0

    def add(self, other: Explored) -> None:
        """Count what was found elsewhere."""
        self.graphs += other.graphs
        self.excused += other.excused
        for name in ("ends", "refusals", "kinds", "operators", "types", "times"):
            getattr(self, name).update(getattr(other, name))
        for name, counts in other.seen.items():
            self.seen.setdefault(name, Counter()).update(counts)
        known = {failure.kind for failure in self.failures}
        self.failures += [failure for failure in other.failures if failure.kind not in known]


_worker: Isolated | None = None
_life = 0


def judged(drawn: Drawn, setup: str = "") -> dict[str, Any]:
    """What a worker says of a model; a crash and a hang are failures.

    A model that wrote where it may not has damaged the worker's memory: the next has a new worker. One that crashes or
    hangs is tried again alone; where it does not then, one before it was to blame.
    """
    found = _asked(drawn, setup)
    if found["end"] == "failed" and found["kind"].startswith((*LOST, "guard")):
        close()
        if found["kind"].startswith(LOST):
            again = _asked(drawn, setup)
            close()
            found = again if again["end"] == "failed" else found | {"kind": f"{found['kind']}, not when alone"}
    return found


def _asked(drawn: Drawn, setup: str) -> dict[str, Any]:
    global _worker, _life
    if _worker is None or _life >= LIFE:
        if _worker is not None:
            _worker.close()
        _worker, _life = Isolated(MEMORY, quiet=True), 0
        if setup:
            _worker.call(setup)
    _life += 1
    data = drawn.model.SerializeToString()
    try:
        found: dict[str, Any] = _worker.call(CHECK, data, drawn.inputs, *drawn.way, seconds=SECONDS)
    except LostError as error:
        close()
        text = str(error)
        kind = "hang" if "took more" in text else f"crash: {text.split(':')[0]}"
        return {"end": "failed", "kind": kind, "text": text}
    return found


def close() -> None:
    """End the worker."""
    global _worker
    if _worker is not None:
        _worker.close()
    _worker = None


def explore(
    number: int,
    count: int,
    known: Collection[str] = (),
    *,
    setup: str = "",
    shrink: bool = True,
    stop: bool = False,
    targets: tuple[str, ...] = ("native", "x86-64-v3"),
) -> Explored:
    """So many models of one seed. Of each kind of failure the first is shrunk, but those that begin with a text in
    `known` are only counted. With `stop` the first failure is the end.

    hypothesis' own drawing returns to what it has drawn, and to 0: it is given noise instead, and shrinks what fails.
    """
    found, run = Explored(), _Run(setup, [*known])
    began = time.perf_counter()

    def fresh() -> Any:  # for each failure: hypothesis keeps the smallest that it has seen
        @settings(database=run.database, phases=(Phase.reuse, Phase.shrink), report_multiple_bugs=False, **PLAIN)
        @given(models(targets))
        def one(drawn: Drawn) -> None:
            run.one(drawn, found)

        return one

    one = fresh()
    for index in range(count):
        try:
            one.hypothesis.fuzz_one_input(noise(number, index))
        except Failure as failure:
            if shrink:
                run.shrinking = str(failure)
                with contextlib.suppress(Failure, HypothesisException):
                    one()
                run.shrinking = ""
            run.known.append(str(failure))
            run.forget()
            one = fresh()
            if stop:
                break
    found.failures = list(run.failing.values())
    found.times["all"] += time.perf_counter() - began
    return found


def noise(number: int, index: int) -> bytes:
    """What a model is drawn from."""
    return np.random.default_rng((number, index)).bytes(NOISE)


def draws(number: int, count: int, wanted: Collection[str] = ()) -> Iterator[Drawn]:
    """The models that `explore` checks, or others, which have operators that are `wanted`."""
    last: list[Drawn] = []

    @settings(database=None, **PLAIN)
    @given(models(wanted=wanted))
    def one(drawn: Drawn) -> None:
        last[:] = [drawn]

    for index in range(count):
        one.hypothesis.fuzz_one_input(noise(number, index))
        yield from last
        last.clear()


@dataclass
class _Run:
    """One run of hypothesis: what it has found, and what it is doing."""

    setup: str
    known: list[str]
    failing: dict[str, Failing] = field(default_factory=dict)
    shrinking: str = ""  # the kind that is being shrunk
    tried: int = 0
    broke: dict[bytes, str] = field(default_factory=dict)  # the models that failed alike
    passed: set[bytes] = field(default_factory=set)
    database: InMemoryExampleDatabase = field(default_factory=InMemoryExampleDatabase)

    def one(self, drawn: Drawn, found: Explored) -> None:
        """Check one model; raises Failure for a kind that is not known, when shrinking for the same kind alone."""
        key = drawn.key
        if self.shrinking:
            if key in self.broke:
                raise Failure(self.broke[key])
            if key in self.passed or self.tried >= SHRINKING:
                return
            self.tried += 1
        began = time.perf_counter()
        report = judged(drawn, self.setup)
        kind = report.get("kind", "")
        if not self.shrinking:
            count_(found, drawn, report)
            found.times["judged"] += time.perf_counter() - began
        new = report["end"] == "failed" and not any(kind.startswith(each) for each in self.known)
        if not new or self.shrinking not in ("", kind):
            self.passed.add(key)
            return
        self.broke[key] = kind
        self.failing[kind] = Failing(kind, report["text"], drawn)
        raise Failure(kind)

    def forget(self) -> None:
        """Begin with another failure."""
        self.tried = 0
        self.broke.clear()
        self.passed.clear()
        self.database.data.clear()


def count_(found: Explored, drawn: Drawn, report: dict[str, Any]) -> None:
    """Count one model and what became of it."""
    found.graphs += 1
    found.ends[report["end"]] += 1
    found.operators.update(node.op_type for node in drawn.model.graph.node)
    if report["end"] == "refused":
        found.refusals[reason_of(report["text"])] += 1
    if report["end"] == "failed":
        found.kinds[report["kind"]] += 1
    found.excused += report.get("excused", 0) > 0
    for name, counts in report.get("seen", {}).items():
        found.seen.setdefault(name, Counter()).update(counts)
    found.times.update(report.get("times", {}))
    found.types.update({value.dtype.name for value in drawn.inputs.values()})


def reason_of(text: str) -> str:
    """A refusal without its names and numbers."""
    text = text.splitlines()[-1].strip() if "\n" in text else text
    text = re.sub(r"'[^']*'", "'…'", text)
    return re.sub(r"-?\d[\dx.,]*", "N", text)[:200]
