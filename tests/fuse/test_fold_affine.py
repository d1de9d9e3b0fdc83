"""Per-channel arithmetic folded into convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph
from helpers import check, feeds

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.fuse import fold_affine


def conv(g: Graph, *, bias: bool = True) -> str:
    return g.conv(g.input(2, 3, 6, 9), 5, (3, 2), bias=bias)


def per_channel(g: Graph) -> str:
    return g.constant(g.rng.uniform(0.5, 2.0, (5, 1, 1)))


FOLDED: dict[str, Any] = {
    "mul": lambda g: g.node("Mul", conv(g, bias=False), per_channel(g)),
    "mul-first": lambda g: g.node("Mul", per_channel(g), conv(g)),
    "scalar": lambda g: g.node("Mul", conv(g), g.constant(np.float32(-1.5))),
    "add": lambda g: g.node("Add", per_channel(g), conv(g)),
    "sub": lambda g: g.node("Sub", conv(g), per_channel(g)),
    "sub-first": lambda g: g.node("Sub", per_channel(g), conv(g)),
    "div": lambda g: g.node("Div", conv(g), per_channel(g)),
    "mul-add": lambda g: g.node("Add", g.node("Mul", conv(g, bias=False), per_channel(g)), per_channel(g)),
    "relu-behind": lambda g: g.node("Relu", g.node("Mul", conv(g), per_channel(g))),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name: str, tmp_path: Path) -> None:
    g = Graph()
    g.output(FOLDED[name](g))
    ops = [step.choice.kernel.ops for step in check(g.model(), tmp_path).program.steps]
    assert [op for op in ops if op != "Reorder"] == ["Conv+Relu" if "relu" in name else "Conv"]


def per_pixel(g: Graph) -> str:
    return g.node("Mul", conv(g), g.draw(5, 4, 8))


def two_readers(g: Graph) -> str:
    y = conv(g)
    return g.node("Concat", g.node("Mul", y, per_channel(g)), y, axis=1)


def divided_by_it(g: Graph) -> str:
    return g.node("Div", per_channel(g), conv(g))


def an_output(g: Graph) -> str:
    y = conv(g)
    g.output(y)
    return g.node("Mul", y, per_channel(g))


@pytest.mark.parametrize("build", [per_pixel, two_readers, an_output])
def test_not_folded(build: Any, tmp_path: Path) -> None:
    g = Graph()
    g.output(build(g))
    ops = "+".join(step.choice.kernel.ops for step in check(g.model(), tmp_path).program.steps)
    assert "Mul" in ops


def test_a_zero_among_the_divisors(tmp_path: Path) -> None:
    """No factor of a weight: its channel is infinite, and no other is touched. Folded, it would be NaN."""
    g = Graph()
    divisors = np.array([2, 0, 4, 1, 8], np.float32).reshape(5, 1, 1)
    g.output(g.node("Div", g.conv(g.input(1, 3, 6, 9), 5, (3, 2)), g.constant(divisors)))
    model = g.model()
    compiled = tvmcnn.compile(model, output=tmp_path / "x.so", verify=False)
    assert "Div" in "+".join(step.choice.kernel.ops for step in compiled.program.steps)
    found, (wanted,) = tvmcnn.load(compiled.path)(*feeds(model).values()), reference(model, feeds(model)).values()
    assert np.array_equal(np.isinf(found), np.isinf(wanted)) and np.isinf(wanted).any() and not np.isnan(found).any()


def test_constant_divided_by_the_convolution(tmp_path: Path) -> None:
    """No affine map, and a division by small numbers: only the shape of the program is looked at."""
    g = Graph()
    g.output(divided_by_it(g))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so", verify=False)
    assert "Div" in "+".join(step.choice.kernel.ops for step in compiled.program.steps)


def test_planted_bug_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift that is scaled too."""
    real = fold_affine._affine

    def edited(*given: Any) -> Any:
        found = real(*given)
        return found and (found[0], found[1] * found[0])

    monkeypatch.setattr(fold_affine, "_affine", edited)
    g = Graph()
    x = g.input(1, 3, 6, 9)
    scale, shift, variance = (g.constant(g.rng.uniform(0.5, 1.5, 5)) for _ in range(3))
    y = g.node("Mul", g.conv(x, 5, (3, 2)), g.constant(g.rng.uniform(2, 3, (5, 1, 1))))
    g.output(g.node("BatchNormalization", g.node("Sub", per_channel(g), y), scale, shift, g.draw(5), variance))
    with pytest.raises(pytest.fail.Exception):
        check(g.model(), tmp_path)
