"""Pairs: convolutions of bfloat16, two products and two additions in one instruction, AVX512-BF16's vdpbf16ps.

    sums[i] += float32(x[0]) · float32(w[i, 0]) + float32(x[1]) · float32(w[i, 1])

On AMD's Zen 4 it is twice as fast as FMAs of float32 (231 GFLOP/s, 115), and rounds as two of them would, the odd
product first; denormals are zeros to it.
"""

from __future__ import annotations

import functools

from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import from_source
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

from tvmcnn.configs import PairsConfig
from tvmcnn.precision import DOT
from tvmcnn.schedule.steps import unroll, vectorize_inner
from tvmcnn.schedule.x86.direct import register_sums


def pairs(sch: Schedule, config: PairsConfig, lanes: int) -> None:
    """Round a band's rows of the image, for a part of the maps; then the register tiles of ops/direct.py.

    Blocks: "rounded" (n, cb, band, row, column, lane), "conv" (n, ob, ty, y, dy, tx, x, dx, o | reductions) and "out"
    (n, ob, ty, y, tx, x, o).
    """
    rounded, conv, out = (sch.get_sblock(name) for name in ("rounded", "conv", "out"))
    sch.set_scope(conv, 0, "local")
    n, ob, y_o, y_i, x_o, x_i, o = sch.get_loops(out)
    part, ob_o, ob_i = sch.split(ob, [config.parts, None, config.vectors])
    band, y_o = sch.split(y_o, [config.bands, None])
    sch.reorder(n, band, part, ob_o, y_o, x_o, y_i, x_i, ob_i, o)
    unroll(sch, (y_i, x_i, ob_i))
    sch.vectorize(o)
    sch.compute_at(conv, x_o, preserve_unit_loops=True)
    sch.compute_at(rounded, part, preserve_unit_loops=True)
    vectorize_inner(sch, sch.get_loops(rounded)[-1], lanes)
    register_sums(sch, config, conv, lanes, (y_o, x_o), dot(lanes))


@functools.cache
def dot(lanes: int) -> str:
    """The name of the sum of two products of bfloat16 in so many lanes; TVM knows it from then on."""
    name, pair = f"tvmcnn_pairs_{lanes}", 2 * lanes
    meaning = f"""
    for lane, term in T.grid({lanes}, 2):
        with T.sblock("sums"):
            i, k = T.axis.remap("SR", [lane, term])
            sums[i] = sums[i] + {widened("x[k]")} * {widened("w[i, k]")}"""
    spread = f"T.broadcast(T.reinterpret(x.vload([0], dtype='uint16x2'), dtype='int32'), {lanes})"
    call = f"""
    sums[T.ramp(T.int32(0), 1, {lanes})] = T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id('{DOT}'),
        sums.vload([0], dtype='float32x{lanes}'), w.vload([0, 0], dtype='uint16x{pair}'),
        T.reinterpret({spread}, dtype='uint16x{pair}'), dtype='float32x{lanes}')"""
    TensorIntrin.register(name, *(_function(body, lanes) for body in (meaning, call)), override=True)
    return name


def widened(bits: str) -> str:
    """A bfloat16, held as an integer of 16 bits, as float32 in TVMScript."""
    return f"T.reinterpret(T.shift_left(T.Cast('uint32', {bits}), T.uint32(16)), dtype='float32')"


def _function(body: str, lanes: int) -> object:
    """A PrimFunc of a body over two neighbouring channels of a pixel, their weights and the sums."""
    lines = f"""@T.prim_func(s_tir=True)
def function(p_x: T.handle, p_w: T.handle, p_sums: T.handle) -> None:
    x = T.match_buffer(p_x, (2,), 'uint16', offset_factor=1)
    w = T.match_buffer(p_w, ({lanes}, 2), 'uint16', offset_factor=1)
    sums = T.match_buffer(p_sums, ({lanes},), 'float32', offset_factor=1, scope='local')
    with T.sblock('root'):
        T.reads(sums[0:{lanes}], x[0:2], w[0:{lanes}, 0:2])
        T.writes(sums[0:{lanes}])"""
    return from_source(lines + body.replace("\n", "\n    "), {"T": T})
