"""Operators whose values are literals, or follow from an element's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Tensor
from tvmcnn.ops.move import moved
from tvmcnn.ops.operands import literal


def constant_of_shape(node: Node, output: Tensor) -> te.Tensor:
    """ONNX ConstantOfShape and Size, the mask of Dropout: one literal everywhere."""
    value = literal(node["value"], output.dtype)
    return moved(output.shape, lambda *indices: value, len(output.shape))


def shape(node: Node, output: Tensor) -> te.Tensor:
    """ONNX Shape: literals, one for each axis asked for."""

    def element(axis: Any) -> Expr:
        *others, last = (literal(value, output.dtype) for value in node["values"])
        for place, value in reversed(list(enumerate(others))):
            last = tirx.Select(axis.equal(place), value, last)
        return last

    return moved(output.shape, element, 0)


def range_(node: Node, output: Tensor) -> te.Tensor:
    """ONNX Range: start + i·delta in the output's dtype."""
    start, delta = (literal(node[name], output.dtype) for name in ("start", "delta"))
    return moved(output.shape, lambda i: start + i.astype(output.dtype) * delta, 0)


def eye_like(node: Node, output: Tensor) -> te.Tensor:
    """ONNX EyeLike: 1 where j − i = k, else 0."""
    one, zero, k = literal(1, output.dtype), literal(0, output.dtype), tirx.const(node["k"], "int64")

    def element(i: Any, j: Any) -> Expr:
        return tirx.Select((j.astype("int64") - i.astype("int64")).equal(k), one, zero)

    return moved(output.shape, element, 0)


def trilu(node: Node, output: Tensor, x: te.Tensor, *k: te.Tensor) -> te.Tensor:
    """ONNX Trilu: x[…, i, j] where j − i ≥ k (upper) or j − i ≤ k, else 0."""
    zero = literal(0, x.dtype)

    def element(*indices: Any) -> Expr:
        row, column = (index.astype("int64") for index in indices[-2:])
        diagonal = k[0][(0,) * len(k[0].shape)] if k else tirx.const(0, "int64")
        kept = column - row >= diagonal if node["upper"] else column - row <= diagonal
        return tirx.Select(kept, x[indices], zero)

    return moved(output.shape, element, 0)


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Range": range_,
    "EyeLike": eye_like,
    "Trilu": trilu,
}
