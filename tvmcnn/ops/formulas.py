"""What the element-wise operators compute from one element of each operand, in that element's dtype."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr

from tvmcnn.ops import functions
from tvmcnn.ops.functions import erf, exp, expm1, log1p, sigmoid, tanh
from tvmcnn.ops.operands import Let, dtype_of, literal

Select = tirx.Select  # both sides are computed: a vector needs no branch


def is_float(x: Expr) -> bool:
    """True if `x` is of a floating-point dtype."""
    return dtype_of(x).startswith("float")


def of(x: Expr, value: float) -> Expr:
    """A literal of the dtype of `x`."""
    return literal(value, dtype_of(x))


def veiled(x: Expr, times: int = 1) -> Expr:
    """The same float, about which TVM's simplifier knows nothing; LLVM makes no code of it."""
    if is_float(x):
        for _ in range(times):
            x = tirx.reinterpret(dtype_of(x), tirx.reinterpret(dtype_of(x).replace("float", "int"), x))
    return x


def _veiled_zero(x: Expr) -> Expr:
    """`x`, veiled if it is a literal 0: TVM takes 0·x and 0/x for 0 and −0 + 0 for −0, and stops at x/0.

    √0 is 0 and √−0 is −0, as LLVM and nvcc know. (TVM's CUDA takes the address of what it reinterprets.)
    """
    return tirx.sqrt(x) if isinstance(x, tirx.FloatImm) and x.value == 0 else x


def product(a: Expr, b: Expr) -> Expr:
    """a·b, which of 0 and an infinity is NaN."""
    return _veiled_zero(a) * _veiled_zero(b)


def equal(a: Expr, b: Expr) -> Expr:
    """a = b; of bools as uint8, because TVM compares them as floats, which LLVM refuses."""
    return a.astype("uint8").equal(b.astype("uint8")) if dtype_of(a) == "bool" else a.equal(b)


def relu(x: Expr) -> Expr:
    """max(0, x). 0 first: x86's vmaxps returns its second operand when one is NaN, so that NaN passes as in NumPy."""
    return tirx.max(of(x, 0), x)


def clip(x: Expr, *bounds: Expr, min: float | None, max: float | None, arriving: tuple[str, ...] = ()) -> Expr:  # noqa: A002
    """min(max(x, low), high), each bound a literal, an operand or infinite."""
    given = dict(zip(arriving, bounds, strict=True))
    low = given.get("min", None if min is None else of(x, min))
    high = given.get("max", None if max is None else of(x, max))
    x = x if low is None else tirx.max(low, x)
    return x if high is None else tirx.min(high, x)


def hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    """max(0, min(1, alpha·x + beta))"""
    return tirx.max(of(x, 0), tirx.min(of(x, 1), product(of(x, alpha), x) + of(x, beta)))


def softplus(x: Expr) -> Expr:
    """ln(1 + e^x) = max(0, x) + ln(1 + e^−|x|), whose exponential never overflows."""
    return tirx.max(of(x, 0), x) + log1p(exp(of(x, 0) - tirx.abs(x)))


def atanh(x: Expr) -> Expr:
    """½·ln((1 + x) / (1 − x)) = ±½·ln(1 + 2|x| / (1 − |x|)), which has all digits of a small x."""
    let = Let()
    x = let(x)
    size = let(tirx.abs(x))
    inside = log1p(of(x, 2) * size / (of(x, 1) - size)) * of(x, 0.5)
    outside = Select(size > of(x, 1), of(x, float("nan")), of(x, float("inf")))
    value = let(Select(size < of(x, 1), inside, outside))
    return let.within(Select(tirx.isnan(x), x, Select(x < of(x, 0), of(x, 0) - value, value)))


def mish(x: Expr) -> Expr:
    """x·tanh(ln(1 + e^x)) = x·n/(n + 2), n = e^x·(e^x + 2): one exponential. From 20 on the factor is 1 in float32; in
    float64 from 40, where n is still far from overflow.
    """
    let = Let()
    power = let(exp(tirx.min(x, of(x, 40))))
    n = let(power * (power + of(x, 2)))
    return let.within(x * (n / (n + of(x, 2))))


def gelu(x: Expr, approximate: str) -> Expr:
    """x·Φ(x), Φ the normal distribution, or its approximation by tanh: ½·(1 + tanh u) is 1 / (1 + e^−2u)."""
    if approximate == "tanh":
        return x * sigmoid(of(x, math.sqrt(8 / math.pi)) * (x + of(x, 0.044715) * x * x * x))
    if dtype_of(x) == "float32":
        return functions.gelu(x)
    return of(x, 0.5) * x * (of(x, 1) + erf(x * of(x, math.sqrt(0.5))))


