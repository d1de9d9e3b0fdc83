"""Operators on integers with scales, as docs/quantised.md defines them: integers in and out, roundings in their places.

Sums of products are sums of integers (float64 holds those below 2^53), times one float32, rounded once, halves to even.
What is element by element is ONNX's own formula, each step in float32. Scales are float32 numbers in whatever array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmcnn.check.reference_ops import activation
from tvmcnn.check.reference_ops.quantize import dequantize_linear, quantize_linear_10
from tvmcnn.check.reference_ops.recurrent import lstm
from tvmcnn.check.reference_ops.registry import Array, Ints, op
from tvmcnn.check.reference_ops.windows import conv, window_totals

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Scaled:
    """Integers, their scale and their zero point: of all, or of each index of an axis."""

    integers: Array
    scale: Array
    zero: Array | None = None

    def above_zero(self, axis: int = 0) -> Array:
        """The integers less their zero point, which is one of all or one an index of `axis`."""
        return self.integers.astype(np.float64) - spread(self.zero_point, self.integers.ndim, axis)

    @property
    def zero_point(self) -> Array:
        """The zero point, 0 where it is left out."""
        return np.zeros(1) if self.zero is None else self.zero.astype(np.float64)

    def reals(self) -> Array:
        """What the integers stand for, in float32."""
        return self.above_zero().astype(np.float32) * np.float32(self.scale.reshape(-1)[0])


def spread(values: Array, rank: int, axis: int) -> Array:
    """One value, or one an index of `axis`, in a form that broadcasts to so many axes."""
    if values.size == 1:
        return values.reshape(())
    form = [1] * rank
    form[axis] = -1
    return values.reshape(form)


@dataclass(frozen=True)
class Target:
    """The integers that are made: type, scale, zero point and the bounds that an activation sets.

    Behind a Conv and a BatchNormalization there are its factor and summand, one of each a map.
    """

    dtype: np.dtype[Any]
    scale: Array
    zero: Array | None = None
    low: float = -np.inf
    high: float = np.inf
    slope: Array | None = None
    rise: Array | None = None

    def stored(self, value: Array) -> Array:
        """float32 values, already divided by the scale, as integers."""
        limits, zero = np.iinfo(self.dtype), 0 if self.zero is None else int(self.zero.reshape(-1)[0])
        moved = np.rint(np.where(np.isnan(value), -np.inf, value)).astype(np.float64) + zero
        bounded = np.minimum(np.maximum(moved, self.low), self.high)
        return np.asarray(np.clip(bounded, limits.min, limits.max).astype(self.dtype))

    def quotient(self, value: Array) -> Array:
        """float32 values divided by the scale and stored."""
        with np.errstate(all="ignore"):
            return self.stored(value.astype(np.float32) / np.float32(self.scale.reshape(-1)[0]))

    def bounded(self, low: Array | None, high: Array | None) -> Target:
        """The same behind an activation that keeps reals between two bounds."""
        least, most = (None if bound is None else float(self.quotient(np.asarray(bound))) for bound in (low, high))
        lowest, highest = -np.inf if least is None else least, np.inf if most is None else most
        return dataclasses.replace(self, low=lowest, high=highest)

    def product(self, sums: Array, x_scale: Array, w_scale: Array, axis: int) -> Array:
        """Sums of products of integers: float32(sum) · ((scale of x · scale of w · slope) / scale of y)."""
        single = (each.reshape(-1).astype(np.float32) for each in (x_scale, w_scale, self.scale))
        x, w, y = single
        factor = (x * w if self.slope is None else (x * w) * self.slope) / y
        return self.stored(sums.astype(np.float32) * spread(factor, sums.ndim, axis).astype(np.float32))


# ---- what the contract has ------------------------------------------------------------------------------------------


def convolved(x: Scaled, w: Scaled, b: Array | None, y: Target, **window: Any) -> Array:
    """Conv of integers; w has one scale and zero point, or one a map, and the bias the scale of the sums."""
    sums = conv(x.above_zero(), w.above_zero(), None if b is None else b.astype(np.float64), **window)
    return y.product(sums, x.scale, w.scale, 1)


def multiplied(a: Scaled, b: Scaled, c: Array | None, y: Target, b_axis: int = -1) -> Array:
    """MatMul of integers; b has one scale and zero point, or one a column, which is its axis `b_axis`."""
    right = b.above_zero(b_axis)
    sums = np.matmul(a.above_zero(), right if b_axis == -1 else right.T)
    sums = sums if c is None else sums + c.astype(np.float64)
    return y.product(sums, a.scale, b.scale, -1)


def added(a: Scaled, b: Scaled, y: Target) -> Array:
    """Add."""
    return y.quotient(a.reals() + b.reals())


def times(a: Scaled, b: Scaled, y: Target) -> Array:
    """Mul."""
    return y.quotient(a.reals() * b.reals())


def averaged(x: Scaled, y: Target, **window: Any) -> Array:
    """AveragePool: the sum of a window · (scale of x / (scale of y · how many count))."""
    total, count = window_totals(x.above_zero(), **window)
    single = (each.reshape(-1)[0].astype(np.float32) for each in (x.scale, y.scale))
    x_scale, y_scale = single
    return y.stored(total.astype(np.float32) * (x_scale / (y_scale * count.astype(np.float32))))


def averaged_globally(x: Scaled, y: Target) -> Array:
    """GlobalAveragePool."""
    return averaged(x, y, kernel_shape=x.integers.shape[2:])


# ---- operators ------------------------------------------------------------------------------------------------------


@op("QLinearConv", 10)
@op("QLinearConv", 1, MICROSOFT)
def qlinear_conv(
    x: Array, x_scale: Array, x_zero_point: Array, w: Array, w_scale: Array, w_zero_point: Array, y_scale: Array,
    y_zero_point: Array, b: Array | None = None, *, auto_pad: str = "NOTSET", dilations: Ints | None = None,
    group: int = 1, kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """QLinearConv."""
    return convolved(
        Scaled(x, x_scale, x_zero_point), Scaled(w, w_scale, w_zero_point), b,
        Target(y_zero_point.dtype, y_scale, y_zero_point), auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip


@op("QLinearMatMul", 10)
def qlinear_matmul(
    a: Array, a_scale: Array, a_zero_point: Array, b: Array, b_scale: Array, b_zero_point: Array, y_scale: Array,
    y_zero_point: Array,
) -> Array:  # fmt: skip
    """QLinearMatMul; of a matrix a one scale."""
    if a_scale.size > 1:
        raise NotImplementedError(f"{a_scale.size} scales of the rows of a matrix")
    y = Target(y_zero_point.dtype, y_scale, y_zero_point)
    return multiplied(Scaled(a, a_scale, a_zero_point), Scaled(b, b_scale, b_zero_point), None, y)


def _made(x: Array, scale: Array, zero: Array | None) -> Target:
    return Target(x.dtype if zero is None else zero.dtype, scale, zero)


@op("QGemm", 1, MICROSOFT)
def qgemm(
    a: Array, a_scale: Array, a_zero_point: Array, b: Array, b_scale: Array, b_zero_point: Array,
    c: Array | None = None, y_scale: Array | None = None, y_zero_point: Array | None = None, *, alpha: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Array:  # fmt: skip
    """QGemm; without a scale of y that is of floats."""
    if alpha != 1.0:
        raise NotImplementedError(f"alpha {alpha}")
    left, right = Scaled(a.T if transA else a, a_scale, a_zero_point), Scaled(b, b_scale, b_zero_point)
    if y_scale is not None:
        return multiplied(left, right, c, _made(a, y_scale, y_zero_point), 0 if transB else -1)
    turned = right.above_zero(0 if transB else -1)
    sums = left.above_zero() @ (turned.T if transB else turned)
    sums = sums if c is None else sums + c.astype(np.float64)
    return np.asarray(sums * a_scale.reshape(()) * spread(b_scale, 2, 1), np.float64)


@op("QLinearAdd", 1, MICROSOFT)
def qlinear_add(
    a: Array, a_scale: Array, a_zero_point: Array | None, b: Array, b_scale: Array, b_zero_point: Array | None,
    c_scale: Array, c_zero_point: Array | None = None,
) -> Array:  # fmt: skip
    """QLinearAdd."""
    return added(Scaled(a, a_scale, a_zero_point), Scaled(b, b_scale, b_zero_point), _made(a, c_scale, c_zero_point))


@op("QLinearMul", 1, MICROSOFT)
def qlinear_mul(
    a: Array, a_scale: Array, a_zero_point: Array | None, b: Array, b_scale: Array, b_zero_point: Array | None,
    c_scale: Array, c_zero_point: Array | None = None,
) -> Array:  # fmt: skip
    """QLinearMul."""
    return times(Scaled(a, a_scale, a_zero_point), Scaled(b, b_scale, b_zero_point), _made(a, c_scale, c_zero_point))


def _no_channels_last(channels_last: int) -> None:
    if channels_last:
        raise NotImplementedError("channels behind the spatial axes")


@op("QLinearAveragePool", 1, MICROSOFT)
def qlinear_average_pool(
    x: Array, x_scale: Array, x_zero_point: Array | None, y_scale: Array, y_zero_point: Array | None = None, *,
    kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, channels_last: int = 0,
    count_include_pad: int = 0, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """QLinearAveragePool."""
    _no_channels_last(channels_last)
    return averaged(
        Scaled(x, x_scale, x_zero_point), _made(x, y_scale, y_zero_point), kernel_shape=kernel_shape,
        auto_pad=auto_pad, ceil_mode=ceil_mode, count_include_pad=count_include_pad, pads=pads, strides=strides,
    )  # fmt: skip


@op("QLinearGlobalAveragePool", 1, MICROSOFT)
def qlinear_global_average_pool(
    x: Array, x_scale: Array, x_zero_point: Array, y_scale: Array, y_zero_point: Array, *, channels_last: int = 0
) -> Array:
    """QLinearGlobalAveragePool."""
    _no_channels_last(channels_last)
    return averaged_globally(Scaled(x, x_scale, x_zero_point), _made(x, y_scale, y_zero_point))


@op("QLinearSigmoid", 1, MICROSOFT)
def qlinear_sigmoid(
    x: Array, x_scale: Array, x_zero_point: Array | None, y_scale: Array, y_zero_point: Array | None = None
) -> Array:
    """QLinearSigmoid."""
    reals = Scaled(x, x_scale, x_zero_point).reals().astype(np.float64)
    return _made(x, y_scale, y_zero_point).quotient(activation.sigmoid(reals))


@op("QLinearLeakyRelu", 1, MICROSOFT)
def qlinear_leaky_relu(
    x: Array, x_scale: Array, x_zero_point: Array | None, y_scale: Array, y_zero_point: Array | None = None, *,
    alpha: float = 0.01,
) -> Array:  # fmt: skip
    """QLinearLeakyRelu."""
    reals = Scaled(x, x_scale, x_zero_point).reals().astype(np.float64)
    return _made(x, y_scale, y_zero_point).quotient(activation.leaky_relu(reals, alpha=alpha))


@op("QLinearSoftmax", 1, MICROSOFT)
def qlinear_softmax(
    x: Array, x_scale: Array, x_zero_point: Array | None, y_scale: Array, y_zero_point: Array, *, axis: int = -1,
    opset: int = 13,
) -> Array:  # fmt: skip
    """QLinearSoftmax of opset 13: along one axis."""
    if opset < 13 and axis != -1:
        raise NotImplementedError(f"a Softmax of opset {opset}, along all axes from {axis} on")
    reals = Scaled(x, x_scale, x_zero_point).reals().astype(np.float64)
    return _made(x, y_scale, y_zero_point).quotient(activation.softmax(reals, axis=axis))


@op("QLinearConcat", 1, MICROSOFT)
def qlinear_concat(y_scale: Array, y_zero_point: Array, *parts: Array, axis: int) -> Array:
    """QLinearConcat; each part comes with its scale and its zero point."""
    made = _made(y_zero_point, y_scale, y_zero_point)
    whole = [made.quotient(Scaled(*parts[place : place + 3]).reals()) for place in range(0, len(parts), 3)]
    return np.concatenate(whole, axis)


@op("DynamicQuantizeLSTM", 1, MICROSOFT)
def dynamic_quantize_lstm(
    x: Array, w: Array, r: Array, b: Array | None, sequence_lens: Array | None, initial_h: Array | None,
    initial_c: Array | None, p: Array | None, w_scale: Array, w_zero_point: Array, r_scale: Array,
    r_zero_point: Array, *, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] | None = None,
    clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0,
) -> tuple[Array, ...]:  # fmt: skip
    """DynamicQuantizeLSTM: LSTM, with weights (D, I, 4H) that have a scale a direction, or one a column of each."""

    def real(integers: Array, scale: Array, zero: Array) -> Array:
        triples = zip(integers.astype(np.float64), scale.astype(np.float64), zero.astype(np.float64), strict=True)
        scaled = [((matrix - shift) * step).astype(np.float32).T for matrix, step, shift in triples]
        return np.stack(scaled).astype(np.float64)

    weights = real(w, w_scale, w_zero_point), real(r, r_scale, r_zero_point)
    return lstm(
        x, *weights, b, sequence_lens, initial_h, initial_c, p, activation_alpha=activation_alpha,
        activation_beta=activation_beta, activations=activations, clip=clip, direction=direction,
        hidden_size=hidden_size, input_forget=input_forget,
    )  # fmt: skip


op("QuantizeLinear", 1, MICROSOFT)(quantize_linear_10)
op("DequantizeLinear", 1, MICROSOFT)(dequantize_linear)
