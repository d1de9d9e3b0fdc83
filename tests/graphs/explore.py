"""Explore: hypothesis draws models, a worker checks each, and what fails is shrunk to the smallest that fails alike."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from graphs.models import Drawn, models
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from tvmcnn.isolated import Isolated, LostError

CHECK = "graphs.worker:check"
SECONDS = 120.0  # of one model: a hang, on a machine however busy
SHRINKING = 120  # models to be tried for one failure
LOST = ("crash", "hang")
LIFE = 400  # models of one worker, whose libraries stay mapped
MEMORY = 8 << 30


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

    A model that fails may have left the worker's memory damaged: the next has a new worker. One that crashes or hangs
    is tried again alone; where it does not then, one before it was to blame.
    """
    found = _asked(drawn, setup)
    if found["end"] == "failed":
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
    given_ = (drawn.model.SerializeToString(), drawn.inputs, drawn.target, drawn.activations, drawn.split)
    try:
        found: dict[str, Any] = _worker.call(CHECK, *given_, seconds=SECONDS)
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
    tell: Callable[[int], None] = lambda done: None,
    shrink: bool = True,
    targets: tuple[str, ...] = ("native", "x86-64-v3"),
) -> Explored:
    """So many models of one seed. A failure of a kind that is in `known` is counted; the first of another is shrunk,
    and ends the models of this seed."""
    found = Explored()
    failing: dict[str, Failing] = {}
    first: list[str] = []

    broke: dict[bytes, str] = {}
    tried = [0]

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(models(targets))
    def one(drawn: Drawn) -> None:
        began = time.perf_counter()
        key = drawn.key
        if key in broke:
            raise Failure(broke[key])
        if tried[0] > SHRINKING:
            return  # small enough
        tried[0] += bool(first)
        report = judged(drawn, setup)
        kind = report.get("kind", "")
        if not first:
            count_(found, drawn, report)
            found.times["judged"] += time.perf_counter() - began
            tell(found.graphs)
        if report["end"] != "failed" or any(kind.startswith(each) for each in known) or (first and kind != first[0]):
            return
        first[:] = [kind]
        broke[key] = kind
        failing[kind] = Failing(kind, report["text"], drawn)
        raise Failure(kind)

    began = time.perf_counter()
    try:
        one()
    except (Failure, HypothesisException, ExceptionGroup):
        if not failing:
            raise
    found.failures = list(failing.values())
    found.times["all"] += time.perf_counter() - began
    return found


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
