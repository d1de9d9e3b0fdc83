"""How far float32 may be from the reference: one relative bound a tensor, by the rounding errors along its path."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmcnn.fusion import ELEMENTWISE
from tvmcnn.network import Array, Network, Shape

UNIT = 2.0**-24  # unit roundoff of float32
SAFETY = 8.0  # standard deviations that the bound allows
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sum")
# Operators whose output jumps: an operand that is off by a rounding may be on the other side of the step.
STEPS = frozenset(
    """
    Floor Ceil Round Sign Mod IsNaN IsInf Equal Less LessOrEqual Greater GreaterOrEqual ArgMax ArgMin
    MaxPoolIndices ThresholdedRelu
    """.split()  # noqa: SIM905
)
KEEPING = ("Relu", "Clip", "LeakyRelu", "PRelu", "Abs", "Neg", "Max", "Min", "BatchNormalization")  # as a layer does
SLOPES: Mapping[str, Callable[[Array], Array]] = {  # |f'| of element-wise operators that are steep somewhere
    "Exp": np.exp,
    "Log": lambda x: 1 / x,
    "Sqrt": lambda x: 0.5 / np.sqrt(x),
    "Reciprocal": lambda x: 1 / x**2,
    "Sinh": np.cosh,
    "Cosh": np.sinh,
    "Tan": lambda x: 1 / np.cos(x) ** 2,
}
STEEPEST = {"Sigmoid": 0.25, "HardSwish": 1.5, "Selu": 1.76, "Softmax": 2.0, "LogSoftmax": 2.0}  # max |f'|
SLOPE = 1.2  # of the other activations: Gelu and Erf have 1.13


def relative_bounds(
    network: Network, values: Mapping[str, Array], growths: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The allowed error of each tensor, relative to its largest value; `values` are the reference's tensors by name.

    `growths` has how much larger a rounding error is in the output of some nodes: of those that Winograd convolves
    (`winograd.error_growth`) or tensor cores multiply (`precision.error_growth`).

    Rounding errors of a sum of K products behave like a random walk: with high probability the error stays within
    λ·√K·u of the size of the terms (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019).
    Along a path the variances add, each operand's times the square of what its relative error is worth in the output.
    """
    squares: dict[str, float] = {tensor.name: 0.0 for tensor in network.inputs}
    for node in network.nodes:
        growth = growths.get(node.output, 1.0) if growths else 1.0
        own = (SAFETY * UNIT * growth) ** 2 * _terms(network, node.op, node.inputs, node.attributes)
        operands = [values[name] if name in values else network.constants.get(name) for name in node.inputs]
        passed_on = [
            squares[name] * _gain(node.op, position, operands, values.get(node.output)) ** 2
            for position, name in enumerate(node.inputs)
            if squares.get(name)  # an exact operand brings no error, not even where a step is
        ]
        squares[node.output] = own + (sum(passed_on) if node.op in ARITHMETIC else max(passed_on, default=0.0))
    return {name: math.sqrt(square) for name, square in squares.items()}


def _gain(op: str, position: int, operands: Sequence[Array | None], output: Array | None) -> float:
    """How much a relative error of one operand may be worth in the output, both relative to the largest value.

    Layers keep it (1). A sum that cancels, a product of values that are large at different places and a division by
    small ones enlarge it, and so does what squashes large values into [-1, 1]. Where a step is, it is worth anything.
    """
    cut = op == "Cast" and output is not None and output.dtype.kind != "f"
    if op in STEPS or cut or (op == "Where" and position == 0):
        return math.inf
    if output is None or any(operand is None for operand in operands):
        return 1.0
    given = [np.asarray(operand, np.float64) for operand in operands if operand is not None]
    sizes = [largest(operand) for operand in given]
    result = largest(output) or 1.0
    scale = sizes[position] / result
    if op in ("Add", "Sub", "Sum", "Mean", "Where"):
        return scale
    if op == "Mul":
        return math.prod(sizes) / result
    with np.errstate(all="ignore"):
        if op == "Div":
            a, b = given
            return largest(1 / b if position == 0 else a / b**2) * scale
        if op == "Pow":
            x, y = given
            return largest(y * x ** (y - 1) if position == 0 else x**y * np.log(x)) * scale
        if op in SLOPES:
            return largest(SLOPES[op](given[0])) * scale
    if op in STEEPEST or (op in ELEMENTWISE and op not in KEEPING):
        return STEEPEST.get(op, SLOPE) * scale
    return 1.0


def largest(values: Array) -> float:
    """max |x| of the finite elements; 0 of none."""
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def _terms(network: Network, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> int:
    """Roundings that one element of a node's output suffers."""
    shapes: list[Shape] = [
        (network.constants if name in network.constants else network.tensors)[name].shape for name in inputs
    ]
    if op == "Conv":
        terms = math.prod(shapes[1][1:])
    elif op == "ConvTranspose":
        terms = math.prod((shapes[1][0], *shapes[1][2:])) // attributes["group"]
    elif op in ("Gemm", "MatMul"):
        terms = shapes[0][0 if attributes.get("transA") else -1]
    elif op in ("AveragePool", "LpPool"):
        terms = math.prod(attributes["kernel_shape"])
    elif op in ("GlobalAveragePool", "GlobalLpPool", "InstanceNormalization", "GroupNormalization"):
        terms = math.prod(shapes[0][1:]) // attributes.get("num_groups", shapes[0][1])
    elif op.startswith("LayerNormalization"):
        terms = math.prod(shapes[0][attributes["axis"] :])
    elif op.startswith("Reduce"):
        terms = math.prod(shapes[0][axis] for axis in attributes["axes"])
    elif op in ("Softmax", "LogSoftmax"):
        terms = shapes[0][attributes["axis"]]
    else:
        terms = len(shapes)
    return 8 + int(terms)  # 8: a bias, e^x of libm, a division
