"""Element-wise operators, alone or as the epilogue of another expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Step
from tvmcnn.ops.operands import Operands, Where, float32, output_pixel, zero_padding

FORMULAS: dict[str, Callable[..., Expr]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    # 0 first: x86's vmaxps returns its second operand when one is NaN, so NaN passes as in ONNX's reference
    "Relu": lambda x: tirx.max(float32(0.0), x),
    "Clip": lambda x, **bounds: _clip(x, bounds["min"], bounds["max"]),
    "Sigmoid": lambda x: float32(1.0) / (float32(1.0) + tirx.exp(float32(0.0) - x)),
    "Tanh": lambda x: tirx.tanh(x),
    "Cast": lambda x, to: x.astype(to),
    "BatchNormalization": lambda x, scale, shift: x * scale + shift,
}


def _clip(x: Expr, low: float, high: float) -> Expr:
    if low > float("-inf"):
        x = tirx.max(float32(low), x)
    return tirx.min(float32(high), x) if high < float("inf") else x


def apply(nodes: Sequence[Node], value: Expr, given: Operands, where: Where) -> Expr:
    """Run `value` through a chain of element-wise nodes, the other operands read at the same coordinates.

    ONNX Add, Sub, Mul, Div, Relu max(0, x), Clip min(max(x, low), high), Sigmoid 1/(1+e^−x), Tanh, BatchNormalization
    x·scale + shift.
    """
    for node in nodes:
        operands = [given.read(name, where) if given.knows(name) else value for name in node.inputs]
        value = FORMULAS[node.op](*operands, **node.attributes)
    return value


def elementwise(step: Step, given: Operands) -> te.Tensor:
    """A chain of element-wise nodes: (…) --> the same shape, or what NumPy broadcasts to.

    In a blocked layout all stored operands share it; in plain layout those of the first node broadcast.
    """
    nodes, layout = step.choice.kernel.nodes, step.choice.writes
    shape = step.choice.kernel.output.shape

    def element(*indices: Any) -> Expr:
        where = indices if layout.plain else output_pixel(layout, *indices)
        operands = [given.read(name, where) for name in nodes[0].inputs]
        first = FORMULAS[nodes[0].op](*operands, **nodes[0].attributes)
        value = apply(nodes[1:], first, given, where).astype(step.choice.kernel.output.dtype)
        return value if layout.plain else zero_padding(layout, shape, output_pixel(layout, *indices), value)

    return te.compute(layout.physical(shape), element, name="out")
