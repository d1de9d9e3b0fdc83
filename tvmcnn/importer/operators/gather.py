"""Operators that read where indices say, which may arrive at run time.

An index may count from the end: −1 is the last. One outside its axis is refused where it is constant; at run time it is
clamped, to the first element below and to the last above, so that no kernel reads outside its tensors.
"""

from __future__ import annotations

import math

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import DTYPES, NUMBERS, Meaning, Value, axis_of, integers, named, operator, typed
from tvmcnn.importer.operators.move import part
from tvmcnn.network import dims


def check_indices(x: Value, indices: Value, extents: list[int]) -> None:
    """Refuse constant indices outside [−extent, extent − 1], and any into an axis without elements.

    `extents` has one entry, or one for each component of an index, which are the last axis of `indices`.
    """
    typed(DTYPES, x)
    typed(("int32", "int64"), indices)
    if not math.prod(indices.shape):
        return
    if 0 in extents:
        raise ModelError(
            f"'{indices.name}' is {dims(indices.shape)}, but {dims(x.shape)} has no element that an index could name"
        )
    if indices.data is None:
        return
    columns = indices.data.reshape(-1, len(extents))
    for extent, column in zip(extents, columns.T, strict=True):
        low, high = int(column.min()), int(column.max())
        if low < -extent or high >= extent:
            wrong = low if low < -extent else high
            raise ModelError(f"index {wrong} of '{indices.name}' is outside an axis of {extent} of {dims(x.shape)}")


@operator
def gather(data: Value, indices: Value, *, axis: int = 0) -> Meaning:
    """ONNX Gather: the slices of `data` along one axis that the indices name; their axes take its place."""
    axis = axis_of(axis, len(data.shape))
    extent = data.shape[axis]
    check_indices(data, indices, [extent])
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if indices.data is not None and indices.data.size == 1:
        starts, sizes = [0] * len(data.shape), list(data.shape)
        starts[axis], sizes[axis] = int(indices.data.item()) % extent, 1
        return part(data, starts, sizes, [1] * len(sizes), shape)
    return Meaning("Gather", (data, indices), shape, {"axis": axis})


@operator
def gather_elements(data: Value, indices: Value, *, axis: int = 0) -> Meaning:
    """ONNX GatherElements: y[i] = x[i with its coordinate along one axis replaced by indices[i]]."""
    axis = axis_of(axis, len(data.shape))
    check_indices(data, indices, [data.shape[axis]])
    if len(indices.shape) != len(data.shape) or any(
        a != axis and wanted > extent for a, (wanted, extent) in enumerate(zip(indices.shape, data.shape, strict=True))
    ):
        raise ModelError(f"the indices are {dims(indices.shape)}, which {dims(data.shape)} does not cover")
    return Meaning("GatherElements", (data, indices), indices.shape, {"axis": axis})


@named("GatherND")
def gather_nd(data: Value, indices: Value, *, batch_dims: int = 0) -> Meaning:
    """ONNX GatherND: the slices of `data` at the index tuples in the last axis of `indices`, batch by batch."""
    batch = data.shape[:batch_dims]
    if not 0 <= batch_dims < min(len(data.shape), len(indices.shape)) or indices.shape[:batch_dims] != batch:
        raise ModelError(f"batch_dims {batch_dims}: {dims(data.shape)} and {dims(indices.shape)} share no such axes")
    depth = indices.shape[-1]
    if not 1 <= depth <= len(data.shape) - batch_dims:
        raise ModelError(f"index tuples of {depth} into the {len(data.shape) - batch_dims} axes of {dims(data.shape)}")
    check_indices(data, indices, list(data.shape[batch_dims : batch_dims + depth]))
    shape = (*indices.shape[:-1], *data.shape[batch_dims + depth :])
    return Meaning("GatherND", (data, indices), shape, {"batch_dims": batch_dims})


@operator
def one_hot(indices: Value, depth: Value, values: Value, *, axis: int = -1) -> Meaning:
    """ONNX OneHot with a constant depth: values[1] where the new axis is at the index, else values[0].

    An index outside [−depth, depth − 1] is nowhere: all values[0].
    """
    typed(NUMBERS, indices, depth)
    typed(DTYPES, values)
    (extent,) = integers("depth", depth) if math.prod(depth.shape) == 1 else (-1,)
    if extent < 1 or values.shape != (2,):
        raise ModelError(
            f"depth {dims(depth.shape)} and values {dims(values.shape)}; they must be one number ≥ 1 and two"
        )
    axis = axis_of(axis, len(indices.shape) + 1)
    shape = (*indices.shape[:axis], extent, *indices.shape[axis:])
    return Meaning("OneHot", (indices, values), shape, {"axis": axis}, values.dtype)


@operator
def reverse_sequence(input: Value, sequence_lens: Value, *, batch_axis: int = 1, time_axis: int = 0) -> Meaning:  # noqa: A002 (ONNX's name)
    """ONNX ReverseSequence: in each batch the first sequence_lens[batch] times run backwards; lengths are clamped."""
    typed(DTYPES, input)
    typed(("int64",), sequence_lens)
    if {batch_axis, time_axis} != {0, 1} or len(input.shape) < 2 or sequence_lens.shape != (input.shape[batch_axis],):
        raise ModelError(
            f"batch_axis {batch_axis}, time_axis {time_axis}, {dims(input.shape)} and {dims(sequence_lens.shape)}:"
            " the axes must be 0 and 1, and each batch must have one length"
        )
    return Meaning("ReverseSequence", (input, sequence_lens), input.shape, {"batch_axis": batch_axis})
