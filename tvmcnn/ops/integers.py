"""Integers of 8 bits between float32: how they are rounded, kept within bounds and centred.

What is rounded, and how often, is part of the result (docs/quantised.md): a product and a sum that LLVM or nvcc joined
into one FMA would be rounded once instead of twice, and land on another integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node
from tvmcnn.ops.operands import float32

# 1.5 · 2^23: at this size the neighbours of a float32 are 1 apart, so that adding it rounds, halves to even, and leaves
# the integer in the last bits. Two instructions on vectors of any CPU; TVM's `nearbyint` becomes a scalar one a lane.
MAGIC, MAGIC_BITS = 12582912.0, 0x4B400000
# Beyond every integer of 16 bits, however its zero point moves it, and within 2^22, where MAGIC rounds
REACH = float(1 << 20)
LEAST = -3.4028234663852886e38  # of the finite floats of 32 bits


def rounded_alone(product: Expr) -> Expr:
    """A product that is rounded before anything is added to it: between the two stands a maximum that changes nothing.

    TVM lets LLVM fuse a·b + c into an FMA, as nvcc does by default.
    """
    return tirx.max(product, float32(LEAST))


def nearest(value: Expr) -> Expr:
    """The integer next to a float32 of at most REACH, halves to even, as int32."""
    return tirx.reinterpret("int32", value + float32(MAGIC)) - tirx.const(MAGIC_BITS, "int32")


def within(value: Expr, low: Any, high: Any) -> Expr:
    """The value, or the bound that it is beyond."""
    return tirx.min(tirx.max(value, low), high)


def rounded(value: Expr, node: Node) -> Expr:
    """A float32 as an integer of the node's output, in int32: within `low` and `high`, rounded, + its zero point."""
    low, high = (float32(node[word] - node["to"]) for word in ("low", "high"))
    return nearest(within(value, low, high)) + tirx.const(node["to"], "int32")


def stored(value: Expr, node: Node, dtype: str) -> Expr:
    """That integer in the output's type."""
    return rounded(value, node).astype(dtype)


def combined(node: Node, a: Expr, b: Expr, scales: Sequence[te.Tensor]) -> Expr:
    """((a - zero) · scale of a [+ or ·] (b - other) · scale of b) / scale of y of integers, each step in float32.

    Or in another form of the same integers, which `form` names and fuse/tried_forms.py has tried.
    """
    if node["form"] == "linear":
        return a.astype("float32") * scales[0][0] + (b.astype("float32") * scales[1][0] + scales[2][0])
    left = less_zero(a, node["zero"]).astype("float32") * scales[0][0]
    right = less_zero(b, node["other"]).astype("float32") * scales[1][0]
    value = left * right if node.op == "QLinearMul" else rounded_alone(left) + rounded_alone(right)
    return value * scales[2][0] if node["form"] == "reciprocal" else value / scales[2][0]


def less_zero(x: Expr, zero: Any) -> Expr:
    """x less its zero point, in int32."""
    zero = tirx.const(zero, "int32") if isinstance(zero, int) else zero.astype("int32")
    return x.astype("int32") - zero
