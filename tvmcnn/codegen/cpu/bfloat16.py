"""Bfloat16: products of AVX512-BF16 in lowered kernels, which hold such numbers as integers of 16 bits.

    sums[0:16] = dpbf16ps(sums[0:16], w: uint16x32, x: uint16x32)
      -->
    sums[0:16] = tvmcnn_dot(sums[0:16], w, x)      a function of LLVM's, which it puts in the place of each call

LLVM 22 declares the instruction on its own type `bfloat`, which TVM has no way to name: its lowering makes float32 of
such operands, and its code generator ends in a segmentation fault. So the type is named in LLVM's own text.

The instruction that rounds returns that type, which is stored as it is; a single number is rounded by integers.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Op, StringImm
from tvm.target.codegen import llvm_lookup_intrinsic_id

from tvmcnn.precision import DOT, ROUND

LANES = 16  # of float32 in one register
DROPPED = 16  # bits of a float32 that bfloat16 has not
QUIET = 0x40  # the bit of bfloat16 that keeps a NaN one
INFINITY = 0x7F800000


DOT_IN_LLVM = f"""
define internal <16 x float> @tvmcnn_dot(<16 x float> %sums, <32 x i16> %w, <32 x i16> %x) alwaysinline {{
  %a = bitcast <32 x i16> %w to <32 x bfloat>
  %b = bitcast <32 x i16> %x to <32 x bfloat>
  %r = call <16 x float> @{DOT}(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}}
declare <16 x float> @{DOT}(<16 x float>, <32 x bfloat>, <32 x bfloat>)
"""


def in_bfloat16(body: tirx.Stmt) -> tirx.Stmt:
    """The lowered body with products on LLVM's own type, and single numbers rounded by integers."""
    pure, dot, rounding = Op.get("tirx.call_llvm_pure_intrin"), *map(llvm_lookup_intrinsic_id, (DOT, ROUND))
    dots = 0

    def replaced(call: Call) -> Expr:
        nonlocal dots
        if not call.op.same_as(pure) or not isinstance(call.args[0], tirx.IntImm):
            return call
        if int(call.args[0]) == dot:
            dots += 1
            return tirx.call_pure_extern(f"float32x{LANES}", "tvmcnn_dot", *call.args[-3:])
        return _rounded(call) if int(call.args[0]) == rounding else call

    body = tvm_ffi.structural_map(body, (Call, replaced), order="post")
    text = StringImm(DOT_IN_LLVM)
    return tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", text, body) if dots else body


def _rounded(call: Call) -> Expr:
    """Sixteen numbers by the instruction, and others as it rounds: half of what is dropped, and 1 for an odd mantissa,
    carry into what is kept."""
    value = call.args[-1]
    if str(value.ty.dtype) == f"float32x{LANES}":
        return call
    lanes = str(value.ty.dtype).removeprefix("float32")
    bits = tirx.reinterpret(f"uint32{lanes}", value)

    def same(number: int) -> Expr:
        constant = tirx.const(number, "uint32")
        return tirx.Broadcast(constant, int(lanes[1:])) if lanes else constant

    kept = tirx.shift_right(bits, same(DROPPED))
    half = same((1 << (DROPPED - 1)) - 1) + tirx.bitwise_and(kept, same(1))
    nearest = tirx.shift_right(bits + half, same(DROPPED))
    number = tirx.bitwise_and(bits, same(0x7FFFFFFF)) <= same(INFINITY)  # not NaN
    return tirx.Cast(f"uint16{lanes}", tirx.Select(number, nearest, tirx.bitwise_or(kept, same(QUIET))))
