"""Tiles that do not divide their axis: the last overlaps the one before, and no element is left out, or added twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph
from helpers import check, feeds, same_bits_in_any_memory

import tvmcnn
from tvmcnn.choose import records
from tvmcnn.configs import DenseConfig, DirectConfig
from tvmcnn.ops.tiles import Tiles


@pytest.mark.parametrize(("extent", "tile"), [(13, 4), (12, 4), (7, 7), (5, 1), (9, 8)])
def test_tiles_cover_their_axis(extent: int, tile: int) -> None:
    from tvm import sym, tirx

    tiles, simplify = Tiles(extent, tile), sym.Analyzer().simplify
    elements = [
        int(simplify(tiles.element(tirx.const(t, "int32"), i))) for t in range(tiles.count) for i in range(tile)
    ]
    assert sorted(set(elements)) == list(range(extent))
    assert len(elements) - extent < tile
    for element in range(extent):
        place = [int(simplify(index)) for index in tiles.place(tirx.const(element, "int32"))]
        assert elements[place[0] * tile + place[1]] == element


def three_by_three(g: Graph) -> str:
    """With a residual, whose pixels are those of the tile."""
    x = g.conv(g.input(2, 20, 11, 13), 45, (1, 1))
    return g.node("Relu", g.node("Add", g.conv(x, 45, (3, 3), pads=[1, 1, 1, 1]), x))


def strided_and_dilated(g: Graph) -> str:
    return g.conv(g.input(1, 17, 23, 25), 33, (3, 2), strides=[2, 1], dilations=[1, 2], pads=[2, 1, 0, 1])


def depthwise(g: Graph) -> str:
    return g.conv(g.input(1, 37, 11, 13), 37, (5, 3), group=37, strides=[1, 2], pads=[2, 1, 2, 1])


def pooled(g: Graph) -> str:
    x = g.conv(g.input(1, 18, 22, 33), 19, (2, 3))
    return g.node("MaxPool", x, kernel_shape=[2, 3], strides=[2, 3])


def few_channels(g: Graph) -> str:
    """The rows that a row of tiles reads are copied between zeros."""
    return g.conv(g.input(1, 3, 27, 29), 16, (3, 3), strides=[2, 2], pads=[1, 1, 1, 1])


def prologue(g: Graph) -> str:
    """As in a DenseNet: each tile makes the pixels that it reads."""
    x = g.node("Concat", g.input(1, 16, 11, 13), g.input(1, 32, 11, 13), axis=1)
    return g.conv(g.node("Relu", g.node("Mul", x, g.draw(48, 1, 1))), 33, (3, 3), pads=[1, 1, 1, 1])


CONVOLUTIONS = [three_by_three, strided_and_dilated, depthwise, pooled, few_channels, prologue]


def forced(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every kernel of the config's rule computed by it."""
    rule = "direct" if isinstance(config, DirectConfig) else "dense"
    found = (config, records.GIVEN)
    monkeypatch.setattr(records.Records, "find", lambda self, kernel, asked: found if asked == rule else None)
    monkeypatch.setattr(records.Records, "fastest", lambda self, kernel, rules: "direct")


@pytest.mark.parametrize("build", CONVOLUTIONS, ids=lambda build: build.__name__)
def test_convolutions(
    build: Callable[[Graph], str], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(DirectConfig(vectors=1, rows=3, columns=4, unroll=1, overlap=True), monkeypatch)
    g = Graph()
    g.output(build(g))
    compiled = check(g.model(), tmp_path, target)
    choices = [step.choice for step in compiled.program.steps]
    assert any(choice.rule == "direct" and choice.config.overlap for choice in choices), choices


def matrix(g: Graph) -> str:
    return g.node("Relu", g.node("Gemm", g.input(13, 40), g.draw(40, 33), g.draw(33)))


def computed(g: Graph) -> str:
    """Both matrices are, with axes before them that broadcast."""
    return g.node("MatMul", g.input(2, 1, 35, 18), g.input(3, 18, 37))


def gram(g: Graph) -> str:
    """A matrix with itself, turned."""
    x = g.input(3, 35, 18)
    return g.node("MatMul", x, g.node("Transpose", x, perm=[0, 2, 1]))


def few_rows(g: Graph) -> str:
    return g.node("MatMul", g.input(5, 9, 11), g.input(5, 11, 53))


def stack(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 7, 18), g.draw(18, 70))


def whole_image(g: Graph) -> str:
    """A convolution that covers its input, with the gate of a squeeze-and-excite block behind."""
    return g.node("Sigmoid", g.conv(g.input(11, 24, 3, 2), 39, (3, 2)))


@pytest.mark.parametrize("build", [matrix, stack, whole_image], ids=lambda build: build.__name__)
def test_products(build: Callable[[Graph], str], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(DenseConfig(width=32, rows=5), monkeypatch)
    g = Graph()
    g.output(build(g))
    compiled = check(g.model(), tmp_path, target)
    assert [step.choice.config.rows for step in compiled.program.steps if step.choice.rule == "dense"] == [5]


@pytest.mark.parametrize("build", [computed, few_rows], ids=lambda build: build.__name__)
def test_computed_matrices(build: Callable[[Graph], str], target: str, tmp_path: Path) -> None:
    """Columns are packed where there are rows enough to share them."""
    g = Graph()
    g.output(build(g))
    (choice,) = [step.choice for step in check(g.model(), tmp_path, target).program.steps]
    assert choice.algorithm == "matmul"
    assert choice.config.packed == (build is computed) == (choice.scratch_bytes > 0)
    rows, columns = choice.kernel.output.shape[-2:]
    assert rows % choice.config.rows or columns % choice.config.width


@pytest.mark.parametrize("build", [three_by_three, stack, gram], ids=lambda build: build.__name__)
def test_threads_may_store_the_same(
    build: Callable[[Graph], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks compute what their tiles share, with the same bits."""
    from tvmcnn.choose.cpu import tasks

    monkeypatch.setattr(tasks, "MIN_MICROSECONDS", 0.0)
    config = DenseConfig(width=32, rows=5) if build is stack else DirectConfig(1, 3, 4, unroll=1, overlap=True)
    forced(config, monkeypatch)
    g = Graph()
    g.output(build(g))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "net.so")
    assert max(step.choice.tasks for step in compiled.program.steps) > 1
    x = next(iter(feeds(g.model()).values()))
    same_bits_in_any_memory(x, [tvmcnn.load(compiled.path, threads=count) for count in (1, 2, 3)])


def test_defaults_keep_registers_full() -> None:
    """Rows without a good divisor get the tile that 196 rows get."""
    from tvmcnn.choose.cpu.defaults import dense_config
    from tvmcnn.targets import resolve

    machine = resolve("x86-64-v3")
    odd, even = (dense_config(rows, 768, 3072, "float32", machine) for rows in (197, 196))
    assert odd.rows * odd.width >= even.rows * even.width > 8 * 8
    assert np.prod([odd.rows, odd.width // 8]) <= machine.registers
