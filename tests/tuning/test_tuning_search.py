"""The tuner: where its budget goes, what it believes, whom it gives the record, and what is on disk."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from builders import Graph
from tuning_models import KERNEL, conv_problem, program_of, small

from tvmcnn.configs import DenseConfig, DirectConfig, WinogradConfig
from tvmcnn.errors import ToolError
from tvmcnn.network import Choice
from tvmcnn.targets import resolve
from tvmcnn.tuning import space
from tvmcnn.tuning.candidate import Prepared
from tvmcnn.tuning.final_round import contenders, winners
from tvmcnn.tuning.journal import FAILED, OK, WRONG, Final, Journal, Log, Tried, trial_entry
from tvmcnn.tuning.problem import problems
from tvmcnn.tuning.search import Search, State
from tvmcnn.tuning.space import Key, key_of

# ---- who has the record ---------------------------------------------------------------------------------------------

A, B, C = (("direct", DirectConfig(columns=n)) for n in (1, 2, 3))
W = ("winograd", WinogradConfig())


def test_a_record_is_won_beyond_the_spread() -> None:
    def won(ours: Sequence[float], holder: Sequence[float], held: Mapping[str, Key]) -> Key:
        return winners([A, B], [holder, ours], held)["direct"]

    assert won([8, 9, 8, 9], [10, 11, 10, 11], {"direct": A}) == B
    assert won([8, 9, 8, 11], [10, 11, 9, 9], {"direct": A}) == A, "they overlap"
    assert won([8, 9, 8, 11], [10, 11, 9, 9], {}) == A, "the default holds it first"
    assert won([10, 11, 10, 11], [8, 9, 8, 9], {"direct": B}) == A, "the default may win it back"


def test_each_rule_has_a_record_of_its_own() -> None:
    times = [[5.0] * 3, [4.0] * 3, [9.0] * 3]
    assert winners([A, B, W], times, {}) == {"direct": B, "winograd": W}
    assert winners([A, W], [times[0], times[2]], {"direct": C}) == {"direct": C, "winograd": W}, "C was not measured"


def test_whole_images_must_be_faster_by_far() -> None:
    """One core does not notice that two would read each other's cache."""
    whole, cut = (("direct", DirectConfig(bands=bands)) for bands in (1, 2))
    assert winners([cut, whole], [[10.0] * 4, [9.7] * 4], {})["direct"] == cut
    assert winners([cut, whole], [[10.0] * 4, [9.3] * 4], {})["direct"] == whole


def log_of(trials: Mapping[Key, float], held: Key | None = None, finals: Sequence[Key] = ()) -> Log:
    log = Log({key: Tried(OK, value) for key, value in trials.items()})
    log.finals = {key: Final((trials[key],), 100.0) for key in finals}
    log.held = {} if held is None else {held[0]: held}
    return log


def test_contenders() -> None:
    """Whoever may be faster than the holder, and was in no final; without a holder the best of the rule."""
    assert contenders(log_of({A: 10.0, B: 10.2, C: 11.0}, A, [A])) == [B]
    assert contenders(log_of({A: 10.0, B: 9.0, C: 8.0, W: 20.0}, A, [A, B])) == [W, C], "a rule without a holder first"
    assert contenders(log_of({A: 10.0}, A, [A])) == []
    failed = log_of({A: 10.0}, A, [A])
    failed.trials[B] = Tried(WRONG, 1.0)
    assert contenders(failed) == []


# ---- the search, on machines that are made up -----------------------------------------------------------------------


class Invented:
    """A place where a candidate takes what a formula says; builder and linker that make nothing."""

    machine, place = "invented", None

    def __init__(self, cost: Callable[[Choice], float | Tried]) -> None:
        self.cost, self.order = cost, list[tuple[str, Key]]()
        self.batches: list[str] = []
        self.limit = 10**6  # batches, after which the budget is spent

    def tried(self, library: Path, ready: Sequence[Prepared], known: float, done: Callable[[int, Tried], None]) -> None:
        self.batches.append(ready[0].choice.kernel.anchor.op)
        if len(self.batches) == self.limit:
            self.search.deadline = 0.0
        for index, each in enumerate(ready):
            self.order.append((each.choice.kernel.name, key_of(each.choice)))
            found = self.cost(each.choice)
            done(index, found if isinstance(found, Tried) else Tried(OK, found))

    def final(self, library: Path, ready: Sequence[Prepared]) -> tuple[list[list[float]], float]:
        costs = [self.cost(each.choice) for each in ready]
        return [[float(cost) * (1 + i / 1e4) for i in range(9)] for cost in costs if not isinstance(cost, Tried)], 100.0

    def alive(self, places: int) -> bool:
        return True

    def build(self, jobs: Mapping[str, object]) -> dict[str, bytes]:
        return dict.fromkeys(jobs, b"")

    def link(self, name: str, calls: object, objects: object) -> Path:
        path = self.folder / name
        path.touch()
        return path

    def kill(self) -> None: ...

    def close(self) -> None: ...

    folder = Path()
    search: Search


