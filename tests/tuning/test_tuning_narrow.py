"""The tuner on convolutions of bytes and of bfloat16: what it tries, what that computes, and who reads its records."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph
from helpers import feeds, record, same_bits_in_any_memory
from quantised import Quantised, any_input
from tuning_runs import DAY, Enough, trials

import tvmcnn
from tvmcnn import targets
from tvmcnn.artifact.container import read_manifest
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import NONE, Record, Records
from tvmcnn.codegen.cpu.candidates import Linker
from tvmcnn.codegen.cpu.kernels import object_code
from tvmcnn.configs import AmxConfig, DotsConfig, PairsConfig
from tvmcnn.errors import ToolError, TvmcnnError
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Program
from tvmcnn.targets import TARGETS, resolve
from tvmcnn.tuning import space, tune
from tvmcnn.tuning import worker as place
from tvmcnn.tuning.candidate import Preparer
from tvmcnn.tuning.problem import Problem, problems
from tvmcnn.tuning.space import key_of

pytestmark = pytest.mark.slow


def floats() -> onnx.ModelProto:
    """Images in bfloat16, a residual, a stride."""
    g = Graph(2)
    x = g.node("Relu", g.conv(g.input(1, 24, 11, 17), 48, (1, 1)))
    y = g.node("Relu", g.node("Add", g.conv(x, 48, (3, 2), pads=[1, 0, 1, 1]), x))
    g.output(g.node("Relu", g.conv(y, 80, (3, 2), strides=[2, 1], pads=[1, 0, 1, 1])))
    return g.model()


def bytes_() -> onnx.ModelProto:
    """Convolutions of few channels, of many, and of one a group."""
    g = Quantised(3)
    x = g.source(1, 3, 17, 22, zero=113)
    for maps, shape, more in ((32, (32, 3, 3, 2), {}), (32, (32, 1, 3, 3), {"group": 32}), (48, (48, 32, 1, 1), {})):
        scales = g.scale(maps)
        w = g.weight(*shape, scale=scales, zero=np.zeros(maps))
        y = g.node("Conv", x, w, g.bias(maps, np.float32(0.0234) * scales), **more)
        up = g.up(g.node("Relu", y), 0.7, np.uint8(9))
        x = g.down(up, 0.7, np.uint8(9))
    return g.finished(up)


# By target and precision, what convolutions are computed by there
WAYS: dict[str, tuple[str, Callable[[], onnx.ModelProto], str, type]] = {
    "tiles": ("x86-64-v4-amx", floats, "bf16", AmxConfig),
    "pairs": ("x86-64-v4-bf16", floats, "bf16", PairsConfig),
    "tiles of bytes": ("x86-64-v4-amx", bytes_, "fp32", AmxConfig),
    "quads": ("x86-64-v4-vnni", bytes_, "fp32", DotsConfig),
    "two terms": ("x86-64-v4", bytes_, "fp32", DotsConfig),
    "two terms of AVX2": ("x86-64-v3", bytes_, "fp32", DotsConfig),
}
ways = pytest.mark.parametrize("way", WAYS)


def program_of(model: onnx.ModelProto, target: str, precision: str, records: Records = NONE) -> Program:
    machine = TARGETS[target]
    network = simplified(import_model(model), in_bytes=machine.multiplies_bytes)
    return lay_out(network, choose(network, fuse(network), machine, records, precision), Weights())


def problems_of(way: str) -> list[Problem]:
    target, build, precision, kind = WAYS[way]
    return [each for each in problems(program_of(build(), target, precision)) if isinstance(each.choice.config, kind)]


def here(way: str) -> None:
    target = WAYS[way][0]
    if TARGETS[target].missing():
        pytest.skip(f"this CPU is no {target}")


@ways
def test_candidates(way: str) -> None:
    """Several for each kernel, each once, the computed one first; each is made again from its key."""
    target, found = TARGETS[WAYS[way][0]], problems_of(way)
    assert len(found) >= (3 if WAYS[way][1] is floats else 1)
    for problem in found:
        grid = space.ordered(problem.network, problem.choice, target)
        assert len(grid) > 5 and key_of(grid[0]) == key_of(problem.choice)
        assert len({key_of(choice) for choice in grid}) == len(grid)
        for choice in grid[1:]:
            assert space.made(problem.network, problem.choice, key_of(choice), target) == choice
            assert not list(space.neighbours(problem.network, choice, target))


@ways
def test_every_candidate_computes_what_the_oracle_does(way: str, tmp_path: Path) -> None:
    """A few of each kernel, on memory of their own; integers in every byte. With other weights they are wrong."""
    here(way)
    target = resolve(WAYS[way][0])
    linker, rng = Linker(tmp_path, target), random.Random(way)
    for number, problem in enumerate(problems_of(way)):
        preparer = Preparer(problem, target, tmp_path, 1 << 20, cold=True)
        grid = space.ordered(problem.network, problem.choice, target)
        ready = [preparer.prepare(choice) for choice in (grid[0], *rng.sample(grid[1:], 4))]
        objects = {symbol: object_code(job) for each in ready for symbol, job in each.jobs.items()}
        library = linker.link(f"t{number}", [each.calls for each in ready], objects)
        place.open_library(library, max(each.memory for each in ready), None)
        for index, each in enumerate(ready):
            error = place.check(index, each.trial)
            assert error <= each.trial.tolerance <= 0.005, each.choice
            assert (each.trial.tolerance == 0) == (each.trial.dtype != "float32")
            image = np.fromfile(each.trial.image, np.uint8)
            image[each.calls.constants :] = np.roll(image[each.calls.constants :], 64)  # weights of other channels
            image.tofile(tmp_path / "other.image")
            wrong = place.check(index, dataclasses.replace(each.trial, image=tmp_path / "other.image"))
            assert not wrong <= 4 * each.trial.tolerance


@ways
def test_records_of_any_candidates_are_a_network(way: str, tmp_path: Path) -> None:
    """Compile takes them, verifies the whole, and threads change no byte."""
    here(way)
    target, build, precision, kind = WAYS[way]
    rng, lines, model = random.Random(way), [], build()
    for problem in problems_of(way):
        choice = rng.choice(space.ordered(problem.network, problem.choice, TARGETS[target])[1:])
        isa = TARGETS[target].isa
        lines.append(record(problem.words, choice.rule, dataclasses.asdict(choice.config), isa=isa))
    (tmp_path / "any.jsonl").write_text("".join(lines))
    made = tvmcnn.compile(model, target, tmp_path / "any.so", records=[tmp_path / "any.jsonl"], precision=precision)
    assert made.verdict is not None and made.verdict.passed
    tiers = [step.choice.tier for step in made.program.steps if isinstance(step.choice.config, kind)]
    assert tiers.count("given record") >= len(set(lines)) > 0
    nets = [tvmcnn.load(made.path, threads=threads) for threads in (1, 2)]
    given = any_input(model) if build is bytes_ else feeds(model)
    same_bits_in_any_memory(next(iter(given.values())), nets)


# ---- records --------------------------------------------------------------------------------------------------------


def recorded(problem: Problem, config: Any) -> Records:
    rule = {AmxConfig: "amx", PairsConfig: "pairs", DotsConfig: "dots"}[type(config)]
    entry = Record(problem.words, rule, config, 1.0, "x86-64-v4", "", ("", ""), {}, 1)
    return Records({problem.words: {rule: (entry, "given record")}})


@pytest.mark.parametrize(
    ("way", "changes", "reason"),
    [
        ("tiles", {"maps": 2, "pixels": 1, "rows": 99}, "a band has 99 rows, the output 11"),
        ("tiles", {"maps": 2, "pixels": 1}, "2 does not divide the 3 blocks of 16 maps"),
        ("pairs", {"vectors": 2}, "2 does not divide the 3 blocks of 16 maps"),
        ("pairs", {"unroll": 5}, "5 does not divide the 8 pairs of channels"),
    ],
)
def test_a_record_that_does_not_fit(way: str, changes: dict[str, int], reason: str) -> None:
    target, build, precision, _ = WAYS[way]
    problem = next(each for each in problems_of(way) if "48x48x3x2" in each.words)
    config = dataclasses.replace(problem.choice.numbers(WAYS[way][3]), **changes)
    with pytest.raises(TvmcnnError, match=f"does not fit it: .*{reason}"):
        program_of(build(), target, precision, recorded(problem, config))


def test_a_record_of_other_instructions_is_left_out() -> None:
    """Tiles that VNNI multiplies by four terms say nothing of those of two."""
    (problem, *_) = (each for each in problems_of("quads") if "48x32x1x1" in each.words)
    config = dataclasses.replace(problem.choice.numbers(DotsConfig), columns=3)
    records = recorded(problem, config)
    for target, tier, columns in (("x86-64-v4-vnni", "given record", 3), ("x86-64-v4", "default", None)):
        steps = program_of(bytes_(), target, "fp32", records).steps
        (choice,) = (each.choice for each in steps if getattr(each.choice.config, "terms", 1) > 1
                     and each.choice.kernel.output.shape[1] == 48)  # fmt: skip
        assert choice.tier == tier and (columns is None or choice.config.columns == columns)
        assert choice.config.terms == (4 if columns else 2)


def test_parts_and_bands_are_the_choices_own() -> None:
    """A record says nothing of what threads share."""
    problem = next(each for each in problems_of("pairs") if "48x48x3x2" in each.words)
    computed = problem.choice.numbers(PairsConfig)
    records = recorded(problem, dataclasses.replace(computed, bands=11, parts=3))
    steps = program_of(floats(), "x86-64-v4-bf16", "bf16", records).steps
    (choice,) = (step.choice for step in steps if step.choice.tier == "given record")
    assert (choice.config.bands, choice.config.parts) == (computed.bands, computed.parts)


# ---- from end to end ------------------------------------------------------------------------------------------------


def test_tune(tmp_path: Path) -> None:
    """A search by the precision's own kernels, whose records compile follows with it; without it nothing of them."""
    (name, *_) = (name for name in ("x86-64-v4-amx", "x86-64-v4-bf16", "") if not name or not TARGETS[name].missing())
    if not name:
        pytest.skip("this CPU has no AVX512-BF16")
    path = tmp_path / "mine.jsonl"
    lines: list[str] = []
    enough = Enough(lambda events: len(trials(events)) >= 12)
    options: dict[str, Any] = {"known_records": False, "measure": False, "report": lines.append}
    tune(floats(), name, DAY, path, precision="bf16", event=enough.event, watch=enough.watch, **options)
    assert {each["rule"] for each in trials(enough.events)} <= {"amx", "pairs", "direct"}
    assert all(each["outcome"] == "ok" for each in trials(enough.events))
    assert any("factors of products and images between in bfloat16, one thread" in line for line in lines)
    made = tvmcnn.compile(floats(), name, tmp_path / "n.so", records=[path], precision="bf16", own_records=False)
    tiers = [kernel["tier"] for kernel in read_manifest(made.path)["kernels"] if kernel["rule"] in ("amx", "pairs")]
    assert "given record" in tiers


def test_a_cpu_without_it_is_told(tmp_path: Path) -> None:
    if targets.TARGETS["x86-64-v3"].missing():
        pytest.skip("this CPU is no x86-64-v3")
    with pytest.raises(ToolError, match="precision bf16 needs AVX512-BF16, which x86-64-v3 has not"):
        tune(floats(), "x86-64-v3", 1, tmp_path / "mine.jsonl", precision="bf16")
