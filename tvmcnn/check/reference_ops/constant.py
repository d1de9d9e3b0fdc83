"""Types, constants, and training, which is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmcnn.check.reference_ops.registry import TYPES, Array, Ints, known_dtype, op


@op("Cast")
def cast(input: Array, *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Array:
    """Cast: to another type, floats to integers towards zero. Before opset 6 `to` is a type's name.

    The one place where a float is rounded, because that is what the operator does. `saturate` and `round_mode` are
    about the 8-bit floats, which are refused. ONNX leaves open what becomes of a float that the integer type does not
    hold, nan and infinities among them: here it is what x86 makes of it, as in onnxruntime, bit for bit so far as
    was tried: the least number of the type, or the lower bits of it or of a wider one.
    """
    named = {"FLOAT": "float32", "DOUBLE": "float64"}
    if isinstance(to, str):
        name = named.get(to, to.lower())
        dtype = np.dtype(name) if name in TYPES.values() else None
    else:
        dtype = known_dtype(to)
    if dtype is None:
        raise NotImplementedError(f"a cast to type {to}; NumPy has no such type")
    return input.astype(dtype)


@op("BitCast", 26)
def bit_cast(input: Array, *, to: int) -> Array:
    """BitCast: the same bits, taken for another type of as many; they come as they are stored."""
    dtype = known_dtype(to)
    if dtype is None:
        raise NotImplementedError(f"a cast to type {to}; NumPy has no such type")
    if dtype.itemsize != input.dtype.itemsize:
        raise ValueError(f"{input.dtype} and {dtype} differ in bits")
    return np.ascontiguousarray(input).reshape(input.shape).view(dtype)


@op("Constant")
def constant(
    *, value: Array | None = None, value_float: float | None = None, value_floats: Sequence[float] | None = None,
    value_int: int | None = None, value_ints: Ints | None = None, value_string: str | None = None,
    value_strings: Sequence[str] | None = None, sparse_value: object = None,
) -> Array:  # fmt: skip
    """Constant: the one attribute that is set; float32 for value_float(s), int64 for value_int(s)."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return np.array(value_float if value_floats is None else value_floats, np.float32)
    if value_int is not None or value_ints is not None:
        return np.array(value_int if value_ints is None else value_ints, np.int64)
    if value_string is not None or value_strings is not None or sparse_value is not None:
        raise NotImplementedError("a constant of strings or a sparse one")
    raise ValueError("none of the value attributes is set")


@op("ConstantOfShape", 9)
def constant_of_shape(input: Array, *, value: Array | None = None) -> Array:
    """ConstantOfShape: the given shape filled with the one element of `value`, float32 zero by default."""
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(int(size) for size in input), fill.item(), fill.dtype)


@op("Dropout", 12)
def dropout(
    data: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: int | None = None
) -> tuple[Array, Array]:
    """Dropout in inference: the input, and a mask that keeps everything."""
    if training_mode is not None and training_mode.item():
        raise NotImplementedError("training_mode 1; only inference is evaluated")
    return data, np.ones(data.shape, np.bool_)


@op("Dropout", 10)
def dropout_10(data: Array, *, ratio: float = 0.5) -> tuple[Array, Array]:
    """Dropout of opset 10, which has no training."""
    return data, np.ones(data.shape, np.bool_)


@op("Dropout", 7)
def dropout_7(data: Array, *, ratio: float = 0.5) -> tuple[Array, Array]:
    """Dropout of opset 7: the mask has the type of the data."""
    return data, np.ones_like(data)


@op("Dropout", 1)
def dropout_1(data: Array, *, is_test: int = 0, ratio: float = 0.5, consumed_inputs: Ints = ()) -> tuple[Array, Array]:
    """Dropout of opset 1 and 6: `is_test` 0, the default, means training."""
    if not is_test:
        raise NotImplementedError("is_test 0; only inference is evaluated")
    return data, np.ones_like(data)


@op("CastLike", 15)
def cast_like(input: Array, target_type: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """CastLike: to the type of the second input."""
    return input.astype(target_type.dtype)


@op("Range", 11)
def range_(start: Array, limit: Array, delta: Array, *, stash_type: int = 1) -> Array:
    """Range: start, start + delta, ... before limit."""
    first, last, step = (value.reshape(()).item() for value in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    return np.asarray(first + np.arange(count) * step).astype(start.dtype)


@op("EyeLike", 9)
def eye_like(input: Array, *, dtype: int | None = None, k: int = 0) -> Array:
    """EyeLike: 1 on the k-th diagonal, 0 elsewhere, in the shape of the input and, without `dtype`, in its type."""
    rows, columns = input.shape
    found = input.dtype if dtype is None else known_dtype(dtype)
    if found is None:
        raise NotImplementedError(f"type {dtype}; NumPy has no such type")
    return np.eye(rows, columns, k).astype(found)


def _window(name: str, weights: Sequence[float]) -> None:
    """A window: the sum of weights[i] * cos(2 pi i n / N), where N is the size, or one less if it is not periodic."""

    def window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
        count = int(size.reshape(()))
        angle = 2 * np.pi * np.arange(count) / (count if periodic else count - 1)
        return np.asarray(sum(weight * np.cos(i * angle) for i, weight in enumerate(weights)))

    window.__doc__ = f"{name}: " + " + ".join(f"{w:.4g} cos({i} a)" for i, w in enumerate(weights))
    op(name, 17)(window)


_window("HannWindow", [0.5, -0.5])
_window("HammingWindow", [25 / 46, -21 / 46])
_window("BlackmanWindow", [0.42, -0.5, 0.08])
