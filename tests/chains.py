"""Chains of operators of one quantised operand, behind its DequantizeLinear: each of those that a table may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from quantised import Quantised

Array = np.ndarray[Any, Any]
Chain = Callable[[Quantised, str], str]


def every_byte(dtype: str) -> Array:
    return np.arange(256, dtype=np.uint8).view(dtype).reshape(4, 64)


def number(value: float) -> Callable[[Quantised], str]:
    return lambda g: g.constant(np.float32(value))


def unary(op: str, **attributes: Any) -> Chain:
    return lambda g, x: g.node(op, x, **attributes)


def binary(op: str, value: float, *, last: bool = True) -> Chain:
    def built(g: Quantised, x: str) -> str:
        c = g.constant(np.float32(value))
        return g.node(op, x, c) if last else g.node(op, c, x)

    return built


CHAINS: dict[str, Chain] = {
    **{
        op: unary(op)
        for op in [
            "Abs",
            "Neg",
            "Sqrt",
            "Reciprocal",
            "Exp",
            "Log",
            "Erf",
            "Tanh",
            "Sigmoid",
            "Softplus",
            "Softsign",
            "Mish",
            "Relu",
        ]
    },
    **{op: unary(op) for op in ("HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "Swish")},
    "Gelu-tanh": unary("Gelu", approximate="tanh"),
    "HardSigmoid-other": unary("HardSigmoid", alpha=0.31, beta=0.4),
    "LeakyRelu-other": unary("LeakyRelu", alpha=-0.3),
    "Elu-other": unary("Elu", alpha=0.7),
    "Celu-other": unary("Celu", alpha=-0.7),
    "Selu-other": unary("Selu", alpha=1.3, gamma=0.8),
    "Swish-other": unary("Swish", alpha=1.7),
    "Clip": lambda g, x: g.node("Clip", x, g.constant(np.float32(-0.31)), g.constant(np.float32(1.7))),
    "Clip-low": lambda g, x: g.node("Clip", x, g.constant(np.float32(0.31))),
    "Clip-crossed": lambda g, x: g.node("Clip", x, g.constant(np.float32(1.7)), g.constant(np.float32(-0.31))),
    "Clip-nan": lambda g, x: g.node("Clip", g.node("Neg", x), g.constant(np.float32(np.nan)), number(1.3)(g)),
    "PRelu": binary("PRelu", 0.17),
    "Add": binary("Add", 0.71),
    "Sub": binary("Sub", 0.71, last=False),
    "Mul": binary("Mul", -0.37),
    "Mul-filled": lambda g, x: g.node("Mul", x, g.constant(np.full((4, 1), -0.37, np.float32))),
    "Div": binary("Div", 3.3),
    "Div-under": binary("Div", 0.9, last=False),
    "Pow": binary("Pow", 2.0),
    "Pow-root": binary("Pow", 0.5),
    "Pow-under": binary("Pow", 1.7, last=False),
    "Max": binary("Max", 0.3),
    "Min": lambda g, x: g.node("Min", x, number(0.9)(g), number(1.1)(g)),
    "Sum": lambda g, x: g.node("Sum", x, number(0.3)(g), x),
    "two": lambda g, x: g.node("Relu", g.node("Tanh", x)),
    "SiLU": lambda g, x: g.node("Mul", x, g.node("Sigmoid", x)),
    "gate": lambda g, x: g.node("Mul", g.node("HardSigmoid", x), x),
    "diamond": lambda g, x: g.node("Sub", g.node("Mul", g.node("Exp", x), x), g.node("Abs", x)),
    "quantised-constant": lambda g, x: g.node("Add", g.node("Mul", x, g.weight(1, scale=0.013)), g.weight(scale=0.02)),
    "root-below": lambda g, x: g.node("Sqrt", g.node("Sub", x, number(0.5)(g))),
}
