"""What is there, one behind the other, and fillers behind the last: NonZero and Compress."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tvm.script.ir_builder import tirx as emit

from tvmcnn.ops.formulas import cast
from tvmcnn.ops.in_order import Steps, Tile, local, when
from tvmcnn.ops.operands import literal, unravel

FILLER = -1  # an index that every axis has


def non_zero(tile: Tile) -> None:
    """ONNX NonZero: y[:, k] = the coordinates of the k-th element of x other than 0, then −1."""
    (x,), (shape,) = tile.operands, tile.shapes
    size, found = math.prod(shape), local("int32")
    emit.buffer_store(found, 0, [0])
    with emit.serial(0, size) as i, when(cast(x[i], "bool")):
        for axis, coordinate in enumerate(unravel(i, shape)):
            tile.store(axis * size + found[0], coordinate.astype("int64"))
        emit.buffer_store(found, found[0] + 1, [0])
    with emit.grid(len(shape), size - found[0]) as (axis, k):
        tile.store(axis * size + found[0] + k, literal(FILLER, "int64"))


def compress(tile: Tile) -> None:
    """ONNX Compress: y[…, k, …] = the k-th slice of x for which the condition holds, then 0."""
    x, condition = tile.operands
    length, found = tile.shapes[0][tile.node["along"][0]], local("int32")
    emit.buffer_store(found, 0, [0])
    with emit.serial(0, tile.extent) as k, when(condition[k]):
        with emit.serial(0, tile.columns) as c:
            tile.store(tile.at(found[0], c), x[tile.at(k, c, length)])
        emit.buffer_store(found, found[0] + 1, [0])
    with emit.grid(tile.extent - found[0], tile.columns) as (k, c):
        tile.store(tile.at(found[0] + k, c), literal(0, tile.dtype))


STEPS: Mapping[str, Steps] = {"NonZero": non_zero, "Compress": compress}
