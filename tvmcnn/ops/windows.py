"""Convolutions and pools in plain layout: any number of spatial axes, any dtype, weights constant or not.

In the formulas o is a position of the output, k one in the window, s the stride, d the dilation and p the pad before,
each one number a spatial axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Shape, Tensor
from tvmcnn.ops.formulas import veiled
from tvmcnn.ops.pool import lowest, maximum, norm_root, norm_term

Indices = tuple[Any, ...]


def conv(node: Node, output: Tensor, x: te.Tensor, w: te.Tensor, b: te.Tensor | None = None) -> te.Tensor:
    """ONNX Conv: y[n, m, o] = b[m] + Σ_{c,k} x[n, g·C/G + c, o·s + k·d − p] · w[m, c, k], zeros outside x.

    g = m // (M/G) is the group of map m.
    """
    maps, depth = output.shape[1] // node["group"], int(w.shape[1])
    rc, rk = te.reduce_axis((0, depth), "rc"), window_axes(node)

    def tap(n: Any, m: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, output.shape, position, rk)
        value = guarded(inside, x[(n, m // maps * depth + rc, *source)], _zero(x))
        return te.sum(value * w[(m, rc, *rk)], axis=[rc, *rk])

    return _biased(te.compute(output.shape, tap, name="sum"), output.shape, b)


def conv_transpose(node: Node, output: Tensor, x: te.Tensor, w: te.Tensor, b: te.Tensor | None = None) -> te.Tensor:
    """ONNX ConvTranspose: y[n, m, o] = b[m] + Σ_{c,i,k: i·s + k·d − p = o} x[n, g·C/G + c, i] · w[c', m mod M/G, k].

    Gathered: output position o = s·q + f sees the taps k with k·d ≡ f + p (mod s), one in s/gcd(s, d), and no zeros
    between the pixels. "sum" is (N, M, …, s, q) with the last axis split so, that q may run along memory.
    """
    axes = [_Phase(*numbers) for numbers in zip(*(node[a] for a in ATTRIBUTES), node["pads"], strict=False)]
    maps, depth = output.shape[1] // node["group"], int(w.shape[0]) // node["group"]
    rc = te.reduce_axis((0, depth), "rc")
    rt = [te.reduce_axis((0, axis.taps), f"rt{a}") for a, axis in enumerate(axes)]
    last = axes[-1].stride

    def tap(n: Any, m: Any, *position: Any) -> Expr:
        *outer, f, q = position
        places = [(o % axis.stride, o // axis.stride) for axis, o in zip(axes, outer, strict=False)]
        tests, source, kernel = [], [], []
        for axis, (phase, quotient), t, size in zip(axes, [*places, (f, q)], rt, x.shape[2:], strict=True):
            k = axis.tap(phase, t)
            i = quotient + axis.first(phase) - t * axis.step
            tests += [*axis.hits(phase), i >= 0, i < size, *([k < axis.kernel] if axis.uneven else [])]
            source.append(i)
            kernel.append(k)
        channel = m // maps * depth + rc
        product = x[(n, channel, *source)] * w[(channel, m % maps, *kernel)]
        return te.sum(guarded(tests, product, _zero(x)), axis=[rc, *rt])

    shape = (*output.shape[:-1], last, -(-output.shape[-1] // last))
    sums = te.compute(shape, tap, name="sum")
    return _biased(lambda *i: sums[(*i[:-1], i[-1] % last, i[-1] // last)], output.shape, b)


ATTRIBUTES = ("kernel_shape", "strides", "dilations")


class _Phase:
    """One axis of a transposed convolution: which taps and pixels meet at output position s·q + f.

    k·d ≡ f + p (mod s) has solutions only where g = gcd(s, d) divides f + p: k_0 = (f + p)/g · (d/g)⁻¹ mod s/g, and
    from there every s/g-th. The pixel under tap k_0 + t·s/g is i = q + (f + p − k_0·d)/s − t·d/g.
    """

    def __init__(self, kernel: int, stride: int, dilation: int, begin: int) -> None:
        self.kernel, self.stride, self.dilation, self.begin = kernel, stride, dilation, begin
        self.common = math.gcd(stride, dilation)
        self.period = stride // self.common  # from one tap of a phase to its next
        self.step = dilation // self.common  # and from its pixel to that one's
        self.taps = -(-kernel // self.period)
        self.uneven = kernel % self.period != 0  # some phases have a tap less
        self.inverse = pow(self.step, -1, self.period) if self.period > 1 else 0

    def hits(self, phase: Any) -> list[Expr]:
        """The test that the phase has any tap at all."""
        return [] if self.common == 1 else [(phase + self.begin) % self.common == 0]

    def first_tap(self, phase: Any) -> Any:
        """k_0"""
        return (phase + self.begin) // self.common * self.inverse % self.period

    def tap(self, phase: Any, t: Any) -> Any:
        """k"""
        return self.first_tap(phase) + t * self.period

    def first(self, phase: Any) -> Any:
        """The pixel under tap k_0, less q."""
        return (phase + self.begin - self.first_tap(phase) * self.dilation) // self.stride


def max_pool(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX MaxPool: y[n, c, o] = max_k x[n, c, o·s + k·d − p]; padding never wins."""
    window = _largest(node, output.shape, x)
    return te.compute(output.shape, lambda *i: window[i], name="out")


def _largest(node: Node, shape: Shape, x: te.Tensor) -> te.Tensor:
    rk = window_axes(node)

    def tap(n: Any, c: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, shape, position, rk)
        return maximum(guarded(inside, x[(n, c, *source)], lowest(str(x.dtype))), axis=rk)

    return te.compute(shape, tap, name="pool")


def max_pool_indices(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX MaxPool's Indices: where in x the maximum of each window is, of equal ones the first.

    "first" is its place in the map, the last axis fastest. A NaN is less than nothing, so that some element counts.
    """
    largest, rk = _largest(node, output.shape, x), window_axes(node)
    sizes = [int(extent) for extent in x.shape[2:]]
    strides = [math.prod(sizes[:a] if node["storage_order"] else sizes[a + 1 :]) for a in range(len(sizes))]
    area = math.prod(sizes)

    def tap(n: Any, c: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, output.shape, position, rk)
        place = tirx.const(0, "int32")
        for i, extent in zip(source, sizes, strict=True):
            place = place * extent + i
        wins = tirx.all(*inside, tirx.Not(x[(n, c, *source)] < largest[(n, c, *position)]))
        return te.min(tirx.if_then_else(wins, place, tirx.const(area, "int32")), axis=rk)

    first = te.compute(output.shape, tap, name="first")

    def element(n: Any, c: Any, *position: Any) -> Expr:
        left, place = first[(n, c, *position)], (n * output.shape[1] + c).astype("int64") * area
        for extent, stride in reversed([*zip(sizes, strides, strict=True)]):
            place = place + left % extent * stride
            left = left // extent
        return place

    return te.compute(output.shape, element, name="out")


def average_pool(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX AveragePool: y[n, c, o] = Σ_k x[n, c, o·s + k·d − p] / how many k count: those in x, or in its padding too.

    What ceil_mode adds past the padding never counts.
    """
    rk, rank = window_axes(node), len(x.shape) - 2
    limits = [
        (-begin, int(size) + end) if node["count_include_pad"] else (0, int(size))
        for size, begin, end in zip(x.shape[2:], node["pads"], node["pads"][rank:], strict=False)
    ]

    def tap(n: Any, c: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, output.shape, position, rk)
        return te.sum(guarded(inside, x[(n, c, *source)], _zero(x)), axis=rk)

    sums = te.compute(output.shape, tap, name="pool")

    def element(*i: Any) -> Expr:
        count: Any = 1
        for o, k, s, d, p, (low, high) in zip(i[2:], *_numbers(node), limits, strict=True):
            start = o * s - p  # taps below `high`, less those below `low`
            before = tirx.max(0, -((start - low) // d))
            count = count * (tirx.min(k, -((start - high) // d)) - before)
        return sums[i] / veiled(count.astype(x.dtype))  # 0 where all of a dilated window is padding

    return te.compute(output.shape, element, name="out")


def lp_pool(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX LpPool: y[n, c, o] = (Σ_k |x[n, c, o·s + k·d − p]|^p)^(1/p)."""
    rk = window_axes(node)

    def tap(n: Any, c: Any, *position: Any) -> Expr:
        inside, source = source_of(node, x, output.shape, position, rk)
        return te.sum(guarded(inside, norm_term(x[(n, c, *source)], node["p"]), _zero(x)), axis=rk)

    sums = te.compute(output.shape, tap, name="pool")
    return te.compute(output.shape, lambda *i: norm_root(sums[i], node["p"]), name="out")


def global_pool(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX GlobalAveragePool, GlobalMaxPool and GlobalLpPool: the mean, maximum or p-norm of each map."""
    rk = [te.reduce_axis((0, extent), f"rk{a}") for a, extent in enumerate(x.shape[2:])]
    area = math.prod(int(extent) for extent in x.shape[2:])

    def term(n: Any, c: Any, *ones: Any) -> Expr:
        value = x[(n, c, *rk)]
        if node.op == "GlobalMaxPool":
            return maximum(value, axis=rk)
        return te.sum(norm_term(value, node["p"]) if node.op == "GlobalLpPool" else value, axis=rk)

    sums = te.compute(output.shape, term, name="pool")

    def element(*i: Any) -> Expr:
        if node.op == "GlobalAveragePool":
            return sums[i] / tirx.const(area, x.dtype)
        return norm_root(sums[i], node["p"]) if node.op == "GlobalLpPool" else sums[i]

    return te.compute(output.shape, element, name="out")


# ---- what they share ------------------------------------------------------------------------------------------------


def window_axes(node: Node) -> list[Any]:
    """The axes along which a window is reduced."""
    return [te.reduce_axis((0, extent), f"rk{a}") for a, extent in enumerate(node["kernel_shape"])]


def _numbers(node: Node) -> list[Any]:
    """kernel, strides, dilations and pads before, each with a number a spatial axis."""
    return [*(node[name] for name in ATTRIBUTES), node["pads"][: len(node["strides"])]]


def source_of(node: Node, x: te.Tensor, shape: Shape, position: Indices, rk: list[Any]) -> tuple[list[Expr], Indices]:
    """The element o·s + k·d − p of each spatial axis, and the tests that it is inside: those that can fail."""
    tests, source = [], []
    for o, r, size, extent, k, s, d, p in zip(position, rk, x.shape[2:], shape[2:], *_numbers(node), strict=True):
        i = o * s + r * d - p
        tests += [i >= 0] if p else []
        tests += [i < size] if (extent - 1) * s + (k - 1) * d - p >= int(size) else []
        source.append(i)
    return tests, tuple(source)


def _zero(x: te.Tensor) -> Expr:
    return tirx.const(0, x.dtype)


def guarded(tests: list[Expr], value: Expr, otherwise: Expr) -> Expr:
    """The value, or `otherwise` where a test fails; then it is not read."""
    return tirx.if_then_else(tirx.all(*tests), value, otherwise) if tests else value


def _biased(sums: Any, shape: Shape, bias: te.Tensor | None) -> te.Tensor:
    read = sums if callable(sums) and not isinstance(sums, te.Tensor) else lambda *i: sums[i]
    return te.compute(shape, lambda *i: read(*i) if bias is None else read(*i) + bias[i[1]], name="out")


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "MaxPoolIndices": max_pool_indices,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "GlobalLpPool": global_pool,
}
