"""Pools that stand alone, in any layout. As many maps come out as go in."""

from __future__ import annotations

import functools
import operator
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Pixel, Step
from tvmcnn.ops.functions import power
from tvmcnn.ops.integers import less_zero, stored
from tvmcnn.ops.operands import Operands, as_stored, dtype_of, float32, output_pixel


def lowest(dtype: str) -> Expr:
    """What loses against every number of `dtype`."""
    return tirx.const(float("-inf"), dtype) if dtype.startswith("float") else tirx.min_value(dtype)


# te.max starts from the lowest finite number, which a window of -inf alone must not return
maximum = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda dtype: lowest(str(dtype)), name="maximum")


def norm_term(x: Expr, p: int) -> Expr:
    """|x|^p"""
    size = tirx.abs(x) if p % 2 else x * x
    return functools.reduce(operator.mul, [size] * (p if p % 2 else p // 2))


def norm_root(total: Expr, p: int) -> Expr:
    """total^(1/p)"""
    if p == 1:
        return total
    return tirx.sqrt(total) if p == 2 else power(total, tirx.const(1 / p, dtype_of(total)))


def pool(step: Step, given: Operands) -> te.Tensor:
    """ONNX MaxPool, AveragePool and LpPool: y[n, c, h, w] = max, mean or p-norm over i, j of x[n, c, h·s + i·d − p,
    w·s + j·d − p]; of the frames of a volume over those that a window meets, too. And QLinearAveragePool of
    docs/quantised.md, whose sums are exact.

    Padding never wins a max; whether a NaN does depends on its place in the window. Padding adds 0 to a sum; a mean's
    divisor is a table: window_sizes of packing.py.
    """
    choice = step.choice
    node, shape, layout = choice.kernel.anchor, choice.kernel.output.shape, choice.makes
    name = node.inputs[0]
    frames = node.attributes.get("frames")  # of a volume, those read and those made
    sizes = (*(frames[:1] if frames else ()), *given.shapes[name][2:])
    extents = (*(frames[1:] if frames else ()), *shape[2:])
    taps = [
        te.reduce_axis((0, k), f"r{axis}") for k, axis in zip(node["kernel_shape"], "dhw"[-len(sizes) :], strict=True)
    ]
    is_max, quantised = node.op == "MaxPool", node.op == "QLinearAveragePool"
    dtype = choice.kernel.dtype
    neutral = lowest(dtype) if is_max else tirx.const(0, "int32" if quantised else dtype)
    edges = _edges(node.attributes, sizes, extents)

    def tap(*indices: Any) -> Expr:
        n, channel, *place = output_pixel(layout, *indices)
        place = [n % frames[1], *place] if frames else place
        along = zip(place, node["strides"], taps, node["dilations"], node["pads"], strict=False)
        at = [o * s + r * d - p for o, s, r, d, p in along]
        n = n // frames[1] * frames[0] + at[0] if frames else n
        value = given.read(name, Pixel(n, channel, *at[-2:]))
        value = norm_term(value, node["p"]) if node.op == "LpPool" else value
        value = less_zero(value, node["zero"]) if quantised else value
        tests = [*(i >= 0 for i in at), *(i < size for i, size in zip(at, sizes, strict=True))]
        tests = [test for needed, test in zip(edges, tests, strict=True) if needed]
        value = tirx.if_then_else(tirx.all(*tests), value, neutral) if tests else value
        return maximum(value, axis=taps) if is_max else te.sum(value, axis=taps)

    window = te.compute(layout.physical(shape), tap, name="pool")
    divisor = None if node.op != "AveragePool" else given.constants[f"{choice.kernel.output.name}.divisor"]

    factor = given.constants[node.inputs[1]] if quantised else None  # of all windows, or of each

    def finish(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        if factor is not None:
            place = tuple(0 if int(size) == 1 else i for size, i in zip(factor.shape, pixel[2:], strict=True))
            return stored(window[indices].astype("float32") * factor[place], node, choice.kernel.output.dtype)
        place = (*((pixel.n % frames[1],) if frames else ()), pixel.h, pixel.w)
        value = window[indices] if divisor is None else window[indices] / divisor[place]
        value = norm_root(value, node["p"]) if node.op == "LpPool" else value
        return as_stored(layout, shape, pixel, value)

    return te.compute(layout.physical(shape), finish, name="out")


def global_pool(step: Step, given: Operands) -> te.Tensor:
    """ONNX GlobalAveragePool, GlobalMaxPool and GlobalLpPool: the mean, maximum or p-norm of each map."""
    choice = step.choice
    node, shape, layout = choice.kernel.anchor, choice.kernel.output.shape, choice.makes
    name = node.inputs[0]
    height, width = given.shapes[name][2:]
    rh, rw = te.reduce_axis((0, height), "rh"), te.reduce_axis((0, width), "rw")

    def term(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        value = given.read(name, Pixel(pixel.n, pixel.channel, rh, rw))
        if node.op == "GlobalMaxPool":
            return maximum(value, axis=[rh, rw])
        return te.sum(norm_term(value, node["p"]) if node.op == "GlobalLpPool" else value, axis=[rh, rw])

    window = te.compute(layout.physical(shape), term, name="pool")

    def finish(*indices: Any) -> Expr:
        value = window[indices]
        if node.op == "GlobalAveragePool":
            value = value / float32(height * width)
        elif node.op == "GlobalLpPool":
            value = norm_root(value, node["p"])
        return as_stored(layout, shape, output_pixel(layout, *indices), value)

    return te.compute(layout.physical(shape), finish, name="out")


def _edges(window: Any, sizes: tuple[int, ...], extents: tuple[int, ...]) -> tuple[bool, ...]:
    """Which sides of the image (top, left, bottom, right) some window reaches past; of a volume front and back too."""
    pads = window["pads"][: len(sizes)]
    ends = tuple(
        (extent - 1) * s + (k - 1) * d - pad >= size
        for size, extent, s, k, d, pad in zip(
            sizes, extents, window["strides"], window["kernel_shape"], window["dilations"], pads, strict=True
        )
    )
    return (*(pad > 0 for pad in pads), *ends)
