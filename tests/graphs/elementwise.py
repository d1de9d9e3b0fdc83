"""Operators that map each element, with constants of every form, other tensors and new inputs as second operands."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from graphs.draft import DTYPES, FLOATS, Draft, Held, Skip
from graphs.growers import allowed, grows

CODES = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in DTYPES}


def partner(d: Draft, x: Held, dtype: str | None = None, *, keep: bool = False) -> Held:
    """A second operand that broadcasts with x; with `keep` to the shape of x."""
    dtype, shape = dtype or x.dtype, x.shape
    kind = d.integer(0, 9)
    if kind == 0:
        return d.drawn((), dtype)
    if kind == 1:
        return d.drawn((1,) * d.integer(1, max(1, x.rank)), dtype)
    if kind == 2 and x.rank >= 2:  # one a channel
        rest = (1,) * (x.rank - 2)
        return d.drawn((shape[1], *rest) if d.chance(1, 2) else (1, shape[1], *rest), dtype)
    if kind == 3 and x.rank:
        return d.drawn(shape[-1:], dtype)
    if kind == 4:
        return d.drawn(shape, dtype)
    if kind == 5:
        return d.input(d.numbers(shape, dtype))
    if kind == 6:
        parts = [1 if d.chance(1, 2) else extent for extent in shape]
        value = d.numbers(parts[d.integer(0, max(0, x.rank - 1)) :], dtype)
        return d.input(value) if d.chance(1, 3) else d.constant(value)
    if kind == 7 and not keep and x.rank < 5 and 1 in shape:  # x is broadcast itself
        grown = [d.integer(2, 5) if extent == 1 else extent for extent in shape]
        return d.drawn(grown, dtype)
    found = d.pick(lambda held: held.dtype == dtype and broadcasts(held, x, keep))
    return found if found is not None else d.drawn((), dtype)


def broadcasts(other: Held, x: Held, keep: bool) -> bool:
    try:
        shape = np.broadcast_shapes(other.shape, x.shape)
    except ValueError:
        return False
    return shape == x.shape or not keep


UNARY = """
    Relu Abs Neg Sign Floor Ceil Round Sigmoid Tanh HardSwish Erf Exp Identity IsNaN Not BitwiseNot Mish Softplus
    Softsign Sin Cos Tan Atan Asinh Sinh Cosh
