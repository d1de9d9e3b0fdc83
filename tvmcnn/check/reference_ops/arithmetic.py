"""Element by element, several inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


def _broadcast_1(a: Array, b: Array, broadcast: int, axis: int | None) -> Array:
    """B as opsets 1 to 6 line it up with A: equal shapes, or from `axis` on, or with A's last axes."""
    if not broadcast:
        if a.shape != b.shape:
            raise ValueError(f"shapes {a.shape} and {b.shape} without broadcast")
        return b
    start = a.ndim - b.ndim if axis is None else axis % a.ndim
    return np.broadcast_to(b.reshape(b.shape + (1,) * (a.ndim - start - b.ndim)), a.shape)


@op("Add", 7)
def add(a: Array, b: Array) -> Array:
    """Add: a + b, broadcast as NumPy does."""
    return np.asarray(a + b)


@op("Add", 1)
def add_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Add of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return np.asarray(a + _broadcast_1(a, b, broadcast, axis))


@op("Sub", 7)
def sub(a: Array, b: Array) -> Array:
    """Sub: a - b, broadcast as NumPy does."""
    return np.asarray(a - b)


@op("Sub", 1)
def sub_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Sub of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return np.asarray(a - _broadcast_1(a, b, broadcast, axis))


@op("Mul", 7)
def mul(a: Array, b: Array) -> Array:
    """Mul: a * b, broadcast as NumPy does."""
    return np.asarray(a * b)


@op("Mul", 1)
def mul_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Mul of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return np.asarray(a * _broadcast_1(a, b, broadcast, axis))


@op("Div", 7)
def div(a: Array, b: Array) -> Array:
    """Div: a / b, broadcast as NumPy does; the quotient of integers is cut towards zero, as in C."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    floor = a // b
    return np.asarray(floor + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype))


@op("Div", 1)
def div_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Div of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return div(a, _broadcast_1(a, b, broadcast, axis))


@op("Pow", 7)
def pow(x: Array, y: Array) -> Array:
    """Pow: x ** y, broadcast as NumPy does, in the type of x.

    The exponents are written out first: of one alone, 0.5, NumPy takes the root, which is nan at -inf where C has inf.
    """
    base, exponent = np.broadcast_arrays(x, y)
    return np.asarray(np.power(base, np.array(exponent))).astype(x.dtype)


@op("Pow", 1)
def pow_1(x: Array, y: Array, *, axis: int | None = None, broadcast: int = 0) -> Array:
    """Pow of opset 1: y is lined up with x by `broadcast` and `axis`."""
    return pow(x, _broadcast_1(x, y, broadcast, axis))


@op("Mod")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """Mod: the remainder, of the sign of b, or of a with fmod."""
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


@op("PRelu", 7)
def prelu(x: Array, slope: Array) -> Array:
    """PRelu: x where x >= 0, slope * x below; the slope broadcasts to x."""
    return np.where(x < 0, np.broadcast_to(slope, x.shape) * x, x)


def _variadic(name: str, combine: Callable[[Array, Array], Array]) -> None:
    def fold(*data: Array) -> Array:
        return functools.reduce(combine, data)

    fold.__doc__ = f"{name}: of any number of inputs, broadcast as NumPy does."
    op(name, 6)(fold)


_variadic("Sum", np.add)
_variadic("Max", np.maximum)
_variadic("Min", np.minimum)


@op("Mean", 6)
def mean(*data: Array) -> Array:
    """Mean: the sum of the inputs, broadcast as NumPy does, by their number."""
    return np.asarray(functools.reduce(np.add, data) / len(data))
