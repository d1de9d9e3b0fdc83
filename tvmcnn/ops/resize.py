"""ONNX Resize in plain layout and in blocks, by the tables of importer/operators/resize.py."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Pixel, Step, Tensor
from tvmcnn.ops.move import repeated
from tvmcnn.ops.operands import Operands, as_stored, extents, literal, output_pixel


@dataclass(frozen=True)
class _Table:
    """The tables of one axis."""

    indices: te.Tensor  # (positions, taps)
    weights: te.Tensor | None  # (positions, taps)
    inside: te.Tensor | None  # (positions,)


def _tables(node: Node, given: Sequence[te.Tensor]) -> dict[int, _Table]:
    rest = iter(given)
    return {
        axis: _Table(
            next(rest),
            next(rest) if node["mode"] != "nearest" else None,
            next(rest) if node["extrapolation"] is not None else None,
        )
        for axis in node["axes"]
    }


def _weighted(tables: Sequence[tuple[_Table, Any]], read: Callable[..., Expr]) -> Expr:
    """Σ over the taps of each table, at its position, of the product of their weights times `read` at their indices."""
    terms = []
    for taps in itertools.product(*(range(extents(table.indices)[1]) for table, _ in tables)):
        value = read(*(table.indices[o, tap] for (table, o), tap in zip(tables, taps, strict=True)))
        for (table, o), tap in zip(tables, taps, strict=True):
            value = value if table.weights is None else value * table.weights[o, tap]
        terms.append(value)
    return functools.reduce(operator.add, terms)


def _extrapolated(node: Node, tables: Sequence[tuple[_Table, Any]], value: Expr, dtype: str) -> Expr:
    """The value, or outside the input the extrapolated one."""
    tests = [table.inside[o] > 0 for table, o in tables if table.inside is not None]
    return tirx.Select(tirx.all(*tests), value, literal(node["extrapolation"], dtype)) if tests else value


def resize(node: Node, output: Tensor, x: te.Tensor, *given: te.Tensor) -> te.Tensor:
    """ONNX Resize: y[…, o, …] = Σ_t weights[o, t] · x[…, indices[o, t], …] along each resized axis.

    All axes but the last make the stage "rows", along which a row of the input stays whole, so that its elements are
    neighbours; the last one then takes from that row.
    """
    if "factors" in node.attributes:
        pairs = zip(extents(x), node["factors"], strict=True)
        return repeated(x, [f for axis, (n, k) in enumerate(pairs) for f in ((n, axis), (k, None))])
    rank, tables = len(x.shape), _tables(node, given)
    outer = {axis: table for axis, table in tables.items() if axis < rank - 1}
    last = tables.get(rank - 1)

    def row(*i: Any) -> Expr:
        placed = [(table, i[axis]) for axis, table in outer.items()]

        def read(*indices: Any) -> Expr:
            moved = dict(zip(outer, indices, strict=True))
            return x[tuple(moved.get(axis, index) for axis, index in enumerate(i))]

        return _weighted(placed, read)

    one_stage = last is None or not outer or node["mode"] == "nearest"
    shape = (*output.shape[:-1], int(x.shape[-1]))
    rows = row if one_stage else te.compute(shape, row, name="rows", attrs={"at": rank - 1}).__getitem__

    def element(*i: Any) -> Expr:
        placed = [(table, i[axis]) for axis, table in tables.items()]
        if last is None:
            value = row(*i)
        elif one_stage:
            value = _weighted([(last, i[-1])], lambda index: row(*i[:-1], index))
        else:
            # TVM must see that an index stays in the row, to know how much of it the stage holds.
            value = _weighted(
                [(last, i[-1])], lambda index: rows((*i[:-1], tirx.max(0, tirx.min(index, shape[-1] - 1))))
            )
        return _extrapolated(node, placed, value, output.dtype)

    return te.compute(output.shape, element, name="out")


def resize_blocks(step: Step, given: Operands) -> te.Tensor:
    """The same of the rows and columns of images in blocks of channels, which lie side by side: one expression."""
    node, shape, layout = step.choice.kernel.anchor, step.choice.kernel.output.shape, step.choice.makes
    name = node.inputs[0]

    def element(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        where = {2: pixel.h, 3: pixel.w}
        if "factors" in node.attributes:
            _, _, p, q = node["factors"]
            value = given.read(name, Pixel(pixel.n, pixel.channel, pixel.h // p, pixel.w // q))
        else:
            tables = _tables(node, [given.constants[each] for each in node.inputs[1:]])
            placed = [(table, where[axis]) for axis, table in tables.items()]

            def read(*moved: Any) -> Expr:
                at = where | dict(zip(tables, moved, strict=True))
                return given.read(name, Pixel(pixel.n, pixel.channel, at[2], at[3]))

            value = _extrapolated(node, placed, _weighted(placed, read), "float32")
        return as_stored(layout, shape, pixel, value)

    return te.compute(layout.physical(shape), element, name="out")


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {"Resize": resize}
