"""Pools that stand alone, in any layout. As many maps come out as go in."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Pixel, Step
from tvmcnn.ops.operands import Operands, float32, output_pixel, zero_padding

MINUS_INFINITY = float32(float("-inf"))
# te.max starts from the lowest finite number, which a window of -inf alone must not return
maximum = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda dtype: MINUS_INFINITY, name="maximum")


def pool(step: Step, given: Operands) -> te.Tensor:
    """ONNX MaxPool and AveragePool: y[n, c, h, w] = max or mean over i, j of x[n, c, h·s + i·d − p, w·s + j·d − p].

    Padding never wins a max; whether a NaN does depends on its place in the window. Padding adds 0 to a sum, whose
    divisor is a table: window_sizes of layout.py.
    """
    choice = step.choice
    node, shape, layout = choice.kernel.anchor, choice.kernel.output.shape, choice.writes
    name = node.inputs[0]
    height, width = given.shapes[name][2:]
    (kh, kw), (sh, sw), (dh, dw) = node["kernel_shape"], node["strides"], node["dilations"]
    top, left = node["pads"][:2]
    rh, rw = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")
    is_max = node.op == "MaxPool"
    neutral = MINUS_INFINITY if is_max else float32(0.0)
    edges = _edges(node.attributes, (height, width), shape[2:])

    def tap(*indices: Any) -> Expr:
        n, channel, y, z = output_pixel(layout, *indices)
        h, w = y * sh + rh * dh - top, z * sw + rw * dw - left
        value = given.read(name, Pixel(n, channel, h, w))
        tests = [test for needed, test in zip(edges, (h >= 0, w >= 0, h < height, w < width), strict=True) if needed]
        value = tirx.if_then_else(tirx.all(*tests), value, neutral) if tests else value
        return maximum(value, axis=[rh, rw]) if is_max else te.sum(value, axis=[rh, rw])

    window = te.compute(layout.physical(shape), tap, name="pool")
    divisor = None if is_max else given.constants[f"{choice.kernel.output.name}.divisor"]

    def finish(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        value = window[indices] if divisor is None else window[indices] / divisor[pixel.h, pixel.w]
        return zero_padding(layout, shape, pixel, value)

    return te.compute(layout.physical(shape), finish, name="out")


def global_pool(step: Step, given: Operands) -> te.Tensor:
    """ONNX GlobalAveragePool: y[n, c] = Σ_{h,w} x[n, c, h, w] / (H·W)."""
    choice = step.choice
    name, shape, layout = choice.kernel.anchor.inputs[0], choice.kernel.output.shape, choice.writes
    height, width = given.shapes[name][2:]
    rh, rw = te.reduce_axis((0, height), "rh"), te.reduce_axis((0, width), "rw")

    def total(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        return te.sum(given.read(name, Pixel(pixel.n, pixel.channel, rh, rw)), axis=[rh, rw])

    sums = te.compute(layout.physical(shape), total, name="pool")
    return te.compute(
        layout.physical(shape),
        lambda *i: zero_padding(layout, shape, output_pixel(layout, *i), sums[i] / float32(height * width)),
        name="out",
    )


def _edges(window: Any, sizes: tuple[int, ...], extents: tuple[int, ...]) -> tuple[bool, bool, bool, bool]:
    """Which sides of the image (top, left, bottom, right) some window reaches past."""
    begins = tuple(pad > 0 for pad in window["pads"][:2])
    ends = tuple(
        (extent - 1) * s + (k - 1) * d - pad >= size
        for size, extent, s, k, d, pad in zip(
            sizes,
            extents,
            window["strides"],
            window["kernel_shape"],
            window["dilations"],
            window["pads"][:2],
            strict=True,
        )
    )
    return (*begins, *ends)
