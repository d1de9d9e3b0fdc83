"""e^x, e^x − 1, ln x, ln (1 + x), tanh, erf, sin, cos and x^y as polynomials, which LLVM vectorises; libm's would be
called for each element of a vector (16 calls of expf take 100 ns, this 4). Only of float32; float64 goes to libm.

The polynomials are minimax fits of ours, made in float64, whose coefficients stand with the highest power first. Of the
4 million floats of all sizes that `tools/function_errors.py --step 1009` tries, none is 2 ulp off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr

from tvmcnn.ops.operands import Let, dtype_of, float32, literal

Select = tirx.Select  # both sides are computed: a vector needs no branch
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; the first has 10 bits, so that n·LN2_HIGH is exact
# Added, it leaves no fraction: the sum is rounded to a whole number, which its last bits are. (TVM makes no vector of
# nearbyint but single elements, of which LLVM made vectors of 8; and it takes x + c − c for x.)
SHIFT, SHIFT_BITS = 1.5 * 2**23, 0x4B400000
SQRT_HALF_BITS = 0x3F3504F3
LEAST_NORMAL, LARGEST = 2.0**-126, 3.4028234663852886e38

# (e^r − 1 − r) / r² for |r| ≤ ln 2 / 2: within 0.75 ulp with the rounding of the sum
EXP = (0.0013933652487812152, 0.008363181544676645, 0.04166646489535537, 0.1666657696724759, 0.5000000013470306)
# (2^r − 1) / r for |r| ≤ 1/2: 0.003 ulp
EXP2 = (1.43209036e-05, 0.000154521971, 0.00133379665, 0.00961808674, 0.0555040501, 0.240226507, 0.693147182)
# (tanh x / x − 1) / x² in x², for |x| ≤ 0.625: within 0.3 ulp; above, 1 − 2 / (e^2x + 1) does not cancel
TANH = (-0.00610280069, 0.0210021725, -0.0538521899, 0.133327803, -0.333333291)
TANH_NEAR = 0.625
# erf x / x − 1 in x², for |x| ≤ 0.85: 0.1 ulp; above, −ln (1 − erf x) up to 4, where erf rounds to 1: 0.04 ulp of erf
ERF = (-0.000636421435, 0.00506047159, -0.0268089697, 0.112829052, -0.376125932, 0.128379166)
ERF_NEAR = 0.85
ERFC = (-0.000203674877, 0.00311785121, -0.0225190781, 0.104526013, 0.636518836, 1.12806106, 0.00010451555)
# (erfc(z/√2)^¼ − 1) / z for 0 ≤ z ≤ 5.5, the end of Φ in float32: 1 − Φ within 0.1 · 2^−24
GELU = (
    8.09018275e-08, -1.48479796e-06, 7.20443404e-06, 2.37749155e-05, -0.00025733377,
    -0.000194271692, 0.00463804835, 0.00547518441, -0.0596849136, -0.199471012,
)  # fmt: skip
GELU_END = 5.5
# (ln (1 + f) − f + f²/2) / f³ for √½ − 1 ≤ f ≤ √2 − 1: 0.1 ulp
LOG = (-0.076363951, 0.127621979, -0.131596133, 0.142015815, -0.166234091, 0.200012416, -0.250008196, 0.333333313)
# log2 (1 + f) / f there, in float64: within 1.6e-11, for x^y multiplies it by up to 128
LOG2 = (
    0.07736934886990397, -0.1428385611677334, 0.1447485692599489, -0.14315664311491527, 0.15876980626037834,
    -0.18030058518226838, 0.20617535840131745, -0.2404531662342436, 0.2885372935125941, -0.3606736748171441,
    0.4808983613950011, -0.721347520868811, 1.4426950408687067,
)  # fmt: skip
# (sin r / r − 1) / r² and (cos r − 1 + r²/2) / r⁴ in r², for |r| ≤ 0.54 · π/2: 0.003 ulp
SIN = (2.78812126e-06, -0.000198492504, 0.00833337195, -0.166666672)
COS = (-2.82834151e-07, 2.48163451e-05, -0.00138889672, 0.0416666679)
# For |x| < 2^end: s, and 2^s · 2/π mod 4 in three parts, in units of 2^−28. x · 2^−s is whole, or s is 0, and the first
# two parts have at most 30 and 29 bits, so that their products with the 24 of x are exact.
_hex = float.fromhex
TURNS = (
    (48, 0, 170891319, _hex("-0x1.b1bbeb0p-4"), _hex("0x1.4fe13abe8fa9ap-31")),
    (74, 25, -305543037, _hex("-0x1.6b01ec6p-2"), _hex("0x1.7d1f534ddc0dbp-31")),
    (100, 51, 177536532, _hex("-0x1.505c15ap-2"), _hex("0x1.377036d8a5665p-31")),
    (128, 77, 246391786, _hex("0x1.a6ee06ep-2"), _hex("-0x1.3ad4cd8778df8p-32")),
)
UNIT = 2.0**28


# ---- exponentials ---------------------------------------------------------------------------------------------------


def exp(x: Expr) -> Expr:
    """e^x = 2^n · e^r, n = round(x / ln 2), |r| ≤ ln 2 / 2.

    NaN passes: the bounds come first, since x86's vminps and vmaxps return their second operand when one is NaN.
    """
    if dtype_of(x) != "float32":
        return tirx.exp(x)
    let = Let()
    n, r = _by_ln2(let, tirx.max(float32(-104.0), tirx.min(float32(88.8), x)))  # to 0 and infinity, rounded
    return let.within(_scaled(_power_minus_1(r) + float32(1.0), n))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^−x), with one power of two: beyond its reach e^−x is infinite, and 1 / (1 + ∞) is 0."""
    if dtype_of(x) != "float32":
        one = literal(1, dtype_of(x))
        return one / (one + tirx.exp(literal(0, dtype_of(x)) - x))
    let = Let()
    n, r = _by_ln2(let, tirx.max(float32(-87.0), tirx.min(float32(88.8), float32(0.0) - x)))
    power = (_power_minus_1(r) + float32(1.0)) * _power_of_two(n)
    return let.within(float32(1.0) / (float32(1.0) + power))


