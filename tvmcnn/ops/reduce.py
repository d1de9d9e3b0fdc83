"""Reductions along axes, in plain layout. The axes that stay are the output's, in order, those reduced of extent 1 or
left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Step, Tensor
from tvmcnn.ops.formulas import divide, is_float, of
from tvmcnn.ops.functions import exp, log
from tvmcnn.ops.lanes import Row, reduced
from tvmcnn.ops.operands import Operands, dtype_of, extents, float32, literal, unravel
from tvmcnn.ops.pool import maximum


def highest(dtype: str) -> Expr:
    """What no number of `dtype` exceeds."""
    return tirx.const(float("inf"), dtype) if dtype.startswith("float") else tirx.max_value(dtype)


# te.min starts from the greatest finite number, which infinities alone must not return
minimum = te.comm_reducer(lambda a, b: tirx.min(a, b), lambda dtype: highest(str(dtype)), name="minimum")
product = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="product")

Element = Callable[[Expr], Expr]


def _same(x: Expr) -> Expr:
    return x


def _magnitude(x: Expr) -> Expr:
    return x if dtype_of(x).startswith("uint") else tirx.abs(x)


def _by_float(function: Element) -> Element:
    """A function of floats, of integers through float64."""
    return lambda x: function(x) if is_float(x) else function(x.astype("float64")).astype(dtype_of(x))


# What is done to each element, how the results combine, and what is done to the whole
REDUCTIONS: dict[str, tuple[Element, Any, Element]] = {
    "ReduceSum": (_same, te.sum, _same),
    "ReduceMean": (_same, te.sum, _same),
    "ReduceSumSquare": (lambda x: x * x, te.sum, _same),
    "ReduceL1": (_magnitude, te.sum, _same),
    "ReduceL2": (lambda x: x * x, te.sum, _by_float(tirx.sqrt)),
    "ReduceLogSum": (_same, te.sum, _by_float(log)),
    "ReduceProd": (_same, product, _same),
    "ReduceMax": (_same, maximum, _same),
    "ReduceMin": (_same, minimum, _same),
}


class Axes:
    """The axes of a reduction of `x`: reads an element of `x` under the indices of the output."""

    def __init__(self, node: Node, output: Tensor, x: te.Tensor, name: str = "rk") -> None:
        self.x, self.shape, self.axes = x, extents(x), node["axes"]
        self.keepdims = len(output.shape) == len(self.shape)
        self.reduced = [te.reduce_axis((0, self.shape[axis]), f"{name}{axis}") for axis in self.axes]

    @property
    def count(self) -> int:
        """Terms of one reduction."""
        return math.prod(self.shape[axis] for axis in self.axes)

    def read(self, indices: tuple[Any, ...]) -> Expr:
        """The term of the output's element at `indices`. A bool is computed with as uint8."""
        rest = iter(index for axis, index in enumerate(indices) if not (self.keepdims and axis in self.axes))
        terms = iter(self.reduced)
        value = self.x[tuple(next(terms) if axis in self.axes else next(rest) for axis in range(len(self.shape)))]
        return value.astype("uint8") if dtype_of(value) == "bool" else value

    def combine(self, reducer: Any, value: Expr) -> Expr:
        """`value` reduced along the axes, if there are any."""
        return reducer(value, axis=self.reduced) if self.reduced else value


def reduction(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX ReduceSum, ReduceMean, ReduceMax and so on: REDUCTIONS says what they combine."""
    term, reducer, whole = REDUCTIONS[node.op]
    axes = Axes(node, output, x)
    total = te.compute(output.shape, lambda *i: axes.combine(reducer, term(axes.read(i))), name="total")

    def element(*indices: Any) -> Expr:
        value = whole(total[indices])
        if node.op == "ReduceMean":
            value = divide(value, of(value, axes.count))
        return tirx.Not(value.equal(literal(0, "uint8"))) if output.dtype == "bool" else value

    return te.compute(output.shape, element, name="out")


POOLS = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
NEUTRAL: dict[str, float] = {"ReduceProd": 1.0, "ReduceMax": -math.inf, "ReduceMin": math.inf}


def in_lanes(step: Step, given: Operands) -> te.Tensor:
    """The same along the last axes of float32 elements, of which there are at least 16, or over plain maps: see
    lanes.py.
    """
    node, output = step.choice.kernel.anchor, step.choice.kernel.output
    x, op = given.tensor(node.inputs[0]), POOLS.get(node.op, node.op)
    term, reducer, whole = REDUCTIONS[op]
    shape = extents(x)
    kept = 2 if node.op in POOLS else len(shape) - len(node["axes"])
    row = Row(math.prod(shape[kept:]))

    def value(rows: tuple[Any, ...], v: Any, lane: Any) -> Expr:
        return term(x[(*rows, *unravel(row.element(v, lane), shape[kept:]))])

    neutral = float32(NEUTRAL.get(op, 0.0))
    total = reduced(shape[:kept], row, value, reducer, neutral, "total")

    def element(*indices: Any) -> Expr:
        found = whole(total[indices[:kept]])
        return divide(found, of(found, row.count)) if op == "ReduceMean" else found

    return te.compute(output.shape, element, name="out")


def log_sum_exp(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX ReduceLogSumExp: ln Σ e^x = m + ln Σ e^(x − m). m is the maximum, so that nothing overflows; 0 where that is
    infinite, for ∞ − ∞ is NaN.
    """
    dtype = output.dtype if output.dtype.startswith("float") else "float64"
    axes, again = Axes(node, output, x), Axes(node, output, x, "rs")
    top = te.compute(
        output.shape,
        lambda *i: axes.combine(maximum, axes.read(i).astype(dtype)),
        name="maximum",
        attrs={"at": len(output.shape)},  # not within the other reduction, once for each of its terms
    )

    def shift(indices: tuple[Any, ...]) -> Expr:
        return tirx.Select(tirx.isfinite(top[indices]), top[indices], literal(0, dtype))

    total = te.compute(
        output.shape,
        lambda *i: again.combine(te.sum, exp(again.read(i).astype(dtype) - shift(i))),
        name="total",
    )
    return te.compute(output.shape, lambda *i: (shift(i) + log(total[i])).astype(output.dtype), name="out")


def arg(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX ArgMax and ArgMin: the first (or last) index whose element nothing beats. NaN beats nothing, nothing beats
    it.
    """
    greatest = node.op == "ArgMax"
    axes, again = Axes(node, output, x), Axes(node, output, x, "rs")
    reducer = maximum if greatest else minimum
    at = {"at": len(output.shape)}  # not within the other reduction, once for each of its terms
    best = te.compute(output.shape, lambda *i: axes.combine(reducer, axes.read(i)), name="best", attrs=at)

    def place(*indices: Any) -> Expr:
        value, index = again.read(indices), again.reduced[0].var
        beaten = value < best[indices] if greatest else value > best[indices]
        none = tirx.const(-1 if node["last"] else axes.count, "int32")
        found = tirx.Select(beaten, none, index)
        return again.combine(te.max if node["last"] else te.min, found)

    first = te.compute(output.shape, place, name="place")
    return te.compute(output.shape, lambda *i: first[i].astype("int64"), name="out")


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    **dict.fromkeys(REDUCTIONS, reduction),
    "ReduceLogSumExp": log_sum_exp,
    "ArgMax": arg,
    "ArgMin": arg,
}
