"""AMX: eight tile registers of 16 rows of 64 bytes, and an instruction that multiplies two as matrices into a third.

It takes 16 cycles for 16 x 16 sums of 64 products of bytes or of 32 of bfloat16: 8 times VNNI's rate, 16 times that of
FMAs. A tile is loaded from L1 in 8 cycles, so that four tiles of sums with two of each factor keep it busy: 4 products
and 4 loads take 27 ns, 4 products 24 (Xeon, Sapphire Rapids). One tile of sums would wait for its two loads.

The registers have no names in TVM: the stage "conv" is a buffer that nobody reads or writes, each 16 x 16 of it the
register of that number. LLVM assigns none either, since these intrinsics take numbers as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import from_source
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

from tvmcnn.configs import AmxConfig
from tvmcnn.schedule.steps import Block, extent, prefetch, reduction_axes, rows_of_vectors, unroll
from tvmcnn.schedule.x86.pairs import widened
from tvmcnn.schedule.x86.quads import in_quads

MULTIPLY = {("uint8", "int8"): "tdpbusd", ("int8", "int8"): "tdpbssd", ("uint16", "uint16"): "tdpbf16ps"}


def amx(sch: Schedule, config: AmxConfig, lanes: int) -> None:
    """Pack the image of a band if need be, multiply it by a few tiles of maps at a time, and finish those.

    for n, band, part: "packed"; for maps: for run: ("conv" in registers, "sums"); for maps, y, x: "out"
    """
    conv, sums, out = (sch.get_sblock(name) for name in ("conv", "sums", "out"))
    image, weight = (str(read.source.ty.dtype) for read in sch.get(conv).reads[:2])
    sch.set_scope(conv, 0, "local")

    n, ob, band, y, x, quad, o = sch.get_loops(out)
    ob_o, ob_g, ob_i = sch.split(ob, [config.parts, None, config.maps])
    sch.reorder(n, band, ob_o, ob_g, y, x, ob_i, quad, o)
    unroll(sch, (ob_i,))

    _read_whole_runs(sch, sums, config.maps)
    narrowed = in_quads(sch, out, ob_i)
    if not narrowed:
        sch.vectorize(o)

    sch.compute_at(sums, ob_g, preserve_unit_loops=True)
    run, _, stored, _ = sch.get_loops(sums)[-4:]
    sch.compute_at(conv, run, preserve_unit_loops=True)
    spacing = int(sch.get(conv).annotations["tvmcnn.spacing"])
    if not config.in_place:
        packed = sch.get_sblock("packed")
        sch.compute_at(packed, ob_o, preserve_unit_loops=True)
        pixel = int(sch.get(packed).annotations["tvmcnn.pixel"])
        rows_of_vectors(sch, sch.get_loops(packed)[-1], max(pixel, lanes), lanes)

    row, maps, rb, rh, rw, rc, rn = sch.get_loops(conv)[-2 - len(reduction_axes(sch, conv)) :]
    block = _Block(config.pixels, config.maps, image, weight, extent(sch, rc), spacing)
    sch.annotate(run, "tvmcnn.tiles", [config.pixels * config.maps, config.pixels, config.maps, block.depth])
    sch.reorder(rb, rh, rw, row, maps, rc, rn)
    if config.prefetch:
        taken = math.prod(extent(sch, loop) for loop in (rb, rh, rw, maps, rc, rn))
        prefetch(sch, rb, (run,), taken)
    zero = sch.decompose_reduction(conv, rb)
    for loop, name in zip((sch.get_loops(zero)[-2], row, stored), intrinsics(block), strict=True):
        sch.tensorize(loop, name)
    if narrowed:
        sch.tensorize(quad, narrowed)


def _read_whole_runs(sch: Schedule, sums: Block, maps: int) -> None:
    """Let what reads the sums read all of a band, as far as the schedule knows: it would leave out those between rows
    which nobody reads, and `tensorize` takes no part of a tile."""
    (reader,) = sch.get_consumers(sums)
    place = [str(read.source.name) for read in sch.get(reader).reads].index("sums")
    runs, _, pixels, _ = (int(extent) for extent in sch.get(reader).reads[place].source.ty.shape[3:])

    def region(i: Any, ob: Any, b: Any, y: Any, tx: Any, x: Any, o: Any) -> tuple[tuple[Any, Any], ...]:
        first = ob % maps * 16 + o
        group = ob // maps
        return (i, i + 1), (group, group + 1), (b, b + 1), (0, runs), (0, 1), (0, pixels), (first, first + 1)

    sch.annotate_buffer_access(reader, place, "read", region)


@functools.cache
def intrinsics(block: _Block) -> Sequence[str]:
    """The names of three steps, which TVM knows from then on: sums become 0, products are added, sums go to memory."""
    for step in (_clear, _multiply, _store):
        step(block)
    return [block.name(step) for step in ("clear", "multiply", "store")]


@dataclass(frozen=True)
class _Block:
    """Tiles of sums, of 16 pixels by 16 maps, that are in registers 0, 1, … at once; then come those of the factors."""

    pixels: int
    maps: int
    image: str  # the types of the factors
    weight: str
    depth: int  # rows of a tile of weights, each with the terms of 32 bits
    spacing: int  # elements of the packed image from one row of a tile to the next

    def name(self, step: str) -> str:
        sizes = f"{self.pixels}x{self.maps}x{self.depth}"
        return f"tvmcnn_amx_{step}_{sizes}_{self.image}_{self.spacing}_{self.weight}"

    @property
    def terms(self) -> int:
        return 4 if self.weight == "int8" else 2

    @property
    def total(self) -> str:
        return "int32" if self.terms == 4 else "float32"

    @property
    def tiles(self) -> list[tuple[int, int, int]]:
        """(tile of pixels, tile of maps, register)"""
        return [(p, m, p * self.maps + m) for p in range(self.pixels) for m in range(self.maps)]

    @property
    def extents(self) -> tuple[int, int]:
        return 16 * self.pixels, 16 * self.maps

    @property
    def whole(self) -> str:
        rows, columns = self.extents
        return f"[0:{rows}, 0:{columns}]"

    def matrix(self, name: str, scope: str = "") -> str:
        """The line that declares a matrix of sums."""
        return f"{name} = T.match_buffer(p_{name}, {self.extents}, '{self.total}', offset_factor=1{scope})"

    @property
    def sums(self) -> str:
        return self.matrix("sums", ", scope='local'")

    def each(self, name: str, statement: str) -> str:
        """A statement for every sum [i, j]."""
        rows, columns = self.extents
        return f"""
    for row, o in T.grid({rows}, {columns}):
        with T.sblock("{name}"):
            i, j = T.axis.remap("SS", [row, o])
            {statement}"""


def _clear(block: _Block) -> None:
    meaning = block.each("clear", f"sums[i, j] = T.{block.total}(0)")
    steps = [_call("tilezero", tile) for _, _, tile in block.tiles]
    _register(block.name("clear"), [block.sums], "", f"sums{block.whole}", meaning, steps)


def _multiply(block: _Block) -> None:
    (rows, columns), terms, whole = block.extents, block.terms, f"sums{block.whole}"
    depth, first, pitch = block.depth, block.pixels * block.maps, block.spacing
    elements = (rows - 1) * pitch + depth * terms
    x = f"x = T.match_buffer(p_x, ({elements},), '{block.image}', offset_factor=1)"
    w = f"w = T.match_buffer(p_w, ({depth}, {columns}, {terms}), '{block.weight}', offset_factor=1)"
    x_factor, w_factor = (_factor(each, block.weight) for each in (f"x[i * {pitch} + c * {terms} + t]", "w[c, j, t]"))
    meaning = f"""
    for row, o, rc, rn in T.grid({rows}, {columns}, {depth}, {terms}):
        with T.sblock("multiply"):
            i, j, c, t = T.axis.remap("SSRR", [row, o, rc, rn])
            sums[i, j] = sums[i, j] + {x_factor} * {w_factor}"""
    x_tiles = [first + p for p in range(block.pixels)]
    w_tiles = [first + block.pixels + m for m in range(block.maps)]
    bytes_apart = pitch * 4 // terms
    steps = [_move("tileloadd64", tile, f"x[{16 * p * pitch}]", bytes_apart) for p, tile in enumerate(x_tiles)]
    steps += [_move("tileloadd64", tile, f"w[0, {16 * m}, 0]", 64 * block.maps) for m, tile in enumerate(w_tiles)]
    instruction = MULTIPLY[block.image, block.weight]
    steps += [_call(instruction, tile, x_tiles[p], w_tiles[m]) for p, m, tile in block.tiles]
    read = f"{whole}, x[0:{elements}], w[0:{depth}, 0:{columns}, 0:{terms}]"
    _register(block.name("multiply"), [x, w, block.sums], read, whole, meaning, steps)


def _store(block: _Block) -> None:
    meaning = block.each("store", "y[i, j] = sums[i, j]")
    steps = [_move("tilestored64", tile, f"y[{16 * p}, {16 * m}]", 64 * block.maps) for p, m, tile in block.tiles]
    buffers = [block.sums, block.matrix("y")]
    _register(block.name("store"), buffers, f"sums{block.whole}", f"y{block.whole}", meaning, steps)


def _factor(stored: str, dtype: str) -> str:
    """A factor of a product, of bytes or, in integers of 16 bits, of bfloat16."""
    return f"T.Cast('int32', {stored})" if dtype == "int8" else widened(stored)


def _call(instruction: str, *registers: int) -> str:
    return _run(instruction, *(f"T.int8({register})" for register in registers))


def _move(instruction: str, register: int, first: str, pitch: int) -> str:
    """Between a register and memory: its first element, and the bytes from a row to the next."""
    return _run(instruction, f"T.int8({register})", f"T.address_of({first})", f"T.int64({pitch})")


def _run(instruction: str, *operands: str) -> str:
    return f"T.evaluate(T.call_llvm_intrin('void', 'llvm.x86.{instruction}', {', '.join(operands)}))"


def _register(name: str, buffers: Sequence[str], reads: str, writes: str, meaning: str, steps: Sequence[str]) -> None:
    """One intrinsic: what it means, and its instructions."""
    params = ", ".join(f"p_{buffer.split(' ', 1)[0]}: T.handle" for buffer in buffers)
    lines = ["@T.prim_func(s_tir=True)", f"def function({params}) -> None:", *(f"    {buffer}" for buffer in buffers)]
    lines += ["    with T.sblock('root'):", f"        T.reads({reads})", f"        T.writes({writes})"]
    head = "\n".join(lines)
    body = "".join(f"\n        {step}" for step in steps)
    functions = (from_source(head + each, {"T": T}) for each in (meaning.replace("\n", "\n    "), body))
    TensorIntrin.register(name, *functions, override=True)
