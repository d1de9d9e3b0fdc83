"""Taps that meet nothing but padding are left out tile by tile, where that saves enough, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph
from helpers import feeds, verified

import tvmcnn
from tvmcnn.choose.cpu import convolution
from tvmcnn.codegen.cpu import live_taps
from tvmcnn.codegen.cpu.kernels import scheduled
from tvmcnn.compiler import Compiled
from tvmcnn.errors import VerifyError
from tvmcnn.targets import TARGETS


def wide(g: Graph) -> None:
    """Two tiles of columns, of which the outer taps miss one or the other."""
    g.output(g.conv(g.input(1, 20, 14, 29), 33, (3, 3), dilations=[6, 16], pads=[6, 16, 6, 16]))


def strided(g: Graph) -> None:
    """More padding in front than behind; an image of two."""
    x = g.node("Relu", g.conv(g.input(2, 19, 12, 17), 24, (1, 1)))
    g.output(g.conv(x, 16, (4, 3), strides=[2, 1], dilations=[3, 5], pads=[8, 7, 2, 4]))


def pooled(g: Graph) -> None:
    """A tile of two rows has the pixels of four."""
    x = g.conv(g.input(1, 16, 12, 18), 32, (5, 2), dilations=[4, 9], pads=[8, 5, 8, 4])
    g.output(g.node("MaxPool", g.node("Relu", x), kernel_shape=[2, 2], strides=[2, 2]))


def depthwise(g: Graph) -> None:
    """A window larger than the image."""
    x = g.node("Relu", g.conv(g.input(1, 9, 11, 14), 32, (1, 1)))
    g.output(g.node("Conv", x, g.draw(32, 1, 13, 15), g.draw(32), pads=[6, 7, 6, 7], group=32))


def grouped(g: Graph) -> None:
    """Groups of whole blocks, beside a residual."""
    x = g.node("Relu", g.conv(g.input(1, 9, 10, 21), 32, (1, 1)))
    y = g.node("Conv", x, g.draw(32, 16, 3, 3), g.draw(32), pads=[7, 12, 7, 12], dilations=[7, 12], group=2)
    g.output(g.node("Relu", g.node("Add", y, x)))


def plain(g: Graph) -> None:
    """An image of few channels, which is padded row by row."""
    g.output(g.conv(g.input(1, 3, 13, 22), 16, (3, 3), dilations=[8, 1], pads=[8, 1, 8, 1]))


GRAPHS = (wide, strided, pooled, depthwise, grouped, plain)
SHAPES = pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)


def made(build: Callable[[Graph], Any], folder: Path, target: str = "native") -> Compiled:
    g = Graph()
    build(g)
    return verified(g.model(), folder, target)


def skipping(compiled: Compiled) -> list[bool]:
    return [step.choice.skips_padding for step in compiled.program.steps if step.choice.rule == "direct"]


@SHAPES
def test_the_same_bits(
    build: Callable[[Graph], Any], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with every tap; and the library is verified."""
    g = Graph()
    build(g)
    outputs, found = [], []
    for most in (convolution.MOST_LIVE, 0.0):
        monkeypatch.setattr(convolution, "MOST_LIVE", most)
        compiled = made(build, tmp_path, target)
        found.append(skipping(compiled))
        outputs.append(tvmcnn.load(compiled.path)(*feeds(g.model()).values()))
    assert any(found[0])
    assert not any(found[1])
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_there_is_one_test(tmp_path: Path) -> None:
    """In the inner one of the loops over taps, of rows and columns."""
    compiled = made(wide, tmp_path, "x86-64-v3")
    (step,) = (step for step in compiled.program.steps if step.choice.skips_padding)
    (test,) = (line.strip() for line in scheduled(step, TARGETS["x86-64-v3"]).script().splitlines() if " if " in line)
    assert (test.count(">= 0"), test.count("<")) == (2, 2)


def test_few_dead_taps_are_not_worth_it(tmp_path: Path) -> None:
    """One row of 3 in 28 tiles."""

    def build(g: Graph) -> None:
        g.output(g.conv(g.input(1, 16, 28, 31), 17, (3, 3), strides=[2, 2], pads=[1, 1, 1, 1]))

    assert skipping(made(build, tmp_path)) == [False]


def test_a_tap_that_is_no_number_stays(tmp_path: Path) -> None:
    """Times the zeros of the padding it is NaN."""
    g = Graph()
    weight = g.rng.standard_normal((33, 20, 3, 3)).astype(np.float32)
    weight[7, 3, 0, 1] = np.inf
    y = g.node("Conv", g.input(1, 20, 14, 29), g.constant(weight), dilations=[6, 16], pads=[6, 16, 6, 16])
    g.output(y)
    compiled = tvmcnn.compile(g.model(), "native", tmp_path / "x.so")
    assert skipping(compiled) == [False]
    found = tvmcnn.load(compiled.path)(*feeds(g.model()).values())
    assert np.isnan(found[0, 7, 0]).all()
    assert np.isfinite(found[0, 6]).all()


@pytest.mark.parametrize("build", [wide, pooled], ids=lambda build: build.__name__)
def test_a_tap_left_out_wrongly_is_caught(
    build: Callable[[Graph], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: the first pixel of a tile decides for all."""
    monkeypatch.setattr(live_taps, "_reach", lambda *given: 0)
    with pytest.raises(VerifyError):
        made(build, tmp_path)
