"""ONNX MatMul and Gemm in plain layout, whatever their operands are: any ranks and dtypes, constant or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import MatmulConfig
from tvmcnn.network import Node, Shape, Step, Tensor
from tvmcnn.ops.operands import Operands, dtype_of
from tvmcnn.ops.tiles import Tiled, Tiles


def matmul(node: Node, output: Tensor, a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """ONNX MatMul: y[…, i, j] = Σ_k a[…, i, k] · b[…, k, j]."""
    sums = _product(output.shape, a, b)
    return te.compute(output.shape, lambda *i: sums[i], name="out")


def matmul_by_tiles(step: Step, given: Operands) -> Tiled:
    """ONNX MatMul of float32 matrices, each of at least a tile's rows or columns.

    "sum" is (…, N/t, M/r, r, t). "packed", (…, N/t, K, t), has the columns of a tile side by side.
    """
    choice = step.choice
    config, shape = choice.numbers(MatmulConfig), choice.kernel.output.shape
    a, b = (given.tensor(name) for name in choice.kernel.anchor.inputs)
    depth, batch = int(a.shape[-1]), shape[:-2]
    rows, columns = Tiles(shape[-2], config.rows), Tiles(shape[-1], config.width)

    def column(*at: Any) -> Expr:
        *i, tc, k, c = at
        return b[(*_leading(b, tuple(i)), k, columns.element(tc, c))]

    packed = te.compute((*batch, columns.count, depth, columns.tile), column, name="packed") if config.packed else None
    rk = te.reduce_axis((0, depth), "rk")

    def term(*at: Any) -> Expr:
        *i, tc, tr, r, c = at
        left = a[(*_leading(a, tuple(i)), rows.element(tr, r), rk)]
        return te.sum(left * (column(*i, tc, rk, c) if packed is None else packed[(*i, tc, rk, c)]), axis=[rk])

    by_tiles = (*batch, columns.count, rows.count, rows.tile, columns.tile)
    sums = te.compute(by_tiles, term, name="sum")
    out = te.compute(by_tiles, lambda *at: sums[at], name="out")
    return Tiled(out, shape, lambda at: (*at[:-4], rows.element(at[-3], at[-2]), columns.element(at[-4], at[-1])))


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
