"""The tuner: what it tries and in which order, and what a candidate must compute."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import feeds, record, same_bits_in_any_memory
from tuning_models import conv_problem, program_of, small, tiny, varied, wide

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.codegen.cpu.candidates import Linker
from tvmcnn.codegen.cpu.kernels import object_code
from tvmcnn.configs import DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.network import ALIGNMENT, Choice
from tvmcnn.targets import TARGETS, resolve
from tvmcnn.tuning import measure, space
from tvmcnn.tuning import worker as place
from tvmcnn.tuning.candidate import Prepared, Preparer
from tvmcnn.tuning.journal import OK, WRONG, Tried
from tvmcnn.tuning.problem import Problem, problems
from tvmcnn.tuning.space import key_of

pytestmark = pytest.mark.slow


def test_memory_of_a_candidate() -> None:
    """All that was asked for, from the beginning of a cache line on."""
    for size in (1, 64, 1000, 4097):
        memory = place.aligned(size)
        assert (len(memory), memory.ctypes.data % ALIGNMENT) == (size, 0)


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
        assert all(0 < sample < np.inf for samples in times for sample in samples)
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


def test_a_candidate_of_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never timed, and so never has a record."""
    measurer, asked, told = measure.Measurer(None), list[object](), dict[int, Tried]()
    answers = {"check": [float("nan"), 1e-7, 1e-3], "times": [[[5.0]]]}

    def call(function: str, *arguments: Any, rounds: int = 1) -> Any:
        asked.append((function, arguments[0]))
        return answers[function].pop(0)

    monkeypatch.setattr(measurer, "open", lambda library, memory: None)
    monkeypatch.setattr(measurer, "_call", call)
    ready: Any = [SimpleNamespace(memory=0, trial=SimpleNamespace(tolerance=1e-6))] * 3
    measurer.tried(Path("none"), ready, 0.0, told.__setitem__)
    assert [told[index].outcome for index in range(3)] == [WRONG, OK, WRONG]
    assert "off by nan" in told[0].reason and told[1].microseconds == 5.0
    assert asked[-1] == ("times", [1])


def test_candidates_are_packed_as_they_are_read(tmp_path: Path) -> None:
    """Also behind others of the same problem, whose packed weights are kept."""
    problem = conv_problem()
    rule, config = key_of(next(c for c in space.ordered(problem.network, problem.choice, resolve("native"))
                               if c.rule == "winograd"))  # fmt: skip
    both = [space.made(problem.network, problem.choice, (rule, dataclasses.replace(config, parts=parts)),
                       resolve("native")) for parts in (1, 2)]  # fmt: skip
    images = []
    for name, choices in (("alone", both[1:]), ("behind", both)):
        (folder := tmp_path / name).mkdir()
        preparer = Preparer(problem, resolve("native"), folder, 1 << 20, cold=True)
        images.append([preparer.prepare(choice).trial.image.read_bytes() for choice in choices])
    assert images[0][0] == images[1][1] != images[1][0]


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
