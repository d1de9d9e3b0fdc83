"""Operators that follow an axis from one end to the other, or put it in order."""

from __future__ import annotations

import math

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import NUMBERS, Meaning, Value, axis_of, integers, named, operator, typed
from tvmcnn.network import dims


def _whole(role: str, value: Value) -> int:
    """The one whole number that a constant operand is."""
    typed(("int32", "int64"), value)
    if math.prod(value.shape) != 1:
        raise ModelError(f"its {role} '{value.name}' is {dims(value.shape)}; it must be one value")
    return integers(role, value)[0]


@operator
def cum_sum(x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Meaning:
    """ONNX CumSum along a constant axis: x[0] + … + x[k], or without x[k] (exclusive), or from the end (reverse)."""
    typed(NUMBERS, x)
    along = axis_of(_whole("axis", axis), len(x.shape))
    attributes = {"along": (along, along + 1), "exclusive": bool(exclusive), "reverse": bool(reverse)}
    return Meaning("CumSum", (x,), x.shape, attributes)


@named("TopK")
def top_k(x: Value, k: Value, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Meaning, ...]:  # noqa: A002 (ONNX's name)
    """ONNX TopK with a constant k: the greatest (or least) along an axis, in order, and where they are."""
    typed(NUMBERS, x)
    axis, count = axis_of(axis, len(x.shape)), _whole("k", k)
    if not 0 <= count <= x.shape[axis]:
        raise ModelError(f"k is {count}; axis {axis} of {dims(x.shape)} has {x.shape[axis]} elements")
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    indices = Meaning("TopK", (x,), shape, {"along": (axis, axis + 1), "largest": bool(largest)}, "int64")
    return indices, indices  # no node is left that has the values: see importer/top_k.py
