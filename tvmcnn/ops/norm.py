"""Normalisations that reduce along an axis."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Step
from tvmcnn.ops.operands import Operands


def softmax(step: Step, given: Operands) -> te.Tensor:
    """ONNX Softmax along one axis: y = e^(x − max x) / Σ e^(x − max x), in plain layout.

    Subtracting the maximum keeps every exponent at or below 0, so that nothing overflows.
    """
    node, shape = step.choice.kernel.anchor, step.choice.kernel.output.shape
    x, axis = given.inputs[node.inputs[0]], node["axis"]
    rest = (*shape[:axis], 1, *shape[axis + 1 :])

    def along(tensor: te.Tensor, reduce: Any, name: str) -> te.Tensor:
        rk = te.reduce_axis((0, shape[axis]), "rk")
        return te.compute(rest, lambda *i: reduce(tensor[(*i[:axis], rk, *i[axis + 1 :])], axis=[rk]), name=name)

    def of_row(tensor: te.Tensor, i: tuple[Any, ...]) -> Expr:
        return tensor[(*i[:axis], 0, *i[axis + 1 :])]

    top = along(x, te.max, "maximum")
    exponentials = te.compute(shape, lambda *i: tirx.exp(x[i] - of_row(top, i)), name="exponentials")
    total = along(exponentials, te.sum, "total")
    return te.compute(shape, lambda *i: exponentials[i] / of_row(total, i), name="out")
