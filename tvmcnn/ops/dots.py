"""Convolutions of integers of 8 bits, exactly: channels in the lanes, a few products of each in one instruction.

    y = rint(float32(offset[m] + Σ_{c,k} x · w) · factor[m]) + to

The zero point of x is in the offsets, b[m] - zero · Σ w[m], so that the bytes are multiplied as they are; the halo of x
holds the zero point, and adds nothing. See docs/quantised.md for what is rounded, and schedule/x86/dots.py for the
instructions.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import BLOCK, channels_together, groups_together, summed_channels
from tvmcnn.configs import DotsConfig
from tvmcnn.fuse import is_depthwise
from tvmcnn.network import IN_BYTES, Channel, Node, Pixel, Step
from tvmcnn.ops.direct import PixelTiles, image_of
from tvmcnn.ops.integers import combined, rounded, within
from tvmcnn.ops.operands import Operands, float32
from tvmcnn.ops.tiles import Tiled


def dots(step: Step, given: Operands) -> Tiled:
    """QLinearConv. x: NCHW{b}c with a halo of its zero point; y: NCHW16c; weight: OIHW{b/n}i16o{n}i, or CHW16c.

    "conv" is that of ops/direct.py, in int32, whose innermost reduction "rn" is the n products of one instruction.
    """
    tiles = PixelTiles.of(step.choice)
    conv = (_depthwise if is_depthwise(step.choice.kernel) else _products)(step, given, tiles)
    return tiles.finish(step, conv, lambda pixel, sums: requantised(step, given, pixel, sums(0, 0)))


def requantised(step: Step, given: Operands, pixel: Pixel, total: Expr) -> Expr:
    """The byte of the output that a sum becomes, with the QLinearAdd or QLinearMul that follows."""
    value, last = finished(step, given, pixel, total), step.choice.kernel.nodes[-1]
    made = moved_within(rint(value).astype("int32"), last) if is_quick(step) else rounded(value, last)
    return made.astype(step.choice.kernel.output.dtype)


def is_quick(step: Step) -> bool:
    """Whether what a sum becomes is within int32, so that it may be rounded before it is kept within bounds."""
    node, last = step.choice.kernel.anchor, step.choice.kernel.nodes[-1]
    return bool(node[IN_BYTES] if last is node else last["form"] == "linear")


def finished(step: Step, given: Operands, pixel: Pixel, total: Expr) -> Expr:
    """What a sum becomes, in float32 and still to be rounded."""
    node, last = step.choice.kernel.anchor, step.choice.kernel.nodes[-1]
    value = scaled(given, total, pixel.channel.block, pixel.channel.lane)
    return value if last is node else with_another(last, given, _nearest_float(value, node), pixel)


def moved_within(value: Expr, node: Node) -> Expr:
    """An int32 with the zero point of the output, within its bounds: those of integers cost less than those of floats
    where the zero point is 0, since they are then part of the narrowing."""
    moved = value + node["to"] if node["to"] else value
    return within(moved, *(tirx.const(node[word], "int32") for word in ("low", "high")))


def _nearest_float(value: Expr, node: Node) -> Expr:
    """That integer as a float32."""
    low, high = (float32(node[word] - node["to"]) for word in ("low", "high"))
    return rint(within(value, low, high)) + float32(node["to"])


def rint(value: Expr) -> Expr:
    """The next integer, halves to even: one instruction on a vector, where TVM's `nearbyint` is one a lane."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.rint", value)


def scaled(given: Operands, total: Expr, block: Any, lane: Any) -> Expr:
    """A sum in float32 as it is rounded: with the offset and the factor of its map."""
    _, factor, offset, *_ = given.constants.values()  # as packing.py makes them
    return (total + offset[block, lane]).astype("float32") * factor[block, lane]


