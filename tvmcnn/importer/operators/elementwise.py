"""Operators that map each element, with NumPy broadcasting where there are several operands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    CODES,
    DTYPES,
    FLOATS,
    INTEGERS,
    NUMBERS,
    OPERATORS,
    Meaning,
    Unsupported,
    Value,
    alike,
    broadcast,
    floats,
    operator,
    typed,
)
from tvmcnn.network import dims

UNSIGNED = tuple(dtype for dtype in INTEGERS if dtype.startswith("u"))
SIGNED = (*FLOATS, *(dtype for dtype in INTEGERS if dtype not in UNSIGNED))


def _unary(op: str, formula: str, allowed: Sequence[str] = FLOATS, dtype: str = "") -> None:
    def function(x: Value) -> Meaning:
        typed(allowed, x)
        return Meaning(op, (x,), x.shape, dtype=dtype)

    function.__doc__ = f"ONNX {op}: y = {formula}."
    OPERATORS[op] = function


def _binary(op: str, formula: str, allowed: Sequence[str] = NUMBERS, dtype: str = "") -> None:
    def function(a: Value, b: Value) -> Meaning:
        alike(allowed, a, b)
        return Meaning(op, (a, b), broadcast(a, b), dtype=dtype)

    function.__doc__ = f"ONNX {op}: y = {formula}."
    OPERATORS[op] = function


def _variadic(op: str, formula: str, allowed: Sequence[str]) -> None:
    def function(*data: Value) -> Meaning:
        alike(allowed, *data)
        if not data:
            raise ModelError("it has no operand; it must have at least one")
        return Meaning(op, data, broadcast(*data))

    function.__doc__ = f"ONNX {op}: y = {formula}, of any number of operands."
    OPERATORS[op] = function


for _op, _formula in (
    *(("Sigmoid", "1 / (1 + e^-x)"), ("HardSwish", "x · max(0, min(1, x/6 + 1/2))"), ("Mish", "x · tanh(ln(1 + e^x))")),
    *(("Softplus", "ln(1 + e^x)"), ("Softsign", "x / (1 + |x|)"), ("Erf", "2/√π · ∫_0^x e^-t² dt")),
    *(("Exp", "e^x"), ("Log", "ln x"), ("Sqrt", "√x"), ("Reciprocal", "1 / x")),
    *(("Floor", "⌊x⌋"), ("Ceil", "⌈x⌉"), ("Round", "the nearest integer, halves to even")),
    *((f"{_arc}{_name}".capitalize(), f"{_arc}{_name} x") for _arc in ("", "a") for _name in ("sin", "cos", "tan")),
    *((f"{_a}{_name}".capitalize(), f"{_a}{_name} x") for _a in ("", "a") for _name in ("sinh", "cosh", "tanh")),
):
    _unary(_op, _formula)
for _op, _formula in (("Relu", "max(0, x)"), ("Neg", "-x")):
    _unary(_op, _formula, SIGNED)
for _op, _formula in (("Abs", "|x|"), ("Sign", "-1, 0 or 1")):
    _unary(_op, _formula, NUMBERS)
_unary("IsNaN", "x is not a number", FLOATS, "bool")
_unary("Not", "not x", ("bool",))
_unary("BitwiseNot", "~x", INTEGERS)

for _op, _formula in (("Add", "a + b"), ("Sub", "a - b"), ("Mul", "a · b"), ("Div", "a / b, of integers cut at 0")):
    _binary(_op, _formula)
for _op, _formula in (("Less", "a < b"), ("LessOrEqual", "a ≤ b"), ("Greater", "a > b"), ("GreaterOrEqual", "a ≥ b")):
    _binary(_op, _formula, NUMBERS, "bool")
_binary("Equal", "a = b", DTYPES, "bool")
for _op, _formula in (("And", "a and b"), ("Or", "a or b"), ("Xor", "a or b, not both")):
    _binary(_op, _formula, ("bool",))
for _op, _formula in (("BitwiseAnd", "a & b"), ("BitwiseOr", "a | b"), ("BitwiseXor", "a ^ b")):
    _binary(_op, _formula, INTEGERS)

for _op, _formula in (("Sum", "the sum"), ("Mean", "the mean")):
    _variadic(_op, _formula, FLOATS)
for _op, _formula in (("Min", "the least"), ("Max", "the greatest")):
    _variadic(_op, _formula, NUMBERS)


# ---- activations with numbers of their own --------------------------------------------------------------------------


def _activation(op: str, x: Value, **attributes: float | str) -> Meaning:
    floats(x)
    return Meaning(op, (x,), x.shape, attributes)


@operator
def leaky_relu(x: Value, *, alpha: float = 0.01) -> Meaning:
    """ONNX LeakyRelu: y = x where x ≥ 0, else alpha · x."""
    return _activation("LeakyRelu", x, alpha=alpha)


@operator
def elu(x: Value, *, alpha: float = 1.0) -> Meaning:
    """ONNX Elu: y = x where x ≥ 0, else alpha · (e^x - 1)."""
    return _activation("Elu", x, alpha=alpha)


@operator
def celu(x: Value, *, alpha: float = 1.0) -> Meaning:
    """ONNX Celu: y = max(0, x) + min(0, alpha · (e^(x/alpha) - 1))."""
    return _activation("Celu", x, alpha=alpha)


@operator
def selu(x: Value, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Meaning:
    """ONNX Selu: y = gamma · x where x > 0, else gamma · alpha · (e^x - 1)."""
    return _activation("Selu", x, alpha=alpha, gamma=gamma)


@operator
def thresholded_relu(x: Value, *, alpha: float = 1.0) -> Meaning:
    """ONNX ThresholdedRelu: y = x where x > alpha, else 0."""
    return _activation("ThresholdedRelu", x, alpha=alpha)


@operator
def shrink(x: Value, *, bias: float = 0.0, lambd: float = 0.5) -> Meaning:
    """ONNX Shrink: y = x + bias where x < -lambd, x - bias where x > lambd, else 0; integers go through float64."""
    typed(NUMBERS, x)
    return Meaning("Shrink", (x,), x.shape, {"bias": bias, "lambd": lambd})


@operator
def hard_sigmoid(x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Meaning:
    """ONNX HardSigmoid: y = max(0, min(1, alpha · x + beta))."""
    return _activation("HardSigmoid", x, alpha=alpha, beta=beta)


@operator
def swish(x: Value, *, alpha: float = 1.0) -> Meaning:
    """ONNX Swish: y = x / (1 + e^(-alpha · x))."""
    return _activation("Swish", x, alpha=alpha)


@operator
def gelu(x: Value, *, approximate: str = "none") -> Meaning:
    """ONNX Gelu: y = x/2 · (1 + erf(x/√2)), or with tanh: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    if approximate not in ("none", "tanh"):
        raise ModelError(f"approximate is '{approximate}'; allowed are none and tanh")
    return _activation("Gelu", x, approximate=approximate)


