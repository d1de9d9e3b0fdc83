"""Numbers of bfloat16 in expressions: the first half of a float32, held as integers of 16 bits, since TVM makes float32
of its own type."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from tvmcnn.network import BFLOAT16_BITS
from tvmcnn.precision import ROUND


def narrowed(value: Expr) -> Expr:
    """A float32 as bfloat16, to nearest, ties to even: the first 16 bits of a float32. To be stored as it is."""
    return tirx.call_llvm_pure_intrin(BFLOAT16_BITS, ROUND, value)


def widened(bits: Expr) -> Expr:
    """A bfloat16, or its bits in signed integers, as the same number in float32."""
    return tirx.reinterpret("float32", tirx.shift_left(bits.astype("uint32"), tirx.const(16, "uint32")))
