"""The tuner: what it tries and in which order, what it believes, whom it gives the record, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Graph, feeds, record, same_bits_in_any_memory

import tvmcnn
from tvmcnn.choose import choose
from tvmcnn.codegen.kernels import object_code
from tvmcnn.codegen.trials import Linker
from tvmcnn.compiler import Compiled
from tvmcnn.configs import DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.errors import TargetError, ToolError
from tvmcnn.fusion import fuse
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Choice, Program
from tvmcnn.records import NONE, read_records
from tvmcnn.reference import reference
from tvmcnn.targets import TARGETS, resolve
from tvmcnn.tuning import measure, place, search, space
from tvmcnn.tuning.finals import contenders, winners
from tvmcnn.tuning.given import parse_budget
from tvmcnn.tuning.journal import FAILED, OK, WRONG, Final, Journal, Log, Tried, trial_entry
from tvmcnn.tuning.problem import Problem, problems
from tvmcnn.tuning.search import Search, State
from tvmcnn.tuning.space import Key, key_of
from tvmcnn.tuning.trial import Prepared, Preparer

KERNEL = "conv 1x16x9x14 32x16x3x3 k3,3 s1,1 p1,1,1,1 d1,1 g1 float32 +bias +relu"


def small(maps: int = 32) -> onnx.ModelProto:
    """A convolution that direct and Winograd compute, and a matrix product."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 9, 14), maps, (3, 3), pads=[1, 1, 1, 1]))
    y = g.node("Flatten", g.node("GlobalAveragePool", x))
    g.output(g.node("Gemm", y, g.draw(maps, 11), g.draw(11)))
    return g.model()


def varied() -> onnx.ModelProto:
    """Kernels of every rule: with a prologue, a residual, a gate, a pool, groups, in a concatenation, in columns."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 3, 23, 18), 32, (3, 3), pads=[1, 1, 1, 1]))
    a = g.node("Relu", g.conv(x, 32, (3, 3), pads=[1, 1, 1, 1]))
    b = g.node("Add", g.conv(a, 32, (3, 3), pads=[1, 1, 1, 1], bias=False), x)
    statistics = [g.draw(32), g.draw(32), g.draw(32), g.constant(g.rng.uniform(0.5, 2, 32))]
    b = g.conv(g.node("Relu", g.node("BatchNormalization", b, *statistics)), 48, (1, 1))
    c = g.node("Clip", g.conv(b, 48, (3, 3), group=48, pads=[1, 1, 1, 1]), g.constant(0.0), g.constant(6.0))
    d = g.conv(c, 24, (1, 1), group=4)
    e = g.node("Concat", b, g.conv(d, 16, (1, 2), strides=[2, 1], pads=[10, 0, 13, 1]), axis=1)
    f = g.node("MaxPool", g.node("Sigmoid", g.conv(e, 37, (2, 3))), kernel_shape=[2, 2], strides=[2, 2])
    g.output(g.conv(f, 21, (11, 8)))
    return g.model()


def tiny() -> onnx.ModelProto:
    """LeNet's first layer: few maps, columns in the lanes."""
    g = Graph()
    g.output(g.node("MaxPool", g.conv(g.input(1, 1, 20, 36), 6, (5, 5)), kernel_shape=[2, 2], strides=[2, 2]))
    return g.model()


