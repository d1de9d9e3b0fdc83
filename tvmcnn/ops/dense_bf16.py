"""Products of rows by a constant matrix whose factors are bfloat16: columns in the lanes, two products in one
instruction, sums in float32. See ops/bf16.py for how such numbers are held."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import DenseConfig
from tvmcnn.network import Step
from tvmcnn.ops.bfloat16 import narrowed, widened
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.operands import Operands, extents, float32, unravel
from tvmcnn.ops.tiles import Tiled, Tiles


def dense_bf16(step: Step, given: Operands) -> Tiled:
    """Gemm or MatMul, the x of any layout read as it lies: (M, K'). Weight: (⌈N/t⌉, ⌈K'/2⌉, t, 2).

    "rounded" is (M, 2·⌈K'/2⌉), of which what is past a row is zero; "dense" is (N/t, M/r, r, q, t), as that of
    ops/dense.py, whose innermost reduction "rn" is the two products of one instruction; "total", (N/t, M/r, r, t), adds
    the q parts.
    """
    choice = step.choice
    node, config, shape = choice.kernel.anchor, choice.numbers(DenseConfig), choice.kernel.output.shape
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    tiles, groups, width, terms = (int(extent) for extent in weight.shape)
    rows, parts, maps, columns = math.prod(shape[:-1]), config.parts, shape[-1], choice.makes.physical(shape)[-1]
    depth = math.prod(extents(x)) // rows
    if groups % parts:
        raise ValueError(f"a sum over {groups} pairs of terms does not split into {parts} parts")

    def rounded(m: Any, k: Any) -> Expr:
        value = x[unravel(m * depth + k, extents(x))]
        return narrowed(value if depth % terms == 0 else tirx.if_then_else(k < depth, value, float32(0.0)))

    image = te.compute((rows, groups * terms), rounded, name="rounded")
    rk, rn = te.reduce_axis((0, groups // parts), "rk"), te.reduce_axis((0, terms), "rn")
    down, across = Tiles(rows, config.rows), Tiles(columns, min(width, columns))

    def part(tc: Any, tr: Any, i: Any, s: Any, o: Any) -> Expr:
        group = rk * parts + s
        value = widened(image[down.element(tr, i), group * terms + rn])
        return te.sum(value * widened(weight[tc, group, o, rn]), axis=[rk, rn])

    sums = te.compute((tiles, down.count, down.tile, parts, width), part, name="dense")

    def total(*at: Any) -> Expr:
        tc, tr, i, o = at
        return functools.reduce(operator.add, (sums[tc, tr, i, s, o] for s in range(parts)))

    totals = te.compute((tiles, down.count, down.tile, width), total, name="total")
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    def finish(tc: Any, tr: Any, i: Any, c: Any) -> Expr:
        m, o = down.element(tr, i), across.element(tc, c)
        value, where = totals[tc, tr, i, c], (*unravel(m, shape[:-1]), o)
        value = apply(choice.kernel.nodes[1:], value if bias is None else value + given.read(bias, where), given, where)
        return value if columns == maps else tirx.Select(o < maps, value, float32(0.0))

    def place(at: Sequence[Any]) -> tuple[Any, ...]:
        tc, tr, i, c = at
        return down.element(tr, i), across.element(tc, c)

    out = te.compute((tiles, down.count, down.tile, across.tile), finish, name="out")
    return Tiled(out, (rows, columns), place)  # a stack of matrices is one tall matrix
