"""Operators that read where indices say. An index below 0 counts from the end; one outside is clamped to its axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Tensor
from tvmcnn.ops.move import moved
from tvmcnn.ops.operands import dtype_of


def position(index: Expr, extent: Any) -> Expr:
    """The place that `index` names along an axis of `extent`, inside it whatever the index is."""
    dtype = dtype_of(index)
    size, zero, last = (tirx.const(value, dtype) for value in (int(extent), 0, int(extent) - 1))
    counted = tirx.Select(index < zero, index + size, index)
    return tirx.max(tirx.min(counted, last), zero).astype("int32")


def gather(node: Node, output: Tensor, x: te.Tensor, indices: te.Tensor) -> te.Tensor:
    """ONNX Gather: y[before, i, after] = x[before, indices[i], after]."""
    axis, count = node["axis"], len(indices.shape)

    def element(*where: Any) -> Expr:
        found = position(indices[where[axis : axis + count]], x.shape[axis])
        return x[(*where[:axis], found, *where[axis + count :])]

    return moved(output.shape, element, len(x.shape) - 1 - axis)


def gather_elements(node: Node, output: Tensor, x: te.Tensor, indices: te.Tensor) -> te.Tensor:
    """ONNX GatherElements: y[i] = x[…, indices[i], …], the other coordinates those of i."""
    axis = node["axis"]

    def element(*where: Any) -> Expr:
        return x[(*where[:axis], position(indices[where], x.shape[axis]), *where[axis + 1 :])]

    return moved(output.shape, element, 0)


def gather_nd(node: Node, output: Tensor, x: te.Tensor, indices: te.Tensor) -> te.Tensor:
    """ONNX GatherND: y[b, i, after] = x[b, indices[b, i, 0], indices[b, i, 1], …, after]."""
    batch, depth, lead = node["batch_dims"], int(indices.shape[-1]), len(indices.shape) - 1

    def element(*where: Any) -> Expr:
        found = [position(indices[(*where[:lead], k)], x.shape[batch + k]) for k in range(depth)]
        return x[(*where[:batch], *found, *where[lead:])]

    return moved(output.shape, element, len(x.shape) - batch - depth)


def one_hot(node: Node, output: Tensor, indices: te.Tensor, values: te.Tensor) -> te.Tensor:
    """ONNX OneHot: y[…, d, …] = values[1] if d is the index counted from the front, else values[0]."""
    axis = node["axis"]
    depth = tirx.const(output.shape[axis], "int64")

    def element(*where: Any) -> Expr:
        index = indices[(*where[:axis], *where[axis + 1 :])].astype("int64")
        counted = tirx.Select(index < tirx.const(0, "int64"), index + depth, index)
        return tirx.Select(where[axis].astype("int64").equal(counted), values[1], values[0])

    return moved(output.shape, element, 0)


def reverse_sequence(node: Node, output: Tensor, x: te.Tensor, lengths: te.Tensor) -> te.Tensor:
    """ONNX ReverseSequence: y[t, b, …] = x[lengths[b] − 1 − t, b, …] if t < lengths[b], else x[t, b, …]."""
    batch_axis = node["batch_axis"]
    times = int(x.shape[1 - batch_axis])

    def element(*where: Any) -> Expr:
        batch, time = where[batch_axis], where[1 - batch_axis]
        clamped = tirx.max(tirx.min(lengths[batch], tirx.const(times, "int64")), tirx.const(0, "int64"))
        length = clamped.astype("int32")
        source = tirx.Select(time < length, length - 1 - time, time)
        first = (batch, source) if batch_axis == 0 else (source, batch)
        return x[(*first, *where[2:])]

    return moved(output.shape, element, len(x.shape) - 2)


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "ReverseSequence": reverse_sequence,
}
