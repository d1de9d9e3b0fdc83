"""Operators whose outputs are as long as the data says.

Import knows the most that there can be, for which there is memory, and makes a tensor that counts what there is. Behind
the last element stand fillers: −1 for indices, which any axis has, and 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.elementwise import converted
from tvmcnn.importer.operators.gather import gather
from tvmcnn.importer.operators.meaning import (
    DTYPES,
    OPERATORS,
    Meaning,
    Meanings,
    Unsupported,
    Value,
    axis_of,
    derived,
    named,
    operator,
    scalar,
    typed,
)
from tvmcnn.importer.operators.move import part
from tvmcnn.importer.operators.shape import view
from tvmcnn.network import INDEX_LIMIT, dims


@named("NonZero")
def non_zero(x: Value) -> Meaning:
    """ONNX NonZero: where the elements other than 0 are, a column of coordinates each; as many columns as there are."""
    typed(DTYPES, x)
    rank, size = len(x.shape), math.prod(x.shape)
    if not rank:
        raise Unsupported("its operand is a scalar; supported are tensors with axes")
    if rank * size > INDEX_LIMIT:
        raise ModelError(f"the places of {dims(x.shape)} may be {rank * size:,} numbers, more than {INDEX_LIMIT:,}")
    if not size:
        return Meaning("ConstantOfShape", (), (rank, 0), {"value": 0}, "int64")
    return Meaning("NonZero", (x,), (rank, size), {"along": (0, 2)}, "int64", {1: _number_of(x)})


@operator
def compress(x: Value, condition: Value, *, axis: int | None = None) -> Meanings:
    """ONNX Compress: the slices along one axis (the elements of all, without it) for which a condition holds."""
    typed(DTYPES, x)
    typed(("bool",), condition)
    if len(condition.shape) != 1:
        raise ModelError(f"its condition '{condition.name}' is {dims(condition.shape)}; it must be a vector")
    if axis is None:
        x, axis = _made("flat", view(x, (math.prod(x.shape),))), 0
    axis = axis_of(axis, len(x.shape))
    extent, length = x.shape[axis], condition.shape[0]
    if condition.data is not None:
        chosen = np.flatnonzero(condition.data[:extent])
        return gather(x, derived("chosen", chosen, "int64"), axis=axis)
    most = min(extent, length)
    shape = (*x.shape[:axis], most, *x.shape[axis + 1 :])
    if not math.prod(shape):
        raise Unsupported(f"it chooses from {dims(x.shape)}, which has no elements")
    if length > extent:
        raise ModelError(f"its condition '{condition.name}' has {length} elements for an axis of {extent}")
    return Meaning("Compress", (x, condition), shape, {"along": (axis, axis + 1)}, "", {axis: _number_of(condition)})


@operator
def non_max_suppression(
    boxes: Value,
    scores: Value,
    max_output_boxes_per_class: Value | None = None,
    iou_threshold: Value | None = None,
    score_threshold: Value | None = None,
    *,
    center_point_box: int = 0,
) -> Meaning:
    """ONNX NonMaxSuppression with constant limits: [image, class, box] of boxes that overlap no better one by more."""
    typed(("float32",), boxes, scores)
    if len(boxes.shape) != 3 or len(scores.shape) != 3 or boxes.shape != (scores.shape[0], scores.shape[2], 4):
        raise ModelError(
            f"boxes {dims(boxes.shape)} and scores {dims(scores.shape)}: they must be N x B x 4 and N x C x B"
        )
    if center_point_box not in (0, 1):
        raise ModelError(f"center_point_box is {center_point_box}; allowed are 0 and 1")
    most = 0
    if max_output_boxes_per_class is not None:
        typed(("int64",), max_output_boxes_per_class)
        most = int(scalar("max_output_boxes_per_class", max_output_boxes_per_class))
    images, classes, count = scores.shape
    rows = images * classes * max(0, min(most, count))
    overlap = scalar("iou_threshold", iou_threshold) if iou_threshold is not None else 0.0
    if not 0 <= overlap <= 1:
        raise ModelError(f"iou_threshold is {overlap}; it must be from 0 to 1")
    if not rows:
        return Meaning("ConstantOfShape", (), (0, 3), {"value": 0}, "int64")
    attributes: dict[str, Any] = {
        "along": (0, 2),
        "most": min(most, count),
        "overlap": overlap,
        "least": scalar("score_threshold", score_threshold) if score_threshold is not None else None,
        "centered": bool(center_point_box),
    }
    found = Meaning("NonMaxSuppression", (boxes, scores), (rows, 3), attributes, "int64")
    box = _made("box", part(_made("found", found), (0, 2), (rows, 1), (1, 1), (rows,)))
    there = Meaning("GreaterOrEqual", (box, derived("zero", np.zeros(()), "int64")), (rows,), {}, "bool")
    found.counts[0] = _number_of(_made("there", there))
    return found


def _made(name: str, meaning: Meanings) -> Value:
    assert isinstance(meaning, Meaning)
    return Value(name, meaning.shape, meaning.dtype or meaning.inputs[0].dtype, maker=meaning)


def _number_of(x: Value) -> Value:
    """How many elements of `x` are other than 0: an int64 scalar."""
    other = x if x.dtype == "bool" else _made("other", converted(x, "bool"))
    return _made("count", OPERATORS["ReduceSum"](_made("ones", converted(other, "int64")), keepdims=0))
