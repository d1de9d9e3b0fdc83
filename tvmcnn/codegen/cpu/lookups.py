"""Lookups: a vector of elements of a table of 256 bytes by permutations of registers, where AVX-512 has them.

    y[0:32] = table[x[0:32]]      x bytes, as indices
      -->
    pair = x / 2; v = pair < 64 ? permuted(table[0:128])[pair] : permuted(table[128:256])[pair - 64], 16 bits each;
    y = x is even ? the low byte of v : the high

LLVM takes a vector of loads apart: extract, load and insert for each element, 1.6 of them in a nanosecond. One by one
makes 3 to 4.5, the permutations 18 (AMD EPYC, Zen 4). vpermi2w chooses among 64 pairs of bytes in two registers; the
table is 128 of these in four. The same of bytes needs AVX-512 VBMI, which x86-64-v4 does not promise.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.ir.expr import TensorLoad

ENTRIES = 256
LANES = 32  # of 16 bits in one register
PERMUTES = {"avx512f", "avx512bw"}  # what a CPU must have
PERMUTE = "llvm.x86.avx512.vpermi2var.hi.512"


def looked_up(body: tirx.Stmt) -> tirx.Stmt:
    """The lowered body with permutations in the place of vectors of elements that bytes say."""
    return tvm_ffi.structural_map(body, (TensorLoad, _permuted), order="post")


def _permuted(load: TensorLoad) -> Expr:
    index = load.indices[-1] if len(load.indices) == 1 else None
    if not isinstance(index, tirx.Cast) or not str(index.value.ty.dtype).startswith("uint8x"):
        return load
    shape, dtype = load.source.ty.shape, str(load.source.ty.dtype)
    lanes = int(str(index.value.ty.dtype).removeprefix("uint8x"))
    if [int(extent) for extent in shape] != [ENTRIES] or dtype not in ("int8", "uint8") or lanes > LANES:
        return load
    wide = tirx.Cast(f"uint16x{lanes}", index.value)
    if lanes < LANES:
        wide = _shuffled([wide] * -(-LANES // lanes), LANES)
    pair = tirx.reinterpret(f"int16x{LANES}", tirx.shift_right(wide, _all(1)))
    low, high = (_chosen(load.source, dtype, half, pair) for half in range(2))
    chosen = tirx.reinterpret(f"uint16x{LANES}", tirx.Select(wide < _all(ENTRIES // 2), low, high))
    byte = tirx.Cast(
        f"uint8x{LANES}", tirx.shift_right(chosen, tirx.shift_left(tirx.bitwise_and(wide, _all(1)), _all(3)))
    )
    if lanes < LANES:
        byte = _shuffled([byte], lanes)
    return tirx.reinterpret(f"{dtype}x{lanes}", byte)


def _chosen(table: Expr, dtype: str, half: int, pair: Expr) -> Expr:
    """The pairs that the last 6 bits of `pair` say, of the 64 pairs of bytes in a half of the table."""
    first = half * ENTRIES // 2
    registers = (
        tirx.reinterpret(f"int16x{LANES}", tirx.BufferLoad(table, [tirx.Ramp(start, 1, 2 * LANES)]))
        for start in (first, first + 2 * LANES)
    )
    low, high = registers
    return tirx.call_llvm_pure_intrin(f"int16x{LANES}", PERMUTE, low, pair, high)


def _shuffled(vectors: Sequence[Expr], lanes: int) -> Expr:
    """The first lanes of vectors side by side."""
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in range(lanes)])


def _all(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "uint16"), LANES)
