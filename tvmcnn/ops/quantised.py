"""Quantised operators in plain layout: integers of 8 bits in and out, sums of them exact, floats in float32.

Those that work element by element have images in blocks of channels, too.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import FLOAT32, Node, Step, Tensor
from tvmcnn.ops import table
from tvmcnn.ops.integers import REACH, combined, less_zero, nearest, stored, within
from tvmcnn.ops.operands import Operands, as_stored, float32, output_pixel
from tvmcnn.ops.windows import guarded, source_of, window_axes


def _at(tensor: te.Tensor, indices: tuple[Any, ...]) -> Expr:
    """The element under indices of something that the tensor broadcasts to."""
    own = indices[len(indices) - len(tensor.shape) :]
    return tensor[tuple(0 if int(extent) == 1 else i for extent, i in zip(tensor.shape, own, strict=True))]


# ---- between floats and integers ------------------------------------------------------------------------------------


def quantize_linear(node: Node, output: Tensor, x: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
    """ONNX QuantizeLinear: y = rint(x / scale) + zero, within the integers of its type."""
    ends = tirx.min_value(output.dtype), tirx.max_value(output.dtype)

    def element(*i: Any) -> Expr:
        quotient = within(x[i] / _at(scale, i), float32(-REACH), float32(REACH))
        moved = nearest(quotient) + _at(zero, i).astype("int32")
        return within(moved, *(end.astype("int32") for end in ends)).astype(output.dtype)

    return te.compute(output.shape, element, name="out")


def dequantize_linear(node: Node, output: Tensor, x: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
    """ONNX DequantizeLinear: y = (x - zero) · scale."""
    return te.compute(output.shape, lambda *i: dequantised(x, scale, zero, i), name="out")


def dequantised(x: Any, scale: te.Tensor, zero: te.Tensor, i: tuple[Any, ...]) -> Expr:
    """The element of that at some indices."""
    return less_zero(x[i], _at(zero, i)).astype("float32") * _at(scale, i)


def _range(x: te.Tensor) -> Callable[[], tuple[Expr, Expr]]:
    """The stages "least" and "most", the ends of the range of all elements and 0; what reads them, as floats."""

    def end(name: str, choose: Any) -> te.Tensor:
        axes = [te.reduce_axis((0, extent), f"r{a}") for a, extent in enumerate(x.shape)]
        return te.compute((1,), lambda i: choose(x[tuple(axes)], axis=axes) if axes else x[()], name=name)

    least, most = end("least", te.min), end("most", te.max)
    return lambda: (tirx.min(least[0], float32(0.0)), tirx.max(most[0], float32(0.0)))


def _range_scale(least: Expr, most: Expr) -> Expr:
    scale = (most - least) / float32(255.0)
    return tirx.Select(scale > float32(0.0), scale, float32(1.0))


def dynamic_scale(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX DynamicQuantizeLinear's scale: (most - least) / 255, the range holding 0; of nothing but 0 it is 1."""
    ends = _range(x)
    return te.compute(output.shape, lambda *i: _range_scale(*ends()), name="out")


