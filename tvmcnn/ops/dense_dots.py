"""Products of rows of integers of 8 bits by a constant matrix, exactly: columns in the lanes, a few products of each in
one instruction.

    y[m, o] = rint(float32(offset[o] + Σ_k x[m, k] · w[k, o]) · factor[o]) + to

The zero point of x is in the offsets, b[o] - zero · Σ w[k, o], so that the bytes are multiplied as they are. See
docs/quantised.md for what is rounded, and schedule/x86/dots.py for the instructions.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import DenseDotsConfig
from tvmcnn.network import Step
from tvmcnn.ops import integers
from tvmcnn.ops.operands import Operands
from tvmcnn.ops.tiles import Tiled, Tiles, stored


def dense_dots(step: Step, given: Operands) -> tirx.PrimFunc:
    """QLinearMatMul, the x of any layout read as it lies: (M, K'). Weight: (⌈N/t⌉, ⌈K'/n⌉, t, n). MatMulInteger has the
    sums less those of columns times the zero point of x, which may arrive.

    "dense" is (N/t, M/r, r, q, t), as that of ops/dense.py, in int32; its innermost reduction "rn" is the n products of
    one instruction, and "total", (N/t, M/r, r, t), adds the q parts. Where n does not divide K' the last group is moved
    back until it ends with the row, and the weights of what it shares with the one before are zero: nothing is read
    beyond x, and there is no second loop for what is left.
    """
    choice = step.choice
    node, config, output = choice.kernel.anchor, choice.numbers(DenseDotsConfig), choice.kernel.output
    weight, *others = given.constants.values()  # as packing.py makes them
    tiles, groups, width, terms = (int(extent) for extent in weight.shape)
    rows, columns, parts = math.prod(output.shape[:-1]), output.shape[-1], config.parts
    if groups % parts:
        raise ValueError(f"a sum over {groups} groups of terms does not split into {parts} parts")
    depth = math.prod(choice.reads[0].physical(choice.sources[0].shape)) // rows
    x = te.placeholder((rows, depth), choice.sources[0].dtype, given.parameters[0].op.name)
    rk, rn = te.reduce_axis((0, groups // parts), "rk"), te.reduce_axis((0, terms), "rn")
    down, across, along = Tiles(rows, config.rows), Tiles(columns, min(width, columns)), Tiles(depth, terms)

    def part(tc: Any, tr: Any, i: Any, s: Any, o: Any) -> Expr:
        group = rk * parts + s
        value = x[down.element(tr, i), along.element(group, rn)].astype("int32") + config.shift
        return te.sum(value * weight[tc, group, o, rn].astype("int32"), axis=[rk, rn])

    sums = te.compute((tiles, down.count, down.tile, parts, width), part, name="dense")

    def total(*at: Any) -> Expr:
        tc, tr, i, o = at
        return functools.reduce(operator.add, (sums[tc, tr, i, s, o] for s in range(parts)))

    totals = te.compute((tiles, down.count, down.tile, width), total, name="total")

    def finish(tc: Any, tr: Any, i: Any, c: Any) -> Expr:
        o = across.element(tc, c)
        if node.op == "MatMulInteger":
            zero = given.tensor(node.inputs[2])
            lowest = zero[(0,) * len(zero.shape)].astype("int32") + config.shift
            return totals[tc, tr, i, c] - lowest * others[0][o]
        factor, offset = others
        value = (totals[tc, tr, i, c] + offset[o]).astype("float32") * factor[o]
        return integers.stored(value, node, output.dtype)

    def place(at: Sequence[Any]) -> tuple[Any, ...]:
        tc, tr, i, c = at
        return down.element(tr, i), across.element(tc, c)

    out = te.compute((tiles, down.count, down.tile, across.tile), finish, name="out")
    func = te.create_prim_func([x, *given.parameters[1:], out])
    return stored(func, Tiled(out, (rows, columns), place))  # a stack of matrices is one tall matrix
