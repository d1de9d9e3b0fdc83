"""The oracle's own operators that compiled networks lack, and where numbers are none, beside onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import model_of, node, one_node
from one_node import Array, U, both, evaluate, session
from onnx import TensorProto, helper

from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError

R = np.random.default_rng(41)


def f(*shape: int, scale: float = 1) -> Array:
    """Normal numbers."""
    return (scale * R.standard_normal(shape)).astype(np.float32)


def zeros(*shape: int, dtype: type = np.uint8) -> Array:
    """Zero points."""
    return R.integers(0, 9, shape).astype(dtype)


HALVES = np.round(2 * f(4, 5, 6)) / 2  # with many alike
WHOLE = R.integers(0, 3, (2, 6, 3)).astype(np.float32)
BYTES = R.integers(0, 255, (3, 4, 6)).astype(np.uint8)
SCALE = np.array(0.37, np.float32)
LARGE = f(3, 4, 6, scale=40)
HALF = f(2000, scale=15).astype(np.float16)  # one in a hundred differs by whether its quotient is rounded to float16
TIES = np.arange(-40, 40, dtype=np.float32) / 2


@pytest.mark.parametrize(
    ("op", "opset", "arrays", "attributes", "outputs"),
    [
        *[("Hardmax", opset, [HALVES], {"axis": axis}, 1) for opset in (11, 13) for axis in (0, 1, 2)],
        ("Hardmax", 9, [HALVES], {}, 1),
        ("Hardmax", 13, [HALVES], {}, 1),
        ("EyeLike", 9, [f(3, 5)], {"k": 1}, 1),
        ("EyeLike", 9, [f(5, 3)], {"k": -1, "dtype": TensorProto.INT32}, 1),
        ("EyeLike", 9, [f(5, 3)], {"dtype": TensorProto.DOUBLE}, 1),
        ("EyeLike", 9, [R.integers(0, 5, (4, 3))], {}, 1),
        ("Unique", 11, [WHOLE], {}, 4),
        ("Unique", 11, [WHOLE], {"sorted": 0}, 4),
        ("Unique", 11, [WHOLE], {"axis": 1}, 4),
        ("Unique", 11, [WHOLE], {"axis": -2, "sorted": 0}, 4),
        ("Unique", 11, [WHOLE], {"sorted": 0}, 1),
        ("BitCast", 26, [f(3, 5)], {"to": TensorProto.INT32}, 1),
        ("BitCast", 26, [BYTES], {"to": TensorProto.INT8}, 1),
        ("DequantizeLinear", 10, [BYTES, SCALE, zeros()], {}, 1),
        ("DequantizeLinear", 13, [BYTES, abs(f(4)), zeros(4)], {}, 1),
        ("DequantizeLinear", 13, [BYTES.astype(np.int32) * 1000, abs(f(6))], {"axis": -1}, 1),
        ("DequantizeLinear", 19, [BYTES, SCALE.astype(np.float16), zeros()], {}, 1),
        ("DequantizeLinear", 21, [BYTES.astype(np.int16), abs(f(3)), zeros(3, dtype=np.int16)], {"axis": 0}, 1),
        ("DequantizeLinear", 21, [BYTES, abs(f(3, 4, 2)), zeros(3, 4, 2)], {"axis": 2, "block_size": 3}, 1),
        ("DequantizeLinear", 21, [BYTES, abs(f(3, 2, 6))], {"axis": 1, "block_size": 3}, 1),
        ("QuantizeLinear", 10, [LARGE, SCALE, zeros()], {}, 1),
        ("QuantizeLinear", 10, [LARGE, SCALE], {}, 1),
        ("QuantizeLinear", 13, [TIES, np.float32(1), np.int8(-3)], {}, 1),
        ("QuantizeLinear", 13, [LARGE, abs(f(3)), zeros(3, dtype=np.int8)], {"axis": 0}, 1),
        *[("QuantizeLinear", opset, [HALF, SCALE.astype(np.float16), np.int8(7)], {}, 1) for opset in (19, 21, 23)],
        ("QuantizeLinear", 21, [LARGE, abs(f(3, 4, 2))], {"axis": 2, "block_size": 3, "output_dtype": 3}, 1),
        ("QuantizeLinear", 21, [LARGE * 100, SCALE], {"output_dtype": TensorProto.INT16}, 1),
        *[("DynamicQuantizeLinear", 11, [x], {}, 3) for x in (f(7, 9) + 1, abs(f(7, 9)), -abs(f(7)), 0 * f(2, 3))],
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_equal_to_onnxruntime(op: str, opset: int, arrays: list[Any], attributes: dict[str, Any], outputs: int) -> None:
    """To the last bit, every output."""
    model, feeds = one_node(op, opset, [np.asarray(array) for array in arrays], outputs=outputs, **attributes)
    for ours, theirs in zip(reference(model, feeds).values(), session(model).run(None, feeds), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows_agree_with_onnxruntime(op: str, periodic: int) -> None:
    """Windows of 13 points, in both float types."""
    for more in ({}, {"output_datatype": TensorProto.DOUBLE}):
        theirs, ours = both(op, 17, [np.array(13)], periodic=periodic, **more)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4 * U)


@pytest.mark.parametrize(("axis", "p"), [(1, 1), (-1, 2), (0, 2)])
def test_lp_normalization_agrees_with_onnxruntime(axis: int, p: int) -> None:
    """onnx.reference's forgets the absolute value where p is 1."""
    theirs, ours = both("LpNormalization", 1, [f(3, 5, 4)], axis=axis, p=p)
    np.testing.assert_allclose(ours, theirs, rtol=8 * U)


