"""Tiles of an axis whose extent they need not divide: the last is moved back until it ends with the axis.

    for m in 197: y[m] = …    -->    for t in 25: for i in 8: y[min(8·t, 189) + i] = …

Every tile is whole, so that there is no test in it, no second copy of its loop for what is left, and its accumulators
are registers. What two tiles share is computed and stored twice, with the same bits. (A product of 197 rows by 768 and
3072 columns: tiles of one row, the only divisor, read the weights 197 times.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import te, tirx
from tvm.ir import Range, TensorRegion

from tvmcnn.network import Shape


@dataclass(frozen=True)
class Tiles:
    """The tiles of an axis, which has at least the elements of one."""

    extent: int
    tile: int

    @property
    def count(self) -> int:
        """How many."""
        return -(-self.extent // self.tile)

    def element(self, t: Any, i: Any) -> Any:
        """The element `i` of tile `t`."""
        whole = self.extent % self.tile == 0
        return (t * self.tile if whole else tirx.min(t * self.tile, self.extent - self.tile)) + i

    def place(self, element: Any) -> tuple[Any, Any]:
        """A tile that has an element of the axis, and where in it."""
        tile = element // self.tile
        return tile, element - self.element(tile, 0)


@dataclass(frozen=True)
class Tiled:
    """An output declared tile by tile: its stage "out", the shape that it has in memory, and where there the element of
    given indices lies."""

    tensor: te.Tensor
    shape: Shape
    place: Callable[[Sequence[Any]], Sequence[Any]]


def stored(func: tirx.PrimFunc, *outputs: Tiled) -> tirx.PrimFunc:
    """The function of tiled outputs, its last parameters, with those outputs as they lie in memory.

    out[t, i, o] = …    -->    out[min(8·t, 189) + i, o] = …
    """
    params, body = [*func.params], func.body
    for position, output in enumerate(outputs, len(params) - len(outputs)):
        old = params[position]
        params[position] = tirx.decl_buffer(output.shape, old.dtype, old.name)
        body = stored_elsewhere(body, old, params[position], output.place)
    return tirx.PrimFunc(params, body, func.ret_type, func.attrs)


def stored_elsewhere(body: tirx.Stmt, old: Any, new: Any, place: Callable[[Sequence[Any]], Sequence[Any]]) -> tirx.Stmt:
    """The statement with every element that it stores in the buffer `old` at its place in the buffer `new`."""

    def store(node: tirx.BufferStore) -> tirx.BufferStore:
        return tirx.BufferStore(new, node.value, list(place(node.indices))) if node.buffer.same_as(old) else node

    def region(node: TensorRegion) -> TensorRegion:
        if not node.source.same_as(old):
            return node
        point = place([each.min for each in node.region])
        return tirx.BufferRegion(new, [Range.from_min_extent(index, 1) for index in point])

    return tvm_ffi.structural_map(body, ((tirx.BufferStore, store), (TensorRegion, region)), order="post")
