"""ONNX Conv on images, by five algorithms, each with its epilogue and pool in the same expression.

All compute y[n, o, h, w] = Σ_{c,i,j} x[n, g·C/G + c, h·s_h + i·d_h − p_top, w·s_w + j·d_w − p_left] · k[o, c, i, j]
with zeros outside the image and g = o // (M/G) the group of map o.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import PixelsConfig
from tvmcnn.fuse import deinterleaved, pool_first, pool_of, window_size
from tvmcnn.network import Channel, Node, Pixel, Step
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.lanes import LANES, Row
from tvmcnn.ops.operands import Operands, as_stored, float32, output_pixel


def columns(step: Step, given: Operands) -> te.Tensor:
    """Output columns in the lanes, for few maps. x: plain, without a halo; y: plain, rows rounded up to whole vectors.

    "deinterleave" copies the padded image once, column t·j + f to (f, j), where t = stride · width of the fused pool:
    then the pixels under neighbouring lanes are neighbours in memory, for every tap of every pixel of the pool's
    window.
    """
    choice = step.choice
    node, layout = choice.kernel.anchor, choice.reads[0]
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    n, maps, height, width = choice.kernel.output.shape
    depth, kh, kw = (int(extent) for extent in weight.shape[:3])
    p, q = window_size(choice.kernel)
    (sh, sw), (dh, dw), (top, left) = node["strides"], node["dilations"], node["pads"][:2]
    stored_width = width + choice.writes.halo[3]
    rows, phases, pitch = deinterleaved(choice.kernel, height, stored_width)
    image = given.shapes[node.inputs[0]]

    def pixel(i: Any, c: Any, row: Any, f: Any, j: Any) -> Expr:
        h, w = row - top, j * phases + f - left
        tests = [h >= 0, h < image[2], w >= 0, w < image[3]]
        return tirx.if_then_else(tirx.all(*tests), x[layout.index(Pixel(i, Channel(c, 0, 1), h, w))], float32(0.0))

    even_odd = te.compute((n, depth, rows, phases, pitch), pixel, name="deinterleave")
    rc, rh, rw = te.reduce_axis((0, depth), "rc"), te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")

    def tap(i: Any, y: Any, o: Any, dy: Any, dz: Any, j: Any) -> Expr:
        offset = dz * sw + rw * dw
        source = even_odd[i, rc, (y * p + dy) * sh + rh * dh, offset % phases, j + offset // phases]
        return te.sum(source * weight[rc, rh, rw, o], axis=[rc, rh, rw])

    conv = te.compute((n, height, maps, p, q, stored_width), tap, name="conv")
    return finish(step, given, lambda px, dy, dz: conv[px.n, px.h, px.channel.block, dy, dz, px.w])


def pixels(step: Step, given: Operands) -> te.Tensor:
    """Pixels in the lanes, for 1x1 filters in groups that fill no block of channels. x and y: plain; weight: as ONNX.

    A map is H·W pixels in runs of vectors of 16, of which a run's last is moved back until it ends with the run: its
    first lanes are computed twice. "conv" is (N, M, run, vector, lane), "out" (N, M, pixel).
    """
    kernel, run = step.choice.kernel, step.choice.numbers(PixelsConfig).pixels
    node = kernel.anchor
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    n, maps, height, width = kernel.output.shape
    depth, row = int(weight.shape[1]), Row(run)
    rc = te.reduce_axis((0, depth), "rc")

    def tap(i: Any, o: Any, r: Any, v: Any, lane: Any) -> Expr:
        p = r * run + row.element(v, lane)
        channel = o // (maps // node["group"]) * depth + rc
        return te.sum(x[i, channel, p // width, p % width] * weight[o, rc, 0, 0], axis=[rc])

    conv = te.compute((n, maps, height * width // run, row.vectors, LANES), tap, name="conv")
    bias = len(node.inputs) > 2

    def element(i: Any, o: Any, p: Any) -> Expr:
        pixel = Pixel(i, Channel(o, 0, 1), p // width, p % width)
        value = conv[(i, o, p // run, *row.place(p % run))]
        value = value + given.read(node.inputs[2], pixel) if bias else value
        return apply(kernel.nodes[1:], value, given, pixel)

    return te.compute((n, maps, height * width), element, name="out")


def grouped(step: Step, given: Operands) -> te.Tensor:
    """Plain NCHW for groups that fill no vector: x with a halo that holds the pads, weight as ONNX has it."""
    choice = step.choice
    node, layout = choice.kernel.anchor, choice.reads[0]
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    n, maps, height, width = choice.kernel.output.shape
    p, q = window_size(choice.kernel)
    depth, kh, kw = (int(extent) for extent in weight.shape[1:])
    rc, rh, rw = te.reduce_axis((0, depth), "rc"), te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")

    def tap(i: Any, o: Any, y: Any, dy: Any, z: Any, dz: Any) -> Expr:
        row, column = source_pixel(node, y * p + dy, rh, z * q + dz, rw)
        channel = Channel(o // (maps // node["group"]) * depth + rc, 0, 1)
        return te.sum(x[layout.index(Pixel(i, channel, row, column))] * weight[o, rc, rh, rw], axis=[rc, rh, rw])

    conv = te.compute((n, maps, height, p, width, q), tap, name="conv")
    return finish(step, given, lambda px, dy, dz: conv[px.n, px.channel.block, px.h, dy, px.w, dz])


def source_pixel(node: Node, y: Any, i: Any, z: Any, j: Any) -> tuple[Any, Any]:
    """The input pixel under tap (i, j) of output pixel (y, z): h·s + i·d − p."""
    (sh, sw), (dh, dw), pads = node["strides"], node["dilations"], node["pads"]
    return y * sh + i * dh - pads[0], z * sw + j * dw - pads[1]


def finish(step: Step, given: Operands, conv: Callable[[Pixel, int, int], Expr]) -> te.Tensor:
    """Bias, epilogue and pool over `conv(pixel, dy, dz)`, stored as "out" in the layout that the kernel makes."""
    layout = step.choice.makes

    def element(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        return finished(step, given, pixel, functools.partial(conv, pixel))

    return te.compute(layout.physical(step.choice.kernel.output.shape), element, name="out")


def finished(step: Step, given: Operands, pixel: Pixel, conv: Callable[[int, int], Expr]) -> Expr:
    """A pixel of the output: bias, epilogue and pool over `conv(dy, dx)`, the sums in the pool's window."""
    kernel = step.choice.kernel
    before, after = pool_first(kernel)
    pool = pool_of(kernel)
    bias_last = pool is not None and pool.op == "MaxPool" and not before  # a constant of the channel: see pool_first
    bias = given.read(kernel.anchor.inputs[2], pixel) if len(kernel.anchor.inputs) > 2 else float32(0.0)
    p, q = window_size(kernel)
    window = [conv(dy, dx) for dy in range(p) for dx in range(q)]
    if not bias_last:
        window = [apply(before, value + bias, given, pixel) for value in window]
    value = functools.reduce(tirx.max if pool is not None and pool.op == "MaxPool" else operator.add, window)
    if bias_last:
        value = value + bias
    elif len(window) > 1 and pool is not None and pool.op == "AveragePool":
        value = value / float32(len(window))
    return as_stored(step.choice.makes, kernel.output.shape, pixel, apply(after, value, given, pixel))