def test_float8_and_int4_are_refused() -> None:
    """NumPy has neither; a zero point would have to be one."""
    with pytest.raises(UnsupportedError, match=r"the_node.*type 17"):
        evaluate("QuantizeLinear", 21, [LARGE, SCALE], output_dtype=TensorProto.FLOAT8E4M3FN)
    with pytest.raises(ModelError, match="blocks of 3"):
        evaluate("DequantizeLinear", 21, [BYTES, abs(f(3, 4, 3))], axis=2, block_size=3)
    with pytest.raises(ModelError, match="along axis 1"):
        evaluate("DequantizeLinear", 13, [BYTES, abs(f(3))])


# --- what is no number ---

NAN, INF = np.nan, np.inf
ODD = np.array([-3, -1, 0, 2, 5, 7, NAN, INF, -INF], np.float32)


@pytest.mark.parametrize("low", [NAN, 0.0, 6.0, None])
@pytest.mark.parametrize("high", [NAN, 6.0, 0.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_clip_with_nan(low: float | None, high: float, dtype: type) -> None:
    """A bound that is no number bounds nothing; an element that is none stays."""
    x = ODD if low is not None else ODD[:-1]  # where a bound is left out, onnxruntime takes the least number for it
    bounds = [None if bound is None else np.array(bound, dtype) for bound in (low, high)]
    np.testing.assert_array_equal(*both("Clip", 13, [x.astype(dtype), *bounds]))
    if low is not None and not low > high:  # onnxruntime refuses bounds that cross, in attributes
        old = {"min": low if low == low else -INF, "max": high if high == high else INF}
        np.testing.assert_array_equal(evaluate("Clip", 6, [x], min=low, max=high), evaluate("Clip", 6, [x], **old))


@pytest.mark.parametrize("exponent", [0.5, 2.0, -1.0, 0.0, NAN])
def test_pow_of_what_is_no_number(exponent: float) -> None:
    """The root of -inf is inf in C."""
    np.testing.assert_array_equal(*both("Pow", 13, [ODD[4:], np.array(exponent, np.float32)]))


@pytest.mark.parametrize("op", ["Relu", "Max", "Min", "LeakyRelu", "HardSigmoid"])
def test_nan_goes_through(op: str) -> None:
    """As in onnxruntime."""
    more = [np.array([0.5], np.float32)] if op in ("Max", "Min") else []
    theirs, ours = both(op, 13, [ODD, *more])
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


@pytest.mark.parametrize(
    "to", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16"]
)
def test_cast_of_what_does_not_fit(to: str) -> None:
    """Nan, infinities and large numbers: ONNX leaves it open, and the check compares with what onnxruntime makes."""
    wide = [-1.5, 300.7, -129.5, 4e4, 7e4, 3e9, -3e9, 5e9, 1e19, -1e19, 2.0**63, 255.9]
    x = np.array([*ODD, *wide, *wide], np.float32)
    np.testing.assert_array_equal(*both("Cast", 13, [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(to))))


def test_cast_to_float16_rounds() -> None:
    """1 + 2^-12 is no float16, and 0 remains of its difference from 1; 70000 becomes infinite."""
    x = np.array([1 + 2.0**-12, 70000, 1e-8], np.float32)
    nodes = [
        node("Cast", "x", "half", to=TensorProto.FLOAT16),
        node("Cast", "half", "y", to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {"x": (3,)}, {"y": (3,)}, opset=13, ir_version=onnx.IR_VERSION)
    answer = reference(model, x, every_tensor=True)
    assert answer["half"].dtype == np.float16
    np.testing.assert_array_equal(answer["y"], [1, INF, 0])


def test_bfloat16() -> None:
    """Weights of eight bits, whose squares have more until a cast rounds to that type."""
    nodes = [
        node("Mul", "w w", "square"),
        node("Cast", "square", "wide", to=TensorProto.FLOAT),
        node("Mul", "x wide", "y"),
        node("Cast", "y", "z", to=TensorProto.BFLOAT16),
    ]
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1 + 2.0**-7, -3.0])
    model = model_of(nodes, {"x": (2,)}, {"z": (TensorProto.BFLOAT16, (2,))}, opset=13, ir_version=onnx.IR_VERSION)
    model.graph.initializer.append(weights)
    answer = reference(model, np.array([1, 2], np.float32), every_tensor=True)
    assert str(answer["z"].dtype) == str(answer["square"].dtype) == "bfloat16"
    np.testing.assert_array_equal(answer["y"], np.array([(1 + 2.0**-7) ** 2, 18], np.float32))
    np.testing.assert_array_equal(answer["z"].astype(np.float32), [1 + 2.0**-6, 18])