def wide() -> onnx.ModelProto:
    """Maps of many pixels and few weights: kernels in bands of rows, a depthwise one that follows."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 3, 63, 84), 20, (1, 1)))
    y = g.node("Relu", g.conv(x, 72, (1, 1)))
    z = g.node("Relu", g.conv(y, 72, (3, 2), group=72, pads=[1, 0, 2, 1], strides=[2, 1]))
    g.output(g.conv(z, 17, (1, 1)))
    return g.model()


def program_of(model: onnx.ModelProto, target: str = "native") -> Program:
    network = import_model(model)
    return lay_out(network, choose(network, fuse(network), resolve(target), NONE), Weights())


def conv_problem(target: str = "native") -> Problem:
    return next(each for each in problems(program_of(small(), target)) if each.words == KERNEL)


def algorithm(compiled: Compiled) -> tuple[str, str]:
    """Algorithm and tier of the convolution."""
    step = next(s for s in compiled.program.steps if s.choice.kernel.anchor.op == "Conv")
    return step.choice.algorithm, step.choice.tier


# ---- records in use -------------------------------------------------------------------------------------------------


def test_the_faster_record_decides(tmp_path: Path) -> None:
    """Between algorithms too; `exact` takes the record of direct convolution."""
    winograd = {"tile": 2, "rows": 2, "columns": 2, "strip": 7, "vectors": 1, "tiles": 7}
    direct = {"vectors": 1, "rows": 3, "columns": 2}
    for times, wanted in (((1.0, 2.0), "winograd"), ((2.0, 1.0), "direct")):
        path = tmp_path / "records.jsonl"
        path.write_text(record(KERNEL, "winograd", winograd, times[0]) + record(KERNEL, "direct", direct, times[1]))
        compiled = tvmcnn.compile(small(), output=tmp_path / "small.so", records=[path])
        assert algorithm(compiled) == (wanted, "given record")
        exact = tvmcnn.compile(small(), output=tmp_path / "small.so", records=[path], exact=True)
        assert algorithm(exact) == ("direct", "given record")
        (config,) = (s.choice.config for s in exact.program.steps if s.choice.kernel.anchor.op == "Conv")
        assert (config.rows, config.columns) == (3, 2)


@pytest.mark.parametrize("tile", [{"rows": 2, "columns": 4}, {"rows": 4, "columns": 3, "blocks": 2}], ids=str)
def test_tiles_need_not_divide(tile: dict[str, int], tmp_path: Path) -> None:
    """Rows, columns and blocks of maps that are left over are smaller tiles, with the same bits."""
    found = []
    vectors = tile.pop("blocks", 1) * 16 // resolve("native").lanes
    for config in ({"rows": 3, "columns": 7, "vectors": 1}, {"vectors": vectors, "prefetch": True} | tile):
        path = tmp_path / "records.jsonl"
        path.write_text(record(KERNEL.replace("32x16", "48x16"), "direct", config))
        compiled = tvmcnn.compile(small(48), output=tmp_path / "small.so", records=[path])
        assert algorithm(compiled) == ("direct", "given record")
        assert ("prefetcht1" in compiled.code["asm"]()) == config.get("prefetch", False)
        net = tvmcnn.load(compiled.path.rename(tmp_path / f"{len(found)}.so"))
        found.append(net(np.random.default_rng(0).standard_normal((1, 16, 9, 14)).astype(np.float32)).tobytes())
    assert found[0] == found[1]


# ---- the space ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_candidates_fit_the_registers(name: str) -> None:
    """For both widths; the strips and tiles of Winograd divide, too. Neighbours differ in one number and fit, too."""
    target, problem = TARGETS[name], conv_problem(name)
    found = space.ordered(problem.network, problem.choice, target)
    near = [n for choice in found[:9] for n in space.neighbours(problem.network, choice, target)]
    assert {type(each.config) for each in found} == {DirectConfig, WinogradConfig, StreamedConfig}
    assert {"order", "unroll", "vectors"} <= {changed(n, found[:9]) for n in near}
    for each in (*found, *near):
        config = each.config
        pixels = config.tiles if each.rule != "direct" else config.rows * config.columns
        assert config.vectors * pixels + min(config.vectors, pixels) < target.registers
        if each.rule == "winograd":
            assert config.strip % config.tiles == 0 and each.scratch_bytes > 0


def changed(near: Choice, sources: Sequence[Choice]) -> str:
    """The one field in which a neighbour differs from its source."""
    for source in sources:
        if type(source.config) is type(near.config):
            ours, theirs = (dataclasses.asdict(each.config) for each in (near, source))
            names = [name for name in ours if ours[name] != theirs[name]]
            names = ["rows"] if sorted(names) == ["bands", "rows"] and near.config.bands == 1 else names
            if len(names) == 1:
                return names[0]
    raise AssertionError(f"{near.config} is no neighbour")


def test_the_order_is_the_seeds() -> None:
    """The default, what is preferred, then each rule's best in turn; the same seed gives the same order."""
    problem, target = conv_problem(), resolve("native")
    orders = [[key_of(c) for c in space.ordered(problem.network, problem.choice, target, (), n)] for n in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]
    assert set(orders[0]) == set(orders[2])
    assert len(set(orders[0])) == len(orders[0])
    assert orders[0][0] == key_of(problem.choice)
    assert {rule for rule, _ in orders[0][:6]} == {"direct", "winograd", "streamed"}
    wanted = [orders[0][20], ("direct", "no config"), orders[0][30]]
    assert [key_of(c) for c in space.ordered(problem.network, problem.choice, target, wanted)][1:3] == wanted[::2]