@operator
def p_relu(x: Value, slope: Value) -> Meaning:
    """ONNX PRelu: y = x where x ≥ 0, else slope · x; the slope broadcasts to x."""
    alike(NUMBERS, x, slope)
    if broadcast(x, slope) != x.shape:
        raise ModelError(f"the slope is {dims(slope.shape)}, which does not broadcast to {dims(x.shape)}")
    return Meaning("PRelu", (x, slope), x.shape)


@operator
def clip(x: Value, min: Value | None = None, max: Value | None = None) -> Meaning:  # noqa: A002 (ONNX's names)
    """ONNX Clip: y = min(max(x, low), high); a bound left out is infinite, one may arrive at run time.

    A bound that is no number bounds nothing, as in onnxruntime, and is left out here as is one that nothing can pass.
    """
    alike(NUMBERS, x, min, max)
    numbers: dict[str, float | None] = {"min": None, "max": None}
    arriving = []
    for role, bound in (("min", min), ("max", max)):
        if bound is None:
            continue
        if math.prod(bound.shape) != 1 or len(bound.shape) > 1:
            raise ModelError(f"its {role} '{bound.name}' is {dims(bound.shape)}; it must be one value")
        if bound.data is None:
            arriving.append((role, bound))
        elif not (np.isnan(bound.data).all() or bound.data == (-np.inf if role == "min" else np.inf)):
            numbers[role] = bound.data.reshape(()).item()
    roles = {"arriving": tuple(role for role, _ in arriving)} if arriving else {}
    return Meaning("Clip", (x, *(bound for _, bound in arriving)), x.shape, {**numbers, **roles})