def expm1(x: Expr) -> Expr:
    """e^x − 1 = 2^n · (e^r − 1) + (2^n − 1), for x ≤ 88."""
    if dtype_of(x) != "float32":
        return tirx.exp(x) - literal(1, dtype_of(x))
    let = Let()
    n, r = _by_ln2(let, tirx.max(float32(-30.0), x))  # e^−30 − 1 rounds to −1
    scale = let(_power_of_two(n))
    return let.within(_power_minus_1(r) * scale + (scale - float32(1.0)))


def tanh(x: Expr) -> Expr:
    """x·(1 + x²·p(x²)) near 0, else ±(1 − 2 / (e^2|x| + 1))."""
    if dtype_of(x) != "float32":
        return tirx.tanh(x)
    let = Let()
    x = let(x)
    square, size = let(x * x), tirx.abs(x)
    near = x + x * (square * _polynomial(TANH, square))
    far = float32(1.0) - float32(2.0) / (exp(size + size) + float32(1.0))
    return let.within(Select(size < float32(TANH_NEAR), near, _signed(far, x < float32(0.0))))


def erf(x: Expr) -> Expr:
    """x·(1 + p(x²)) near 0, else ±(1 − e^−q(|x|))."""
    if dtype_of(x) != "float32":
        return tirx.erf(x)
    let = Let()
    x = let(x)
    size, square = let(tirx.abs(x)), let(x * x)
    near = x + x * _polynomial(ERF, square)
    n, r = _by_ln2(let, _polynomial([-c for c in ERFC], let(tirx.min(float32(4.0), size))))
    far = float32(1.0) - (_power_minus_1(r) + float32(1.0)) * _power_of_two(n)
    return let.within(Select(size < float32(ERF_NEAR), near, _signed(far, x < float32(0.0))))


def gelu(x: Expr) -> Expr:
    """x·Φ(x) = x·(1 − h) of a positive x and x·h of others, h = ½·g(|x|)⁴ with g a polynomial.

    1 + erf(x/√2) takes twice as many instructions. The error is within 2.5 · 2^−24 · |x|, and 5 ulp for x > −1: below,
    where the sum cancels, that has no more.
    """
    let = Let()
    x = let(x)
    size = let(tirx.abs(x))
    root = let(size * _polynomial(GELU, size) + float32(1.0))
    square = let(root * root)
    outside = let(Select(size < float32(GELU_END), square * square, float32(0.0)))
    return let.within(x * Select(x > float32(0.0), float32(1.0) - float32(0.5) * outside, float32(0.5) * outside))