def elu(x: Expr, alpha: float, gamma: float = 1.0, width: float = 1.0) -> Expr:
    """gamma·x where x ≥ 0, else gamma·alpha·(e^(x/width) − 1). The exponent is cut at 0, as what is not taken must
    not overflow; NaN passes.
    """
    below = expm1(tirx.min(of(x, 0), x) * of(x, 1 / width))
    above = x if gamma == 1.0 else product(of(x, gamma), x)
    return Select(x >= of(x, 0), above, product(of(x, gamma * alpha), below))


def sign(x: Expr) -> Expr:
    """−1, 0 or 1; NaN stays."""
    positive = Select(x > of(x, 0), of(x, 1), Select(x.equal(of(x, 0)), of(x, 0), x if is_float(x) else of(x, 1)))
    return positive if dtype_of(x).startswith("uint") else Select(x < of(x, 0), of(x, -1), positive)


def divide(a: Expr, b: Expr) -> Expr:
    """a / b. The quotient of integers is cut at 0; by 0 it is 0, where x86's idiv would stop the process."""
    if is_float(a):
        return _veiled_zero(a) / _veiled_zero(b)
    quotient = Select(b.equal(of(b, 0)), of(a, 0), tirx.truncdiv(a, _divisor(b)))
    return quotient if dtype_of(a).startswith("uint") else Select(b.equal(of(b, -1)), of(a, 0) - a, quotient)


def libm(name: str) -> Callable[..., Expr]:
    """A function of the C library, for which TVM has no code of its own."""

    def call(*given: Expr) -> Expr:
        dtype = dtype_of(given[0])
        return tirx.call_pure_extern(dtype, f"{name}f" if dtype == "float32" else name, *given)

    return call


def modulo(a: Expr, b: Expr, fmod: bool) -> Expr:
    """The remainder of a / b with the sign of a (fmod) or of b; of integers by 0 it is 0."""
    if is_float(a):
        rest = libm("fmod")(a, b)
        return rest if fmod else Select(equal(rest < of(a, 0), b < of(b, 0)), rest, _moved_up(rest, b))
    divided = tirx.truncmod(a, _divisor(b)) if fmod else tirx.floormod(a, _divisor(b))
    return Select(b.equal(of(b, 0)), of(a, 0), divided)


def _moved_up(rest: Expr, b: Expr) -> Expr:
    """A remainder of the wrong sign by one b; 0 has none."""
    return Select(rest.equal(of(rest, 0)), rest, rest + b)


def _divisor(b: Expr) -> Expr:
    """The divisor, or 1 where x86 would trap: 0, and −1 under the least integer."""
    traps = b.equal(of(b, 0))
    if not dtype_of(b).startswith("uint"):
        traps = tirx.any(traps, b.equal(of(b, -1)))
    return Select(traps, of(b, 1), b)


def _root(x: Expr) -> Expr:
    """x^½, which is 0 of −0 and ∞ of −∞."""
    return Select(x.equal(of(x, -math.inf)), of(x, math.inf), tirx.abs(tirx.sqrt(x)))


SIMPLE_POWERS: dict[float, Callable[[Expr], Expr]] = {
    0.5: _root,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    -1.0: lambda x: of(x, 1) / x,
}


def power(x: Expr, y: Expr) -> Expr:
    """x^y in the dtype of x, computed of float32 operands in float32, of others in float64; products and roots where y
    is known.
    """
    if dtype_of(x) == "float32" and isinstance(y, tirx.FloatImm) and (simple := SIMPLE_POWERS.get(y.value)):
        return simple(x)
    dtype = "float32" if {dtype_of(x), dtype_of(y)} == {"float32"} else "float64"
    return functions.power(x.astype(dtype), y.astype(dtype)).astype(dtype_of(x))


