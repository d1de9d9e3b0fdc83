"""Element-wise operators, alone or as the epilogue of another expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te
from tvm.ir import Expr

from tvmcnn.network import Node, Step
from tvmcnn.ops.formulas import FORMULAS
from tvmcnn.ops.operands import Let, Operands, Where, output_pixel, zero_padding


def apply(nodes: Sequence[Node], value: Expr, given: Operands, where: Where) -> Expr:
    """Run `value` through element-wise nodes. Their other operands are read at the same coordinates, or are what an
    earlier of the nodes has made.

    A max pool moved forward (fuse.pool_first) is none of the nodes: who reads it takes the value before.
    """
    let = Let()
    value, made = let(value), dict[str, Expr]()
    for node in nodes:
        operands = [
            given.read(name, where) if given.knows(name) else made.setdefault(name, value) for name in node.inputs
        ]
        value = made[node.output] = let(FORMULAS[node.op](*operands, **node.attributes))
    return let.within(value)


def elementwise(step: Step, given: Operands) -> te.Tensor:
    """A chain of element-wise nodes: (…) --> the same shape, or what NumPy broadcasts to.

    In a blocked layout all stored operands share it; in plain layout those of the first node broadcast.
    """
    nodes, layout = step.choice.kernel.nodes, step.choice.makes
    shape = step.choice.kernel.output.shape

    def element(*indices: Any) -> Expr:
        where = indices if layout.plain else output_pixel(layout, *indices)
        operands = [given.read(name, where) for name in nodes[0].inputs]
        first = FORMULAS[nodes[0].op](*operands, **nodes[0].attributes)
        value = apply(nodes[1:], first, given, where).astype(step.choice.kernel.output.dtype)
        return value if layout.plain else zero_padding(layout, shape, output_pixel(layout, *indices), value)

    return te.compute(layout.physical(shape), element, name="out")
