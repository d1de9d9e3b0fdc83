"""Functions of real numbers by ONNX's formulas in float64, for tables that are made when a network is compiled.

They have nothing of the oracle's, which evaluates the same operators in its own words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from tvmcnn.network import Array, Node

Function = Callable[..., Array]  # (node, *operands in float64) --> float64


def _gelu(node: Node, x: Array) -> Array:
    if node["approximate"] == "tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    else:
        inner = _erf(x / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + inner))


def _erf(x: Array) -> Array:
    return np.array([math.erf(value) for value in x.ravel()]).reshape(x.shape)


def _clip(node: Node, x: Array) -> Array:
    for bound, beyond in ((node["min"], np.less), (node["max"], np.greater)):
        x = x if bound is None else np.where(beyond(x, bound), bound, x)
    return x


def _below_zero(x: Array, below: Array) -> Array:
    """x from 0 on, else the other; what is no number stays."""
    return np.where(x < 0, below, x)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _power(node: Node, x: Array, y: Array) -> Array:
    """x^y, the exponents in full: of a lone 0.5 NumPy takes the root, which is NaN at −∞ and in C ∞."""
    return np.asarray(np.power(x, np.broadcast_to(y, np.broadcast_shapes(x.shape, y.shape)).copy()))


def _of_all(combine: Callable[[Array, Array], Array]) -> Function:
    return lambda node, *operands: functools.reduce(combine, operands)


FUNCTIONS: dict[str, Function] = {
    "Abs": lambda node, x: np.abs(x),
    "Neg": lambda node, x: -x,
    "Sqrt": lambda node, x: np.sqrt(x),
    "Reciprocal": lambda node, x: 1 / x,
    "Exp": lambda node, x: np.exp(x),
    "Log": lambda node, x: np.log(x),
    "Erf": lambda node, x: _erf(x),
    "Tanh": lambda node, x: np.tanh(x),
    "Sigmoid": lambda node, x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda node, x: _softplus(x),
    "Softsign": lambda node, x: x / (1 + np.abs(x)),
    "Mish": lambda node, x: x * np.tanh(_softplus(x)),
    "Gelu": _gelu,
    "HardSigmoid": lambda node, x: np.clip(node["alpha"] * x + node["beta"], 0, 1),
    "HardSwish": lambda node, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Swish": lambda node, x: x / (1 + np.exp(-node["alpha"] * x)),
    "Relu": lambda node, x: np.maximum(x, 0),
    "Clip": _clip,
    "LeakyRelu": lambda node, x: _below_zero(x, node["alpha"] * x),
    "PRelu": lambda node, x, slope: _below_zero(x, slope * x),
    "Elu": lambda node, x: _below_zero(x, node["alpha"] * np.expm1(x)),
    "Celu": lambda node, x: np.maximum(x, 0) + np.minimum(0, node["alpha"] * np.expm1(x / node["alpha"])),
    "Selu": lambda node, x: node["gamma"] * np.where(x > 0, x, node["alpha"] * np.expm1(x)),
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a / b,
    "Pow": _power,
    "Max": _of_all(np.maximum),
    "Min": _of_all(np.minimum),
    "Sum": _of_all(np.add),
}
"""Operators of one operand, or of several of which all but one are constant or all are functions of one.

None jumps: where a step stands would be a matter of the last bit of what is before it.
"""