""".split()  # noqa: SIM905


@grows(*UNARY)
def unary(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x])


DOMAINS = {"Log": "Abs", "Sqrt": "Abs", "Reciprocal": "Exp", "Acos": "Tanh", "Asin": "Tanh", "Atanh": "Sin"}


@grows(*DOMAINS, "Acosh")
def narrow(d: Draft, op: str, x: Held) -> None:
    """Operators that are not defined everywhere, mostly behind one that keeps them where they are."""
    if not d.chance(1, 6):
        if op == "Acosh":
            x = d.node("Cosh", [x])[0]
        elif op == "Log":
            x = d.node("Softplus", [x])[0]
        else:
            x = d.node(DOMAINS[op], [x])[0]
        if op in ("Asin", "Acos", "Atanh"):  # steep at the ends
            x = d.node("Mul", [x, d.constant(0.75, x.dtype)])[0]
    d.node(op, [x])


@grows("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Swish")
def with_alpha(d: Draft, op: str, x: Held) -> None:
    given = {"alpha": d.choice((0.25, 1.5, 0.01))} if d.chance(1, 2) else {}
    d.node(op, [x], **given)


@grows("Selu", "HardSigmoid")
def with_two(d: Draft, op: str, x: Held) -> None:
    names = {"Selu": "gamma", "HardSigmoid": "beta"}
    d.node(op, [x], **({"alpha": d.choice((0.3, 1.25)), names[op]: d.choice((0.4, 0.75))} if d.chance(1, 2) else {}))


@grows("Gelu")
def gelu(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], approximate=d.choice(("none", "tanh")))


@grows("IsInf")
def is_inf(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], detect_negative=d.integer(0, 1), detect_positive=d.integer(0, 1))


@grows("Dropout")
def dropout(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x, d.constant(0.3, "float32") if d.chance(1, 2) else None], outputs=1 + d.chance(1, 4))


# ---- types ----------------------------------------------------------------------------------------------------------


def castable(x: Held, dtype: str) -> bool:
    """True if every element has a value in the type."""
    if dtype == "bool" or not x.size:
        return True
    if np.dtype(dtype).kind == "f":
        return not x.finite or float(np.abs(x.value.astype(np.float64)).max(initial=0)) < 6e4
    limits = np.iinfo(dtype)
    low, high = (
        (0, min(limits.max, 1 << 40)) if limits.min == 0 else (max(limits.min, -(1 << 40)), min(limits.max, 1 << 40))
    )
    values = np.trunc(x.value.astype(np.float64)) if x.is_float else x.value.astype(np.float64)
    return x.finite and bool((values >= low).all() and (values <= high).all())


def cast_to(d: Draft, x: Held, dtype: str) -> Held:
    """x in a type, behind an Abs where the type has no negative numbers."""
    if not castable(x, dtype) and dtype.startswith("u") and x.dtype in allowed("Abs", d.opset):
        x = d.node("Abs", [x])[0]
    if not castable(x, dtype):
        raise Skip("Cast: out of range")
    return d.node("Cast", [x], to=CODES[dtype])[0]


@grows("Cast")
def cast(d: Draft, op: str, x: Held) -> None:
    cast_to(d, x, d.choice(DTYPES))


@grows("CastLike")
def cast_like(d: Draft, op: str, x: Held) -> None:
    dtype = d.choice(DTYPES)
    if not castable(x, dtype):
        raise Skip("CastLike: out of range")
    d.node(op, [x, d.pick(lambda held: held.dtype == dtype) or d.drawn((2,), dtype)])


# ---- several operands -----------------------------------------------------------------------------------------------


def ordered(d: Draft, x: Held, y: Held) -> list[Held]:
    return [y, x] if d.chance(1, 3) else [x, y]


@grows(
    *[
        "Add",
        "Sub",
        "Mul",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
    ]
)
def binary(d: Draft, op: str, x: Held) -> None:
    d.node(op, ordered(d, x, partner(d, x)))


@grows("Div", "Mod")
def division(d: Draft, op: str, x: Held) -> None:
    """The divisor is a constant without a zero, or a tensor that has none."""
    y = partner(d, x)
    if y.constant:
        value = y.value.astype(np.float64)
        y = d.constant(np.where(np.abs(value) < 1, 3, value), y.dtype)
    elif not y.finite or (y.size and np.abs(y.value.astype(np.float64)).min() < 0.25):
        raise Skip(f"{op}: by nearly 0")
    fmod: dict[str, Any] = {"fmod": 1} if op == "Mod" and (x.is_float or d.chance(1, 3)) else {}
    d.node(op, [x, y], **fmod)


@grows("Pow")
def power(d: Draft, op: str, x: Held) -> None:
    exponent = d.choice((2.0, 3.0, 0.5, 1.0, -1.0) if x.is_float else (2.0, 3.0, 1.0, 0.0))
    if exponent in (0.5, -1.0) or d.chance(1, 3):
        x = d.node("Abs", [x])[0]
    if exponent < 0:
        x = d.node("Add", [x, d.constant(0.5, x.dtype)])[0]
    shape = d.choice(((), (1,), x.shape[-1:]))
    dtype = x.dtype if d.chance(2, 3) or exponent != int(exponent) or exponent < 0 else d.choice(("int64", "int32"))
    d.node(op, [x, d.constant(np.full(shape, exponent), dtype)])


@grows("BitShift")
def bit_shift(d: Draft, op: str, x: Held) -> None:
    bits = np.iinfo(x.dtype).bits
    shape = d.choice(((), (1,), x.shape[-1:], x.shape))
    rng = np.random.default_rng(d.integer(0, 99))
    d.node(op, [x, d.constant(rng.integers(0, bits // 2, shape), x.dtype)], direction=d.choice(("LEFT", "RIGHT")))


@grows("PRelu")
def p_relu(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x, partner(d, x, keep=True)])


@grows("Max", "Min", "Sum", "Mean")
def variadic(d: Draft, op: str, x: Held) -> None:
    others = [partner(d, x, keep=True) for _ in range(d.choice((1, 2, 0)))]
    operands = [x, *others]
    d.node(op, [*operands[d.integer(0, len(others)) :], *operands][: len(operands)])


@grows("Clip")
def clip(d: Draft, op: str, x: Held) -> None:
    low, high = d.choice(((0, 6), (-1, 1), (1, 4))) if not x.dtype.startswith("u") else (1, 4)
    bounds: list[Held | None] = [None, None]
    for place, number in enumerate((low, high)):
        kind = d.integer(0, 4)
        value = np.asarray(number, x.dtype)
        bounds[place] = None if kind == 3 else d.input(value) if kind == 4 else d.constant(value)
    d.node(op, [x, *bounds])


@grows("Where")
def where(d: Draft, op: str, x: Held) -> None:
    """x as the condition, or as what is chosen."""
    if x.dtype == "bool" and d.chance(3, 4):
        dtype = d.choice(DTYPES)
        d.node(op, [x, partner(d, x, dtype), partner(d, x, dtype)])
        return
    condition = d.pick(lambda held: held.dtype == "bool" and broadcasts(held, x, False))
    if condition is None and x.dtype in allowed("Greater", d.opset):
        condition = d.node("Greater", [x, partner(d, x, keep=True)])[0]
    condition = condition if condition is not None else d.drawn(x.shape, "bool")
    d.node(op, [condition, *ordered(d, x, partner(d, x, keep=True))])


__all__ = ["CODES", "FLOATS", "cast_to", "partner"]