def test_a_candidate_is_made_again_from_its_key(target: str) -> None:
    for model in (small(), varied(), tiny()):
        for problem in problems(program_of(model, target)):
            for choice in space.ordered(problem.network, problem.choice, resolve(target))[1:]:
                assert space.made(problem.network, problem.choice, key_of(choice), resolve(target)) == choice


# ---- the oracle and the trial ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [small, varied, tiny])
def test_the_oracle_is_the_reference(build: Callable[[], onnx.ModelProto]) -> None:
    """Given the network's tensors, each kernel's oracle computes what the reference of the whole model does."""
    model = build()
    values = reference(model, feeds(model), every_tensor=True)
    program = program_of(model)
    assert {each.choice.rule for each in problems(program)} & {"direct", "columns", "pixels", "dense"}
    for problem in problems(program):
        names = [tensor.name for tensor in problem.choice.kernel.inputs if tensor.name in {**values, **feeds(model)}]
        problem.__dict__["inputs"] = tuple({**values, **feeds(model)}[name] for name in names)
        wanted = values[problem.choice.kernel.nodes[-1].output]
        np.testing.assert_allclose(problem.expected, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


def prepared(problem: Problem, target: str, folder: Path) -> list[Prepared]:
    """The first candidate of each rule of a problem."""
    preparer = Preparer(problem, resolve(target), folder, 1 << 20, cold=True)
    first: dict[str, Choice] = {}
    for choice in space.ordered(problem.network, problem.choice, resolve(target)):
        first.setdefault(choice.rule, choice)
    return [preparer.prepare(choice) for choice in first.values()]


@pytest.mark.parametrize("build", [small, varied, tiny])
def test_every_rule_computes_what_the_oracle_does(
    build: Callable[[], onnx.ModelProto], target: str, tmp_path: Path
) -> None:
    """Alone on memory of its own, in each vector width; and each candidate has a time."""
    rules = set()
    linker = Linker(tmp_path, resolve(target))
    for number, problem in enumerate(problems(program_of(build(), target))):
        ready = prepared(problem, target, tmp_path)
        jobs = {symbol: job for each in ready for symbol, job in each.jobs.items()}
        objects = {symbol: object_code(job) for symbol, job in jobs.items()}
        library = linker.link(f"t{number}", [each.calls for each in ready], objects)
        place.open_library(library, max(each.memory for each in ready), None)
        for index, each in enumerate(ready):
            error = place.check(index, each.trial)
            assert error <= each.trial.tolerance < 1e-4, each.choice
            rules.add(each.choice.rule)
            half = np.fromfile(each.trial.image, np.float32)
            half[each.calls.constants // 4 :] *= 0.5  # a planted bug: other weights
            half.tofile(tmp_path / "half.image")
            wrong = place.check(index, dataclasses.replace(each.trial, image=tmp_path / "half.image"))
            assert wrong > 100 * each.trial.tolerance
        times = place.times(range(len(ready)), 2, 1e-4)
        assert all(0 < sample < 1e6 for samples in times for sample in samples)
    assert rules >= {small: {"direct", "winograd", "streamed", "dense"}, varied: {"direct", "winograd", "pixels"},
                     tiny: {"columns"}}[build]  # fmt: skip


def test_output_that_is_not_written_is_wrong(tmp_path: Path) -> None:
    """Memory is as it was, NaN, where no kernel has written."""
    target = resolve("native")
    problem = conv_problem()
    (each, *_) = prepared(problem, "native", tmp_path)
    objects = {symbol: object_code(job) for symbol, job in each.jobs.items()}
    calls = dataclasses.replace(each.calls, calls=())
    library = Linker(tmp_path, target).link("t", [calls], objects)
    place.open_library(library, each.memory, None)
    assert np.isnan(place.check(0, each.trial))


def test_constants_take_turns() -> None:
    """Three times as many bytes as the network has, in copies; in one where they shall be warm."""
    problem = conv_problem()
    for cold, wanted in ((True, range(2, measure.FRESH * 100)), (False, range(1, 2))):
        folder = Path(str(np.random.default_rng().integers(1 << 30)))
        folder.mkdir()
        try:
            calls = Preparer(problem, resolve("native"), folder, 1 << 20, cold=cold).prepare(problem.choice).calls
            assert calls.copies in wanted
            assert not cold or calls.copies == min(256, (3 << 20) // calls.stride)
        finally:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("build", [small, varied, tiny, wide])
def test_any_candidates_together_are_a_network(build: Callable[[], onnx.ModelProto], seed: int, tmp_path: Path) -> None:
    """Each is verified alone; chains, layouts and bands must take whatever configs records have."""
    model, rng, lines = build(), random.Random(seed), []
    for problem in problems(program_of(model)):
        grid = space.ordered(problem.network, problem.choice, resolve("native"))
        near = [n for choice in grid[:5] for n in space.neighbours(problem.network, choice, resolve("native"))]
        choice = rng.choice([*grid, *near])
        lines.append(record(problem.words, choice.rule, dataclasses.asdict(choice.config)))
    (tmp_path / "any.jsonl").write_text("".join(lines))
    compiled = tvmcnn.compile(model, output=tmp_path / "any.so", records=[tmp_path / "any.jsonl"])
    assert compiled.verdict is not None and compiled.verdict.passed
    assert sum(step.choice.tier == "given record" for step in compiled.program.steps) >= len(set(lines))
    nets = [tvmcnn.load(compiled.path, threads=threads) for threads in (1, 2)]
    same_bits_in_any_memory(next(iter(feeds(model).values())), nets)


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

    def __init__(self, cost: Callable[[Choice], float | Tried], delay: float = 0.0) -> None:
        self.cost, self.delay, self.order = cost, delay, list[tuple[str, Key]]()
        self.batches: list[str] = []
        self.limit = 10**6  # batches, after which the budget is spent

    def tried(self, library: Path, ready: Sequence[Prepared], known: float, done: Callable[[int, Tried], None]) -> None:
        time.sleep(self.delay)
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
    machine: Invented, folder: Path, seconds: float = 60.0, seed: int = 0, model: onnx.ModelProto | None = None
) -> Search:
    """A search with an invented machine, run to its end."""
    machine.folder = folder
    target = resolve("native")
    program = program_of(model or small())
    journal = Journal(folder / "j.jsonl", {"isa": target.name})
    journal.write({"event": "start", "isa": target.name})
    states = [State(each, journal.log(each.words), target, (), {}, seed) for each in problems(program)]
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
        machine = Invented(hilly, delay=0.02)
        found = searched(machine, tmp_path, seconds=0.05)
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
    assert (again.resumed, again.foreign, again.elapsed) == (2, 0, 2.5)
    again.close()
    other = Journal(path, {"machine": "b"})
    assert (other.resumed, other.foreign, other.logs) == (0, 2, {})
    other.close()


# ---- from end to end ------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 1e-4)
    monkeypatch.setattr(search, "BATCH", 20)


def test_tune(tmp_path: Path, quick: None) -> None:
    """A budget in, records out, that compile follows; the same call again measures nothing twice."""
    model, output = tmp_path / "small.onnx", tmp_path / "mine.jsonl"
    model.write_bytes(small().SerializeToString())
    said, events = list[str](), list[Mapping[str, Any]]()
    tuned = tvmcnn.tune(
        model, budget="20s", records=output, report=said.append, event=events.append, plot=tmp_path / "best.png"
    )
    assert f"records go to {output}, every measurement to {tmp_path / 'mine.trials.jsonl'}" in said
    assert {kernel.kernel.split()[0] for kernel in tuned.kernels} == {"conv", "gemm"}
    conv = next(kernel for kernel in tuned.kernels if kernel.kernel == KERNEL)
    assert conv.best_us <= conv.default_us * 1.05
    assert conv.tried > 20 and conv.wrong == conv.failed == 0
    assert tuned.latency is not None and tuned.latency.after > 0
    assert (tmp_path / "best.png").read_bytes().startswith(b"\x89PNG")
    found, skipped = read_records(output)
    assert not skipped
    ours = {each.rule: each for each in found if each.kernel == KERNEL}
    assert set(ours) == {"direct", "winograd", "streamed"}
    wanted = {"spread_us", "default_time_us", "gflops", "peak_share", "max_rel_error", "cache", "date", "command"}
    assert all(wanted <= set(each.entry) and each.entry["max_rel_error"] < 1e-5 for each in found)
    assert ours["direct"].entry["command"] == "tvmcnn tune small.onnx --target native --budget 20s"
    compiled = tvmcnn.compile(model, output=tmp_path / "small.so", records=[output])
    assert algorithm(compiled)[1] == "given record"

    trials = [e for e in events if e["event"] == "trial"]
    assert len(trials) == tuned.measured
    again = list[Mapping[str, Any]]()
    tvmcnn.tune(model, budget="2s", records=output, report=said.append, event=again.append, measure=False)
    assert f"{len(trials)} trials of an earlier run are known and not measured again" in said
    both = [(e["kernel"], e["rule"], str(e["config"])) for e in (*events, *again) if e["event"] == "trial"]
    assert len(both) == len(set(both))


def test_records_of_others_stay(tmp_path: Path, quick: None) -> None:
    """Other kernels, other machines, even a broken line: the tuner rewrites its own lines alone."""
    model, output = tmp_path / "small.onnx", tmp_path / "mine.jsonl"
    model.write_bytes(small().SerializeToString())
    kept = [record("other", rule, {}).strip() for rule in ("direct", "dense")] + ["broken"]
    output.write_text("\n".join(kept) + "\n")
    tvmcnn.tune(model, budget="10s", records=output, measure=False)
    lines = output.read_text().splitlines()
    assert lines[:3] == kept
    assert len(lines) > 3


def test_own_records_are_used_by_themselves(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCNN_RECORDS", str(tmp_path / "new folder" / "own.jsonl"))
    tvmcnn.tune(small(), budget="8s", measure=False)
    compiled = tvmcnn.compile(small(), output=tmp_path / "small.so")
    assert algorithm(compiled)[1] == "own record"


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"budget": "soon"}, ToolError, "the budget 'soon' is no time above 0; write 90s, 10m or 2h"),
        ({"budget": 0}, ToolError, "the budget '0' is no time above 0"),
        ({"records": "mine.txt"}, ToolError, "the records 'mine.txt' end in '.txt'; a file of records ends in .jsonl"),
        ({"records": "no/where.jsonl"}, ToolError, "cannot write no/where.jsonl: the folder no does not exist"),
        ({"plot": "best.gif"}, ToolError, "the plot 'best.gif' ends in '.gif'; allowed are .png, .svg, .pdf"),
        ({"plot": "no/best.png"}, ToolError, "cannot write no/best.png: the folder no does not exist"),
        ({"records": None}, ToolError, "there is no place for your own records"),
        ({"rpc_key": "k"}, ToolError, "--rpc-tracker HOST:PORT and --rpc-key KEY belong together"),
        ({"rpc_tracker": "h:1", "rpc_key": "k"}, TargetError, "name the target of the other machines: x86-64-v3 or"),
        ({"rpc_tracker": "h", "rpc_key": "k", "target": "x86-64-v3"}, ToolError, "'h' is not HOST:PORT"),
    ],
    ids=str,
)
def test_mistakes(
    given: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        tvmcnn.tune(small(), **{"records": "mine.jsonl", "budget": "1s", **given})
    assert sentence in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_target_that_cannot_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.targets.cpu_flags", lambda: frozenset(TARGETS["x86-64-v3"].features))
    with pytest.raises(TargetError, match=r"cannot measure for x86-64-v4 here: this CPU lacks avx512f.*--rpc-tracker"):
        tvmcnn.tune(small(), target="x86-64-v4", records=tmp_path / "mine.jsonl")


def test_budgets() -> None:
    assert [parse_budget(each) for each in (7, "90", "90s", "10m", "1.5h", " 2 m ")] == [
        7,
        90,
        90,
        600,
        5400,
        120,
    ]
