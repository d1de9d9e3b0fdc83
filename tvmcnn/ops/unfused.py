"""Open variants: the nodes of one fused kernel as separate expressions in plain layout, so that hidden tensors show.

They read the very inputs and packed constants of the fused kernel, and store each tensor that fusion keeps in
registers.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import groups_together
from tvmcnn.fuse import ELEMENTWISE, POOLS
from tvmcnn.network import Channel, Node, Pixel, Step
from tvmcnn.ops import amx
from tvmcnn.ops.bfloat16 import narrowed, widened
from tvmcnn.ops.dense import column_tiles
from tvmcnn.ops.elementwise import computed
from tvmcnn.ops.images import term
from tvmcnn.ops.operands import Operands, extents, float32, unravel
from tvmcnn.ops.unfused_bytes import unfused_sums
from tvmcnn.ops.winograd import filter_tap

Weight = Callable[[Any, Any, Any, Any], Expr]


def hidden_tensors(step: Step, given: Operands) -> list[te.Tensor]:
    """One tensor for each of `Kernel.hidden`, in order, in its ONNX shape."""
    shapes = {tensor.name: tensor.shape for tensor in step.choice.kernel.hidden}
    made: dict[str, te.Tensor] = {}
    for node in step.choice.kernel.all_nodes[:-1]:
        make = ANCHORS.get(node.op)
        if make is not None and node is step.choice.kernel.anchor:
            made[node.output] = make(step, node, shapes[node.output], given, made)
        elif node.op in POOLS:
            made[node.output] = _tiles(node, shapes[node.output], made[node.inputs[0]])
        else:
            made[node.output] = _elementwise(node, shapes[node.output], made, step, given)
    return list(made.values())


def _conv(step: Step, node: Node, shape: tuple[int, ...], given: Operands, made: Mapping[str, te.Tensor]) -> te.Tensor:
    if step.choice.algorithm not in TAPS:
        return _dense(step, node, shape, given, made)
    x, image, layout = node.inputs[0], step.choice.kernel.inputs[0].shape, step.choice.reads[0]
    weight, depth = _weight(step, given.constants[node.inputs[1]]), image[1] // node["group"]
    (sh, sw), (dh, dw), (top, left) = node["strides"], node["dilations"], node["pads"][:2]
    image_factor = FACTORS.get(step.choice.algorithm, lambda value: value)
    rc = te.reduce_axis((0, depth), "rc")
    rh, rw = te.reduce_axis((0, node["kernel_shape"][0]), "rh"), te.reduce_axis((0, node["kernel_shape"][1]), "rw")

    def tap(n: Any, o: Any, y: Any, z: Any) -> Expr:
        h, w = y * sh + rh * dh - top, z * sw + rw * dw - left
        channel = Channel(o // (shape[1] // node["group"]) * depth + rc, 0, 1)
        inside = tirx.all(h >= 0, h < image[2], w >= 0, w < image[3])
        pixel = Pixel(n, channel, h, w)
        source = made[x][n, channel.flat, h, w] if x in made else given.element(x, layout.index(pixel))
        source = tirx.if_then_else(inside, source, float32(0.0))
        return te.sum(image_factor(source) * weight(o, rc, rh, rw), axis=[rc, rh, rw])

    total = te.compute(shape, tap, name=f"{node.op.lower()}_sum")
    return _add_bias(step, node, shape, given, total)


def _dense(step: Step, node: Node, shape: tuple[int, ...], given: Operands, made: Mapping[str, te.Tensor]) -> te.Tensor:
    x, packed = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    images = step.choice.reads[0].images
    rows = shape[0] if node.op == "Conv" else math.prod(shape[:-1])
    depth = int(packed.shape[0]) if images > 1 else math.prod(extents(x)) // rows
    rk = te.reduce_axis((0, depth), "rk")

    def dot(*indices: Any) -> Expr:
        if node.op == "Conv":
            row, o = indices[:2]
        else:
            row, o = tirx.const(0, "int32"), indices[-1]
            for index, extent in zip(indices[:-1], shape[:-1], strict=True):
                row = row * extent + index
        if images > 1:
            return te.sum(term(x, row // images, rk, row % images) * packed[rk, o], axis=[rk])
        tile, column = column_tiles(step.choice).place(o)
        factor = x[unravel(row * depth + rk, extents(x))]
        if len(packed.shape) == 4:  # of bfloat16, in pairs
            return te.sum(widened(narrowed(factor)) * widened(packed[tile, rk // 2, column, rk % 2]), axis=[rk])
        return te.sum(factor * packed[tile, rk, column], axis=[rk])

    return _add_bias(step, node, shape, given, te.compute(shape, dot, name=f"{node.op.lower()}_sum"))


def _add_bias(step: Step, node: Node, shape: tuple[int, ...], given: Operands, total: te.Tensor) -> te.Tensor:
    def element(*indices: Any) -> Expr:
        if len(node.inputs) < 3:
            return total[indices]
        return total[indices] + _constant(step, given, node.inputs[2], indices)

    return te.compute(shape, element, name=node.op.lower())


def _constant(step: Step, given: Operands, name: str, indices: tuple[Any, ...]) -> Expr:
    """A constant of the epilogue, packed one value a channel, at plain indices."""
    if name in given.scalars:
        return float32(given.scalars[name])
    packed = given.constants[name]
    if step.choice.kernel.anchor.op in ELEMENTWISE and step.choice.writes.plain:
        return given.read(name, indices)
    is_image = len(indices) == 4 and step.choice.kernel.anchor.op != "Gemm"
    channel = indices[1] if is_image else indices[-1]
    if len(packed.shape) == 1:
        return packed[channel]
    block = int(packed.shape[1])
    return packed[channel // block, channel % block]


def _weight(step: Step, packed: te.Tensor) -> Weight:
    """The weight as ONNX has it, k[o, c, i, j], read from where the algorithm's packing put it."""
    return TAPS[step.choice.algorithm](step, packed)