def with_another(node: Node, given: Operands, value: Expr, pixel: Pixel) -> Expr:
    """QLinearAdd or QLinearMul of `value`, which the kernel has, and an image, in float32 and still to be rounded."""
    a, b = (given.read(name, pixel) if name in given.inputs else value for name in node.inputs[:2])
    return combined(node, a, b, [given.constants[name] for name in node.inputs[2:]])


def filter_tap(step: Step, weight: te.Tensor, o: Any, c: Any, rh: Any, rw: Any) -> Expr:
    """The weight of a map for a channel of its group, as packing.dots has it."""
    kernel, config = step.choice.kernel, step.choice.numbers(DotsConfig)
    if config.terms == 1:
        return weight[o // BLOCK, rh, rw, o % BLOCK]
    if is_depthwise(kernel):
        return weight[o // BLOCK, rh, rw // config.terms, o % BLOCK, rw % config.terms]
    group, (quads, terms) = kernel.anchor["group"], (int(weight.shape[4]), int(weight.shape[6]))
    own = o // (kernel.output.shape[1] // group) % groups_together(kernel)
    c = c + own * (kernel.inputs[0].shape[1] // group)
    lane = c % (quads * terms)
    return weight[o // BLOCK, c // (quads * terms), rh, rw, lane // terms, o % BLOCK, lane % terms]


def _products(step: Step, given: Operands, tiles: PixelTiles) -> te.Tensor:
    choice, config = step.choice, step.choice.numbers(DotsConfig)
    node, (n, maps) = choice.kernel.anchor, choice.kernel.output.shape[:2]
    weight, image = given.constants[node.inputs[1]], image_of(step, given, tiles)
    blocks, depth, kh, kw, quads, lanes, terms = (int(extent) for extent in weight.shape)
    group, block, together = node["group"], quads * terms, groups_together(choice.kernel)
    blocks_per_group = -(-maps // group * together // lanes)
    blocks_read, channels = summed_channels(channels_together(choice.kernel), block)
    rb, rc = te.reduce_axis((0, blocks_read), "rb"), te.reduce_axis((0, channels // terms), "rc")
    rh, rw, rn = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw"), te.reduce_axis((0, terms), "rn")
    cb, quad = (rb, rc) if channels == block else (rc // quads, rc % quads)

    def tap(i: Any, ob: Any, ty: Any, y: Any, dy: Any, tx: Any, x: Any, dx: Any, o: Any) -> Expr:
        of = Channel((ob // blocks_per_group) * depth + cb if group > together else cb, quad * terms + rn, block)
        value = image(i, of, (ty, y, dy, rh), (tx, x, dx, rw)).astype("int32") + config.shift
        product = value * weight[ob, cb, rh, rw, quad, o, rn].astype("int32")
        return te.sum(product, axis=[rb, rh, rw, rc, rn])

    return te.compute(tiles.window_shape(n, blocks, lanes), tap, name="conv")


def _depthwise(step: Step, given: Operands, tiles: PixelTiles) -> te.Tensor:
    """One filter a channel. An instruction adds the products of 4 taps of a row; taps that a row has not are 0, for
    whose pixels there is room in the halo at the right."""
    weight, image = given.constants[step.choice.kernel.anchor.inputs[1]], image_of(step, given, tiles)
    blocks, kh, kw, lanes, *terms = (int(extent) for extent in weight.shape)
    rh, rw = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")
    rn = [te.reduce_axis((0, extent), "rn") for extent in terms]
    shift = step.choice.numbers(DotsConfig).shift

    def tap(i: Any, ob: Any, ty: Any, y: Any, dy: Any, tx: Any, x: Any, dx: Any, o: Any) -> Expr:
        column = rw * terms[0] + rn[0] if terms else rw
        value = image(i, Channel(ob, o, lanes), (ty, y, dy, rh), (tx, x, dx, column)).astype("int32") + shift
        return te.sum(value * weight[(ob, rh, rw, o, *rn)].astype("int32"), axis=[rh, rw, *rn])

    return te.compute(tiles.window_shape(step.choice.kernel.output.shape[0], blocks, lanes), tap, name="conv")
