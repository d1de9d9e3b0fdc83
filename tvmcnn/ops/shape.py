"""Operators that move elements and compute nothing."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.operands import Operands, float32, inside, output_pixel


def concat(step: Step, given: Operands) -> te.Tensor:
    """ONNX Concat along one axis; in NCHW16c along the channels, each part a whole number of blocks."""
    node, layout = step.choice.kernel.anchor, step.choice.writes
    axis = node["axis"]
    parts = [given.inputs[name] for name in node.inputs]
    shape = layout.physical(step.choice.kernel.output.shape)

    def element(*indices: Any) -> Expr:
        value, start = None, sum(int(part.shape[axis]) for part in parts)
        for part in reversed(parts):
            start -= int(part.shape[axis])
            own = part[(*indices[:axis], indices[axis] - start, *indices[axis + 1 :])]
            end = start + int(part.shape[axis])
            value = own if value is None else tirx.if_then_else(indices[axis] < end, own, value)
        return value

    return te.compute(shape, element, name="out")


def pad(step: Step, given: Operands) -> te.Tensor:
    """ONNX Pad with a constant value, in plain layout; a negative begin or end crops."""
    node = step.choice.kernel.anchor
    x = given.inputs[node.inputs[0]]
    begins, value = node["begins"], float32(node["value"])

    def element(*indices: Any) -> Expr:
        source = tuple(i - begin for i, begin in zip(indices, begins, strict=True))
        tests = [
            test
            for i, extent, begin, size in zip(source, x.shape, begins, step.choice.kernel.output.shape, strict=True)
            for needed, test in ((begin > 0, i >= 0), (size - begin > int(extent), i < extent))
            if needed
        ]
        return tirx.if_then_else(tirx.all(*tests), x[source], value) if tests else x[source]

    return te.compute(step.choice.kernel.output.shape, element, name="out")


def transpose(step: Step, given: Operands) -> te.Tensor:
    """ONNX Transpose: y[i_0, …] = x[…], axis a of y being axis perm[a] of x."""
    node, shape = step.choice.kernel.anchor, step.choice.kernel.output.shape
    x = given.inputs[node.inputs[0]]
    place = {axis: position for position, axis in enumerate(node["perm"])}
    return te.compute(shape, lambda *i: x[tuple(i[place[axis]] for axis in range(len(shape)))], name="out")


def reshape(step: Step, given: Operands) -> te.Tensor:
    """ONNX Reshape, Flatten and Identity where the copy cannot be avoided: the same elements in the same order."""
    kernel = step.choice.kernel
    x, size = given.inputs[kernel.anchor.inputs[0]], math.prod(kernel.output.shape)

    def element(*indices: Any) -> Expr:
        offset, source = tirx.const(0, "int32"), []
        for i, extent in zip(indices, kernel.output.shape, strict=True):
            offset = offset * extent + i
        for extent in reversed([int(e) for e in x.shape]):
            source.append(offset % extent)
            offset = offset // extent
        return x[tuple(reversed(source))]

    return te.compute(kernel.output.shape if size else (1,), element, name="out")


def reorder(step: Step, given: Operands) -> te.Tensor:
    """The same tensor in another layout: blocks of channels, a halo of zeros, or neither."""
    choice = step.choice
    name, shape, layout = choice.kernel.anchor.inputs[0], choice.kernel.output.shape, choice.writes
    if len(shape) != 4:  # a matrix without its halo
        return te.compute(layout.physical(shape), lambda *i: given.read(name, i), name="out")

    def element(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)
        value = given.read(name, Pixel(pixel.n, Channel(pixel.channel.flat, 0, 1), pixel.h, pixel.w))
        test = inside(layout, shape, pixel)
        return value if test is None else tirx.if_then_else(test, value, float32(0.0))

    return te.compute(layout.physical(shape), element, name="out")
