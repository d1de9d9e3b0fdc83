"""Convolutions to few maps, with channels in the lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph
from helpers import feeds, verified

import tvmcnn
from tvmcnn.compiler import Compiled


def head(g: Graph, maps: int, kernel: tuple[int, int], channels: int = 48, **attributes: Any) -> str:
    """What makes an image of the maps of another convolution."""
    x = g.node("Relu", g.conv(g.input(2, 9, 11, 23), channels, (1, 1)))
    return str(g.conv(x, maps, kernel, **attributes))


def few(compiled: Compiled) -> list[str]:
    return [step.choice.kernel.ops for step in compiled.program.steps if step.choice.algorithm == "few_maps"]


@pytest.mark.parametrize(
    ("maps", "kernel", "attributes"),
    [
        (1, (3, 3), {"pads": [1, 1, 1, 1]}),
        (2, (1, 1), {}),
        (3, (5, 4), {"pads": [2, 0, 1, 3]}),
        (3, (3, 2), {"strides": [2, 3], "pads": [0, 1, 2, 0]}),
        (5, (4, 3), {"dilations": [2, 3], "pads": [3, 2, 3, 4]}),
        (7, (7, 2), {"pads": [3, 1, 3, 0]}),
        (1, (2, 23), {}),  # one column
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [48, 36])
def test_shapes(
    maps: int, kernel: tuple[int, int], attributes: dict[str, Any], channels: int, target: str, tmp_path: Path
) -> None:
    """Rows that no tile divides; blocks of channels are whole or not."""
    g = Graph()
    g.output(head(g, maps, kernel, channels, **attributes))
    assert few(verified(g.model(), tmp_path, target)) == ["Conv"]


def test_epilogues(target: str, tmp_path: Path) -> None:
    """Constants of the maps, of all, and functions; the output is read plain."""
    g = Graph()
    y = g.node("Mul", head(g, 3, (3, 4), pads=[1, 2, 1, 1]), g.draw(3, 1, 1))
    y = g.node("Sigmoid", g.node("Add", y, g.constant(np.float32(0.37))))
    g.output(g.node("Softmax", y, axis=1))
    assert few(verified(g.model(), tmp_path, target)) == ["Conv+Sigmoid"]


def test_what_goes_otherwise(tmp_path: Path) -> None:
    """Several groups, a residual, so many maps, few channels, a pool that is fused."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(2, 9, 12, 22), 48, (1, 1)))
    g.output(g.node("Conv", x, g.draw(2, 24, 3, 3), group=2))
    g.output(g.node("Add", g.conv(x, 3, (1, 1)), g.input(2, 3, 12, 22)))
    g.output(g.conv(x, 12, (2, 2)), g.conv(g.input(2, 9, 12, 22), 1, (3, 3)))
    g.output(g.node("MaxPool", g.conv(x, 1, (3, 3), pads=[1, 1, 1, 1]), kernel_shape=[2, 2], strides=[2, 2]))
    assert not few(verified(g.model(), tmp_path))


def test_same_bits_on_threads(tmp_path: Path) -> None:
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 9, 61, 67), 64, (1, 1)))
    g.output(g.conv(x, 3, (5, 5), pads=[2, 2, 2, 2]))
    compiled = verified(g.model(), tmp_path)
    (step,) = (step for step in compiled.program.steps if step.choice.algorithm == "few_maps")
    assert step.choice.tasks > 1
    given = feeds(g.model()).values()
    one, two = (tvmcnn.load(compiled.path, threads=threads)(*given) for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_weights(kind: str, target: str, tmp_path: Path) -> None:
    g = Graph()
    g.output(head(g, 3, (5, 3), 96, pads=[2, 1, 2, 1]))
    compiled = tvmcnn.compile(g.model(), target, tmp_path / "x.so", weights=kind)
    assert few(compiled) == ["Conv"]
    (step,) = (step for step in compiled.program.steps if step.choice.algorithm == "few_maps")
    assert {tensor.dtype for tensor in step.packed.values()} >= {"float16" if kind == "fp16" else "int16"}
