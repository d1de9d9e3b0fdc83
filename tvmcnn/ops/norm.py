"""Normalisations, in plain layout.

A stage marked "at" belongs to each position of that many leading axes of the output: the schedule computes it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import NormalizeConfig, SoftmaxConfig
from tvmcnn.network import Node, Shape, Step, Tensor
from tvmcnn.ops.formulas import of
from tvmcnn.ops.functions import exp, log, power
from tvmcnn.ops.lanes import LANES, Row, reduced
from tvmcnn.ops.operands import Operands, extents, float32, unravel
from tvmcnn.ops.tiles import Tiled

Indices = tuple[Any, ...]


def softmax(step: Step, given: Operands) -> te.Tensor:
    """ONNX Softmax e^(x − max x) / Σ e^(x − max x) and LogSoftmax (x − max x) − ln Σ e^(x − max x) along one axis.

    Subtracting the maximum keeps every exponent at or below 0, so that nothing overflows.
    """
    node, shape = step.choice.kernel.anchor, step.choice.kernel.output.shape
    x = given.tensor(node.inputs[0])
    if step.choice.numbers(SoftmaxConfig).in_lanes:
        return _softmax_in_lanes(node, shape, x)
    return _softmax_along(node, shape, x)


def softmax_along(step: Step, given: Operands) -> te.Tensor:
    """The same, no elements in lanes."""
    node = step.choice.kernel.anchor
    return _softmax_along(node, step.choice.kernel.output.shape, given.tensor(node.inputs[0]))


def _softmax_along(node: Node, shape: Shape, x: te.Tensor) -> te.Tensor:
    """Stages "maximum", "exponentials", "total" and "out"."""
    axis = node["axis"]
    rest = (*shape[:axis], 1, *shape[axis + 1 :])

    def along(tensor: te.Tensor, reduce: Any, name: str) -> te.Tensor:
        rk = te.reduce_axis((0, shape[axis]), "rk")
        return te.compute(rest, lambda *i: reduce(tensor[(*i[:axis], rk, *i[axis + 1 :])], axis=[rk]), name=name)

    def of_row(tensor: te.Tensor, i: Indices) -> Expr:
        return tensor[(*i[:axis], 0, *i[axis + 1 :])]

    top = along(x, te.max, "maximum")
    exponentials = te.compute(shape, lambda *i: exp(x[i] - of_row(top, i)), name="exponentials")
    total = along(exponentials, te.sum, "total")

    def element(*i: Any) -> Expr:
        if node.op == "LogSoftmax":
            return x[i] - of_row(top, i) - log(of_row(total, i))
        return exponentials[i] / of_row(total, i)

    return te.compute(shape, element, name="out")


def _softmax_in_lanes(node: Node, shape: Shape, x: te.Tensor) -> te.Tensor:
    """The same along the last axis, of at least 16 elements: see lanes.py. "exponentials" is (…, vector, lane)."""
    rows, row = shape[:-1], Row(shape[-1])
    top = reduced(
        rows, row, lambda i, v, lane: x[(*i, row.element(v, lane))], te.max, te.min_value("float32"), "maximum"
    )
    exponentials = te.compute(
        (*rows, row.vectors, LANES),
        lambda *i: exp(x[(*i[:-2], row.element(*i[-2:]))] - top[i[:-2]]),
        name="exponentials",
    )
    total = reduced(rows, row, lambda i, v, lane: exponentials[(*i, v, lane)], te.sum, float32(0.0), "total")
    # Once a row: a division for every element would take as long as the rest.
    whole = te.compute(rows, lambda *i: _whole(node, top[i], total[i]), name="whole")

    def element(*i: Any) -> Expr:
        if node.op == "LogSoftmax":
            return x[i] - whole[i[:-1]]
        return exponentials[(*i[:-1], *row.place(i[-1]))] * whole[i[:-1]]

    return te.compute(shape, element, name="out")


def _whole(node: Node, top: Expr, total: Expr) -> Expr:
    return top + log(total) if node.op == "LogSoftmax" else float32(1.0) / total


class _Statistics:
    """Mean and variance of x over all axes but the first `leading`: stages "total" and "squares".

    The squares are of x − mean: the mean of x² less the square of the mean would cancel.
    """

    def __init__(self, x: te.Tensor, leading: int) -> None:
        self.leading, shape = leading, extents(x)
        self.count = math.prod(shape[leading:])

        def along(value: Callable[[Indices, Indices], Expr], name: str) -> te.Tensor:
            rk = [te.reduce_axis((0, extent), f"rk{a}") for a, extent in enumerate(shape[leading:])]
            stage = (*shape[:leading], *([] if leading else [1]))
            return te.compute(
                stage,
                lambda *i: te.sum(value(i[:leading], (*i[:leading], *rk)), axis=rk) if rk else value(i, i[:leading]),
                name=name,
                attrs={"at": leading},
            )

        self.total = along(lambda i, place: x[place], "total")
        self.squares = along(lambda i, place: (x[place] - self.mean(i)) * (x[place] - self.mean(i)), "squares")

    def mean(self, i: Indices) -> Expr:
        return self._read(self.total, i)

    def inverse(self, i: Indices, epsilon: float) -> Expr:
        """1/√(variance + ε)"""
        variance = self._read(self.squares, i)
        return of(variance, 1) / tirx.sqrt(variance + of(variance, epsilon))

    def _read(self, stage: te.Tensor, i: Indices) -> Expr:
        value = stage[i[: self.leading] or (0,)]
        return value / of(value, self.count)


def normalize(step: Step, given: Operands) -> Tiled:
    """InstanceNormalization, GroupNormalization and LayerNormalization of float32 rows that lie in one run of memory,
    with the elements of a row in the lanes: see lanes.py.

    A row is a number of parts, each with one scale and bias (a group its maps) or with one for each element. "out" is
    (rows, parts, vector, lane).
    """
    kernel, config = step.choice.kernel, step.choice.numbers(NormalizeConfig)
    node, shape = kernel.anchor, kernel.output.shape
    x, scale, *bias = (given.flat(node.inputs[0]), *map(given.tensor, node.inputs[1:]))
    rows, parts, count = config.rows, config.parts, math.prod(shape) // config.rows
    whole, part = Row(count), Row(count // parts)

    def term(r: Any, element: Any) -> Expr:
        return x[r * count + element]

    total = reduced((rows,), whole, lambda i, v, o: term(i[0], whole.element(v, o)), te.sum, float32(0.0), "total")
    mean = te.compute((rows,), lambda r: total[r] / float32(count), name="mean")

    def square(i: Indices, v: Any, lane: Any) -> Expr:
        apart = term(i[0], whole.element(v, lane)) - mean[i]
        return apart * apart

    squares = reduced((rows,), whole, square, te.sum, float32(0.0), "squares")
    variance = te.compute((rows,), lambda r: squares[r] / float32(count) + float32(node["epsilon"]), name="variance")
    inverse = te.compute((rows,), lambda r: float32(1.0) / tirx.sqrt(variance[r]), name="inverse")

    def weight(tensor: te.Tensor, r: Any, p: Any, element: Any) -> Expr:
        if node.op == "LayerNormalization":
            return tensor[unravel(element, extents(tensor))]
        return tensor[(r * parts + p) % shape[1]]

    def place(at: Sequence[Any]) -> Indices:
        r, p, v, lane = at
        return (r * count + p * part.count + part.element(v, lane),)

    def element(r: Any, p: Any, v: Any, lane: Any) -> Expr:
        e = part.element(v, lane)
        value = (x[place((r, p, v, lane))] - mean[r]) * inverse[r] * weight(scale, r, p, e)
        return value + weight(bias[0], r, p, e) if bias else value

    return Tiled(te.compute((rows, parts, part.vectors, LANES), element, name="out"), (rows * count,), place)


def instance_normalization(node: Node, output: Tensor, x: te.Tensor, scale: te.Tensor, b: te.Tensor) -> te.Tensor:
    """ONNX InstanceNormalization: y[n, c, …] = (x − mean)/√(var + ε)·scale[c] + b[c], statistics of each map."""
    statistics = _Statistics(x, 2)

    def element(*i: Any) -> Expr:
        return (x[i] - statistics.mean(i)) * statistics.inverse(i, node["epsilon"]) * scale[i[1]] + b[i[1]]

    return te.compute(output.shape, element, name="out")


def group_normalization(node: Node, output: Tensor, x: te.Tensor, scale: te.Tensor, b: te.Tensor) -> te.Tensor:
    """ONNX GroupNormalization: y[n, c, …] = (x − mean)/√(var + ε)·scale[c] + b[c], statistics of each group of maps.

    Stages are of shape (N, G, C/G, …): the same elements in the same order.
    """
    groups, shape = node["num_groups"], output.shape
    depth = shape[1] // groups
    split = (shape[0], groups, depth, *shape[2:])

    def joined(i: Indices) -> Indices:
        return (i[0], i[1] * depth + i[2], *i[3:])

    view = te.compute(split, lambda *i: x[joined(i)], name="view")
    statistics = _Statistics(view, 2)

    def element(*i: Any) -> Expr:
        c = i[1] * depth + i[2]
        return (x[joined(i)] - statistics.mean(i)) * statistics.inverse(i, node["epsilon"]) * scale[c] + b[c]

    return te.compute(split, element, name="out")


def layer_normalization(
    node: Node, output: Tensor, x: te.Tensor, scale: te.Tensor, b: te.Tensor | None = None
) -> te.Tensor:
    """ONNX LayerNormalization: y = (x − mean)/√(var + ε)·scale + b, statistics over the axes from `axis` on."""
    statistics = _Statistics(x, node["axis"])

    def element(*i: Any) -> Expr:
        normal = (x[i] - statistics.mean(i)) * statistics.inverse(i, node["epsilon"])
        scaled = normal * scale[_aligned(scale, i)]
        return scaled if b is None else scaled + b[_aligned(b, i)]

    return te.compute(output.shape, element, name="out")


def _aligned(tensor: te.Tensor, indices: Indices) -> Indices:
    """The indices of `tensor` under those of the output that it broadcasts to."""
    own = indices[len(indices) - len(tensor.shape) :]
    return tuple(0 if int(extent) == 1 else i for extent, i in zip(tensor.shape, own, strict=True))


def layer_statistics(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """The outputs Mean and InvStdDev of ONNX LayerNormalization, the axes from `axis` on of extent 1."""
    statistics = _Statistics(x, node["axis"])

    def element(*i: Any) -> Expr:
        is_mean = node.op == "LayerNormalizationMean"
        return (statistics.mean(i) if is_mean else statistics.inverse(i, node["epsilon"])).astype(output.dtype)

    return te.compute(output.shape, element, name="out")


def batch_normalization(node: Node, output: Tensor, x: te.Tensor, *statistics: te.Tensor) -> te.Tensor:
    """ONNX BatchNormalization with statistics that arrive at run time: (x − mean)·scale/√(var + ε) + b."""

    def element(*i: Any) -> Expr:
        channel = i[1] if len(i) > 1 else 0
        scale, b, mean, var = (tensor[channel] for tensor in statistics)
        return (x[i] - mean) * (scale / tirx.sqrt(var + of(var, node["epsilon"]))) + b

    return te.compute(output.shape, element, name="out")


def lrn(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX LRN: y[n, c, …] = x[n, c, …] / (bias + alpha/size · Σ_k x[n, c − ⌊(size − 1)/2⌋ + k, …]²)^beta, k < size.

    Channels outside the tensor add 0.
    """
    size, channels = node["size"], output.shape[1]
    rk = te.reduce_axis((0, size), "rk")

    def square(*i: Any) -> Expr:
        c = i[1] - (size - 1) // 2 + rk
        value = x[(i[0], c, *i[2:])]
        inside = tirx.all(c >= 0, c < channels)
        return te.sum(tirx.if_then_else(inside, value * value, of(value, 0)), axis=[rk])

    sums = te.compute(output.shape, square, name="squares")

    def element(*i: Any) -> Expr:
        base = of(sums[i], node["bias"]) + of(sums[i], node["alpha"] / size) * sums[i]
        return x[i] / _power(base, node["beta"])

    return te.compute(output.shape, element, name="out")


def _power(base: Expr, exponent: float) -> Expr:
    """base^exponent. LRN's usual 0.75 is two square roots: two instructions where a power takes sixty."""
    root = tirx.sqrt(base)
    if exponent == 0.75:
        return root * tirx.sqrt(root)
    return root if exponent == 0.5 else power(base, of(base, exponent))


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "LayerNormalizationMean": layer_statistics,
    "LayerNormalizationInvStdDev": layer_statistics,
    "BatchNormalizationAtRunTime": batch_normalization,
    "LRN": lrn,
}
