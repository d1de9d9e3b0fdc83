"""A prologue that several tiles of maps share: once a row of tiles, in scratch, with the same bits on any threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from builders import Graph
from helpers import check, feeds, same_bits_in_any_memory

import tvmcnn
from tvmcnn.choose.cpu import tasks


def scaled(g: Graph, rows: int = 11, columns: int = 37, **strides: list[int]) -> str:
    """A gate before a 1x1 convolution, as in a squeeze-and-excite block, into more maps than a tile has."""
    x = g.conv(g.input(1, 17, rows, columns), 115, (1, 1))
    gate = g.node("Sigmoid", g.conv(g.node("GlobalAveragePool", x), 115, (1, 1)))
    return g.conv(g.node("Mul", x, gate), 147, (1, 1), **strides)


def strided(g: Graph) -> str:
    return scaled(g, strides=[2, 3])


def pooled(g: Graph) -> str:
    return g.node("AveragePool", scaled(g, 12, 33), kernel_shape=[2, 3], strides=[2, 3])


@pytest.mark.parametrize("build", [scaled, strided, pooled], ids=lambda build: build.__name__)
def test_agrees_with_numpy(build: Callable[[Graph], str], target: str, tmp_path: Path) -> None:
    g = Graph()
    g.output(build(g))
    compiled = check(g.model(), tmp_path, target)
    (choice,) = [step.choice for step in compiled.program.steps if step.choice.kernel.prologue]
    assert choice.config.rows_first
    assert choice.scratch_bytes >= 115 * 33 * 4 // 3


def test_same_bits_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MIN_MICROSECONDS", 0.0)
    g = Graph()
    g.output(scaled(g))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "net.so")
    x = next(iter(feeds(g.model()).values()))
    same_bits_in_any_memory(x, [tvmcnn.load(compiled.path, threads=count) for count in (1, 2, 3)])


def test_rows_that_l2_does_not_hold_are_made_for_each_tile(tmp_path: Path) -> None:
    g = Graph()
    x = g.conv(g.input(1, 17, 2, 900), 320, (1, 1))
    g.output(g.conv(g.node("Mul", x, g.draw(320, 1, 1)), 67, (1, 1)))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "wide.so", verify=False, target="x86-64-v3")
    assert not any(step.choice.config.rows_first for step in compiled.program.steps if step.choice.kernel.prologue)
