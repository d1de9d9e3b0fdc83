"""Between floats and integers, by a scale and a zero point; sums of products of such integers.

A scale or zero point has one element, or one an index of `axis`; it is kept in a form that broadcasts with its tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.dense import mat_mul
from tvmcnn.importer.operators.meaning import (
    CODES,
    Meaning,
    Undecided,
    Unsupported,
    Value,
    axis_of,
    derived,
    named,
    operator,
    typed,
)
from tvmcnn.importer.operators.windows import conv
from tvmcnn.network import Shape, dims

BYTES = ("int8", "uint8")
MADE = (*BYTES, "int16", "uint16")  # 16 bits are computed with in float32
STORED = (*MADE, "int32")  # int32: a bias, or a sum of products
NAMES = {16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz"} | {
    **{21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2"}
}  # of ONNX's types, which CODES lacks
FLOAT32 = 1  # onnx.TensorProto.FLOAT


def _type_named(code: int) -> str:
    return CODES.get(code) or NAMES.get(code) or f"type {code} of ONNX"


def _unblocked(block_size: int) -> None:
    if block_size:
        raise Unsupported(
            f"its block_size is {block_size}; a scale for each block is not supported, only one a tensor or axis"
        )


def _aligned(role: str, value: Value, shape: Shape, axis: int) -> Value:
    """A scale or zero point, of one element or one an index of `axis`, so that it broadcasts to `shape`."""
    rank = len(shape)
    if value.shape in ((), (1,)):
        return value if value.data is None else derived(role, value.data.reshape((1,) * rank), value.dtype)
    if len(value.shape) != 1:
        raise Unsupported(f"its {role} '{value.name}' is {dims(value.shape)}; supported are one value and one an axis")
    axis = axis_of(axis, rank)
    if value.shape != (shape[axis],):
        raise ModelError(
            f"its {role} '{value.name}' is {dims(value.shape)}; axis {axis} of {dims(shape)} needs one each"
        )
    if value.data is None:
        raise Undecided(role, value.name)
    form = tuple(shape[axis] if place == axis else 1 for place in range(rank))
    return derived(role, value.data.reshape(form), value.dtype)


def _scale(value: Value, shape: Shape, axis: int) -> Value:
    typed(("float32",), value)
    if value.data is not None and not (np.isfinite(value.data) & (value.data > 0)).all():
        raise Unsupported(f"its scale '{value.name}' is {value.data.min():g} somewhere; it must be finite and above 0")
    return _aligned("scale", value, shape, axis)


def _zero(value: Value | None, dtype: str, shape: Shape, axis: int) -> Value:
    if value is None:
        return derived("zero", np.zeros((1,) * len(shape)), dtype)
    if value.dtype != dtype:
        raise ModelError(f"its zero point '{value.name}' is {value.dtype}, not {dtype} as what it belongs to")
    return _aligned("zero", value, shape, axis)


@operator
def quantize_linear(
    x: Value,
    y_scale: Value,
    y_zero_point: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Meaning:
    """ONNX QuantizeLinear: y = x / scale, rounded, halves to even, + zero point, within 8 or 16 bits.

    One scale a tensor, or one an index of `axis`. NaN becomes the least integer.
    """
    typed(("float32",), x)
    _unblocked(block_size)
    made = y_zero_point.dtype if y_zero_point is not None else _type_named(output_dtype or 2)
    if made not in MADE:
        raise Unsupported(f"it quantises to {made}; supported are {', '.join(MADE)}")
    if output_dtype and _type_named(output_dtype) != made:
        raise ModelError(f"its output_dtype is {_type_named(output_dtype)}, and its zero point {made}")
    if precision not in (0, FLOAT32):
        raise Unsupported(f"its precision is {_type_named(precision)}; supported is float32")
    given = _scale(y_scale, x.shape, axis), _zero(y_zero_point, made, x.shape, axis)
    return Meaning("QuantizeLinear", (x, *given), x.shape, dtype=made)


@operator
def dequantize_linear(
    x: Value,
    x_scale: Value,
    x_zero_point: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Meaning:
    """ONNX DequantizeLinear: y = (x - zero point) · scale, of integers of 8 and 16 bits and int32.

    One scale a tensor, or one an index of `axis`.
    """
    typed(STORED, x)
    _unblocked(block_size)
    if output_dtype not in (0, FLOAT32):
        raise Unsupported(f"its output_dtype is {_type_named(output_dtype)}; supported is float32")
    scale, zero = _scale(x_scale, x.shape, axis), _zero(x_zero_point, x.dtype, x.shape, axis)
    if x_zero_point is not None and x.dtype == "int32" and (zero.data is None or zero.data.any()):
        raise Unsupported(f"its zero point '{x_zero_point.name}' of int32 elements is not 0")
    return Meaning("DequantizeLinear", (x, scale, zero), x.shape, dtype="float32")


@operator
def dynamic_quantize_linear(x: Value) -> tuple[Meaning, ...]:
    """ONNX DynamicQuantizeLinear: x in uint8, the scale of its range, which holds 0, and the zero point.

    The scale of what is 0 everywhere is 1, as in onnxruntime.
    """
    typed(("float32",), x)
    scale = Meaning("DynamicScale", (x,), ())
    zero = Meaning("DynamicZeroPoint", (x,), (), dtype="uint8")
    given = (Value("scale", (), "float32", maker=scale), Value("zero", (), "uint8", maker=zero))
    return Meaning("QuantizeLinear", (x, *given), x.shape, dtype="uint8"), scale, zero


@operator
def conv_integer(
    x: Value,
    w: Value,
    x_zero_point: Value | None = None,
    w_zero_point: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX ConvInteger: Conv of int8 or uint8 less their zero points, in int32; w may have one a map."""
    like = conv(
        _as_float(x),
        _as_float(w),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    assert isinstance(like, Meaning)
    zeros = _lone(x_zero_point, x, 1), _lone(w_zero_point, w, w.shape[0])
    return Meaning("ConvInteger", (x, w, *zeros), like.shape, like.attributes, "int32")


@named("MatMulInteger")
def matmul_integer(a: Value, b: Value, a_zero_point: Value | None = None, b_zero_point: Value | None = None) -> Meaning:
    """ONNX MatMulInteger: MatMul of int8 or uint8 less their zero points, in int32; b may have one a column."""
    like = mat_mul(_as_float(a), _as_float(b))
    assert isinstance(like, Meaning)
    columns = b.shape[-1] if len(b.shape) > 1 else 1
    zeros = _lone(a_zero_point, a, 1), _lone(b_zero_point, b, columns)
    return Meaning("MatMulInteger", (a, b, *zeros), like.shape, dtype="int32")


def _as_float(value: Value) -> Value:
    """An operand of which only the shape counts."""
    typed(BYTES, value)
    return Value(value.name, value.shape, "float32")


def _lone(zero: Value | None, of: Value, most: int) -> Value:
    """A zero point, of one element or `most`; 0 where it is left out."""
    if zero is None:
        return derived("zero", np.zeros(1), of.dtype)
    if zero.dtype != of.dtype:
        raise ModelError(f"its zero point '{zero.name}' is {zero.dtype}, and '{of.name}' is {of.dtype}")
    if zero.shape not in ((), (1,), (most,)):
        several = f" or {most}" if most > 1 else ""
        raise Unsupported(f"its zero point '{zero.name}' is {dims(zero.shape)}; of '{of.name}' 1{several} is supported")
    return zero
