"""Operators that map each element, with NumPy broadcasting where there are several operands."""

from __future__ import annotations

import math

from tvmcnn.operators.words import OPERATORS, Meaning, Value, broadcast, floats, operator, scalar


def _binary(op: str) -> None:
    def function(a: Value, b: Value) -> Meaning:
        floats(a, b)
        return Meaning(op, (a, b), broadcast(a, b))

    function.__doc__ = f"ONNX {op} with NumPy broadcasting."
    OPERATORS[op] = function


def _unary(op: str, formula: str) -> None:
    def function(x: Value) -> Meaning:
        floats(x)
        return Meaning(op, (x,), x.shape)

    function.__doc__ = f"ONNX {op}: y = {formula}."
    OPERATORS[op] = function


for _name in ("Add", "Sub", "Mul", "Div"):
    _binary(_name)
for _name, _formula in (("Relu", "max(0, x)"), ("Sigmoid", "1 / (1 + e^-x)"), ("Tanh", "tanh x")):
    _unary(_name, _formula)


@operator
def clip(x: Value, min: Value | None = None, max: Value | None = None) -> Meaning:  # noqa: A002 (ONNX's names)
    """ONNX Clip with constant bounds; a bound left out is infinite."""
    floats(x)
    low = scalar("min", min) if min is not None else -math.inf
    high = scalar("max", max) if max is not None else math.inf
    return Meaning("Clip", (x,), x.shape, {"min": low, "max": high})
