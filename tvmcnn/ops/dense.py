"""ONNX Gemm and MatMul with a constant matrix, and the convolution that covers its whole input."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import DenseConfig
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.operands import Operands, extents, float32, unravel
from tvmcnn.ops.tiles import Tiled, Tiles


def dense(step: Step, given: Operands) -> Tiled:
    """y[m, o] = Σ_k x[m, k] · w[k, o] + b[o], the x of any layout read as it lies: (M, K').

    Rows are in tiles, (M/r, r). "dense" is (M/r, r, N/t, q, t): the sum over k is split into q interleaved ones, so
    that a narrow matrix still has enough independent FMA chains; "out" adds the q parts in a fixed order.
    """
    choice = step.choice
    node, config = choice.kernel.anchor, choice.numbers(DenseConfig)
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    tiles, depth, width = (int(extent) for extent in weight.shape)
    shape, is_image = choice.kernel.output.shape, node.op == "Conv"
    rows, stored = row_count(step), choice.writes.physical(shape)
    parts, maps, columns = config.parts, shape[1 if is_image else -1], stored[1 if is_image else -1]
    if depth % parts:
        raise ValueError(f"a sum over {depth} terms does not split into {parts} parts")
    flat = te.compute((rows, depth), lambda m, k: x[unravel(m * depth + k, extents(x))], name="flat")
    rk, tiled = te.reduce_axis((0, depth // parts), "rk"), Tiles(rows, config.rows)

    def part(t: Any, i: Any, tile: Any, s: Any, o: Any) -> Expr:
        k = rk * parts + s
        return te.sum(flat[tiled.element(t, i), k] * weight[tile, k, o], axis=[rk])

    sums = te.compute((tiled.count, tiled.tile, tiles, parts, width), part, name="dense")
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    def finish(t: Any, i: Any, o: Any) -> Expr:
        m, value = tiled.element(t, i), sums[t, i, o // width, 0, o % width]
        for s in range(1, parts):
            value = value + sums[t, i, o // width, s, o % width]
        where = Pixel(m, Channel(o, 0, 1), 0, 0) if is_image else (*unravel(m, shape[:-1]), o)
        value = apply(choice.kernel.nodes[1:], value if bias is None else value + given.read(bias, where), given, where)
        return value if columns == maps else tirx.Select(o < maps, value, float32(0.0))

    out = te.compute((tiled.count, tiled.tile, columns), finish, name="out")
    memory = stored if is_image else (rows, columns)  # a stack of matrices is one tall matrix
    return Tiled(out, memory, lambda at: (tiled.element(at[0], at[1]), at[2], *[0] * (len(memory) - 2)))


def row_count(step: Step) -> int:
    """M: the product of the output's leading axes."""
    shape = step.choice.kernel.output.shape
    if step.choice.kernel.anchor.op == "Conv":
        return shape[0]
    return math.prod(shape[:-1])