def searched(
    machine: Invented,
    folder: Path,
    seconds: float = 86400.0,
    seed: int = 0,
    model: onnx.ModelProto | None = None,
    same: Sequence[Key] = (),
) -> Search:
    """A search with an invented machine, run to its end."""
    machine.folder = folder
    target = resolve("native")
    program = program_of(model or small())
    journal = Journal(folder / "j.jsonl", {"isa": target.isa})
    journal.write({"event": "start", "isa": target.isa})
    states = [State(each, journal.log(each.words), target, same, (), {}, seed) for each in problems(program)]
    now = time.monotonic()
    made: Any = machine
    found = Search(
        program.network, states, journal, made, made, [made], target, folder, 1 << 20, True,
        deadline=now + seconds, began=journal.elapsed - now, event=lambda entry: None, records=lambda state: None,
    )  # fmt: skip
    machine.search = found
    try:
        found.run()
    finally:
        journal.close()
    return found


def hilly(choice: Choice) -> float:
    """Best for one config far down the order of direct convolution."""
    config = choice.config
    if choice.rule != "direct":
        return 50.0
    wanted = {"columns": 2, "rows": 2, "vectors": 1}
    far = sum(abs(getattr(config, name) - value) for name, value in wanted.items())
    return 20.0 + far + 3.0 * (config.unroll != 8)


def test_the_search_finds_what_the_grid_leaves_out(tmp_path: Path) -> None:
    """The grid has no `unroll` of 8: the neighbours of the best have. Everything is tried once."""
    machine = Invented(hilly)
    found = searched(machine, tmp_path)
    state = next(state for state in found.states if state.problem.words == KERNEL)
    assert state.best == pytest.approx(20.0, rel=1e-3)
    assert state.log.held["direct"][1].unroll == 8
    assert all(state.done and next(state.waiting(), None) is None for state in found.states)
    once = [each for each in machine.order if each[1] not in {state.default for state in found.states}]
    assert len(set(once)) == len(once)


def test_records_of_the_same_kernel_come_first(tmp_path: Path) -> None:
    """Even one that the grid leaves out; a rule that the kernel has not counts for nothing."""
    other = ("direct", DirectConfig(vectors=1, rows=1, columns=1, unroll=2))
    found = searched(Invented(hilly), tmp_path, same=[other, ("dense", DenseConfig())])
    conv = next(state for state in found.states if state.problem.choice.kernel.anchor.op == "Conv")
    assert [*conv.log.trials].index(other) == 1
    assert other not in [key_of(c) for c in space.ordered(found.network, conv.problem.choice, found.target)]


def test_the_seed_reproduces_the_order(tmp_path: Path) -> None:
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        (folder := tmp_path / str(number)).mkdir()
        machine = Invented(hilly)
        searched(machine, folder, seed=seed)
        orders.append(machine.order)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_the_budget_goes_where_it_can_gain_most(tmp_path: Path) -> None:
    """Every kernel has a first batch; then the one far from the roofline has more, as long as it has candidates."""
    machine = Invented(lambda choice: 900.0 if choice.kernel.anchor.op == "Conv" else 0.2)
    machine.limit = 6
    found = searched(machine, tmp_path)
    assert sorted(machine.batches) == ["Conv"] * 5 + ["Gemm"]
    assert "Gemm" in machine.batches[:2]
    assert found.gain > 0


