"""Between floats and integers with a scale and a zero point: of a tensor, of each place on an axis, or of blocks.

QuantizeLinear and DynamicQuantizeLinear get their floats as they are stored: the quotient is rounded to the scale's
type before it is rounded to an integer, so that one more bit in it could move it over the middle.
"""

from __future__ import annotations

import numpy as np

from tvmcnn.check.reference_ops.registry import TYPES, Array, op


def _spread(values: Array, x: Array, axis: int, block_size: int) -> Array:
    """Scales or zero points so that they broadcast with x: one, one a place on `axis`, or one a block along it."""
    if block_size:
        whole = np.repeat(values, block_size, axis)[tuple(slice(n) for n in x.shape)]
        if whole.shape != x.shape or values.shape[axis] != -(-x.shape[axis] // block_size):
            raise ValueError(f"scales {values.shape} of blocks of {block_size} for {x.shape}")
        return whole
    if values.ndim == 0 or (values.ndim == 1 and values.size == 1 and x.ndim == 0):
        return values.reshape(())
    if values.shape == (1,):
        return values
    if values.shape != (x.shape[axis],):
        raise ValueError(f"scales {values.shape} along axis {axis} of {x.shape}")
    return values.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))


@op("DequantizeLinear", 10)
def dequantize_linear(
    x: Array, x_scale: Array, x_zero_point: Array | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0,
) -> Array:  # fmt: skip
    """DequantizeLinear: (x - zero point) * scale."""
    zero = 0.0 if x_zero_point is None else _spread(x_zero_point, x, axis, block_size).astype(np.float64)
    return np.asarray((x.astype(np.float64) - zero) * _spread(x_scale, x, axis, block_size))


@op("QuantizeLinear", 23)
def quantize_linear(
    x: Array, y_scale: Array, y_zero_point: Array | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0, precision: int = 0, saturate: int = 1,
) -> Array:  # fmt: skip
    """QuantizeLinear: round(x / scale) + zero point, halves to the even one, within the integers of the type.

    NaN, of which ONNX says nothing, is the least of them. The quotient is of the type `precision`, which is the
    scale's if it is not given.
    """
    name = TYPES.get(output_dtype, "none") if output_dtype else "uint8"
    dtype = np.dtype(name) if y_zero_point is None and name != "none" else getattr(y_zero_point, "dtype", None)
    if dtype is None or dtype.kind not in "iu":
        raise NotImplementedError(f"to type {output_dtype}; the integers that NumPy has can be made")
    wide = TYPES.get(precision, y_scale.dtype)
    quotient = np.rint(x.astype(wide) / _spread(y_scale, x, axis, block_size).astype(wide)).astype(np.float64)
    zero = 0 if y_zero_point is None else _spread(y_zero_point, x, axis, block_size).astype(np.float64)
    info = np.iinfo(dtype)
    quotient = np.where(np.isnan(quotient), -np.inf, quotient)
    return np.asarray(np.clip(quotient + zero, info.min, info.max), dtype)


@op("QuantizeLinear", 10)
def quantize_linear_10(
    x: Array, y_scale: Array, y_zero_point: Array | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0, saturate: int = 1,
) -> Array:  # fmt: skip
    """QuantizeLinear before opset 23: nothing says of what type the quotient is; onnxruntime's is float32."""
    return quantize_linear(
        x, y_scale, y_zero_point, axis=axis, block_size=block_size, output_dtype=output_dtype, precision=1
    )


@op("DynamicQuantizeLinear", 11)
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """DynamicQuantizeLinear: x as uint8, the scale of its range, which holds 0, and the zero point, in float32."""
    low, high = np.float32(min(0, x.min(initial=0))), np.float32(max(0, x.max(initial=0)))
    scale = np.float32((high - low) / np.float32(255))
    if scale == 0:
        scale = np.float32(1)
    zero = np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8)
    y = np.clip(np.rint(x / scale) + np.float32(zero), 0, 255).astype(np.uint8)
    return y, np.asarray(scale), np.asarray(zero)
