"""Integers with scales: single operators, and chains between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphs.draft import Draft, Held, Skip
from graphs.growers import filled, grows, image
from graphs.windows import placed

BYTES = ("uint8", "int8")
COLUMNS = (10, 16, 7, 17, 33, 1, 8, 24)
MAPS = (16, 17, 3, 5, 8, 31)
ACTIVATIONS = ("Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Softplus", "Abs", "Neg", "Erf", "HardSwish")


def zero_of(d: Draft, dtype: str, shape: tuple[int, ...] = ()) -> Held:
    """A zero point, often at an end of the type or near its middle."""
    limits = np.iinfo(dtype)
    if shape:
        return d.constant(np.random.default_rng(d.integer(0, 99)).integers(limits.min, limits.max, shape, dtype))
    middle = (int(limits.min) + int(limits.max) + 1) // 2
    return d.constant(np.asarray(d.choice((middle, middle + 13, int(limits.min), int(limits.max))), dtype))


def up(d: Draft, x: Held, dtype: str | None = None) -> tuple[Held, Held, Held]:
    """QuantizeLinear, which most of x fits; with it the scale and the zero point."""
    dtype = dtype or d.choice(BYTES)
    scale = d.constant(np.float32(max(float(np.abs(x.value).max(initial=0)), 1e-3) / d.choice((100, 120, 250, 30))))
    zero = zero_of(d, dtype)
    return d.node("QuantizeLinear", [x, scale, zero])[0], scale, zero


def down(d: Draft, q: Held, scale: Held, zero: Held | None, **attributes: Any) -> Held:
    return d.node("DequantizeLinear", [q, scale, zero], **attributes)[0]


def stored(d: Draft, shape: tuple[int, ...], axis: int) -> tuple[Held, Held]:
    """Constant integers dequantised, sometimes with a scale and a zero point an index of an axis; and that scale."""
    dtype, several = d.choice(("int8", "uint8")), d.chance(1, 2)
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(d.integer(0, 999))
    count = (shape[axis],) if several else ()
    scale = d.constant(rng.uniform(0.001, 0.02, count).astype(np.float32))
    zero = zero_of(d, dtype, count)
    q = d.constant(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
    return down(d, q, scale, zero, axis=axis), scale


@grows("QuantizeLinear", when=lambda held: held.dtype == "float32" and filled(held))
def quantize(d: Draft, op: str, x: Held) -> None:
    if x.rank and d.chance(1, 3):
        axis = d.axis(x)
        dtype = d.choice(BYTES)
        scale = d.constant(np.random.default_rng(d.integer(0, 99)).uniform(0.01, 0.2, x.shape[axis]).astype(np.float32))
        d.node(op, [x, scale, zero_of(d, dtype, (x.shape[axis],))], axis=axis)
        return
    q, scale, zero = up(d, x)
    if d.chance(2, 3):
        f = down(d, q, scale, zero)
        if d.chance(1, 2):
            up(d, _activated(d, f))


@grows("DequantizeLinear", when=lambda held: held.dtype in (*BYTES, "int32") and filled(held))
def dequantize(d: Draft, op: str, x: Held) -> None:
    zero = None if x.dtype == "int32" or d.chance(1, 3) else zero_of(d, x.dtype)
    down(d, x, d.constant(np.float32(d.choice((0.05, 0.0123, 1.0)))), zero)


@grows("DynamicQuantizeLinear", when=lambda held: held.dtype == "float32" and filled(held))
def dynamic(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], outputs=3)


@grows("MatMulInteger", when=lambda held: held.dtype in BYTES and held.rank >= 2 and filled(held))
def product(d: Draft, op: str, x: Held) -> None:
    columns, dtype = d.choice((5, 17, 16, 3)), d.choice(BYTES)
    w = d.drawn((x.shape[-1], columns), dtype, 3)
    zeros = [zero_of(d, x.dtype), zero_of(d, dtype, (columns,) if d.chance(1, 2) else ())]
    d.node(op, [x, w, *zeros[: d.integer(0, 2)]])


@grows("ConvInteger", when=lambda held: held.dtype in BYTES and held.rank == 4 and filled(held))
def convolution(d: Draft, op: str, x: Held) -> None:
    kernels, dtype = [d.choice((3, 1, 2)) for _ in range(2)], d.choice(BYTES)
    words = placed(d, x.shape[2:], kernels)
    w = d.drawn((d.choice(MAPS), x.shape[1], *kernels), dtype, 3)
    d.node(op, [x, w, *[zero_of(d, x.dtype), zero_of(d, dtype)][: d.integer(0, 2)]], **words)


def quantised(d: Draft, x: Held) -> None:
    """Layers of an image, each between integers."""
    if not image(x) or x.dtype != "float32":
        raise Skip("no image of float32")
    q, scale, zero = up(d, x)
    for _ in range(d.choice((1, 1, 2))):
        f = _moved(d, down(d, q, scale, zero))
        kind = d.integer(0, 11)
        if kind < 3:
            f = _convolved(d, f, scale)
            if d.chance(1, 4):
                f = _normalised(d, f)
        elif kind == 3:
            f = d.node(d.choice(("Add", "Mul")), [f, _other(d, f.shape)])[0]
        elif kind == 4:
            f = d.node("GlobalAveragePool", [f])[0]
        elif kind == 5:
            f = d.node("MatMul", [f, stored(d, (f.shape[-1], d.choice(COLUMNS)), 1)[0]])[0]
        elif kind == 7:
            f = d.node("Concat", [f, _other(d, (f.shape[0], d.choice((16, 3)), *f.shape[2:]))], axis=1)[0]
        elif kind >= 9:
            f = _activated(d, f)
        elif min(f.shape[2:]) >= 2:
            words: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [d.choice((2, 1))] * 2}
            f = d.node(d.choice(("AveragePool", "MaxPool")), [f], **words)[0]
        if d.chance(1, 3):
            f = d.node("Relu", [f])[0]
        elif d.chance(1, 4):
            f = d.node("Clip", [f, d.constant(np.float32(-0.3)), d.constant(np.float32(2.1))])[0]
        f = _moved(d, f)
        if d.chance(1, 3):
            q = d.node("QuantizeLinear", [f, scale, zero])[0]  # the same scale: what only moves needs no float
        else:
            q, scale, zero = up(d, f)
    if d.chance(1, 3):
        q, scale, zero = up(d, _classified(d, down(d, q, scale, zero), scale))
    if d.chance(1, 2):
        down(d, q, scale, zero)


def _moved(d: Draft, f: Held) -> Held:
    """An image that is moved without a QuantizeLinear of its own, or the same."""
    kind = d.integer(0, 11)
    if kind == 0 and min(f.shape[2:]) >= 2:
        return d.node("MaxPool", [f], kernel_shape=[2, 2], strides=[1, 1])[0]
    if kind == 1:
        return d.node("Transpose", [f], perm=[0, 1, 3, 2])[0]
    return d.node("Concat", [f, f], axis=1)[0] if kind == 2 else f


def _normalised(d: Draft, f: Held) -> Held:
    """BatchNormalization, some of whose factors are negative."""
    rng = np.random.default_rng(d.integer(0, 99))
    statistics = (rng.uniform(-0.5, 1, f.shape[1]), rng.standard_normal(f.shape[1]), rng.standard_normal(f.shape[1]))
    numbers = [d.constant(array.astype(np.float32)) for array in (*statistics, rng.uniform(0.5, 2, f.shape[1]))]
    return d.node("BatchNormalization", [f, *numbers])[0]


def _classified(d: Draft, f: Held, scale: Held) -> Held:
    """The product of flattened images by a stored matrix, with a bias of the scale of its sums or without one."""
    f = d.node("Flatten", [f])[0]
    turned, columns = d.chance(1, 2), d.choice(COLUMNS)
    shape = (columns, f.shape[1]) if turned else (f.shape[1], columns)
    w, w_scale = stored(d, shape, 0 if turned else 1)
    bias = _bias(d, columns, scale, w_scale) if d.chance(1, 2) else None
    return d.node("Gemm", [f, w, bias], transB=int(turned))[0]


def _bias(d: Draft, count: int, scale: Held, w_scale: Held) -> Held:
    """Integers of the scale of the sums of products, dequantised."""
    q = d.constant(np.random.default_rng(d.integer(0, 99)).integers(-5000, 5000, count, np.int32))
    return down(d, q, d.constant(np.asarray(scale.value * w_scale.value, np.float32)), None, axis=0)


def _other(d: Draft, shape: tuple[int, ...]) -> Held:
    """What arrives beside, quantised by another scale."""
    return down(d, *up(d, d.input(d.numbers(shape, "float32", 0))))


def _activated(d: Draft, f: Held) -> Held:
    """A function of one operand, perhaps scaled, or as a gate of its operand, and perhaps with integers between."""
    g = d.node(d.choice(ACTIVATIONS[: None if d.opset >= 14 else -1]), [f])[0]
    kind = d.integer(0, 3)
    if kind == 0:
        return d.node(d.choice(("Mul", "Add", "Sub")), [g, d.constant(np.float32(0.37))])[0]
    if kind == 1:
        return g
    return d.node("Mul", [f, down(d, *up(d, g)) if kind == 2 else g])[0]


def _convolved(d: Draft, f: Held, scale: Held) -> Held:
    """A convolution by stored weights, with a bias of the scale of its sums, or of floats, or without one."""
    maps, kernels = d.choice(MAPS), [d.choice((3, 1, 2)) for _ in range(2)]
    words = placed(d, f.shape[2:], kernels, keep=d.chance(1, 2))
    w, w_scale = stored(d, (maps, f.shape[1], *kernels), 0)
    bias = None
    if d.chance(1, 2):
        bias = _bias(d, maps, scale, w_scale)
    elif d.chance(1, 4):
        bias = d.drawn((maps,), "float32")
    return d.node("Conv", [f, w, bias], **words)[0]