def _extreme(choose: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def extreme(*given: Expr) -> Expr:
        return functools.reduce(
            lambda a, b: Select(tirx.isnan(a), a, choose(a, b)) if is_float(a) else choose(a, b), given
        )

    return extreme


def shifted(x: Expr, y: Expr, left: bool) -> Expr:
    """x shifted by y bits. By all of them or more, or by a negative number, leaves the sign alone: 0 or −1; x86 takes
    the amount modulo 32.
    """
    dtype = dtype_of(x)
    bits = int(dtype.lstrip("uint"))
    amount = tirx.min(y.astype(f"uint{bits}"), literal(bits - 1, f"uint{bits}")).astype(dtype)
    inside = tirx.all(y >= of(y, 0), y < of(y, bits))
    if left:
        return Select(inside, tirx.shift_left(x, amount), of(x, 0))
    sign = of(x, 0) if dtype.startswith("uint") else Select(x < of(x, 0), of(x, -1), of(x, 0))
    return Select(inside, tirx.shift_right(x, amount), sign)


def is_infinite(x: Expr, negative: bool, positive: bool) -> Expr:
    """True for an infinity of a sign that counts."""
    tests = [x.equal(of(x, math.inf))] if positive else []
    tests += [x.equal(of(x, -math.inf))] if negative else []
    return tirx.any(*tests) if tests else tirx.const(False, "bool")


# Floats below 0 to unsigned integers, which ONNX leaves open: −2.3 to uint16 is 65534 by AVX2, and 65535 by AVX-512's
# own instruction. Through these signed ones it wraps around on every CPU, as in NumPy and onnxruntime.
THROUGH = {"uint8": "int32", "uint16": "int32", "uint32": "int64", "int8": "int32", "int16": "int32"}


def cast(x: Expr, to: str) -> Expr:
    """`x` in another dtype: to integers without the fraction, to bool whether it is other than 0."""
    if dtype_of(x) == to:
        return x
    if to == "bool":
        other = tirx.Not(x.equal(of(x, 0)))  # which for TVM NaN is not
        return tirx.any(other, tirx.isnan(x)) if is_float(x) else other
    if dtype_of(x) == "bool":
        return x.astype("uint8").astype(to)
    if is_float(x) and to in THROUGH:
        return x.astype(THROUGH[to]).astype(to)
    if is_float(x) and to == "uint64":
        top = of(x, 2.0**63)
        beyond = (x - top).astype("int64") ^ tirx.const(-(2**63), "int64")
        return tirx.Select(x >= top, beyond, x.astype("int64")).astype(to)
    return x.astype(to)


def shrink(x: Expr, bias: float, lambd: float) -> Expr:
    """x ± bias, towards 0, where |x| > lambd, else 0."""
    if not is_float(x):
        return cast(shrink(x.astype("float64"), bias, lambd), dtype_of(x))
    above = Select(x > of(x, lambd), x - of(x, bias), of(x, 0))
    return Select(x < of(x, -lambd), x + of(x, bias), above)


def sums(*given: Expr) -> Expr:
    """The sum from left to right."""
    return functools.reduce(lambda a, b: a + b, given)


FORMULAS: dict[str, Callable[..., Expr]] = {
    "Add": lambda a, b: _veiled_zero(a) + _veiled_zero(b),
    "Sub": lambda a, b: a - _veiled_zero(b),
    "Mul": product,
    "Div": divide,
    "Mod": modulo,
    "Pow": power,
    "Sum": sums,
    "Mean": lambda *given: sums(*given) / of(given[0], len(given)),
    "Max": _extreme(tirx.max),
    "Min": _extreme(tirx.min),
    "Relu": relu,
    "Clip": clip,
    "LeakyRelu": lambda x, alpha: Select(x >= of(x, 0), x, product(of(x, alpha), x)),
    "PRelu": lambda x, slope: Select(x >= of(x, 0), x, product(slope, x)),
    "ThresholdedRelu": lambda x, alpha: Select(x > of(x, alpha), x, of(x, 0)),
    "Shrink": shrink,
    "Elu": elu,
    "Celu": lambda x, alpha: elu(x, alpha, width=alpha),
    "Selu": elu,
    "Sigmoid": sigmoid,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda x: x * hard_sigmoid(x, 1 / 6, 0.5),
    "Swish": lambda x, alpha: x * sigmoid(product(of(x, alpha), x)),
    "Softplus": softplus,
    "Softsign": lambda x: x / (of(x, 1) + tirx.abs(x)),
    "Mish": mish,
    "Gelu": gelu,
    "Erf": erf,
    "Exp": exp,
    "Log": functions.log,
    "Sqrt": tirx.sqrt,
    "Reciprocal": lambda x: of(x, 1) / x,
    "Abs": lambda x: x if dtype_of(x).startswith("uint") else tirx.abs(x),
    "Neg": lambda x: of(x, -1) * x if is_float(x) else of(x, 0) - x,  # 0 − 0 is 0, and −0 is wanted
    "Sign": sign,
    "Floor": tirx.floor,
    "Ceil": tirx.ceil,
    "Round": tirx.nearbyint,
    **{name.capitalize(): getattr(functions, name) for name in ("sin", "cos")},
    **{name.capitalize(): getattr(tirx, name) for name in ("tan", "asin", "acos", "atan")},
    "Tanh": tanh,
    **{name.capitalize(): getattr(tirx, name) for name in ("asinh", "acosh")},
    "Atanh": atanh,
    **{name.capitalize(): libm(name) for name in ("sinh", "cosh")},
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Equal": equal,
    "And": tirx.all,
    "Or": tirx.any,
    "Xor": lambda a, b: tirx.Not(equal(a, b)),
    "Not": tirx.Not,
    "BitwiseAnd": tirx.bitwise_and,
    "BitwiseOr": tirx.bitwise_or,
    "BitwiseXor": tirx.bitwise_xor,
    "BitwiseNot": tirx.bitwise_not,
    "BitShift": shifted,
    "IsNaN": tirx.isnan,
    "IsInf": is_infinite,
    "Where": Select,
    "Cast": cast,
    "BatchNormalization": lambda x, scale, shift: product(x, scale) + shift,
}