def _tap_of_direct(step: Step, packed: te.Tensor) -> Weight:
    lanes, block, kernel = int(packed.shape[-1]), int(packed.shape[-2]), step.choice.kernel
    group = kernel.anchor["group"]
    depth, maps, together = kernel.inputs[0].shape[1] // group, kernel.output.shape[1], groups_together(kernel)

    def tap(o: Any, c: Any, i: Any, j: Any) -> Expr:
        c = c + o // (maps // group) % together * depth
        return packed[o // lanes, c // block, i, j, c % block, o % lanes]

    return tap


def _tap_of_bf16(step: Step, packed: te.Tensor) -> Weight:
    lanes, pairs = int(packed.shape[-2]), int(packed.shape[-3])

    def tap(o: Any, c: Any, i: Any, j: Any) -> Expr:
        return widened(packed[o // lanes, c // (2 * pairs), i, j, c % (2 * pairs) // 2, o % lanes, c % 2])

    return tap


def _tap_of_streamed(step: Step, packed: te.Tensor) -> Weight:
    lanes = int(packed.shape[-1])
    return lambda o, c, i, j: packed[o // lanes, c // lanes, c % lanes, i, j, o % lanes]


def _tap_of_depthwise(step: Step, packed: te.Tensor) -> Weight:
    lanes = int(packed.shape[-1])
    return lambda o, c, i, j: packed[o // lanes, i, j, o % lanes]


def _tap_of_few_maps(step: Step, packed: te.Tensor) -> Weight:
    block = int(packed.shape[-1])
    return lambda o, c, i, j: packed[o, c // block, i, j, c % block]


def _tap_of_winograd(step: Step, packed: te.Tensor) -> Weight:
    return lambda o, c, i, j: filter_tap(step, packed, o, c, i, j)


def _tap_of_columns(step: Step, packed: te.Tensor) -> Weight:
    return lambda o, c, i, j: packed[c, i, j, o]


def _tap_as_it_is(step: Step, packed: te.Tensor) -> Weight:
    return lambda o, c, i, j: packed[o, c, i, j]


TAPS: dict[str, Callable[[Step, te.Tensor], Weight]] = {  # the inverse of each packing of a convolution's weight
    "direct": _tap_of_direct,
    "bf16": _tap_of_bf16,
    "amx_bf16": lambda step, packed: lambda o, c, i, j: widened(amx.filter_tap(step, packed, o, c, i, j)),
    "depthwise": _tap_of_depthwise,
    "winograd": _tap_of_winograd,
    "streamed": _tap_of_streamed,
    "columns": _tap_of_columns,
    "conv_images": _tap_of_columns,
    "few_maps": _tap_of_few_maps,
    "pixels": _tap_as_it_is,
    "grouped": _tap_as_it_is,
}
FACTORS: dict[str, Callable[[Expr], Expr]] = {  # what is multiplied of an image, where that is not its own elements
    **dict.fromkeys(("bf16", "amx_bf16"), lambda value: widened(narrowed(value))),
}


def _tiles(node: Node, shape: tuple[int, ...], x: te.Tensor) -> te.Tensor:
    p, q = node["kernel_shape"]

    def element(n: Any, c: Any, y: Any, z: Any) -> Expr:
        window = [x[n, c, y * p + dy, z * q + dz] for dy in range(p) for dz in range(q)]
        value = functools.reduce(tirx.max if node.op == "MaxPool" else operator.add, window)
        return value if node.op == "MaxPool" else value / float32(p * q)

    return te.compute(shape, element, name=node.op.lower())


def _elementwise(
    node: Node, shape: tuple[int, ...], made: dict[str, te.Tensor], step: Step, given: Operands
) -> te.Tensor:
    def operand(name: str, indices: tuple[Any, ...]) -> Expr:
        if name in made:
            return made[name][indices]
        if name not in given.inputs:
            return _constant(step, given, name, indices)
        plain = step.choice.kernel.anchor.op in ELEMENTWISE and step.choice.writes.plain
        if len(indices) != 4 or plain or step.choice.kernel.anchor.op == "Gemm":
            return given.read(name, indices)
        n, c, h, w = indices
        return given.read(name, Pixel(n, Channel(c, 0, 1), h, w))

    def element(*indices: Any) -> Expr:
        operands = [operand(name, indices) for name in node.inputs]
        return computed(node, operands, related=len(set(node.inputs)) < len(node.inputs))

    return te.compute(shape, element, name=node.op.lower())


ANCHORS = {"Conv": _conv, "Gemm": _dense, "QLinearConv": unfused_sums}
