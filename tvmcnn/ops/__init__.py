"""Declare: a Step becomes a PrimFunc from tensor expressions, one expression an operator, algorithm and layout.

Nothing here names a target, a thread or a loop order: that is schedule/'s. Blocks are named on purpose, for it.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx

from tvmcnn.network import Step
from tvmcnn.ops import conv, dense, elementwise, norm, opened, pool, shape
from tvmcnn.ops.operands import Operands

EXPRESSIONS: dict[str, Callable[[Step, Operands], te.Tensor]] = {
    "direct": conv.direct,
    "depthwise": conv.depthwise,
    "columns": conv.columns,
    "grouped": conv.grouped,
    "dense": dense.dense,
    "pool": pool.pool,
    "global_pool": pool.global_pool,
    "elementwise": elementwise.elementwise,
    "softmax": norm.softmax,
    "concat": shape.concat,
    "pad": shape.pad,
    "transpose": shape.transpose,
    "reshape": shape.reshape,
    "reorder": shape.reorder,
}


def declare(step: Step) -> tirx.PrimFunc:
    """The PrimFunc of a step: parameters are its inputs, its packed constants and its output, all float32 buffers."""
    given = Operands.of(step)
    output = EXPRESSIONS[step.choice.algorithm](step, given)
    return te.create_prim_func([*given.parameters, output])


def declare_open(step: Step) -> tirx.PrimFunc:
    """The open variant of a step: it stores every ONNX tensor that the fused kernel hides, each in plain layout."""
    given = Operands.of(step)
    return te.create_prim_func([*given.parameters, *opened.hidden_tensors(step, given)])
