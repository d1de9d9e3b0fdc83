"""Elements that are moved between DequantizeLinear and what computes with them, or between that and QuantizeLinear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantised import Quantised, equal, operators

from tvmcnn.fuse import moved_integers
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model

SCALE = np.float32(0.0234)
ROOTS = ("QLinear", "Requantised", "ConvInteger", "Table")

MOVES: dict[str, Callable[[Quantised, str], str]] = {
    "MaxPool": lambda g, x: g.node("MaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1]),
    "Transpose": lambda g, x: g.node("Transpose", x, perm=[0, 1, 3, 2]),
    "Slice": lambda g, x: g.node("Slice", x, *(g.constant(np.array([v])) for v in (1, 8, 2, 2))),
    "Concat": lambda g, x: g.node("Concat", x, g.source(2, 8, 9, 12), axis=1),
    "DepthToSpace": lambda g, x: g.node("DepthToSpace", x, blocksize=2),
    "SpaceToDepth": lambda g, x: g.node("SpaceToDepth", x, blocksize=3),
    "Reshape": lambda g, x: g.node("Reshape", x, g.constant(np.array([2, 4, 18, 12]))),
    "Squeeze": lambda g, x: g.node("Squeeze", g.node("Unsqueeze", x, g.constant([1])), g.constant([1])),
    "Identity": lambda g, x: g.node("Identity", x),
    "two": lambda g, x: g.node("MaxPool", g.node("Transpose", x, perm=[0, 1, 3, 2]), kernel_shape=[2, 2]),
}  # fmt: skip


def _convolved(g: Quantised, x: str) -> str:
    return g.node("Conv", x, g.weight(5, g.shape(x)[1], 2, 3), g.draw(5))


def _model(build: Callable[[Quantised], str]) -> onnx.ModelProto:
    g = Quantised(3)
    return g.finished(g.up(build(g), 2.9, np.uint8(101)))


def _kernels(compiled: object) -> list[str]:
    return operators(compiled)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MOVES)
def test_moved_before(name: str, target: str, tmp_path: Path) -> None:
    """No float is made."""
    compiled = equal(_model(lambda g: _convolved(g, MOVES[name](g, g.source(2, 8, 9, 12)))), tmp_path, target)
    assert not [ops for ops in operators(compiled) if "Quantize" in ops or "Dequantize" in ops or ops == "Conv"]


@pytest.mark.parametrize("name", [name for name in MOVES if name not in ("Concat", "DepthToSpace")])
def test_moved_behind(name: str, target: str, tmp_path: Path) -> None:
    """What a convolution makes is quantised, and then moved."""

    def build(g: Quantised) -> str:
        x = g.node("Conv", g.source(2, 5, 9, 12), g.weight(8, 5, 3, 3), g.draw(8), pads=[1, 1, 1, 1])
        return MOVES[name](g, g.node("Relu", x))

    compiled = equal(_model(build), tmp_path, target)
    assert not [ops for ops in operators(compiled) if "Quantize" in ops or "Dequantize" in ops or ops == "Conv"]


@pytest.mark.parametrize("op", ["Split", "MaxPool"])
def test_several_outputs(op: str, tmp_path: Path) -> None:
    """What makes two tensors of floats moves floats."""
    g = Quantised(3)
    x = g.node("Conv", g.source(2, 5, 9, 12), g.weight(8, 5, 3, 3), g.draw(8))
    if op == "Split":
        g.nodes.append(onnx.helper.make_node(op, [x, g.constant([3, 5])], ["a", "b"], axis=1))
        names = [g.up("a", 2.9, np.uint8(101)), g.up("b", 1.9, np.uint8(11))]
    else:
        g.nodes.append(onnx.helper.make_node(op, [x], ["a", "b"], kernel_shape=[2, 2]))
        names = [g.up("a", 2.9, np.uint8(101)), "b"]
    model = g.finished(*names)
    if op == "MaxPool":
        model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    kernels = operators(equal(model, tmp_path))
    assert [ops for ops in kernels if ops.startswith("Conv")]


def test_identities_between(tmp_path: Path) -> None:
    """An Identity is nothing, also for the oracle."""

    def build(g: Quantised) -> str:
        x = g.node("Conv", g.node("Identity", g.source(2, 5, 9, 12)), g.weight(8, 5, 3, 3), g.draw(8))
        return g.node("Identity", g.node("Relu", g.node("Identity", x)))

    kernels = operators(equal(_model(build), tmp_path))
    assert not [ops for ops in kernels if "Quantize" in ops or ops == "Conv"]


def test_pools_flattened(tmp_path: Path) -> None:
    """Between a pool and the QuantizeLinear of a dense layer."""

    def build(g: Quantised) -> str:
        return g.node("Flatten", g.node("GlobalAveragePool", g.source(2, 17, 9, 12)))

    kernels = operators(equal(_model(build), tmp_path))
    assert not [ops for ops in kernels if "Quantize" in ops or ops.startswith("Global")]


def test_functions_of_moved_bytes(tmp_path: Path) -> None:
    """A chain of operators of one operand behind a pool is one table."""

    def build(g: Quantised) -> str:
        x = MOVES["MaxPool"](g, g.source(2, 8, 9, 12))
        return g.node("Mul", x, g.node("Sigmoid", x))

    kernels = operators(equal(_model(build), tmp_path))
    assert "Table" in kernels
    assert not [ops for ops in kernels if "Quantize" in ops or "Sigmoid" in ops]


def test_what_others_read(tmp_path: Path) -> None:
    """Floats that are outputs, or that others read, are there."""
    g = Quantised(3)
    x = MOVES["MaxPool"](g, g.source(2, 8, 9, 12))
    y = g.up(_convolved(g, x), 2.9, np.uint8(101))
    model = g.finished(y, g.node("Softmax", x), x)
    for value in model.graph.output[1:]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    kernels = operators(equal(model, tmp_path))
    assert "Conv" not in kernels


@pytest.mark.parametrize("other", [{"scale": 0.0235}, {"zero": 8}, {"dtype": "int8"}])
def test_parts_that_mean_other_numbers(other: dict[str, object], tmp_path: Path) -> None:
    """Concat of two scales, zero points or types is one of floats."""

    def build(g: Quantised) -> str:
        part = g.source(2, 8, 9, 12, **other)  # type: ignore[arg-type]
        return _convolved(g, g.node("Concat", g.source(2, 8, 9, 12), part, axis=1))

    kernels = operators(equal(_model(build), tmp_path))
    assert "Concat" in kernels
    assert "Conv" in kernels


def test_nobody_computes_with_it() -> None:
    """What is quantised next is moved by the rules of what stands between; no tensor is added."""
    g = Quantised(3)
    y = g.up(MOVES["MaxPool"](g, g.source(2, 8, 9, 12)), SCALE, np.uint8(7))
    network = import_model(g.finished(y))
    assert moved_integers.moved_integers(network, ("Conv",)) is network
    assert [node.op for node in simplified(network).nodes] == ["MaxPool"]


def test_another_zero_point_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: parts of two zero points are taken for alike."""

    def alike(network: object, given: list[object]) -> object:
        return given[0] if given else None

    monkeypatch.setattr(moved_integers, "_alike", alike)

    def build(g: Quantised) -> str:
        return _convolved(g, g.node("Concat", g.source(2, 8, 9, 12), g.source(2, 8, 9, 12, zero=99), axis=1))

    with pytest.raises(Exception, match="differ"):
        equal(_model(build), tmp_path)