def test_hope_fades(tmp_path: Path) -> None:
    """Two kernels as far from the roofline take turns: each batch that gains nothing makes the next less likely."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 9, 14), 48, (1, 1)))
    g.output(g.conv(x, 64, (1, 1)))
    machine = Invented(lambda choice: 500.0)
    machine.limit = 8
    found = searched(machine, tmp_path, model=g.model())
    assert [state.batches for state in found.states] == [4, 4]


@pytest.mark.parametrize(("factor", "idle"), [(0.97, 0), (0.995, 5)])
def test_hope_returns_with_a_gain(tmp_path: Path, factor: float, idle: int) -> None:
    """A batch that saves 3 % is followed by another, one that saves half a percent was idle."""
    seen: dict[Key, float] = {}

    def cost(choice: Choice) -> float:
        return seen.setdefault(key_of(choice), 500.0 * factor ** len(machine.batches))

    machine = Invented(cost)
    machine.limit = 5
    g = Graph()
    g.output(g.conv(g.input(1, 16, 9, 14), 48, (1, 1)))
    [state] = searched(machine, tmp_path, model=g.model()).states
    assert (state.batches, state.idle) == (5, idle)
    assert state.best < 500.0


def test_a_wrong_candidate_never_has_a_record(tmp_path: Path) -> None:
    """Not even the default of a rule that is wrong altogether."""

    def cost(choice: Choice) -> float | Tried:
        return 10.0 if choice.rule == "direct" else Tried(WRONG, 0.0, 0.5, 1e-6, "off by 0.5")

    found = searched(Invented(cost), tmp_path)
    state = next(state for state in found.states if state.problem.words == KERNEL)
    assert set(state.log.held) == {"direct"}
    assert state.log.count(WRONG) > 5


def test_a_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Nothing is tried twice, over any number of runs; the last knows all."""
    seen: list[tuple[str, Key]] = []
    for _ in range(40):
        machine = Invented(hilly)
        machine.limit = 2
        found = searched(machine, tmp_path)
        defaults = {state.default for state in found.states}
        seen += [each for each in machine.order if each[1] not in defaults]
        if all(state.done for state in found.states):
            break
    assert len(seen) == len(set(seen))
    assert next(s for s in found.states if s.problem.words == KERNEL).best == pytest.approx(20.0, rel=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    trials = [(e["kernel"], e["rule"], str(e["config"])) for e in lines if e["event"] == "trial"]
    assert len(trials) == len(set(trials))
    assert [e["at"] for e in lines if "at" in e] == sorted(e["at"] for e in lines if "at" in e)


def test_a_final_that_was_missed_is_made_up_for(tmp_path: Path) -> None:
    """A run that is killed between the last trial and the final leaves no record: the next has the final."""
    first = searched(Invented(hilly), tmp_path)
    path = tmp_path / "j.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"final"' not in line]
    path.write_text("\n".join(kept) + "\n")
    machine = Invented(hilly)
    again = searched(machine, tmp_path)
    assert not machine.order, "nothing is tried again"
    for one, other in zip(first.states, again.states, strict=True):
        assert other.done
        assert other.best == pytest.approx(one.best, rel=1e-3)


# ---- the journal ----------------------------------------------------------------------------------------------------


def test_the_journal_keeps_whole_lines(tmp_path: Path) -> None:
    """A torn last line is cut off, lines of other conditions count for nothing, and only one may write."""
    path, choice = tmp_path / "j.jsonl", conv_problem().choice
    journal = Journal(path, {"machine": "a"})
    journal.write({"event": "start", "machine": "a"})
    for outcome in (Tried(OK, 4.0, 1e-7, 1e-6), Tried(FAILED, reason="ended by SIGSEGV")):
        choice = dataclasses.replace(choice, config=dataclasses.replace(choice.config, unroll=choice.config.unroll + 1))
        journal.write(trial_entry("k", choice, outcome, 2.5))
    with pytest.raises(ToolError, match="is in use: another tvmcnn tune writes there"):
        Journal(path, {"machine": "a"})
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "trial", "ker')
    again = Journal(path, {"machine": "a"})
    assert path.read_bytes() == whole
    assert again.logs["k"].trials == journal.logs["k"].trials
    assert (len(again.logs["k"].trials), again.foreign, again.elapsed) == (2, 0, 2.5)
    again.close()
    other = Journal(path, {"machine": "b"})
    assert (other.foreign, other.logs) == (2, {})
    other.close()
