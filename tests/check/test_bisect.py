"""Bisection: kernels made wrong on purpose, each by one choice, which must be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi
from builders import Graph
from test_planted_bugs import BUGS, padded_conv
from tvm import tirx

import tvmcnn
from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.check.bisect import RIGHT, SWITCHES, WRONG, bisect, unscheduled
from tvmcnn.check.verify import verify_library
from tvmcnn.cli import main
from tvmcnn.codegen.cpu import kernels

pytestmark = pytest.mark.slow

TARGET = "x86-64-v3"


def planted(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A library with a bug of test_planted_bugs.py, and its model."""
    bug = next(bug for bug in BUGS if bug.name == name)
    g = Graph()
    bug.build(g)
    bug.plant(monkeypatch)
    return tvmcnn.compile(g.model(), TARGET, folder / "net.so", verify=False).path, g.model()


@pytest.mark.parametrize(
    ("name", "guilty"),
    [
        ("conv-swapped-taps-direct", "layout"),
        ("winograd-other-matrix", "algorithm"),
        ("fused-average-pool-divisor", "fusion"),
    ],
)
def test_the_guilty_choice_is_named(name: str, guilty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = planted(name, tmp_path, monkeypatch)
    found = bisect(path, model)
    assert found.guilty[0] == guilty, str(found)
    assert found.rebuilt == WRONG
    assert {each.switch for each in found.tried} == set(SWITCHES)
    kernel = found.kernel["name"]
    assert "conv" in kernel
    assert str(found).splitlines()[-1] == f"{kernel}: the {guilty} brings the error in"
    json.dumps(found.as_json())


def test_a_wrong_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule "direct" leaves out the last row of the filter: with the loops as written it is right."""
    schedule = kernels.schedule

    def shortened(func: Any, choice: Any, lanes: int) -> Any:
        made = schedule(func, choice, lanes)
        if choice.rule != "direct":
            return made

        def shorten(loop: tirx.For) -> tirx.For:
            rows = str(loop.loop_var.name).startswith("ax10") and int(loop.extent) == 3
            return tirx.For(loop.loop_var, loop.min, 2, loop.kind, loop.body) if rows else loop

        return tvm_ffi.structural_map(made, (tirx.For, shorten))

    monkeypatch.setattr(kernels, "schedule", shortened)
    g = Graph()
    padded_conv()(g)
    path = tvmcnn.compile(g.model(), TARGET, tmp_path / "net.so", verify=False).path
    found = bisect(path, g.model())
    assert found.guilty[0] == "schedule", str(found)


def test_no_choice_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped pads are in every expression of a convolution."""
    path, model = planted("conv-flipped-pads", tmp_path, monkeypatch)
    found = bisect(path, model)
    assert found.guilty == ()
    assert "no choice alone is to blame: the expression of k" in str(found)


def test_a_library_that_this_compiler_does_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        path, model = planted("conv-swapped-taps-direct", tmp_path, patched)
    found = bisect(path, model)
    assert found.rebuilt == RIGHT and found.guilty == ()
    assert "guilty" not in str(found)
    assert "the file is not what this tvmcnn makes of the model" in str(found)


def test_nothing_is_wrong(tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 3, 9, 11), 4, (3, 3))))
    found = bisect(tvmcnn.compile(g.model(), TARGET, tmp_path / "net.so", verify=False).path, g.model())
    assert found.first is None and str(found) == "no tensor is wrong: there is nothing to bisect"


def test_by_the_command_with_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Histograms count every element; the first wrong tensor and the guilty choice are on the page."""
    path, model = planted("conv-swapped-taps-direct", tmp_path, monkeypatch)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    words = ["verify", str(path), "--model", str(tmp_path / "m.onnx"), "--bisect", "--html", str(tmp_path / "v.html")]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "the layout brings the error in" in said.out
    assert said.err == f"tvmcnn: {path} does not agree with {tmp_path / 'm.onnx'}\n"
    page = (tmp_path / "v.html").read_text()
    assert "The first tensor that differs is" in page and "the layout brings the error in" in page
    verdict = verify_library(path, model, histograms=True)[0]
    first = verdict.first_wrong
    assert first is not None
    for error in (*verdict.tensors, *verdict.outputs):
        over = sum(error.histogram[1 + len(edges_to_the_bound()) :])
        assert (over > 0) == (not error.passed), error
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.output}
    for error in verdict.outputs:
        size = 1
        for extent in shapes[error.name]:
            size *= extent
        assert sum(error.histogram) == size


def edges_to_the_bound() -> list[float]:
    """The edges of the histogram below and at the bound."""
    from tvmcnn.check.verify import HISTOGRAM

    return [float(edge) for edge in HISTOGRAM if edge <= 1e-9]


def test_only_what_fits_the_stack_runs_without_a_schedule(tmp_path: Path) -> None:
    """Winograd's tiles do not in any, and a view has nothing to run."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 32, 24, 28), 64, (3, 3), pads=[1, 1, 1, 1]))
    g.output(g.node("Relu", g.node("Flatten", x)))
    compiled = tvmcnn.compile(g.model(), TARGET, tmp_path / "net.so", verify=False)
    seen = set()
    for step in compiled.program.steps:
        choice = step.choice
        kept = choice.is_view or not ALGORITHMS[choice.algorithm].on_stack
        seen.add(kept)
        assert (unscheduled(choice) is choice) == kept
        assert kept or unscheduled(choice).rule == "fallback"
    assert seen == {True, False}
