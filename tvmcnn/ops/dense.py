"""ONNX Gemm and MatMul with a constant matrix, and the convolution that covers its whole input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import DenseConfig
from tvmcnn.network import Channel, Choice, Pixel, Step
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.operands import Operands, extents, float32, unravel
from tvmcnn.ops.tiles import Tiled, Tiles


def dense(step: Step, given: Operands) -> Tiled:
    """y[m, o] = Σ_k x[m, k] · w[k, o] + b[o], the x of any layout read as it lies: (M, K').

    In tiles of t columns by r rows. "dense" is (N/t, M/r, r, q, t): the sum over k is split into q interleaved ones, so
    that a narrow matrix still has enough independent FMA chains; "out", (N/t, M/r, r, t), adds the q parts in a fixed
    order. A lone tile may be wider than the matrix, and "out" then is as wide as that.
    """
    choice = step.choice
    node, config = choice.kernel.anchor, choice.numbers(DenseConfig)
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    tiles, depth, width = (int(extent) for extent in weight.shape)
    shape, is_image = choice.kernel.output.shape, node.op == "Conv"
    rows, stored = row_count(step), choice.makes.physical(shape)
    parts, maps, columns = config.parts, shape[1 if is_image else -1], stored[1 if is_image else -1]
    if depth % parts:
        raise ValueError(f"a sum over {depth} terms does not split into {parts} parts")
    flat = te.compute((rows, depth), lambda m, k: x[unravel(m * depth + k, extents(x))], name="flat")
    rk = te.reduce_axis((0, depth // parts), "rk")
    down, across = Tiles(rows, config.rows), column_tiles(choice)

    def part(tc: Any, tr: Any, i: Any, s: Any, o: Any) -> Expr:
        k = rk * parts + s
        return te.sum(flat[down.element(tr, i), k] * weight[tc, k, o], axis=[rk])

    sums = te.compute((tiles, down.count, down.tile, parts, width), part, name="dense")
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    def finish(tc: Any, tr: Any, i: Any, c: Any) -> Expr:
        m, o = down.element(tr, i), across.element(tc, c)
        value = sums[tc, tr, i, 0, c]
        for s in range(1, parts):
            value = value + sums[tc, tr, i, s, c]
        where = Pixel(m, Channel(o, 0, 1), 0, 0) if is_image else (*unravel(m, shape[:-1]), o)
        value = apply(choice.kernel.nodes[1:], value if bias is None else value + given.read(bias, where), given, where)
        return value if columns == maps else tirx.Select(o < maps, value, float32(0.0))

    def place(at: Sequence[Any]) -> tuple[Any, ...]:
        tc, tr, i, c = at
        return (down.element(tr, i), across.element(tc, c), *([0, 0] if is_image else []))

    out = te.compute((tiles, down.count, down.tile, across.tile), finish, name="out")
    return Tiled(out, stored if is_image else (rows, columns), place)  # a stack of matrices is one tall matrix


def column_tiles(choice: Choice) -> Tiles:
    """The tiles of the stored columns; a lone one has all of them."""
    columns = choice.makes.physical(choice.kernel.output.shape)[1 if choice.kernel.anchor.op == "Conv" else -1]
    return Tiles(columns, min(choice.numbers(DenseConfig).width, columns))


def row_count(step: Step) -> int:
    """M: the product of the output's leading axes."""
    shape = step.choice.kernel.output.shape
    if step.choice.kernel.anchor.op == "Conv":
        return shape[0]
    return math.prod(shape[:-1])
