"""ONNX MatMul and Gemm in plain layout, whatever their operands are: any ranks and dtypes, constant or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Shape, Tensor
from tvmcnn.ops.operands import dtype_of


def matmul(node: Node, output: Tensor, a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """ONNX MatMul: y[…, i, j] = Σ_k a[…, i, k] · b[…, k, j]."""
    sums = _product(output.shape, a, b)
    return te.compute(output.shape, lambda *i: sums[i], name="out")


def gemm(node: Node, output: Tensor, a: te.Tensor, b: te.Tensor, c: te.Tensor | None = None) -> te.Tensor:
    """ONNX Gemm: y = alpha · A'·B' + beta · C; without attributes they are 1, and nothing is transposed.

    Integers are scaled in float64.
    """
    given = node.attributes
    sums = _product(output.shape, a, b, given.get("transA", False), given.get("transB", False))

    def element(*i: Any) -> Expr:
        value = _scaled(sums[i], given.get("alpha", 1.0))
        return value if c is None else value + _scaled(c[_aligned(c, i)], given.get("beta", 1.0))

    return te.compute(output.shape, element, name="out")


def _product(shape: Shape, a: te.Tensor, b: te.Tensor, turn_a: bool = False, turn_b: bool = False) -> te.Tensor:
    """The stage "sum", Σ_k a·b. A lone axis of a is a row, and the result has none; one of b is a column."""
    has_row, has_column = len(a.shape) > 1, len(b.shape) > 1
    rk = te.reduce_axis((0, a.shape[-2 if turn_a else -1]), "rk")

    def term(*indices: Any) -> Expr:
        batch = indices[: len(indices) - has_row - has_column]
        left = (indices[len(batch)], rk) if has_row else (rk,)
        right = (rk, indices[-1]) if has_column else (rk,)
        left, right = left[:: -1 if turn_a else 1], right[:: -1 if turn_b else 1]
        return te.sum(a[(*_leading(a, batch), *left)] * b[(*_leading(b, batch), *right)], axis=[rk])

    return te.compute(shape, term, name="sum")


def _leading(tensor: te.Tensor, batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """The indices of the axes before a matrix, broadcast as in NumPy."""
    count = max(len(tensor.shape) - 2, 0)
    own = batch[len(batch) - count :]
    return tuple(0 if int(extent) == 1 else i for extent, i in zip(tensor.shape[:count], own, strict=True))


def _aligned(tensor: te.Tensor, indices: tuple[Any, ...]) -> tuple[Any, ...]:
    """The indices of `tensor` under those of the output that it broadcasts to."""
    own = indices[len(indices) - len(tensor.shape) :]
    return tuple(0 if int(extent) == 1 else i for extent, i in zip(tensor.shape, own, strict=True))


def _scaled(value: Expr, factor: float) -> Expr:
    if factor == 1.0:
        return value
    dtype = dtype_of(value)
    if dtype.startswith("float"):
        return tirx.const(factor, dtype) * value
    return (tirx.const(factor, "float64") * value.astype("float64")).astype(dtype)


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {"MatMul": matmul, "Gemm": gemm}
