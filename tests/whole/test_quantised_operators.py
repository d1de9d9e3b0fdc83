"""Operators on quantised tensors, compiled, beside the oracle and beside onnxruntime: equal in every byte, but where
docs/quantised.md says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import model_of, node
from chains import CHAINS, every_byte
from onnx import TensorProto
from quantised import Quantised, any_input, at_halves, equal, operators

import tvmcnn
from tvmcnn.check.reference import reference

ort = pytest.importorskip("onnxruntime")
OWN = {"domain": "com.microsoft"}
Array = np.ndarray[Any, Any]
U8, I8 = TensorProto.UINT8, TensorProto.INT8


def onnxruntime(model: onnx.ModelProto, given: dict[str, Array], *, fused: bool = False) -> list[Array]:
    """What onnxruntime computes, with all that it fuses or without."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fused else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, given))


def model_for(
    op: str,
    inputs: str,
    shapes: dict[str, tuple[int, ...]],
    kinds: tuple[int, ...],
    constants: dict[str, Any],
    **more: Any,
) -> onnx.ModelProto:
    """One node, some of whose operands are inputs."""
    *given, made = kinds
    feeds = {name: (kind, shape) for (name, shape), kind in zip(shapes.items(), given, strict=True)}
    nodes = [node(op, inputs.replace("-", "").split(" "), "y", "q", **more)]
    return model_of(nodes, feeds, {"y": made}, constants, ir_version=10)


def scales(**words: Any) -> dict[str, Any]:
    return {
        key: np.asarray(value) if isinstance(value, np.ndarray | np.generic) else np.float32(value)
        for key, value in words.items()
    }


R = np.random.default_rng(7)
IMAGE, KERNEL = (2, 6, 9, 12), (8, 3, 3, 2)
W8, WU8 = R.integers(-128, 128, KERNEL, np.int8), R.integers(0, 256, KERNEL, np.uint8)
BIAS = R.integers(-20000, 20000, 8, np.int32)
WINDOW = {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}
CONV = scales(xs=0.0234, ys=1.7, ws=R.uniform(0.01, 0.1, 8).astype(np.float32))
FACTORS = {"b": R.integers(-128, 128, (33, 9), np.int8), "bs": np.float32(0.031), "bz": np.int8(5)}
ONE = scales(xs=0.0234, ys=0.0311)

