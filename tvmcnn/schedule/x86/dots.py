"""Dots: sums of a few products of integers as the instructions of CPUs have them, for `tensorize`.

    sums[i] += Σ_k int32(x[k]) · int32(w[i, k])        i a lane of int32, k 2 or 4 neighbouring channels

Of four bytes it is VNNI's vpdpbusd, one instruction: x unsigned, w signed, and nothing saturates. Of two it is
vpmaddwd, x widened to 16 bits, and an addition: less than half the rate, on CPUs without VNNI, and exact too.
(vpmaddubsw, which others use there, adds two products in 16 bits, and saturates.) LLVM 22 finds neither in plain loops.
"""

from __future__ import annotations

import functools

from tvm.s_tir import TensorIntrin
from tvm.script import from_source
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

QUADS = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}  # by lanes of int32
PAIRS = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}

# Four neighbouring channels in every lane; a signed byte + 128 is one of another first bit.
QUAD = "T.broadcast(T.reinterpret(x.vload([0], dtype='{x}x4'), dtype='int32'), {lanes})"
SIGNED_QUAD = f"T.bitwise_xor({QUAD}, T.broadcast(T.int32(-2139062144), {{lanes}}))"
BY_QUADS = (
    "T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id('{call}'), sums.vload([0], dtype='int32x{lanes}'),"
    " T.reinterpret({quad}, dtype='uint8x{bytes}'), w.vload([0, 0], dtype='int8x{bytes}'), dtype='int32x{lanes}')"
)
PAIR = (
    "T.Cast('int16x{terms}', T.reinterpret(T.broadcast(T.reinterpret(x.vload([0], dtype='{x}x2'), dtype='int16'),"
    " {lanes}), dtype='{x}x{terms}'))"
)
BY_PAIRS = (
    "sums.vload([0], dtype='int32x{lanes}') + T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id('{call}'), "
    + PAIR
    + ", w.vload([0, 0], dtype='int16x{terms}'), dtype='int32x{lanes}')"
)


# Four neighbouring pixels of 16 channels as the four of each channel: one vpermb, or vpermd and vpshufb before VBMI.
COLUMNS = "T.Shuffle([x.vload([0, 0], dtype='{x}x{bytes}')], [{turned}])"
SIGNED_COLUMNS = f"T.bitwise_xor(T.reinterpret({COLUMNS}, dtype='int32x{{lanes}}'), T.broadcast(T.int32(-2139062144), {{lanes}}))"


@functools.cache
def intrinsic(lanes: int, count: int, dtype: str, *, across: bool = False) -> str:
    """The name of the sum of `count` products of integers of a type in so many lanes; TVM knows it from then on.

    Across pixels each lane has a channel of its own: sums[i] += Σ_k int32(x[k, i]) · int32(w[i, k]).
    """
    name = f"tvmcnn_dots_{count}_{dtype}_{lanes}{'_across' * across}"
    shifted = count == 4 and dtype == "int8"
    words: dict[str, object] = {"x": dtype, "lanes": lanes, "bytes": 4 * lanes, "terms": 2 * lanes}
    words["turned"] = ", ".join(str(k * lanes + i) for i in range(lanes) for k in range(count))
    words["call"] = (QUADS if count == 4 else PAIRS)[lanes]
    quads = ((QUAD, SIGNED_QUAD), (COLUMNS, SIGNED_COLUMNS))[across][shifted]
    words["quad"] = quads.format(**words)
    given = f"T.Cast('int32', x[{'k, i' if across else 'k'}]){' + 128' * shifted}"
    meaning = f"""
    for lane, term in T.grid({lanes}, {count}):
        with T.sblock("sums"):
            i, k = T.axis.remap("SR", [lane, term])
            sums[i] = sums[i] + ({given}) * T.Cast('int32', w[i, k])"""
    call = f"""
    sums[T.ramp(T.int32(0), 1, {lanes})] = {(BY_QUADS if count == 4 else BY_PAIRS).format(**words)}"""
    image = (count, lanes) if across else (count,)
    TensorIntrin.register(name, *(_function(body, lanes, count, dtype, image) for body in (meaning, call)))
    return name


def _function(body: str, lanes: int, count: int, dtype: str, image: tuple[int, ...]) -> object:
    """A PrimFunc of a body over the image, the weights and the sums."""
    lines = f"""@T.prim_func(s_tir=True)
def function(p_x: T.handle, p_w: T.handle, p_sums: T.handle) -> None:
    x = T.match_buffer(p_x, {image}, '{dtype}', offset_factor=1)
    w = T.match_buffer(p_w, ({lanes}, {count}), '{"int8" if count == 4 else "int16"}', offset_factor=1)
    sums = T.match_buffer(p_sums, ({lanes},), 'int32', offset_factor=1, scope='local')
    with T.sblock('root'):
        T.reads(sums[0:{lanes}], x[{", ".join(f"0:{extent}" for extent in image)}], w[0:{lanes}, 0:{count}])
        T.writes(sums[0:{lanes}])"""
    return from_source(lines + body.replace("\n", "\n    "), {"T": T})
