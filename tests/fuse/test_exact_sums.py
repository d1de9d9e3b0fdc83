"""Sums of integers by the kernels of float32: which are, in how many parts, and by no algorithm that is not exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph
from quantised import Quantised, equal

import tvmcnn
from tvmcnn.fuse import exact_sums
from tvmcnn.fuse.exact_sums import LEAST, _parts
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model


def products(maps: int) -> onnx.ModelProto:
    """A convolution of 64 · 25 · maps products."""
    g = Quantised(1)
    y = g.node("Conv", g.source(1, 64, 5, 5), g.weight(maps, 64, 1, 1))
    return g.finished(g.up(y, 3.0, np.uint8(9)))


def test_few_products_stay_integers() -> None:
    for maps, op in ((LEAST // 1600 - 1, "QLinearConv"), (LEAST // 1600 + 1, "Requantised")):
        assert simplified(import_model(products(maps)), in_bytes=False).nodes[-1].op == op


def test_convolutions_of_bytes_stay() -> None:
    """Where the machine has kernels for them, marked."""
    node = simplified(import_model(products(LEAST // 1600 + 1))).nodes[-1]
    assert node.op == "QLinearConv"
    assert node["in_bytes"] is True


def test_parts() -> None:
    """The fewest ranges of channels whose weights, times the largest distance from the zero point, add up to less than
    2^24."""
    w = np.full((3, 64, 3, 3), 127, np.int8)  # 64 · 9 · 127 · 255 = 18.7 million
    assert _parts(w, 255, 1, whole=False) == [(0, 32), (32, 64)]
    assert _parts(w[:, :57], 255, 1, whole=False) == [(0, 57)]
    w[:2] = 1
    assert _parts(w, 255, 1, whole=False) == [(0, 32), (32, 64)], "one map is enough"
    assert _parts(w, 228, 1, whole=False) == [(0, 64)]
    assert _parts(w, 255, 1, whole=True) == []
    assert _parts(np.full((600, 2), -128, np.int8), 255, 0, whole=False) == [(0, 300), (300, 600)]


def test_readers_share_what_is_centred() -> None:
    g = Quantised(1)
    x = g.source(1, 64, 5, 7)
    made = [g.up(g.node("Conv", x, g.weight(maps, 64, 1, 1)), 3.0, np.uint8(9)) for maps in (127, 130)]
    network = simplified(import_model(g.finished(*made)), in_bytes=False)
    assert [node.op for node in network.nodes] == ["Centred", "Conv", "Requantised", "Conv", "Requantised"]


@pytest.fixture
def in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """As machines compute that have no kernels for convolutions and products of bytes."""
    for test in ("multiplies_bytes", "multiplies_rows"):
        monkeypatch.setattr(exact_sums, test, lambda *_: False)


@pytest.mark.parametrize("side", [3, 5])
def test_never_by_winograd(side: int, target: str, tmp_path: Path, in_floats: None) -> None:
    """Whose sums have fractions; the same convolution of floats is by Winograd."""
    g = Quantised(2)
    y = g.node("Conv", g.source(1, 32, 24, 25), g.weight(48, 32, side, side), pads=[1, 1, 1, 1])
    compiled = equal(g.finished(g.up(y, 3.0, np.uint8(9))), tmp_path, target)
    used = {s.choice.algorithm for s in compiled.program.steps if s.choice.kernel.anchor.op == "Conv"}
    assert used == {"direct"}
    f = Graph(2)
    f.output(f.conv(f.input(1, 32, 24, 25), 48, (side, side), pads=[1, 1, 1, 1]))
    compiled = tvmcnn.compile(f.model(), target, tmp_path / "f.so", verify=False)
    assert "winograd" in [step.choice.algorithm for step in compiled.program.steps]


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_parts_are_added_as_integers(op: str, target: str, tmp_path: Path, in_floats: None) -> None:
    """A 3 x 3 convolution of 512 channels, and its product."""
    g = Quantised(3)
    if op == "Conv":
        y = g.node(op, g.source(1, 512, 7, 6, zero=0), g.weight(17, 512, 3, 3), pads=[1, 1, 1, 1])
    else:
        y = g.node(op, g.source(3, 4608, zero=0), g.weight(4608, 33))
    compiled = equal(g.finished(g.up(y, 30.0, np.uint8(128))), tmp_path, target)
    (last,) = (node for node in compiled.program.network.nodes if node.op == "Requantised")
    assert last["sums"] > 1


@pytest.mark.parametrize("zeros", [1, 19])
def test_convolutions_of_integers_at_run_time(zeros: int, target: str, tmp_path: Path) -> None:
    """ConvInteger of what DynamicQuantizeLinear makes: the zero point of the image comes at run time, a map has one."""
    g = Quantised(4)
    x = g.input(1, 37, 11, 12)
    g.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [x], ["q", "scale", "zero"]))
    w = g.array(g.any_bytes(19, 37, 3, 2, dtype="uint8"))
    zero = g.array(g.any_bytes(*([zeros] if zeros > 1 else []), dtype="uint8"))
    y = g.node("ConvInteger", "q", w, "zero", zero, pads=[1, 1, 0, 2], strides=[2, 1])
    compiled = equal(g.finished(y, dtype="int32"), tmp_path, target)
    ops = [step.choice.kernel.anchor.op for step in compiled.program.steps]
    assert "Summed" in ops and "ConvInteger" not in ops
