"""Kernels whose steps follow one another: a scatter, a running sum, a heap.

A tensor expression gives each place of its output one value and never reads it again; these read what they have
written. So each is a function of loops, around a block named "out":

    for o in outer, p in parts of the extent, t in tiles of the inner axes: out: the steps of these columns, in order

The output is seen as (outer, extent, inner). The node's "along" says which axes are the extent: from its first to
before its second. Columns (o, ·, i) do not depend on each other; a tile has some of them side by side, so that the
innermost loops run along memory. A scatter may be in parts, each of which writes its own elements of the columns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as emit

from tvmcnn.configs import InOrderConfig
from tvmcnn.network import Node, Shape, Step
from tvmcnn.ops.operands import Operands, extents, literal

Buffer = Any


@dataclass(frozen=True)
class Tile:
    """What the steps of one tile read and write; buffers are flat."""

    node: Node
    operands: Sequence[Buffer]
    shapes: Sequence[Shape]  # of the operands
    out: Buffer
    shape: Shape  # of the output
    outer: Any  # the index of the tile's row
    begin: Any  # its first element of each column
    length: Any  # how many of them it has
    start: Any  # its first column
    columns: Any  # how many it has
    width: int  # how many it has at most

    @property
    def dtype(self) -> str:
        """That of the output."""
        return str(self.out.dtype)

    @property
    def extent(self) -> int:
        """Elements of a column."""
        first, last = self.node["along"]
        return math.prod(self.shape[first:last])

    @property
    def inner(self) -> int:
        """Columns of a row: the distance between two elements of one."""
        return math.prod(self.shape[self.node["along"][1] :])

    @property
    def whole(self) -> bool:
        """Whether it has all elements of its columns."""
        return isinstance(self.length, int) and self.length == self.extent

    def column(self, c: Any) -> Any:
        """Where column `c` of the tile is among those of its row."""
        return self.start + c

    def at(self, k: Any, c: Any, extent: int | None = None) -> Any:
        """The flat place of element k of column `c`, of the output or of an operand that is another `extent` long."""
        return (self.outer * (self.extent if extent is None else extent) + k) * self.inner + self.start + c

    def store(self, place: Any, value: Expr) -> None:
        """Write an element of the output."""
        emit.buffer_store(self.out, value, [place])

    def fill(self, value: Callable[[Any], Expr]) -> None:
        """Fill the tile by the value at each flat place."""
        if self.width == self.inner:  # one run of memory
            with emit.serial(0, self.length * self.inner) as k:
                place = (self.outer * self.extent + self.begin) * self.inner + k
                self.store(place, value(place))
            return
        with emit.grid(self.length, self.columns) as (k, c):
            place = self.at(self.begin + k, c)
            self.store(place, value(place))


Steps = Callable[[Tile], None]  # adds the loops of a tile to the function that is being built


def in_order(steps: Mapping[str, Steps], step: Step, given: Operands) -> tirx.PrimFunc:
    """The function of an operator of `steps`; without an InOrderConfig, as on GPUs, a tile is one whole column."""
    node, output, config = step.choice.kernel.anchor, step.choice.kernel.output, step.choice.config
    first, last = node["along"]
    outer, extent, inner = (math.prod(output.shape[a:b]) for a, b in ((0, first), (first, last), (last, None)))
    width, parts = (min(inner, config.width), config.parts) if isinstance(config, InOrderConfig) else (1, 1)
    tiles, part = -(-inner // width), -(-extent // parts)
    with IRBuilder() as builder:
        with emit.prim_func(s_tir=True):
            emit.func_name("main")
            emit.func_attr({"tirx.noalias": True})
            buffers = {x.op.name: _flat(x.op.name, extents(x), str(x.dtype)) for x in given.parameters}
            out = _flat("out", output.shape, output.dtype)
            operands = [given.tensor(name) for name in node.inputs]
            seen, shapes = [buffers[x.op.name] for x in operands], [extents(x) for x in operands]
            with emit.grid(outer, parts, tiles) as loops, emit.sblock("out"):
                o, p, t = (emit.axis.spatial(*pair) for pair in zip((outer, parts, tiles), loops, strict=True))
                emit.reads(*(buffer[0 : buffer.shape[0]] for buffer in buffers.values()))
                emit.writes(out[0 : out.shape[0]])
                length, columns = _cut(extent, part, parts, p), _cut(inner, width, tiles, t)
                whole = (node, seen, shapes, out, output.shape)
                steps[node.op](Tile(*whole, o, p * part, length, t * width, columns, width))
        return builder.get()


def _cut(extent: int, size: int, count: int, index: Any) -> Any:
    """How long one of `count` parts is: `size`, less at the end, and nothing behind it."""
    return size if count * size == extent else tirx.max(0, tirx.min(size, extent - index * size))


def _flat(name: str, shape: Shape, dtype: str) -> Buffer:
    return emit.arg(name, emit.Buffer((max(1, math.prod(shape)),), dtype))


def local(dtype: str, size: int = 1) -> Buffer:
    """Memory of one tile: a register, or a few vectors."""
    return emit.sblock_alloc_buffer((size,), dtype, scope="local")


@contextlib.contextmanager
def when(*tests: Expr) -> Iterator[None]:
    """Run the statements that follow where all tests hold: always, if there are none."""
    if not tests:
        yield
        return
    with emit.If(tirx.all(*tests)), emit.Then():
        yield


def cum_sum(tile: Tile) -> None:
    """ONNX CumSum: y[…, k, …] = Σ_j x[…, j, …], j ≤ k, or j < k (exclusive), or j ≥ k and j > k (reverse)."""
    x, sums = tile.operands[0], local(tile.dtype, tile.width)
    with emit.serial(0, tile.columns) as c:
        emit.buffer_store(sums, literal(0, tile.dtype), [c])
    with emit.grid(tile.extent, tile.columns) as (step, c):
        place = tile.at(tile.extent - 1 - step if tile.node["reverse"] else step, c)
        if tile.node["exclusive"]:
            tile.store(place, sums[c])
        emit.buffer_store(sums, sums[c] + x[place], [c])
        if not tile.node["exclusive"]:
            tile.store(place, sums[c])


STEPS: Mapping[str, Steps] = {"CumSum": cum_sum}
