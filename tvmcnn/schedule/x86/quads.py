"""Quads: four pixels of 16 channels, rounded to int32, become 64 bytes side by side, for `tensorize`.

    y[pixel, channel] = byte(max(low, min(high, x[pixel, channel] + to)))

Two vpackssdw make 16 bits of 32, a vpackuswb bytes of these, all saturating, so that they are most of the bounds; one
vpermd puts the pixels in order. By single pixels it is four instructions and a store each: 4.4 cycles of a vector, not
2.5. Saturating twice is exact: a number beyond 16 bits is beyond 8 bits with any zero point added.
"""

from __future__ import annotations

import functools

from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import from_source
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

from tvmcnn.schedule.steps import Block, Loop

NARROWED = "tvmcnn.narrowed"  # annotation of "out": the zero point and the bounds
PIXELS, LANES = 4, 16
RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
NARROW = {"uint8": "llvm.x86.avx512.packuswb.512", "int8": "llvm.x86.avx512.packsswb.512"}
# A pack works in each quarter of a register: there it leaves four channels of every pixel.
IN_ORDER = [16 * (i // 4) + 4 * pixel + i % 4 for pixel in range(PIXELS) for i in range(LANES)]


def in_quads(sch: Schedule, out: Block, at: Loop) -> str:
    """Round the quad that "out" narrows at the loop `at`, in registers. Returns the intrinsic for the narrowing, ""
    where no stage "rounded" is before it."""
    rounded = [block for block in sch.get_producers(out) if sch.get(block).name_hint == "rounded"]
    if not rounded:
        return ""
    sch.set_scope(rounded[0], 0, "local")
    sch.compute_at(rounded[0], at, preserve_unit_loops=True)
    pixel, lane = sch.get_loops(rounded[0])[-2:]
    sch.unroll(pixel)
    sch.vectorize(lane)
    to, low, high = (int(number) for number in sch.get(out).annotations[NARROWED])
    return intrinsic(str(sch.get(out).writes[0].source.ty.dtype), to, low, high)


@functools.cache
def intrinsic(dtype: str, to: int, low: int, high: int) -> str:
    """The name of the narrowing to a type with a zero point and bounds; TVM knows it from then on."""
    name = f"tvmcnn_quads_{dtype}_{to}_{low}_{high}".replace("-", "minus")
    moved = f"(x[i, j] + {to})" if to else "x[i, j]"
    meaning = f"""
    for pixel, lane in T.grid({PIXELS}, {LANES}):
        with T.sblock("narrowed"):
            i, j = T.axis.remap("SS", [pixel, lane])
            y[i, j] = T.Cast('{dtype}', T.min(T.max({moved}, {low}), {high}))"""
    pairs = [
        _pure(
            "llvm.x86.avx512.packssdw.512",
            "int16x32",
            f"x.vload([{i}, 0], 'int32x16')",
            f"x.vload([{i + 1}, 0], 'int32x16')",
        )
        for i in (0, 2)
    ]
    if to:
        zero = f"T.broadcast(T.int16({to}), 32)"
        pairs = [_pure("llvm.sadd.sat", "int16x32", pair, zero) for pair in pairs]
    value = f"T.reinterpret({_pure(NARROW[dtype], 'int8x64', *pairs)}, dtype='{dtype}x64')"
    value = f"T.Shuffle([{value}], {IN_ORDER})"
    least, most = RANGES[dtype]
    if low > least:
        value = f"T.max({value}, T.broadcast(T.{dtype}({low}), 64))"
    if high < most:
        value = f"T.min({value}, T.broadcast(T.{dtype}({high}), 64))"
    call = f"\n        y.vstore([0, 0], {value})"
    functions = (_function(dtype, body) for body in (meaning.replace("\n", "\n    "), call))
    TensorIntrin.register(name, *functions, override=True)
    return name


def _pure(call: str, dtype: str, *operands: str) -> str:
    return f"T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id('{call}'), {', '.join(operands)}, dtype='{dtype}')"


def _function(dtype: str, body: str) -> object:
    shape = f"({PIXELS}, {LANES})"
    head = f"""@T.prim_func(s_tir=True)
def function(p_x: T.handle, p_y: T.handle) -> None:
    x = T.match_buffer(p_x, {shape}, 'int32', offset_factor=1, scope='local')
    y = T.match_buffer(p_y, {shape}, '{dtype}', offset_factor=1)
    with T.sblock('root'):
        T.reads(x[0:{PIXELS}, 0:{LANES}])
        T.writes(y[0:{PIXELS}, 0:{LANES}])"""
    return from_source(head + body, {"T": T})