# ---- arithmetic with attributes -------------------------------------------------------------------------------------


@operator
def pow_(x: Value, y: Value) -> Meaning:
    """ONNX Pow: x^y in the dtype of x; integers go through float64."""
    typed(NUMBERS, x, y)
    if y.data is not None and y.data.size == 1 and y.data.item() == 2 and broadcast(x, y) == x.shape:
        return Meaning("Mul", (x, x), x.shape)  # the same bits, without a call of libm
    return Meaning("Pow", (x, y), broadcast(x, y))


@operator
def mod(a: Value, b: Value, *, fmod: int = 0) -> Meaning:
    """ONNX Mod: the remainder of a / b, with the sign of b, or with fmod=1 that of a; of integers by 0 it is 0."""
    alike(NUMBERS, a, b)
    return Meaning("Mod", (a, b), broadcast(a, b), {"fmod": bool(fmod)})


@operator
def bit_shift(x: Value, y: Value, *, direction: str) -> Meaning:
    """ONNX BitShift: x · 2^y (LEFT) or ⌊x / 2^y⌋ (RIGHT); where y is all bits or more, or negative, 0 or −1."""
    alike(INTEGERS, x, y)
    if direction not in ("LEFT", "RIGHT"):
        raise ModelError(f"direction is '{direction}'; allowed are LEFT and RIGHT")
    return Meaning("BitShift", (x, y), broadcast(x, y), {"left": direction == "LEFT"})


@operator
def is_inf(x: Value, *, detect_negative: int = 1, detect_positive: int = 1) -> Meaning:
    """ONNX IsInf: x is infinite, of a sign that is asked for."""
    floats(x)
    attributes = {"negative": bool(detect_negative), "positive": bool(detect_positive)}
    return Meaning("IsInf", (x,), x.shape, attributes, "bool")


@operator
def where(condition: Value, x: Value, y: Value) -> Meaning:
    """ONNX Where: x where the condition is true, else y; all three broadcast."""
    typed(("bool",), condition)
    alike(DTYPES, x, y)
    return Meaning("Where", (condition, x, y), broadcast(condition, x, y), dtype=x.dtype)


# ---- dtypes ---------------------------------------------------------------------------------------------------------


@operator
def cast(x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Meaning:
    """ONNX Cast: floats become integers by cutting the fraction, bools by x ≠ 0, float16 is rounded to."""
    if to not in CODES:
        raise Unsupported(f"its attribute to is type {to} of ONNX; supported are float16, {', '.join(DTYPES)}")
    return converted(x, CODES[to])


@operator
def cast_like(x: Value, target_type: Value, *, saturate: int = 1, round_mode: str = "up") -> Meaning:
    """ONNX CastLike: Cast to the type of the second operand."""
    return converted(x, target_type.dtype)


def converted(x: Value, dtype: str) -> Meaning:
    """A tensor in another dtype, a view in its own."""
    typed(DTYPES, x)
    op = "Reshape" if dtype == x.dtype else "Cast"
    return Meaning(op, (x,), x.shape, {} if op == "Reshape" else {"to": dtype}, dtype)
