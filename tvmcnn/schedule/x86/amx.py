"""AMX: eight tile registers of 16 rows of 64 bytes, and an instruction that multiplies two as matrices into a third.

It takes 16 cycles for 16 x 16 sums of 64 products of bytes, or of 32 of bfloat16: eight times VNNI's rate and sixteen
times float32's. A tile is loaded in 8 cycles, so that four sums with two tiles of each factor keep it busy. (One tile of
sums and its factors alone: half the rate.) What was measured: docs/quantised.md.

The registers have no names in TVM: the stage "conv" is a buffer that nobody reads or writes, each of its tiles the
register of that number. LLVM assigns none either, since the intrinsics take the number as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import from_source
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

from tvmcnn.configs import AmxConfig
from tvmcnn.schedule.steps import extent, prefetch, reduction_axes, unroll
from tvmcnn.schedule.x86.pairs import widened
from tvmcnn.schedule.x86.quads import in_quads

MULTIPLY = {("uint8", "int8"): "tdpbusd", ("int8", "int8"): "tdpbssd", ("uint16", "uint16"): "tdpbf16ps"}


def amx(sch: Schedule, config: AmxConfig, lanes: int) -> None:
    """Pack the image of a band, multiply it by a few tiles of maps at a time, and finish those.

    for n, band, part: "packed"; for maps: for run: ("conv" in registers, "sums"); for maps, y, x: "out"
    """
    conv, sums, packed, out = (sch.get_sblock(name) for name in ("conv", "sums", "packed", "out"))
    image, weight = (str(read.source.ty.dtype) for read in sch.get(conv).reads[:2])
    sch.set_scope(conv, 0, "local")

    n, ob, band, y, x, quad, o = sch.get_loops(out)
    ob_o, ob_g, ob_i = sch.split(ob, [config.parts, None, config.maps])
    sch.reorder(n, band, ob_o, ob_g, y, x, ob_i, quad, o)
    unroll(sch, (ob_i,))

    narrowed = in_quads(sch, out, ob_i)
    if not narrowed:
        sch.vectorize(o)

    sch.compute_at(sums, ob_g, preserve_unit_loops=True)
    run, stored, _ = sch.get_loops(sums)[-3:]
    sch.compute_at(conv, run, preserve_unit_loops=True)
    sch.compute_at(packed, ob_o, preserve_unit_loops=True)
    _, channels = sch.get_loops(packed)[-2:]
    block, lane = sch.split(channels, [None, 16])
    unroll(sch, (block,))
    sch.vectorize(lane)

    pixel, maps, rb, rh, rw, rc, rn = sch.get_loops(conv)[-2 - len(reduction_axes(sch, conv)) :]
    sch.reorder(rb, rh, rw, pixel, maps, rc, rn)
    if config.prefetch:
        taken = math.prod(extent(sch, loop) for loop in (rb, rh, rw, maps, rc, rn))
        prefetch(sch, rb, (run,), taken)
    zero = sch.decompose_reduction(conv, rb)
    names = intrinsics(config.pixels, config.maps, image, weight)
    for loop, name in zip((sch.get_loops(zero)[-2], pixel, stored), names, strict=True):
        sch.tensorize(loop, name)
    if narrowed:
        sch.tensorize(quad, narrowed)


@functools.cache
def intrinsics(pixels: int, maps: int, image: str, weight: str) -> Sequence[str]:
    """The names of three steps, which TVM knows from then on: sums become 0, products are added, sums go to memory."""
    terms = 4 if weight == "int8" else 2
    x_factor, w_factor = (_factor(each, weight) for each in (f"x[i, c * {terms} + t]", "w[c, j, t]"))
    total, name = "int32" if terms == 4 else "float32", f"tvmcnn_amx_{pixels}x{maps}_{image}_{weight}"
    rows, columns, depth = pixels * 16, maps * 16, 16 * terms
    tiles = [(p, m, p * maps + m) for p in range(pixels) for m in range(maps)]
    x_tiles = [pixels * maps + p for p in range(pixels)]
    w_tiles = [pixels * maps + pixels + m for m in range(maps)]
    sums = f"sums = T.match_buffer(p_sums, ({rows}, {columns}), '{total}', offset_factor=1, scope='local')"
    every, whole = f"for row, o in T.grid({rows}, {columns}):", f"[0:{rows}, 0:{columns}]"

    meaning = f"""
    {every}
        with T.sblock("zero"):
            i, j = T.axis.remap("SS", [row, o])
            sums[i, j] = T.{total}(0)"""
    _register(f"{name}_zero", [sums], "", f"sums{whole}", meaning, [_call("tilezero", tile) for _, _, tile in tiles])

    x = f"x = T.match_buffer(p_x, ({rows}, {depth}), '{image}', offset_factor=1)"
    w = f"w = T.match_buffer(p_w, (16, {columns}, {terms}), '{weight}', offset_factor=1)"
    meaning = f"""
    for row, o, rc, rn in T.grid({rows}, {columns}, 16, {terms}):
        with T.sblock("multiply"):
            i, j, c, t = T.axis.remap("SSRR", [row, o, rc, rn])
            sums[i, j] = sums[i, j] + {x_factor} * {w_factor}"""
    steps = [_call("tileloadd64", tile, f"x[{16 * p}, 0]", 64) for p, tile in enumerate(x_tiles)]
    steps += [_call("tileloadd64", tile, f"w[0, {16 * m}, 0]", 64 * maps) for m, tile in enumerate(w_tiles)]
    steps += [_call(MULTIPLY[image, weight], tile, x_tiles[p], w_tiles[m]) for p, m, tile in tiles]
    read = f"sums{whole}, x[0:{rows}, 0:{depth}], w[0:16, 0:{columns}, 0:{terms}]"
    _register(f"{name}_multiply", [x, w, sums], read, f"sums{whole}", meaning, steps)

    y = f"y = T.match_buffer(p_y, ({rows}, {columns}), '{total}', offset_factor=1)"
    meaning = f"""
    {every}
        with T.sblock("store"):
            i, j = T.axis.remap("SS", [row, o])
            y[i, j] = sums[i, j]"""
    steps = [_call("tilestored64", tile, f"y[{16 * p}, {16 * m}]", 64 * maps) for p, m, tile in tiles]
    _register(f"{name}_store", [sums, y], f"sums{whole}", f"y{whole}", meaning, steps)
    return [f"{name}_{step}" for step in ("zero", "multiply", "store")]


def _factor(stored: str, dtype: str) -> str:
    """A factor of a product, of bytes or, in integers of 16 bits, of bfloat16."""
    return f"T.Cast('int32', {stored})" if dtype == "int8" else widened(stored)


def _call(instruction: str, *operands: int | str) -> str:
    """A line of an intrinsic: registers by their numbers; or a register, the first element in memory, and the bytes
    from a row to the next."""
    words = [f"T.int8({each})" if isinstance(each, int) else f"T.address_of({each})" for each in operands]
    if isinstance(operands[-1], int) and "T.address_of" in words[-2:][0]:
        words[-1] = f"T.int64({operands[-1]})"
    return f"T.evaluate(T.call_llvm_intrin('void', 'llvm.x86.{instruction}', {', '.join(words)}))"


def _register(name: str, buffers: Sequence[str], reads: str, writes: str, meaning: str, steps: Sequence[str]) -> None:
    """One intrinsic: what it means, and its instructions."""
    params = ", ".join(f"p_{buffer.split(' ', 1)[0]}: T.handle" for buffer in buffers)
    lines = ["@T.prim_func(s_tir=True)", f"def function({params}) -> None:", *(f"    {buffer}" for buffer in buffers)]
    lines += ["    with T.sblock('root'):", f"        T.reads({reads})", f"        T.writes({writes})"]
    head = "\n".join(lines)
    body = "".join(f"\n        {step}" for step in steps)
    functions = (from_source(head + each, {"T": T}) for each in (meaning.replace("\n", "\n    "), body))
    TensorIntrin.register(name, *functions, override=True)