def dynamic_zero_point(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX DynamicQuantizeLinear's zero point: rint(-least / scale)."""
    ends = _range(x)

    def element(*i: Any) -> Expr:
        least, most = ends()
        quotient = (float32(0.0) - least) / _range_scale(least, most)
        return nearest(within(quotient, float32(0.0), float32(255.0))).astype("uint8")

    return te.compute(output.shape, element, name="out")


# ---- sums of products -----------------------------------------------------------------------------------------------


def _conv_sums(node: Node, output: Tensor, x: te.Tensor, w: te.Tensor, centred: Callable[..., Expr]) -> te.Tensor:
    """The stage "sum": Σ_{c,k} centred(x[…], w[…]), the product in int32, of which there is none outside x."""
    maps, depth = output.shape[1] // node["group"], int(w.shape[1])
    rc, rk = te.reduce_axis((0, depth), "rc"), window_axes(node)

    def tap(n: Any, m: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, output.shape, position, rk)
        product = centred(x[(n, m // maps * depth + rc, *source)], w[(m, rc, *rk)], m)
        return te.sum(guarded(inside, product, tirx.const(0, "int32")), axis=[rc, *rk])

    return te.compute(output.shape, tap, name="sum")


def _product_sums(output: Tensor, a: te.Tensor, b: te.Tensor, centred: Callable[..., Expr]) -> te.Tensor:
    """The stage "sum" of MatMul: Σ_k centred(a[…, i, k], b[…, k, j]), the product in int32."""
    has_row, has_column = len(a.shape) > 1, len(b.shape) > 1
    rk = te.reduce_axis((0, a.shape[-1]), "rk")

    def leading(tensor: te.Tensor, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        count = max(len(tensor.shape) - 2, 0)
        own = batch[len(batch) - count :]
        return tuple(0 if int(extent) == 1 else i for extent, i in zip(tensor.shape[:count], own, strict=True))

    def term(*i: Any) -> Expr:
        batch = i[: len(i) - has_row - has_column]
        row, column = ((i[len(batch)],) if has_row else ()), ((i[-1],) if has_column else ())
        factors = a[(*leading(a, batch), *row, rk)], b[(*leading(b, batch), rk, *column)]
        return te.sum(centred(*factors, column[0] if column else 0), axis=[rk])

    return te.compute(output.shape, term, name="sum")


def _requantised(
    node: Node, output: Tensor, sums: te.Tensor, factor: te.Tensor, bias: te.Tensor | None, axis: int
) -> te.Tensor:
    """float32(sum + bias) · factor, rounded; factor and bias have one element, or one an index of `axis`."""

    def element(*i: Any) -> Expr:
        of = i[axis] if i and len(i) > axis else 0
        total = sums[i] if bias is None else sums[i] + bias[of]
        value = total.astype("float32") * factor[0 if int(factor.shape[0]) == 1 else of]
        return stored(value, node, output.dtype)

    return te.compute(output.shape, element, name="out")


def qlinear_conv(
    node: Node, output: Tensor, x: te.Tensor, w: te.Tensor, factor: te.Tensor, bias: te.Tensor | None = None
) -> te.Tensor:
    """y = rint((b[m] + Σ_{c,k} (x - zero) · (w[m, c, k] - other)) · factor[m]) + to."""

    def centred(value: Expr, tap: Expr, m: Any) -> Expr:
        return less_zero(value, node["zero"]) * less_zero(tap, node["other"])

    return _requantised(node, output, _conv_sums(node, output, x, w, centred), factor, bias, 1)


def qlinear_matmul(
    node: Node, output: Tensor, a: te.Tensor, b: te.Tensor, factor: te.Tensor, bias: te.Tensor | None = None
) -> te.Tensor:
    """y = rint((c[j] + Σ_k (a - zero) · (b - other)) · factor[j]) + to."""

    def centred(left: Expr, right: Expr, j: Any) -> Expr:
        return less_zero(left, node["zero"]) * less_zero(right, node["other"])

    sums = _product_sums(output, a, b, centred)
    return _requantised(node, output, sums, factor, bias, len(output.shape) - 1)


def conv_integer(
    node: Node, output: Tensor, x: te.Tensor, w: te.Tensor, x_zero: te.Tensor, w_zero: te.Tensor
) -> te.Tensor:
    """ONNX ConvInteger: y = Σ_{c,k} (x - zero of x) · (w - zero of w), of which each map may have one."""

    def centred(value: Expr, tap: Expr, m: Any) -> Expr:
        return less_zero(value, _at(x_zero, (0,))) * less_zero(tap, _at(w_zero, (m,)))

    sums = _conv_sums(node, output, x, w, centred)
    return te.compute(output.shape, lambda *i: sums[i], name="out")


def matmul_integer(
    node: Node, output: Tensor, a: te.Tensor, b: te.Tensor, a_zero: te.Tensor, b_zero: te.Tensor
) -> te.Tensor:
    """ONNX MatMulInteger: y = Σ_k (a - zero of a) · (b - zero of b), of which each column may have one."""

    def centred(left: Expr, right: Expr, j: Any) -> Expr:
        return less_zero(left, _at(a_zero, (0,))) * less_zero(right, _at(b_zero, (j,)))

    sums = _product_sums(output, a, b, centred)
    return te.compute(output.shape, lambda *i: sums[i], name="out")


def qlinear_average_pool(node: Node, output: Tensor, x: te.Tensor, factor: te.Tensor) -> te.Tensor:
    """y = rint(Σ_k (x - zero) · factor) + to, the factor of each window that of how many elements it counts."""
    rk = window_axes(node)

    def tap(n: Any, c: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, output.shape, position, rk)
        value = less_zero(x[(n, c, *source)], node["zero"])
        return te.sum(guarded(inside, value, tirx.const(0, "int32")), axis=rk)

    sums = te.compute(output.shape, tap, name="sum")
    return te.compute(
        output.shape,
        lambda *i: stored(sums[i].astype("float32") * _at(factor, i[2:]), node, output.dtype),
        name="out",
    )


def centred(node: Node, output: Tensor, x: te.Tensor, zero: te.Tensor | None = None) -> te.Tensor:
    """Some channels of x less their zero point, as float32: those from `first` on along `axis`."""
    from_each = node["zero"] if zero is None else _at(zero, (0,))

    def element(*i: Any) -> Expr:
        at = tuple(index + node["first"] if place == node["axis"] else index for place, index in enumerate(i))
        return less_zero(x[at], from_each).astype("float32")

    return te.compute(output.shape, element, name="out")


def summed(node: Node, output: Tensor, *sums: te.Tensor) -> te.Tensor:
    """y = Σ sums in int32: sums that are integers in float32."""
    return te.compute(output.shape, lambda *i: _total(sums, i), name="out")


def _total(sums: Sequence[te.Tensor], i: tuple[Any, ...]) -> Expr:
    return functools.reduce(operator.add, (each[i].astype("int32") for each in sums))


def requantised(node: Node, output: Tensor, *given: te.Tensor) -> te.Tensor:
    """y = rint(float32(Σ sums + b) · factor) + to: sums that are integers in float32, the factor, perhaps a bias."""
    sums, (factor, *bias) = given[: node["sums"]], given[node["sums"] :]

    def element(*i: Any) -> Expr:
        of = i[node["axis"]]
        value = sums[0][i]
        if len(sums) > 1 or bias:
            whole = _total(sums, i)
            value = (whole + bias[0][of] if bias else whole).astype("float32")
        return stored(value * factor[0 if int(factor.shape[0]) == 1 else of], node, output.dtype)

    return te.compute(output.shape, element, name="out")


# ---- element by element ---------------------------------------------------------------------------------------------


def qlinear_binary(
    node: Node, output: Tensor, a: te.Tensor, b: te.Tensor, a_scale: te.Tensor, b_scale: te.Tensor, scale: te.Tensor
) -> te.Tensor:
    """y = rint(((a - zero) · scale of a [+ or ·] (b - other) · scale of b) / scale of y) + to, each step in float32."""

    def element(*i: Any) -> Expr:
        return stored(combined(node, _at(a, i), _at(b, i), (a_scale, b_scale, scale)), node, output.dtype)

    return te.compute(output.shape, element, name="out")


class _Image:
    """An operand of an element-wise operator on images in blocks, an image or one integer a channel, as if it had its
    output's shape in memory."""

    def __init__(self, step: Step, given: Operands, name: str) -> None:
        self.step, self.given, self.name = step, given, name
        self.dtype = given.tensor(name).dtype
        self.shape = step.choice.makes.physical(step.choice.kernel.output.shape)

    def __getitem__(self, indices: tuple[Any, ...]) -> Expr:
        return self.given.read(self.name, output_pixel(self.step.choice.makes, *indices))


def in_blocks(step: Step, given: Operands) -> te.Tensor:
    """An element-wise operator on images in blocks of channels, all of one shape or with one pixel a map."""
    node, made, layout = step.choice.kernel.anchor, step.choice.kernel.output, step.choice.makes
    several = {name for name, array in given.constants.items() if len(array.shape) == 2}
    operands = [
        _Image(step, given, name) if name in given.inputs or name in several else given.tensor(name)
        for name in node.inputs
    ]
    output = Tensor(made.name, layout.physical(made.shape), made.dtype)
    if made.dtype != FLOAT32:
        return EXPRESSIONS[node.op](node, output, *operands)

    x, scale, zero = operands

    def element(*i: Any) -> Expr:
        return as_stored(layout, made.shape, output_pixel(layout, *i), dequantised(x, scale, zero, i))

    return te.compute(output.shape, element, name="out")


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "DynamicScale": dynamic_scale,
    "DynamicZeroPoint": dynamic_zero_point,
    "Centred": centred,
    "Requantised": requantised,
    "Summed": summed,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QLinearAveragePool": qlinear_average_pool,
    "QLinearAdd": qlinear_binary,
    "QLinearMul": qlinear_binary,
    "Table": table.table,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
}