EQUAL: dict[str, onnx.ModelProto] = {
    "QLinearConv-u8s8": model_for(
        "QLinearConv",
        "x xs xz w ws wz ys yz b",
        {"x": IMAGE},
        (U8, U8),
        CONV | {"w": W8, "wz": np.zeros(8, np.int8), "xz": np.uint8(131), "yz": np.uint8(9), "b": BIAS},
        **WINDOW,
    ),
    "QLinearConv-s8s8": model_for(
        "QLinearConv",
        "x xs xz w ws wz ys yz",
        {"x": IMAGE},
        (I8, I8),
        CONV | {"w": W8, "wz": np.zeros(8, np.int8), "xz": np.int8(-13), "yz": np.int8(9)},
        **WINDOW,
    ),
    "QLinearConv-u8u8": model_for(
        "QLinearConv",
        "x xs xz w one wz ys yz b",
        {"x": IMAGE},
        (U8, U8),
        CONV
        | {"one": np.float32(0.04), "w": WU8, "wz": np.uint8(93), "xz": np.uint8(131), "yz": np.uint8(9), "b": BIAS},
        **WINDOW,
    ),
    "QLinearMatMul": model_for(
        "QLinearMatMul",
        "a as az b bs bz ys yz",
        {"a": (3, 5, 33)},
        (U8, U8),
        FACTORS | {"as": np.float32(0.02), "az": np.uint8(90), "ys": np.float32(0.9), "yz": np.uint8(100)},
    ),
    "QLinearMatMul-columns": model_for(
        "QLinearMatMul",
        "a as az b cs cz ys yz",
        {"a": (5, 33)},
        (U8, U8),
        FACTORS
        | {
            "cs": R.uniform(0.01, 0.1, 9).astype(np.float32),
            "cz": np.zeros(9, np.int8),
            "as": np.float32(0.02),
            "az": np.uint8(90),
            "ys": np.float32(0.9),
            "yz": np.uint8(100),
        },
    ),
    "QLinearMatMul-inputs": model_for(
        "QLinearMatMul",
        "a as az b bs bz ys yz",
        {"a": (2, 5, 33), "b": (2, 33, 9)},
        (U8, U8, U8),
        {
            "as": np.float32(0.02),
            "az": np.uint8(90),
            "ys": np.float32(0.9),
            "yz": np.uint8(100),
            "bs": np.float32(0.3),
            "bz": np.uint8(77),
        },
    ),
    "QGemm": model_for(
        "QGemm",
        "a as az b bs bz c ys yz",
        {"a": (5, 33)},
        (U8, U8),
        FACTORS
        | {
            "b": FACTORS["b"].T.copy(),
            "bz": np.int8(0),
            "as": np.float32(0.02),
            "az": np.uint8(90),
            "ys": np.float32(0.9),
            "yz": np.uint8(100),
            "c": BIAS[:1].repeat(9) + np.arange(9, dtype=np.int32),
        },
        transB=1,
        **OWN,
    ),
    "QGemm-turned": model_for(
        "QGemm",
        "a as az b bs bz c ys yz",
        {"a": (33, 5)},
        (U8, U8),
        {
            "b": FACTORS["b"],
            "bs": np.float32(0.013),
            "bz": np.int8(0),
            "as": np.float32(0.02),
            "az": np.uint8(90),
            "c": BIAS[:1].repeat(9) + np.arange(9, dtype=np.int32),
            "ys": np.float32(0.9),
            "yz": np.uint8(100),
        },
        transA=1,
        **OWN,
    ),
    "ConvInteger": model_for(
        "ConvInteger",
        "x w xz wz",
        {"x": IMAGE},
        (U8, TensorProto.INT32),
        {"w": WU8, "xz": np.uint8(131), "wz": np.uint8(93)},
        **WINDOW,
    ),
    "ConvInteger-plain": model_for("ConvInteger", "x w", {"x": IMAGE}, (U8, TensorProto.INT32), {"w": W8}, **WINDOW),
    "MatMulInteger": model_for(
        "MatMulInteger",
        "a b az bz",
        {"a": (3, 5, 33)},
        (U8, TensorProto.INT32),
        FACTORS | {"az": np.uint8(90), "bz": R.integers(-9, 9, 9, np.int8)},
    ),
    "MatMulInteger-plain": model_for(
        "MatMulInteger", "a b", {"a": (5, 33), "b": (33, 9)}, (I8, I8, TensorProto.INT32), {}
    ),
    "QLinearMul": model_for(
        "QLinearMul",
        "a as az b bs bz ys yz",
        {"a": (2, 5, 33), "b": (5, 1)},
        (U8, U8, U8),
        scales(**{"as": 0.0213}, bs=0.0377, ys=0.093) | {"az": np.uint8(90), "bz": np.uint8(3), "yz": np.uint8(99)},
        **OWN,
    ),
    "QLinearGlobalAveragePool": model_for(
        "QLinearGlobalAveragePool",
        "x xs xz ys yz",
        {"x": (2, 5, 7, 9)},
        (U8, U8),
        ONE | {"xz": np.uint8(90), "yz": np.uint8(99)},
        **OWN,
    ),
    "QLinearSigmoid": model_for(
        "QLinearSigmoid",
        "x xs xz ys yz",
        {"x": (3, 256)},
        (U8, U8),
        scales(xs=0.0613, ys=0.0041) | {"xz": np.uint8(90), "yz": np.uint8(3)},
        **OWN,
    ),
    "QLinearLeakyRelu": model_for(
        "QLinearLeakyRelu",
        "x xs xz ys yz",
        {"x": (3, 256)},
        (I8, I8),
        ONE | {"xz": np.int8(9), "yz": np.int8(3)},
        alpha=0.13,
        **OWN,
    ),
    "QLinearConcat": model_for(
        "QLinearConcat",
        "ys yz a as az b bs bz",
        {"a": (2, 5, 33), "b": (2, 7, 33)},
        (U8, U8, U8),
        scales(**{"as": 0.0213}, bs=0.0377, ys=0.0213) | {"az": np.uint8(90), "bz": np.uint8(3), "yz": np.uint8(90)},
        axis=1,
        **OWN,
    ),
    "QuantizeLinear": model_for(
        "QuantizeLinear",
        "x xs xz",
        {"x": (3, 5, 17)},
        (TensorProto.FLOAT, I8),
        {"xs": np.float32(0.031), "xz": np.int8(3)},
        **OWN,
    ),
}
NEAR = {
    "QLinearAveragePool": model_for(
        "QLinearAveragePool",
        "x xs xz ys yz",
        {"x": IMAGE},
        (U8, U8),
        ONE | {"xz": np.uint8(90), "yz": np.uint8(99)},
        kernel_shape=[3, 3],
        pads=[1, 0, 1, 1],
        **OWN,
    ),
    "QLinearAdd": model_for(
        "QLinearAdd",
        "a as az b bs bz ys yz",
        {"a": (256, 1), "b": (1, 256)},
        (U8, U8, U8),
        scales(**{"as": 0.0213}, bs=0.0377, ys=0.031) | {"az": np.uint8(90), "bz": np.uint8(3), "yz": np.uint8(99)},
        **OWN,
    ),
    "QLinearSoftmax": model_for(
        "QLinearSoftmax",
        "x xs xz ys yz",
        {"x": (9, 33)},
        (U8, U8),
        scales(xs=0.0613, ys=0.0041) | {"xz": np.uint8(90), "yz": np.uint8(3)},
        axis=-1,
        opset=13,
        **OWN,
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_onnxruntime(name: str, tmp_path: Path) -> None:
    model = EQUAL[name]
    given = any_input(model)
    equal(model, tmp_path)
    found, (theirs,) = tvmcnn.load(tmp_path / "q.so")(*given.values()), onnxruntime(model, given)
    assert found.dtype == theirs.dtype
    np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("name", NEAR)
def test_near_to_onnxruntime(name: str, tmp_path: Path) -> None:
    """Where ties are rounded otherwise, or exponentials are approximated: one step, in few elements."""
    model = NEAR[name]
    given = any_input(model)
    equal(model, tmp_path)
    found, (theirs,) = tvmcnn.load(tmp_path / "q.so")(*given.values()), onnxruntime(model, given)
    apart = np.abs(found.astype(int) - theirs.astype(int))
    assert apart.max(initial=0) <= 1
    assert (apart > 0).mean() < (0.03 if name == "QLinearSoftmax" else 0.01)  # its exponentials come from a table


@pytest.mark.parametrize("fused", [False, True])
def test_chains_of_operators_of_one_operand(fused: bool) -> None:
    """No byte of 752,640 of these chains by 60 scales was another in onnxruntime, on AVX-512; a function in float32
    that is off by 4 units may stand on the other side of a half in one of 2^24 / (4 · 2 · 128)."""
    rng, apart, count = np.random.default_rng(0), [], 0
    for _ in range(3):
        g = Quantised(3, opset=20)
        x = g.source(4, 64, scale=rng.uniform(0.005, 0.08), zero=int(rng.integers(0, 256)))
        scale, zero = rng.uniform(0.003, 0.05), np.uint8(rng.integers(0, 256))
        chains = [chain for name, chain in CHAINS.items() if not name.startswith("Swish")]  # which is newer
        model = g.finished(*(g.up(chain(g, x), scale, zero) for chain in chains))
        given = {"x0": every_byte("uint8")}
        for ours, theirs in zip(reference(model, given).values(), onnxruntime(model, given, fused=fused), strict=True):
            apart.append(np.abs(ours.astype(int) - theirs.astype(int)))
            count += ours.size
    assert np.max(apart) <= 1
    assert np.count_nonzero(apart) <= count * 2 * 128 * 4 / 2**24


def test_rounding_of_factors_is_onnxruntimes() -> None:
    """QLinearConv where each map lies at a half: the oracle has the bytes that onnxruntime has."""
    factors, sums = at_halves(0.0234, 5000.0, 33)
    constants = {"w": np.zeros((33, 2, 1, 1), np.int8), "ws": factors, "wz": np.zeros(33, np.int8), "b": sums}
    constants |= {"xs": np.float32(0.0234), "xz": np.uint8(7), "ys": np.float32(5000), "yz": np.uint8(128)}
    model = model_for("QLinearConv", "x xs xz w ws wz ys yz b", {"x": (1, 2, 3, 5)}, (U8, U8), constants)
    given = any_input(model)
    np.testing.assert_array_equal(reference(model, given)["y"], onnxruntime(model, given)[0])


@pytest.mark.parametrize("shift", [1.0, 0.0, -4.0])
def test_dynamic(shift: float, target: str, tmp_path: Path) -> None:
    """Scale and zero point of what arrives; a range that begins or ends at 0; nothing but 0."""
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("MatMulInteger", "q w z", "p"),
        node("Cast", "p", "f", to=1),
    ]
    nodes += [node("Mul", "f s", "y")]
    outputs = {"y": TensorProto.FLOAT, "q": U8, "s": TensorProto.FLOAT, "z": U8}
    model = model_of(nodes, {"x": (5, 33)}, outputs, {"w": FACTORS["b"]}, ir_version=10)
    tvmcnn.compile(model, target, tmp_path / "q.so")
    net = tvmcnn.load(tmp_path / "q.so")
    x = (np.abs(any_input(model)["x"]) * np.sign(shift) + shift).astype(np.float32)
    for given in (x, np.zeros_like(x), any_input(model)["x"]):
        for ours, theirs in zip(net(given), onnxruntime(model, {"x": given}), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_stays_in_float32_is_between_conversions(tmp_path: Path) -> None:
    g = Quantised(2)
    y = g.up(g.node("Softmax", g.source(3, 17), axis=-1), 0.004, np.uint8(0))
    assert operators(equal(g.finished(y), tmp_path)) == ["DequantizeLinear", "Softmax", "QuantizeLinear"]
