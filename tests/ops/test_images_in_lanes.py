"""Images in the lanes: for batches of networks with few maps, whatever else is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph
from helpers import check, feeds, same_bits_in_any_memory

import tvmcnn
from tvmcnn.choose.cpu import cost
from tvmcnn.compiler import Compiled
from tvmcnn.network import Layout

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def slow_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is for images in the lanes, however small the network."""
    monkeypatch.setitem(cost.PEAK_SHARES, "columns", 0.01)


def tiny(batch: int) -> onnx.ModelProto:
    """A LeNet with halos, strides, both pools, a convolution over its whole input, and products."""
    g = Graph()
    x = g.node("Tanh", g.conv(g.input(batch, 1, 18, 31), 3, (5, 3), pads=[2, 1, 2, 0]))
    x = g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Relu", g.conv(x, 10, (3, 4), strides=[2, 1], pads=[0, 1, 1, 1]))
    x = g.node("AveragePool", x, kernel_shape=[1, 2], strides=[1, 2])
    _, _, *rest = g.shape(x)
    x = g.node("Relu", g.conv(x, 21, tuple(rest)))
    x = g.node("Relu", g.node("Gemm", g.node("Flatten", x), g.draw(21, 14), g.draw(14)))
    g.output(g.node("Softmax", g.node("Gemm", x, g.draw(14, 5), g.draw(5))))
    return g.model()


def algorithms(compiled: Compiled) -> list[str]:
    return [step.choice.algorithm for step in compiled.program.steps]


def test_agrees_with_numpy(target: str, tmp_path: Path) -> None:
    found = algorithms(check(tiny(48), tmp_path, target))
    assert found.count("conv_images") == 2
    assert found.count("dense_images") == 3
    assert "columns" not in found


@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_on_threads(threads: int, tmp_path: Path) -> None:
    model = tiny(64)
    compiled = tvmcnn.compile(model, output=tmp_path / "tiny.so")
    x = next(iter(feeds(model).values()))
    one, several = (tvmcnn.load(compiled.path, threads=count) for count in (1, threads))
    assert one.step_by_step(x).tobytes() == one(x).tobytes()
    same_bits_in_any_memory(x, [one, several])


@pytest.mark.parametrize("batch", [1, 17])
def test_other_batches_have_none(batch: int, target: str, tmp_path: Path) -> None:
    assert "columns" in algorithms(tvmcnn.compile(tiny(batch), target, tmp_path / "tiny.so", verify=False))


def test_images_that_others_read(target: str, tmp_path: Path) -> None:
    """A convolution with a residual, a pool alone, an element-wise kernel, a concatenation and an output of images."""
    g = Graph()
    x = g.node("MaxPool", g.conv(g.input(32, 1, 11, 30), 3, (2, 1)), kernel_shape=[2, 2], strides=[2, 2])
    y = g.node("Relu", g.node("Add", g.conv(x, 3, (1, 1)), x))
    z = g.node("Concat", y, g.node("Sigmoid", x), axis=1)
    g.output(g.node("AveragePool", z, kernel_shape=[3, 2]), g.conv(y, 4, (2, 3)))
    assert "conv_images" in algorithms(check(g.model(), tmp_path, target))


def test_the_faster_whole_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate sums all kernels, reorders among them."""
    monkeypatch.setitem(cost.PEAK_SHARES, "conv_images", 0.001)
    assert "conv_images" not in algorithms(tvmcnn.compile(tiny(32), output=tmp_path / "tiny.so", verify=False))


@pytest.mark.parametrize("shape", [(32, 3, 5, 7), (48, 9)])
def test_layout_and_back(shape: tuple[int, ...]) -> None:
    layout = Layout(halo=(1, 0, 2, 3) if len(shape) == 4 else (0, 0, 0, 0), images=16)
    x = np.random.default_rng(0).standard_normal(shape)
    stored = layout.pack(x)
    assert stored.shape == layout.physical(shape)
    np.testing.assert_array_equal(layout.unpack(stored, shape), x)
    if len(shape) == 2:
        assert stored[1, 4, 3] == x[16 + 3, 4]
    else:
        assert stored[1, 2, 4 + 1, 6, 3] == x[16 + 3, 2, 4, 6]
