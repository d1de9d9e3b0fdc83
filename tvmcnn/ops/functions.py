"""e^x and tanh as polynomials, which LLVM vectorises; libm's would be called for each element of a vector (16 calls of
expf take 100 ns, this 4). Only of float32; float64 goes to libm.

The polynomials are Chebyshev interpolants of ours, fitted in float64 and tried on two million floats.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr

from tvmcnn.ops.operands import dtype_of, float32

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; the first has 10 bits, so that n·LN2_HIGH is exact
# Added, it leaves no fraction: the sum is rounded to a whole number, which its last bits are. (TVM makes no vector of
# nearbyint but single elements, of which LLVM made vectors of 8; and it takes x + c − c for x.)
SHIFT, SHIFT_BITS = 1.5 * 2**23, 0x4B400000
# (e^r − 1 − r) / r² for |r| ≤ ln 2 / 2, the highest power first: within 0.75 ulp with the rounding of the sum
EXP = (0.0013933652487812152, 0.008363181544676645, 0.04166646489535537, 0.1666657696724759, 0.5000000013470306)
# (tanh x / x − 1) / x² in x², for |x| ≤ 0.625: within 0.3 ulp
TANH = (-0.00610280069, 0.0210021725, -0.0538521899, 0.133327803, -0.333333291)
MIDDLE = 0.625  # below, 1 − 2 / (e^2x + 1) would cancel


def exp(x: Expr) -> Expr:
    """e^x = 2^n · e^r, n = round(x / ln 2), |r| ≤ ln 2 / 2.

    2^n is made of its bits, in two factors: one alone does not reach from denormals to the largest floats. NaN passes:
    the bounds come first, since x86's vminps and vmaxps return their second operand when one is NaN.
    """
    if dtype_of(x) != "float32":
        return tirx.exp(x)
    x = tirx.max(float32(-104.0), tirx.min(float32(88.8), x))  # e^−104 rounds to 0 and e^88.8 to infinity
    whole = tirx.reinterpret("int32", x * float32(LOG2_E) + float32(SHIFT)) - tirx.const(SHIFT_BITS, "int32")
    n = whole.astype("float32")
    r = x - n * float32(LN2_HIGH) - n * float32(LN2_LOW)
    power = _polynomial(EXP, r) * (r * r) + r + float32(1.0)
    half = tirx.shift_right(whole, tirx.const(1, "int32"))
    return power * _power_of_two(half) * _power_of_two(whole - half)


def tanh(x: Expr) -> Expr:
    """x·(1 + x²·p(x²)) near 0, else ±(1 − 2 / (e^2|x| + 1))."""
    if dtype_of(x) != "float32":
        return tirx.tanh(x)
    square, size = x * x, tirx.abs(x)
    near = x + x * (square * _polynomial(TANH, square))
    far = float32(1.0) - float32(2.0) / (exp(size + size) + float32(1.0))
    return tirx.Select(size < float32(MIDDLE), near, tirx.Select(x < float32(0.0), float32(-1.0) * far, far))


def _polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's scheme: one FMA a coefficient."""
    value = float32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + float32(coefficient)
    return value


def _power_of_two(n: Expr) -> Expr:
    """2^n: the exponent of a float32, which has a bias of 127 and lies above 23 bits of fraction."""
    bits = tirx.shift_left(n + tirx.const(127, "int32"), tirx.const(23, "int32"))
    return tirx.reinterpret("float32", bits)
