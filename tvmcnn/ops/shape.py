"""Operators that move elements and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import strip
from tvmcnn.network import Channel, Node, Pixel, Shape, Step, Tensor, unmoved
from tvmcnn.ops.move import moved
from tvmcnn.ops.operands import Operands, dtype_of, extents, float32, inside, output_pixel


def concat(node: Node, output: Tensor, *parts: te.Tensor) -> te.Tensor:
    """ONNX Concat along one axis."""
    return _concat(output.shape, node["axis"], parts)


def concat_blocks(step: Step, given: Operands) -> te.Tensor:
    """ONNX Concat along the channels in NCHW16c, each part a whole number of blocks."""
    parts = [given.inputs[name] for name in step.choice.kernel.anchor.inputs]
    return _concat(step.choice.makes.physical(step.choice.kernel.output.shape), 1, parts)


def _concat(shape: Shape, axis: int, parts: Sequence[te.Tensor]) -> te.Tensor:
    """Concat of stored arrays along `axis`; empty parts are left out."""
    parts = [part for part in parts if int(part.shape[axis])]

    def element(*indices: Any) -> Expr:
        value, start = None, sum(int(part.shape[axis]) for part in parts)
        for part in reversed(parts):
            start -= int(part.shape[axis])
            own = part[(*indices[:axis], indices[axis] - start, *indices[axis + 1 :])]
            end = start + int(part.shape[axis])
            value = own if value is None else tirx.if_then_else(indices[axis] < end, own, value)
        return value

    return moved(shape, element, len(shape) - 1 - axis)


def transpose(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX Transpose: y[i_0, …] = x[…], axis a of y being axis perm[a] of x.

    The annotation "across" is the axis of y along which neighbours of x lie, where it is not the last.
    """
    perm = node["perm"]
    place = {axis: position for position, axis in enumerate(perm)}
    run = unmoved(perm)
    across = {} if run or not perm else {"across": place[len(perm) - 1]}
    return moved(output.shape, lambda *i: x[tuple(i[place[axis]] for axis in range(len(i)))], run, **across)


def reshape(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX Reshape, Flatten, Identity and the like where the copy cannot be avoided: the same elements in order."""
    return moved(extents(x), lambda *i: x[i], len(x.shape))


def transpose_blocks(step: Step, given: Operands) -> te.Tensor:
    """ONNX Transpose of an image between NCHW in blocks of channels and NHWC.

    y[n, h, w, c] = x[n, c, h, w] with perm (0, 2, 3, 1), and y[n, c, h, w] = x[n, h, w, c] with (0, 3, 1, 2). The last
    axis is a run of channels that are neighbours on both sides: 16, or of 24 channels 8.
    """
    choice = step.choice
    name, shape, to = choice.kernel.anchor.inputs[0], choice.kernel.output.shape, choice.makes
    block = max(to.block, choice.reads[0].block)
    run = math.gcd(block, shape[1 if to.block > 1 else 3])

    def to_blocks(*indices: Any) -> Expr:
        pixel = output_pixel(to, *indices)
        value = given.inputs[name][pixel.n, pixel.h, pixel.w, pixel.channel.flat]
        first = pixel.channel._replace(lane=pixel.channel.lane // run * run)  # a run is inside or not as a whole
        test = inside(to, shape, pixel._replace(channel=first))
        return value if test is None else tirx.if_then_else(test, value, float32(0.0))

    def to_rows(n: Any, h: Any, w: Any, runs: Any, lane: Any) -> Expr:
        first = runs * run
        return given.read(name, Pixel(n, Channel(first // block, first % block + lane, block), h, w))

    if to.block > 1:
        return te.compute(to.physical(shape), to_blocks, name="out", attrs={"vector": run})
    return te.compute((*shape[:-1], shape[-1] // run, run), to_rows, name="out")


def reorder(step: Step, given: Operands) -> te.Tensor:
    """The same tensor in another layout: blocks of channels, a halo, or neither."""
    choice = step.choice
    name, shape, layout = choice.kernel.anchor.inputs[0], choice.kernel.output.shape, choice.makes
    if len(shape) != 4:  # a matrix without its halo, or of images side by side
        x, images = given.inputs[name], choice.reads[0].images
        if images > 1:
            return te.compute(shape, lambda n, c: x[n // images, c, n % images], name="out")
        return te.compute(layout.physical(shape), lambda *i: given.read(name, i), name="out")

    def element(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        value = given.read(name, Pixel(pixel.n, Channel(pixel.channel.flat, 0, 1), pixel.h, pixel.w))
        test = inside(layout, shape, pixel)
        return value if test is None else tirx.if_then_else(test, value, tirx.const(0, dtype_of(value)))

    channels, rows = strip(shape)
    strips = {"channels": channels, "rows": rows} if layout.plain and choice.reads[0].block > 1 and rows else {}
    return te.compute(layout.physical(shape), element, name="out", attrs=strips)


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {"Concat": concat, "Transpose": transpose, "Reshape": reshape}
