"""Operators whose values are known when the network is compiled, or follow from an element's place alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    CODES,
    DTYPES,
    NUMBERS,
    Meaning,
    Unsupported,
    Value,
    alike,
    constant,
    derived,
    integers,
    operator,
    typed,
)
from tvmcnn.network import Array, dims


def _stored(array: Array) -> tuple[Array, str]:
    """The data of an attribute and its dtype as tvmcnn computes with it; raises Unsupported for any other dtype."""
    data = array.astype(np.float32) if array.dtype == np.float16 else array
    if str(data.dtype) not in DTYPES:
        raise Unsupported(f"attribute value is {data.dtype}; supported are {', '.join(DTYPES)}")
    return data, str(data.dtype)


@operator
def constant_(
    *,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[bytes] | None = None,
    sparse_value: object = None,
) -> Meaning:
    """ONNX Constant, where it makes an output: a copy of numbers."""
    if value_string is not None or value_strings is not None or sparse_value is not None:
        raise Unsupported("its value is a string or sparse; supported are tensors, numbers and lists of numbers")
    given = [
        np.asarray(found, dtype)
        for found, dtype in (
            (value, None),
            (value_float, np.float32),
            (value_floats, np.float32),
            (value_int, np.int64),
            (value_ints, np.int64),
        )
        if found is not None
    ]
    if len(given) != 1:
        raise ModelError(f"{len(given)} of its value attributes are set; it must be one")
    data, dtype = _stored(given[0])
    return Meaning("Reshape", (derived("value", data, dtype),), data.shape)


@operator
def constant_of_shape(input: Value, *, value: Array | None = None) -> Meaning:  # noqa: A002 (ONNX's name)
    """ONNX ConstantOfShape: a constant shape filled with one value, a float32 0 by default."""
    shape = tuple(integers("input", input))
    if min(shape, default=0) < 0:
        raise ModelError(f"the shape {list(shape)} has a negative extent")
    data, dtype = _stored(np.zeros(1, np.float32) if value is None else value)
    if data.size != 1:
        raise ModelError(f"attribute value has {data.size} elements; it must have one")
    return Meaning("ConstantOfShape", (), shape, {"value": data.item()}, dtype)


@operator
def shape(data: Value, *, start: int = 0, end: int | None = None) -> Meaning:
    """ONNX Shape: the extents of the axes from `start` to before `end`, which are known: literals."""
    values = data.shape[start:end]  # Python clamps as ONNX does
    return Meaning("Shape", (), (len(values),), {"values": values}, "int64")


@operator
def size(data: Value) -> Meaning:
    """ONNX Size: the number of elements, a literal."""
    return Meaning("ConstantOfShape", (), (), {"value": math.prod(data.shape)}, "int64")


@operator
def range_(start: Value, limit: Value, delta: Value, *, stash_type: int = 1) -> Meaning:
    """ONNX Range with constant operands: start + i·delta, for max(0, ⌈(limit − start) / delta⌉) values of i."""
    alike(NUMBERS, start, limit, delta)
    given = [constant(role, value) for role, value in (("start", start), ("limit", limit), ("delta", delta))]
    if any(array.size != 1 for array in given):
        raise ModelError("its start, limit and delta must be one value each")
    first, last, step = (array.reshape(()).item() for array in given)
    if step == 0:
        raise ModelError("its delta is 0")
    count = -((first - last) // step) if isinstance(step, int) else math.ceil((last - first) / step)
    return Meaning("Range", (), (max(0, count),), {"start": first, "delta": step}, start.dtype)


@operator
def trilu(input: Value, k: Value | None = None, *, upper: int = 1) -> Meaning:  # noqa: A002 (ONNX's name)
    """ONNX Trilu: 0 below (upper) or above the k-th diagonal of the last two axes; k may arrive at run time."""
    typed(DTYPES, input)
    if len(input.shape) < 2:
        raise ModelError(f"its input is {dims(input.shape)}; it must have two axes at least")
    if k is not None and math.prod(k.shape) != 1:
        raise ModelError(f"k is {dims(k.shape)}; it must be one value")
    return Meaning("Trilu", (input,) if k is None else (input, k), input.shape, {"upper": bool(upper)})


@operator
def eye_like(input: Value, *, dtype: int | None = None, k: int = 0) -> Meaning:  # noqa: A002 (ONNX's name)
    """ONNX EyeLike: 1 on the k-th diagonal of a matrix like the input, else 0."""
    if dtype is not None and dtype not in CODES:
        raise Unsupported(f"its attribute dtype is type {dtype} of ONNX; supported are float16, {', '.join(DTYPES)}")
    if len(input.shape) != 2:
        raise ModelError(f"its input is {dims(input.shape)}; it must have two axes")
    made = input.dtype if dtype is None else CODES[dtype]
    typed(DTYPES, input)
    return Meaning("EyeLike", (), input.shape, {"k": k}, "float32" if made == "float16" else made)