def _by_ln2(let: Let, x: Expr) -> tuple[Expr, Expr]:
    """(n, r) with x = n · ln 2 + r, n whole, |r| ≤ ln 2 / 2."""
    x = let(x)
    n = let(tirx.reinterpret("int32", x * float32(LOG2_E) + float32(SHIFT)) - _int32(SHIFT_BITS))
    whole = let(n.astype("float32"))
    return n, let(x - whole * float32(LN2_HIGH) - whole * float32(LN2_LOW))


def _power_minus_1(r: Expr) -> Expr:
    """e^r − 1 for |r| ≤ ln 2 / 2."""
    return _polynomial(EXP, r) * (r * r) + r


# ---- logarithms -----------------------------------------------------------------------------------------------------


def log(x: Expr) -> Expr:
    """ln x = e·ln 2 + ln (1 + f), x = 2^e · (1 + f), √½ ≤ 1 + f < √2; ln 0 = −∞, of less NaN."""
    if dtype_of(x) != "float32":
        return tirx.log(x)
    let = Let()
    x, zero, infinity = let(x), float32(0.0), float32(math.inf)
    inside = Select(x < infinity, _sum_of_logarithms(*_split(let, x)), infinity)
    return let.within(Select(x > zero, inside, Select(x.equal(zero), float32(-math.inf), float32(math.nan))))


def log1p(x: Expr) -> Expr:
    """ln (1 + x) for 0 ≤ x ≤ 2^100: 1 + x = 2^e · (1 + f), f from x itself: 1 + x has lost its last bits."""
    if dtype_of(x) != "float32":
        return tirx.log1p(x)
    let = Let()
    x = let(x)
    bits = tirx.reinterpret("int32", x + float32(1.0))
    e = let(tirx.shift_right(bits - _int32(SQRT_HALF_BITS), _int32(23)))
    scale = let(_power_of_two(_int32(0) - e))
    return let.within(_sum_of_logarithms(e, let(x * scale + (scale - float32(1.0)))))


def _split(let: Let, x: Expr) -> tuple[Expr, Expr]:
    """(e, f) with x = 2^e · (1 + f), √½ ≤ 1 + f < √2, for x > 0; denormals are scaled first."""
    small = x < float32(LEAST_NORMAL)
    bits = let(tirx.reinterpret("int32", Select(small, x * float32(2.0**23), x)))
    e = let(tirx.shift_right(bits - _int32(SQRT_HALF_BITS), _int32(23)))
    mantissa = tirx.reinterpret("float32", bits - tirx.shift_left(e, _int32(23)))
    return let(e - Select(small, _int32(23), _int32(0))), let(mantissa - float32(1.0))


def _sum_of_logarithms(e: Expr, f: Expr) -> Expr:
    """e·ln 2 + f − f²/2 + f³·p(f), the small ones first."""
    n = e.astype("float32")
    small = (f * f) * (f * _polynomial(LOG, f) - float32(0.5)) + n * float32(LN2_LOW)
    return n * float32(LN2_HIGH) + (f + small)


# ---- powers ---------------------------------------------------------------------------------------------------------


def power(x: Expr, y: Expr) -> Expr:
    """x^y = ±2^(y·log2 |x|), the exponent in float64: its rounding is multiplied by up to 128. The special cases are
    those of C: x^0 = 1^y = 1, of a negative x with a fraction NaN.
    """
    if {dtype_of(x), dtype_of(y)} != {"float32"}:
        return tirx.power(x, y)
    let = Let()
    x, y = let(x), let(y)
    size, zero, one, infinity = let(tirx.abs(x)), float32(0.0), float32(1.0), float32(math.inf)

    e, f = _split(let, size)
    wide = let(f.astype("float64"))
    log2 = e.astype("float64") + wide * _polynomial(LOG2, wide, "float64")
    log2 = Select(size.equal(zero), _float64(-math.inf), Select(size.equal(infinity), _float64(math.inf), log2))
    exponent = let(tirx.max(_float64(-200), tirx.min(_float64(200), y.astype("float64") * log2)))
    half = Select(exponent < _float64(0), _float64(-0.5), _float64(0.5))
    n = let((exponent + half).astype("int32"))
    r = let((exponent - n.astype("float64")).astype("float32"))
    value = _scaled(_polynomial(EXP2, r) * r + one, n)

    whole = let(tirx.floor(y).equal(y))
    odd = tirx.all(whole, tirx.Not(tirx.floor(y * float32(0.5)).equal(y * float32(0.5))))
    negative = tirx.reinterpret("int32", x) < _int32(0)  # −0 too
    value = Select(size.equal(one), Select(tirx.isnan(y), y, one), value)
    value = _signed(value, tirx.all(negative, odd))
    value = Select(tirx.all(x < zero, size < infinity, tirx.Not(whole)), float32(math.nan), value)
    value = Select(tirx.isnan(x), x, value)
    return let.within(Select(tirx.any(y.equal(zero), x.equal(one)), one, value))


