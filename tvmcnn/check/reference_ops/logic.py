"""Comparisons, logic, bits and choices, element by element; broadcast as NumPy does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, op


def _named(name: str, function: Callable[[Array, Array], Array], since: int = 7) -> None:
    """An operator of two inputs whose name says which function of NumPy it is."""

    def apply(a: Array, b: Array) -> Array:
        return np.asarray(function(a, b))

    apply.__doc__ = f"{name}: numpy.{getattr(function, '__name__', name)}."
    op(name, since)(apply)


for _name, _function in {
    **{"Equal": np.equal, "Less": np.less, "Greater": np.greater},
    **{"LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal},
    **{"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor},
    **{"BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor},
}.items():
    _named(_name, _function)


@op("Not")
def not_(x: Array) -> Array:
    """Not: the other truth value."""
    return np.logical_not(x)


@op("BitwiseNot", 18)
def bitwise_not(x: Array) -> Array:
    """BitwiseNot: every bit the other way."""
    return np.bitwise_not(x)


@op("BitShift", 11)
def bit_shift(x: Array, y: Array, *, direction: str) -> Array:
    """BitShift: x moved by y bits. By all of them or more, or by a negative number, leaves the sign alone: 0 or -1."""
    bits = 8 * x.dtype.itemsize
    all_of_them = (y < 0) | (y >= bits)
    amount = np.where(all_of_them, bits - 1, y).astype(x.dtype)
    if direction == "LEFT":
        return np.where(all_of_them, 0, np.left_shift(x, amount)).astype(x.dtype)
    gone = np.where(x < 0, -1, 0).astype(x.dtype)
    return np.asarray(np.where(all_of_them, gone, np.right_shift(x, amount)))


@op("IsNaN")
def is_nan(x: Array) -> Array:
    """IsNaN: whether x is not a number."""
    return np.isnan(x)


@op("IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """IsInf: whether x is infinite, of a sign that is asked for."""
    return np.asarray((np.isposinf(x) & bool(detect_positive)) | (np.isneginf(x) & bool(detect_negative)))


@op("Where", 9)
def where(condition: Array, x: Array, y: Array) -> Array:
    """Where: x where the condition holds, y elsewhere."""
    return np.where(condition, x, y)
