"""Element-wise nodes that read one tensor several times and come together again are one epilogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import Graph
from helpers import verified

from tvmcnn.fuse import ELEMENTWISE
from tvmcnn.fuse.regions import LONGEST, regions
from tvmcnn.importer import import_model


def hard_swish(g: Graph, y: str) -> str:
    """y · min(max(y + 3, 0), 6) / 6, as PyTorch wrote it for years."""
    low, high, three = (g.constant(np.float32(value)) for value in (0, 6, 3))
    return g.node("Div", g.node("Mul", y, g.node("Clip", g.node("Add", y, three), low, high)), high)


def half_gelu(g: Graph, y: str) -> str:
    """Half of a GELU, which is no operator of its own."""
    one, half = g.constant(np.float32(1)), g.constant(np.float32(0.25))
    inner = g.node("Erf", g.node("Div", y, g.constant(np.float32(2**0.5))))
    return g.node("Mul", g.node("Mul", y, g.node("Add", inner, one)), half)


def square(g: Graph, y: str) -> str:
    return g.node("Mul", y, y)


def crossed(g: Graph, y: str) -> str:
    """Two that are read by two: no chain holds them."""
    a, b = g.node("Neg", y), g.node("Abs", y)
    return g.node("Sub", g.node("Mul", a, b), g.node("Max", b, a))


def residual(g: Graph, y: str) -> str:
    """Another tensor between: of the same shape, and there before the convolution."""
    return g.node("Add", g.node("Mul", y, g.input(*g.shape(y))), g.node("Relu", y))


Activation = Callable[[Graph, str], str]


def ops(g: Graph, folder: Path) -> list[str]:
    """The kernels of a graph, which agrees with NumPy."""
    found = [step.choice.kernel.ops for step in verified(g.model(), folder).program.steps]
    return [op for op in found if op != "Reorder"]


@pytest.mark.parametrize(
    ("activation", "nodes"),
    [
        (hard_swish, "Add+Clip+Mul+Div"),
        (square, "Mul"),
        (crossed, "Neg+Abs+Mul+Max+Sub"),
        (residual, "Mul+Relu+Add"),
    ],
)
@pytest.mark.parametrize("maps", [5, 17])
def test_one_epilogue(activation: Activation, nodes: str, maps: int, tmp_path: Path) -> None:
    """Plain and in channel blocks; 15 lanes of the second block are padding."""
    g = Graph()
    y = g.conv(g.input(2, 3, 9, 7), maps, (3, 3), pads=[1, 1, 1, 1])
    g.output(g.conv(activation(g, y), 4, (1, 1), bias=False))
    assert ops(g, tmp_path) == [f"Conv+{nodes}", "Conv"]


def test_a_polynomial_is_a_kernel_of_its_own(tmp_path: Path) -> None:
    """Its constants would find no registers between a convolution's accumulators."""
    g = Graph()
    g.output(half_gelu(g, g.conv(g.input(2, 3, 9, 7), 17, (3, 2))))
    assert ops(g, tmp_path) == ["Conv", "Div+Erf+Add+Mul+Mul"]


def test_one_kernel_without_a_convolution(tmp_path: Path) -> None:
    g = Graph()
    y = g.node("Abs", g.input(2, 3, 9, 7))
    g.output(crossed(g, half_gelu(g, y)))  # in one they would be too much for TVM: see MOST_COPIES
    assert ops(g, tmp_path) == ["Abs+Div+Erf+Add+Mul+Mul", "Neg", "Abs+Mul+Max+Sub"]


@pytest.mark.parametrize("before", ["Relu", "Neg"])
def test_around_a_pool(before: str, tmp_path: Path) -> None:
    """A max pool that moves before Relu, and one that stays behind Neg: who reads it takes the right value."""
    g = Graph()
    y = g.node(before, g.conv(g.input(2, 3, 9, 13), 17, (2, 2)))
    g.output(hard_swish(g, g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])))
    assert ops(g, tmp_path) == [f"Conv+{before}+MaxPool+Add+Clip+Mul+Div"]


def test_in_front_of_a_convolution(tmp_path: Path) -> None:
    g = Graph()
    y = g.node("MaxPool", g.input(2, 17, 9, 7), kernel_shape=[2, 2])
    g.output(g.conv(hard_swish(g, y), 20, (1, 1)))
    assert ops(g, tmp_path)[-1] == "Add+Clip+Mul+Div+Conv"


def an_output_inside(g: Graph, y: str) -> str:
    g.output(inner := g.node("Neg", y))
    return g.node("Mul", y, inner)


def another_reader(g: Graph, y: str) -> str:
    inner = g.node("Neg", y)
    g.output(g.node("ReduceSum", inner))
    return g.node("Mul", y, inner)


def not_elementwise(g: Graph, y: str) -> str:
    return g.node("Mul", y, g.node("Softmax", y))


def grows(g: Graph, y: str) -> str:
    return g.node("Mul", y, g.node("Add", y, g.draw(3, 1, 1, 1, 1)))


def jumps(g: Graph, y: str) -> str:
    """A check must see on which side each element is."""
    return g.node("Mul", y, g.node("Floor", y))


def made_later(g: Graph, y: str) -> str:
    """An operand that is not there when the first node of the region runs."""
    first = g.node("Neg", y)
    return g.node("Mul", g.node("Add", first, g.node("MaxPool", "x0", kernel_shape=[3, 2])), y)


BROKEN = [an_output_inside, another_reader, not_elementwise, grows, jumps, made_later]


@pytest.mark.parametrize("activation", BROKEN)
def test_no_region(activation: Activation, tmp_path: Path) -> None:
    g = Graph()
    g.output(activation(g, g.conv(g.input(2, 5, 9, 7), 5, (3, 2))))
    found = ops(g, tmp_path)
    assert "Conv" in found and len(found) > 1


def test_the_longest() -> None:
    for length, found in ((LONGEST, 1), (LONGEST + 1, 0)):
        g = Graph()
        y = g.node("Abs", x := g.input(2, 3))
        for _ in range(length - 2):
            y = g.node("Neg", y)
        g.output(g.node("Add", x, y))
        assert len(regions(import_model(g.model()), ELEMENTWISE)) == found