# ---- turns ----------------------------------------------------------------------------------------------------------


def sin(x: Expr) -> Expr:
    """±sin r or ±cos r, by the quarter of the turn that x lies in."""
    return _turned(x, 0) if dtype_of(x) == "float32" else tirx.sin(x)


def cos(x: Expr) -> Expr:
    """sin of a quarter more."""
    return _turned(x, 1) if dtype_of(x) == "float32" else tirx.cos(x)


def _turned(x: Expr, quarters: int) -> Expr:
    """sin (x + quarters · π/2) = sin (r + n·π/2), |r| ≤ π/4; of infinities NaN.

    x · 2/π mod 4 as a sum of whole numbers and a rest, with as many digits of 2/π as x has use for: no x cancels (Payne
    and Hanek, Radian reduction for trigonometric functions, 1983).
    """
    let = Let()
    x = let(x)
    size = let(tirx.abs(x))
    *larger, (_, shift, *digits) = TURNS
    row = [_float64(value) for value in (2.0**-shift, *digits)]
    for end, shift, *digits in reversed(larger):
        smaller = [_float64(value) for value in (2.0**-shift, *digits)]
        row = [Select(size < float32(2.0**end), *pair) for pair in zip(smaller, row, strict=True)]
    scale, high, middle, low = row

    scaled = let(x.astype("float64") * scale)
    n, first = _nearest(let, scaled * high)
    m, second = _nearest(let, scaled * middle)
    units, rest = let(_modulo(n) + _modulo(m)), (first + second) + scaled * low
    quarter = let(tirx.shift_right(units + _int32(1 << 27), _int32(28)))
    angle = (units - tirx.shift_left(quarter, _int32(28))).astype("float64") + rest

    r = let((angle * _float64(math.pi / 2 / UNIT)).astype("float32"))
    square = let(r * r)
    sine = r + r * (square * _polynomial(SIN, square))
    cosine = float32(1.0) + square * (square * _polynomial(COS, square) - float32(0.5))
    odd, second_half = (tirx.bitwise_and(quarter + _int32(quarters), _int32(bit)).equal(_int32(bit)) for bit in (1, 2))
    value = _signed(Select(odd, cosine, sine), second_half)
    return let.within(Select(size <= float32(LARGEST), value, float32(math.nan)))


def _nearest(let: Let, value: Expr) -> tuple[Expr, Expr]:
    """The nearest whole number, and what is left."""
    value = let(value)
    whole = let(tirx.floor(value + _float64(0.5)))
    return whole, value - whole


def _modulo(units: Expr) -> Expr:
    """A whole number of units modulo four quarters, as int32."""
    turns = tirx.floor(units * _float64(1 / 4 / UNIT))
    return (units - _float64(4 * UNIT) * turns).astype("int32")


# ---- the parts ------------------------------------------------------------------------------------------------------


def _polynomial(coefficients: Sequence[float], x: Expr, dtype: str = "float32") -> Expr:
    """Horner's scheme: one FMA a coefficient."""
    value = literal(coefficients[0], dtype)
    for coefficient in coefficients[1:]:
        value = value * x + literal(coefficient, dtype)
    return value


def _power_of_two(n: Expr) -> Expr:
    """2^n: the exponent of a float32, which has a bias of 127 and lies above 23 bits of fraction. 2^128 is infinite."""
    return tirx.reinterpret("float32", tirx.shift_left(n + _int32(127), _int32(23)))


def _scaled(x: Expr, n: Expr) -> Expr:
    """x · 2^n in two factors: one alone does not reach from denormals to the largest floats."""
    half = tirx.shift_right(n, _int32(1))
    return x * _power_of_two(half) * _power_of_two(n - half)


def _signed(x: Expr, negative: Expr) -> Expr:
    return x * Select(negative, float32(-1.0), float32(1.0))


def _float64(value: float) -> Expr:
    return tirx.const(value, "float64")


def _int32(value: int) -> Expr:
    return tirx.const(value, "int32")
