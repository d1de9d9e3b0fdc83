"""Quantised nodes: what import takes, and what it refuses in words."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
from builders import model_of, node
from onnx import TensorProto, helper

from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer import import_model

OWN = {"domain": "com.microsoft"}
S, Z = np.float32(0.5), np.uint8(3)
X8 = (TensorProto.UINT8, (2, 3, 5, 7))
X = (2, 3, 5, 7)


def imported(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], constants: dict[str, Any], out: int, opset: int
) -> Any:
    return import_model(model_of(nodes, inputs, {"y": out}, constants, opset=opset, ir_version=10))


def typed(name: str, kind: int, values: Any) -> onnx.TensorProto:
    """A constant of a type that NumPy lacks."""
    return helper.make_tensor(name, kind, np.shape(values), np.ravel(values))


@pytest.mark.parametrize(
    ("op", "x", "constants", "attributes", "words"),
    [
        ("QuantizeLinear", X, {"s": S, "z": np.int16(3)}, {"output_dtype": TensorProto.INT16}, ""),
        ("QuantizeLinear", X, {"s": S}, {"output_dtype": TensorProto.INT4}, "it quantises to int4"),
        ("QuantizeLinear", X, {"s": S}, {"output_dtype": TensorProto.FLOAT8E4M3FN}, "it quantises to float8e4m3fn"),
        ("QuantizeLinear", X, {"s": np.ones((2, 3, 5, 7), np.float32)}, {"block_size": 1}, "its block_size is 1"),
        (
            "QuantizeLinear",
            X,
            {"s": np.float32(0), "z": Z},
            {},
            "scale 's' is 0 somewhere; it must be finite and above",
        ),
        ("QuantizeLinear", X, {"s": np.float32([1, -2, 1]), "z": Z}, {}, "scale 's' is -2 somewhere"),
        ("QuantizeLinear", X, {"s": np.float32(np.inf), "z": Z}, {}, "scale 's' is inf somewhere"),
        ("QuantizeLinear", X, {"s": np.float32([1, 2]), "z": Z}, {}, "its scale 's' is 2; axis 1 of 2x3x5x7 needs one"),
        (
            "QuantizeLinear",
            X,
            {"s": np.ones((3, 1), np.float32), "z": Z},
            {},
            "supported are one value and one an axis",
        ),
        ("QuantizeLinear", X, {"s": S, "z": Z}, {"axis": 4}, ""),
        ("QuantizeLinear", X, {"s": np.float32([1, 2, 3]), "z": Z}, {"axis": 4}, "axis 4 is outside the 4 axes"),
        ("DequantizeLinear", X8, {"s": S, "z": np.int8(1)}, {}, "its zero point 'z' is int8, not uint8"),
        ("DequantizeLinear", X8, {"s": np.float16(0.5), "z": Z}, {}, "its scale or its floats are float16"),
        (
            "DequantizeLinear",
            (TensorProto.INT32, X),
            {"s": S, "z": np.int32(4)},
            {},
            "its zero point 'z' of int32 elements",
        ),
    ],
)
def test_conversions(op: str, x: Any, constants: dict[str, Any], attributes: dict[str, Any], words: str) -> None:
    out = TensorProto.FLOAT if op[0] == "D" else attributes.get("output_dtype", TensorProto.UINT8)
    given = ([node(op, ["x", *constants], "y", "q", **attributes)], {"x": x}, constants, out, 21)
    if not words:
        imported(*given)
        return
    with pytest.raises((UnsupportedError, ModelError)) as caught:
        imported(*given)
    assert f"({op})" in str(caught.value)
    assert words in str(caught.value), caught.value


PARTS = {"xs": S, "xz": Z, "ys": S, "yz": Z, "none": Z}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "words"),
    [
        ("QLinearAdd", "x xs xz x xs xz ys", {}, "the zero point of its output is left out"),
        ("QLinearAdd", "x xs xz x xs", {}, "it has 5 inputs; it must have 7 to 8"),
        ("QLinearGlobalAveragePool", "x xs xz ys yz", {"channels_last": 1}, "its channels_last is 1"),
        ("QLinearSigmoid", "x xs xz ys yz", {"alpha": 1.0}, "its attribute alpha is none of its schema"),
        (
            "QLinearSoftmax",
            "x xs xz ys yz",
            {"axis": 1, "opset": 11},
            "it is a Softmax of opset 11, along all axes from 1",
        ),
        ("QGemm", "x xs xz x xs xz", {"alpha": 0.5}, "its alpha is 0.5; supported is 1"),
        ("QLinearConcat", "ys yz x xs", {"axis": 1}, "it has 4 inputs; it must have two, and three for each part"),
        ("QLinearConcat", "ys yz x xs xz", {}, "it has no axis"),
        ("QLinearWhere", "x xs xz ys yz", {}, "operator com.microsoft.QLinearWhere is not supported"),
    ],
)
def test_operators_of_microsoft(op: str, inputs: str, attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        imported([node(op, inputs, "y", "q", **OWN, **attributes)], {"x": X8}, PARTS, TensorProto.UINT8, 17)
    assert words in str(caught.value), caught.value


@pytest.mark.parametrize(
    "op", ["QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearSigmoid", "QLinearConcat"]
)
def test_operands_that_are_left_out(op: str) -> None:
    """Each input is left out at every place, for all numbers of them: refused, or taken where it may be."""
    own = {} if op in ("QLinearConv", "QLinearMatMul") else OWN
    for count in range(1, 12):
        names = ["x", "xs", "xz", "x", "xs", "xz", "ys", "yz", "x", "xs", "xz"][:count]
        for place in range(count):
            given = [name if other != place else "" for other, name in enumerate(names)]
            nodes = [helper.make_node(op, given, ["y"], "q", **own)]
            with contextlib.suppress(UnsupportedError, ModelError):
                imported(nodes, {"x": X8}, PARTS, TensorProto.UINT8, 17)


def test_sums_of_rows_with_zero_points() -> None:
    nodes = [node("MatMulInteger", "x w z", "y", "q")]
    weights = {"w": np.ones((7, 2), np.int8), "z": np.zeros(5, np.uint8)}
    with pytest.raises(UnsupportedError, match="its zero point 'z' is 5; of 'x' 1 is supported"):
        imported(nodes, {"x": (TensorProto.UINT8, (5, 7))}, weights, TensorProto.INT32, 17)


def test_weights_of_4_bits() -> None:
    """In a float network they fold, as before; where they meet integers they are refused."""
    w = typed("w", TensorProto.INT4, np.arange(6).reshape(3, 2) - 3)
    nodes = [node("DequantizeLinear", "w s", "f"), node("MatMul", "x f", "y")]
    model = model_of(nodes, {"x": (5, 3)}, {"y": TensorProto.FLOAT}, {"s": S}, opset=21, ir_version=10)
    model.graph.initializer.append(w)
    network = import_model(model)
    np.testing.assert_array_equal(network.constants[network.nodes[0].inputs[1]], (np.arange(6).reshape(3, 2) - 3) * S)
    model.graph.node[1].input[0] = "d"
    model.graph.node.insert(0, node("DequantizeLinear", "x s z", "d"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(Z, "z"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(UnsupportedError, match="input 'w' is int4; supported are int8, uint8, int16, uint16, int32"):
        import_model(model)


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 25])
def test_opsets(opset: int) -> None:
    """The axis came with 13, other types with 19 and 21, the precision with 23."""
    attributes = {} if opset < 13 else {"axis": 1}
    constants = {
        "s": S if opset < 13 else np.float32([1, 2, 3]),
        "z": Z if opset < 13 else np.array([1, 2, 3], np.uint8),
    }
    if opset >= 23:
        attributes["precision"] = TensorProto.FLOAT
    nodes = [node("QuantizeLinear", "x s z", "y", "q", **attributes)]
    network = imported(nodes, {"x": X}, constants, TensorProto.UINT8, opset)
    assert [each.op for each in network.nodes] == ["QuantizeLinear"]
    assert network.constants[network.nodes[0].inputs[1]].shape == ((1, 1, 1, 1) if opset < 13 else (1, 3, 1, 1))
