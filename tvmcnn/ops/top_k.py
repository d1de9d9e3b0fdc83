"""The greatest elements along an axis, by a heap of those found so far.

It lies in the output: the indices of k elements, each of which comes behind its two children in the wanted order, so
that the first is the one to go. Most elements of a long column end at one comparison with it. Then the heap is sorted
in place. A column of n elements takes n·log k steps at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as emit

from tvmcnn.ops.formulas import is_float
from tvmcnn.ops.in_order import Steps, Tile, local, when

RUN = 16  # elements that are compared with the one to go at once


def top_k(tile: Tile) -> None:
    """The output Indices of ONNX TopK, in order; of equal elements the first. NaN is greater than all numbers."""
    count, length = tile.extent, tile.shapes[0][tile.node["along"][0]]
    with emit.serial(0, tile.columns) as c:
        heap = _Heap(tile, c, length, local("int32"), local("int32"), local("int32"))
        first = local(str(tile.operands[0].dtype))  # the element that is the next to go
        with emit.serial(0, count) as k:
            heap.put(k, k)
        with emit.serial(0, count // 2) as k:
            heap.sift(count // 2 - 1 - k, count)

        def offer(i: Any) -> None:
            with when(heap.ahead(heap.value(i), first[0])):
                heap.put(0, i)
                heap.sift(0, count)
                emit.buffer_store(first, heap.value(heap.index(0)), [0])

        emit.buffer_store(first, heap.value(heap.index(0)), [0])
        runs, odd = divmod(length - count, RUN) if tile.inner == 1 else (0, length - count)
        with emit.serial(0, odd) as i:
            offer(count + i)
        if runs:
            with emit.serial(0, runs) as run:
                start = count + odd + run * RUN
                better = local("int32")
                emit.buffer_store(better, 0, [0])
                with emit.serial(0, RUN) as lane:
                    ahead = heap.ahead(heap.value(start + lane), first[0])
                    emit.buffer_store(better, better[0] | ahead.astype("int32"), [0])
                with when(better[0] > 0), emit.serial(0, RUN) as lane:
                    offer(start + lane)
        with emit.serial(0, count - 1) as k:
            last = count - 1 - k
            heap.swap(last)
            heap.sift(0, last)


@dataclass(frozen=True)
class _Heap:
    """The indices of elements of a column, in the output; registers hold what is being moved."""

    tile: Tile
    column: Any
    length: int  # of the operand's column
    item: Any
    hole: Any
    child: Any

    def value(self, index: Any) -> Expr:
        """The element of the operand at an index."""
        return self.tile.operands[0][self.tile.at(index, self.column, self.length)]

    def index(self, place: Any) -> Expr:
        """What the heap has at a place."""
        return self.tile.out[self.tile.at(place, self.column)].astype("int32")

    def put(self, place: Any, index: Expr) -> None:
        """Give the heap an index at a place."""
        self.tile.store(self.tile.at(place, self.column), index.astype("int64"))

    def swap(self, last: Any) -> None:
        """Change the first index and one further back."""
        emit.buffer_store(self.item, self.index(0), [0])
        self.put(0, self.index(last))
        self.put(last, self.item[0])

    def ahead(self, a: Expr, b: Expr) -> Expr:
        """Whether an element is wanted before another, whatever their indices."""
        a, b = (a, b) if self.tile.node["largest"] else (b, a)
        return tirx.any(a > b, tirx.all(tirx.isnan(a), tirx.Not(tirx.isnan(b)))) if is_float(a) else a > b

    def behind(self, i: Expr, j: Expr) -> Expr:
        """Whether the element at index i comes after the one at index j: of equal ones the later does."""
        a, b = self.value(i), self.value(j)
        equal = a.equal(b)  # not "neither is ahead": TVM takes "not a > b" for a <= b, which NaN is not
        equal = tirx.any(equal, tirx.all(tirx.isnan(a), tirx.isnan(b))) if is_float(a) else equal
        return tirx.any(self.ahead(b, a), tirx.all(equal, i > j))

    def sift(self, start: Any, size: Any) -> None:
        """Let the index at `start` sink below all that come behind it, among the first `size`."""
        item, hole, child = self.item, self.hole, self.child
        emit.buffer_store(item, self.index(start), [0])
        emit.buffer_store(hole, start, [0])
        emit.buffer_store(child, 2 * start + 1, [0])
        with emit.While(child[0] < size):
            with when(child[0] + 1 < size), when(self.behind(self.index(child[0] + 1), self.index(child[0]))):
                emit.buffer_store(child, child[0] + 1, [0])
            with emit.If(self.behind(self.index(child[0]), item[0])):
                with emit.Then():
                    self.put(hole[0], self.index(child[0]))
                    emit.buffer_store(hole, child[0], [0])
                    emit.buffer_store(child, 2 * child[0] + 1, [0])
                with emit.Else():
                    emit.buffer_store(child, size, [0])
        self.put(hole[0], item[0])


STEPS: Mapping[str, Steps] = {"TopK": top_k}
