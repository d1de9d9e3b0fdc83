"""GELU that is written out becomes one operator; what only looks like it stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import Graph
from helpers import verified

from tvmcnn.compiler import Compiled
from tvmcnn.fuse.spelled_gelu import REASON

SHAPE = (2, 3, 5, 17)
Spelling = Callable[[Graph, str, str], str]  # (graph, x, erf's scaled operand) --> y


def operators(found: Compiled) -> list[str]:
    return [node.op for node in found.program.network.nodes]


def one_and_erf(g: Graph, scaled: str) -> str:
    return g.node("Add", g.node("Erf", scaled), g.constant(1.0))


def half_last(g: Graph, x: str, scaled: str) -> str:
    """TorchScript's."""
    return g.node("Mul", g.node("Mul", x, one_and_erf(g, scaled)), g.constant(0.5))


def half_first(g: Graph, x: str, scaled: str) -> str:
    """dynamo's."""
    return g.node("Mul", g.node("Mul", x, g.constant(0.5)), one_and_erf(g, scaled))


def half_of_the_sum(g: Graph, x: str, scaled: str) -> str:
    sum_ = g.node("Add", g.constant([1.0]), g.node("Erf", scaled))
    return g.node("Mul", g.node("Mul", g.constant([0.5]), sum_), x)


def halves(g: Graph, x: str, scaled: str) -> str:
    """Two constants that are ½ together."""
    return g.node("Mul", g.node("Mul", g.constant(2.0), x), g.node("Mul", one_and_erf(g, scaled), g.constant(0.25)))


@pytest.mark.parametrize("spelling", [half_last, half_first, half_of_the_sum, halves])
@pytest.mark.parametrize("divides", [True, False])
def test_a_gelu_is_one_operator(spelling: Spelling, divides: bool, target: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.node("Neg", g.input(*SHAPE))
    scaled = g.node("Div", x, g.constant(math.sqrt(2))) if divides else g.node("Mul", g.constant(math.sqrt(0.5)), x)
    g.output(g.node("Neg", spelling(g, x, scaled)))
    found = verified(g.model(), tmp_path, target)
    assert operators(found) == ["Neg", "Gelu", "Neg"]
    assert list(found.program.network.folded.values()) == [REASON] * (len(g.nodes) - 3)
    assert not found.program.network.constants


def written_out(g: Graph, x: str, root: float = math.sqrt(2), one: float = 1.0, half: float = 0.5) -> str:
    erf = g.node("Erf", g.node("Div", x, g.constant(root)))
    return g.node("Mul", g.node("Mul", x, g.node("Add", erf, g.constant(one))), g.constant(half))


@pytest.mark.parametrize("other", [{"root": 1.5}, {"one": 0.999}, {"half": 0.4999}], ids=str)
def test_other_numbers_stay(other: dict[str, float], tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Neg", written_out(g, g.node("Neg", g.input(*SHAPE)), **other)))
    assert "Gelu" not in operators(verified(g.model(), tmp_path))


def by_tanh(g: Graph, x: str, cubed: str, least: float = 0.044715) -> str:
    cubic = g.node("Add", x, g.node("Mul", g.constant(least), cubed))
    tanh = g.node("Tanh", g.node("Mul", g.constant(math.sqrt(2 / math.pi)), cubic))
    return g.node("Mul", g.constant(0.5), g.node("Mul", x, g.node("Add", g.constant(1.0), tanh)))


@pytest.mark.parametrize("power", [True, False])
def test_its_approximation(power: bool, target: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.node("Neg", g.input(*SHAPE))
    cubed = g.node("Pow", x, g.constant(3.0)) if power else g.node("Mul", x, g.node("Mul", x, x))
    g.output(g.node("Neg", by_tanh(g, x, cubed)))
    found = verified(g.model(), tmp_path, target)
    assert operators(found) == ["Neg", "Gelu", "Neg"]
    assert found.program.network.nodes[1]["approximate"] == "tanh"
    assert len(found.program.network.folded) == len(g.nodes) - 3


@pytest.mark.parametrize("other", ["square", "fourth", "least", "elsewhere"])
def test_other_approximations_stay(other: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.node("Neg", g.input(*SHAPE))
    z = g.node("Abs", g.input(*SHAPE)) if other == "elsewhere" else x
    power = g.constant(4.0 if other == "fourth" else 3.0)
    cubed = g.node("Mul", z, z) if other == "square" else g.node("Pow", z, power)
    g.output(g.node("Neg", by_tanh(g, x, cubed, 0.05 if other == "least" else 0.044715)))
    assert "Gelu" not in operators(verified(g.model(), tmp_path))


def test_two_operands_stay(tmp_path: Path) -> None:
    """x·Φ(z) is no GELU."""
    g = Graph()
    x, z = g.input(*SHAPE), g.input(*SHAPE)
    g.output(half_last(g, x, g.node("Div", z, g.constant(math.sqrt(2)))))
    assert "Gelu" not in operators(verified(g.model(), tmp_path))


@pytest.mark.parametrize("part", range(4))
def test_what_others_read_stays(part: int, tmp_path: Path) -> None:
    """Each of the tensors between is an output, one after the other."""
    g = Graph()
    y = written_out(g, g.input(*SHAPE))
    g.output(y, g.nodes[part].output[0])
    assert "Gelu" not in operators(verified(g.model(), tmp_path))


def test_a_constant_that_broadcasts_stays(tmp_path: Path) -> None:
    """½ as 1 x 1 x 1 x 1 x 1 makes a tensor of five axes."""
    g = Graph()
    x = g.input(*SHAPE)
    sum_ = one_and_erf(g, g.node("Div", x, g.constant(math.sqrt(2))))
    g.output(g.node("Mul", g.node("Mul", x, sum_), g.constant(np.full((1, 1, 1, 1, 1), 0.5))))
    assert "Gelu" not in operators(verified(g.model(), tmp_path))
