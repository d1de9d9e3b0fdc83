"""Element-wise operators, alone or as the epilogue of another expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te
from tvm.ir import Expr

from tvmcnn.network import Node, Step
from tvmcnn.ops.formulas import FORMULAS, veiled
from tvmcnn.ops.operands import Let, Operands, Where, as_stored, output_pixel

# Operators whose operands TVM takes for real numbers: x − x is 0 for it, x + y − y is x, and x = x is true. Floats have
# NaN and infinities, and y pushes digits out of x.
CANCELLING = ("Add", "Sub", "Sum", "Mean", "Equal")


def apply(nodes: Sequence[Node], value: Expr | None, given: Operands, where: Where) -> Expr:
    """Run `value` through element-wise nodes. Their other operands are read at the same coordinates, or are what an
    earlier of the nodes has made.

    A max pool moved forward (fuse.pool_first) is none of the nodes: who reads it takes the value before.
    """
    let = Let()
    value = None if value is None else let(value)
    made: dict[str, Expr] = {}
    origins: dict[str, frozenset[str]] = {}  # what each of them is computed from
    for node in nodes:
        operands = [
            given.read(name, where) if given.knows(name) else made.setdefault(name, value) for name in node.inputs
        ]
        from_each = [origins.get(name, frozenset((name,))) for name in node.inputs]
        origins[node.output] = frozenset().union(*from_each)
        related = len(origins[node.output]) < sum(map(len, from_each))
        value = made[node.output] = let(computed(node, operands, related=related))
    assert value is not None
    return let.within(value)


def computed(node: Node, operands: Sequence[Expr], *, related: bool) -> Expr:
    """The element that an element-wise node computes; `related` operands have an origin in common, which TVM is not to
    see: each is veiled once more often than the one before, so that no two are alike.
    """
    if related and node.op in CANCELLING:
        operands = [veiled(operand, times) for times, operand in enumerate(operands, 1)]
    return FORMULAS[node.op](*operands, **node.attributes)


def elementwise(step: Step, given: Operands) -> te.Tensor:
    """A chain of element-wise nodes: (…) --> the same shape, or what NumPy broadcasts to.

    In a blocked layout all stored operands share it; in plain layout those of the first node broadcast.
    """
    nodes, layout = step.choice.kernel.nodes, step.choice.makes
    shape = step.choice.kernel.output.shape

    def element(*indices: Any) -> Expr:
        where = indices if layout.plain else output_pixel(layout, *indices)
        value = apply(nodes, None, given, where).astype(step.choice.kernel.output.dtype)
        return value if layout.plain else as_stored(layout, shape, output_pixel(layout, *indices), value)

    return te.compute(layout.physical(shape), element, name="out")
