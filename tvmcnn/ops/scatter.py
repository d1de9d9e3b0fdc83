"""Operators that write where indices say. An index below 0 counts from the end; one outside is clamped to its axis.

Indices that arrive at run time are followed one by one, see in_order.py. Where they are constant import knows what is
written where, and each place of the output takes its element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as emit

from tvmcnn.network import Node, Shape, Tensor
from tvmcnn.ops.gather import position
from tvmcnn.ops.in_order import Steps, Tile, local, when
from tvmcnn.ops.move import moved
from tvmcnn.ops.operands import extents, literal, unravel

Combine = Callable[[Expr, Expr], Expr]  # (what is there, an update) --> what is there then


def _either(old: Expr, new: Expr) -> Expr:
    return tirx.any(old, new)


def _both(old: Expr, new: Expr) -> Expr:
    return tirx.all(old, new)


REDUCTIONS: dict[str, Combine] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": lambda old, new: tirx.Select(new > old, new, old),  # beside NaN the old stays, as in Python
    "min": lambda old, new: tirx.Select(new < old, new, old),
}
OF_BOOLS: dict[str, Combine] = {
    "none": REDUCTIONS["none"],
    "add": _either,
    "mul": _both,
    "max": _either,
    "min": _both,
}


def _update(tile: Tile, place: Any, value: Expr) -> None:
    """Write or combine one update. NaN in a ScatterND's max or min makes NaN, as in numpy.maximum."""
    kind, old = tile.node["reduction"], tile.out[place]
    combined = (OF_BOOLS if tile.dtype == "bool" else REDUCTIONS)[kind](old, value)
    if tile.node.op == "ScatterND" and kind in ("max", "min") and tile.dtype.startswith("float"):
        combined = tirx.Select(tirx.isnan(value), value, combined)
    tile.store(place, combined)


def scatter_elements(tile: Tile) -> None:
    """ONNX ScatterElements: y = data, then y[…, indices[i], …] = f(y[…, indices[i], …], updates[i]), i in order.

    The axes of `indices` other than `axis` may be shorter than data's.
    """
    data, indices, updates = tile.operands
    axis, shape, given = tile.node["along"][0], tile.shape, tile.shapes[1]
    tile.fill(lambda place: data[place])
    before = unravel(tile.outer, shape[:axis])
    with emit.grid(given[axis], tile.columns) as (k, c):
        coordinates = (*before, k, *unravel(tile.column(c), shape[axis + 1 :]))
        short = [a for a in range(len(shape)) if a != axis and given[a] < shape[a]]
        with when(*(coordinates[a] < given[a] for a in short)):
            source = _flattened(coordinates, given)
            _update(tile, tile.at(position(indices[source], shape[axis]), c), updates[source])


def scatter_nd(tile: Tile) -> None:
    """ONNX ScatterND: y = data, then y[indices[m, 0], indices[m, 1], …, i] = f(what is there, updates[m, i]) by m."""
    data, indices, updates = tile.operands
    depth = tile.node["along"][1]
    tile.fill(lambda place: data[place])
    place = local("int32")
    with emit.serial(0, math.prod(tile.shapes[1][:-1])) as m:
        found = [position(indices[m * depth + d], tile.shape[d]) for d in range(depth)]
        emit.buffer_store(place, _flattened(found, tile.shape), [0])
        ours = () if tile.whole else (place[0] >= tile.begin, place[0] < tile.begin + tile.length)
        with when(*ours), emit.serial(0, tile.columns) as c:
            _update(tile, tile.at(place[0], c), updates[m * tile.inner + tile.column(c)])


def max_unpool(tile: Tile) -> None:
    """ONNX MaxUnpool: 0, then y[indices[i]] = x[i]; indices count in the "pooled" part of y, the last axis fastest."""
    x, indices = tile.operands
    pooled = tile.node["pooled"]
    tile.fill(lambda place: literal(0, tile.dtype))
    place = local("int32")
    with emit.serial(0, math.prod(tile.shapes[1])) as i:
        emit.buffer_store(place, position(indices[i], math.prod(pooled)), [0])
        tile.store(_flattened(unravel(place[0], pooled), tile.shape), x[i])


def col2im(tile: Tile) -> None:
    """ONNX Col2Im: 0, then y[n, c, s·l + d·k − p] += x[n, c·K + k, l] for each tap k and each column l."""
    node, (x,), image = tile.node, tile.operands, tile.shape[2:]
    rank = len(image)
    kernel, counts = node["kernel_shape"], node["counts"]
    tile.fill(lambda place: literal(0, tile.dtype))
    with emit.grid(*kernel, *counts) as loops:
        taps, columns = loops[:rank], loops[rank:]
        numbers = zip(taps, columns, node["strides"], node["dilations"], node["pads"], strict=False)
        pixel = [column * s + tap * d - p for tap, column, s, d, p in numbers]
        inside = [test for i, extent in zip(pixel, image, strict=True) for test in (i >= 0, i < extent)]
        with when(*inside):
            source = _flattened((tile.outer, *taps, *columns), (1, *kernel, *counts))
            place = _flattened((tile.outer, *pixel), (1, *image))
            tile.store(place, tile.out[place] + x[source])


def _flattened(indices: Sequence[Any], shape: Shape) -> Any:
    """The flat place of indices into the first axes of a shape: what `unravel` takes apart."""
    flat: Any = 0
    for index, extent in zip(indices, shape, strict=False):
        flat = flat * extent + index
    return flat


# ---- where the indices are constant ---------------------------------------------------------------------------------


def scatter_box(node: Node, output: Tensor, data: te.Tensor, updates: te.Tensor) -> te.Tensor:
    """A scatter into a box of the output, whose first axes those are: y[i] = updates[i − begins] inside, else data[i].

    `updates` has the box's elements in order, whatever its shape.
    """
    begins, sizes, shape = node["begins"], node["sizes"], output.shape
    run = 0
    for size, extent in reversed(list(zip(sizes, shape, strict=True))):
        if size < extent:
            break
        run += 1

    def element(*i: Any) -> Expr:
        cut = [(a, begin, size) for a, (begin, size) in enumerate(zip(begins, sizes, strict=True)) if size < shape[a]]
        tests = [test for a, begin, size in cut for test in (i[a] >= begin, i[a] < begin + size)]
        flat = _flattened([index - begin for index, begin in zip(i, begins, strict=True)], sizes)
        update = updates[unravel(flat, extents(updates))]
        return tirx.if_then_else(tirx.all(*tests), update, data[i]) if tests else update

    return moved(shape, element, run)


def scatter_places(node: Node, output: Tensor, data: te.Tensor, updates: te.Tensor, sources: te.Tensor) -> te.Tensor:
    """A scatter of slices: y[i, …] = updates[sources[i], …], or data[i, …] where sources[i] is −1."""
    lead = len(sources.shape)
    tail = output.shape[lead:]

    def element(*i: Any) -> Expr:
        source = sources[i[:lead]]
        flat = _flattened((tirx.max(source, 0), *i[lead:]), (1, *tail))
        return tirx.if_then_else(source < 0, data[i], updates[unravel(flat, extents(updates))])

    return moved(output.shape, element, len(tail))


STEPS: Mapping[str, Steps] = {
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "MaxUnpool": max_unpool,
    "Col2Im": col2im,
}
EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "ScatterBox": scatter_box,
    "ScatterPlaces": scatter_places,
}
