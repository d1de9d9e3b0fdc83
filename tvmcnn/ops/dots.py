"""Convolutions of integers of 8 bits, exactly: channels in the lanes, a few products of each in one instruction.

    y = rint(float32(offset[m] + Σ_{c,k} x · w) · factor[m]) + to

The zero point of x is in the offsets, b[m] - zero · Σ w[m], so that the bytes are multiplied as they are; the halo of x
holds the zero point, and adds nothing. See docs/quantised.md for what is rounded, and schedule/x86/dots.py for the
instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import channels_together, groups_together, summed_channels
from tvmcnn.configs import DotsConfig
from tvmcnn.network import Channel, Layout, Node, Pixel, Shape, Step, Tensor
from tvmcnn.ops.direct import PixelTiles, image_of
from tvmcnn.ops.operands import Operands, inside, output_pixel
from tvmcnn.ops.quantised import stored
from tvmcnn.ops.tiles import Tiled
from tvmcnn.ops.windows import guarded


def dots(step: Step, given: Operands) -> Tiled:
    """QLinearConv. x: NCHW{b}c with a halo of its zero point; y: NCHW16c; weight: OIHW{b/n}i16o{n}i, or CHW16c.

    "conv" is that of ops/direct.py, in int32, whose innermost reduction "rn" is the n products of one instruction.
    """
    config, tiles, node = step.choice.numbers(DotsConfig), PixelTiles.of(step.choice), step.choice.kernel.anchor
    conv = (_depthwise if config.terms == 1 else _products)(step, given, tiles)
    _, factor, offset = given.constants.values()  # as packing.py makes them

    def finished(pixel: Pixel, sums: Callable[[int, int], Expr]) -> Expr:
        block, lane = pixel.channel.block, pixel.channel.lane
        value = (sums(0, 0) + offset[block, lane]).astype("float32") * factor[block, lane]
        return stored(value, node, step.choice.kernel.output.dtype)

    return tiles.finish(step, conv, finished)


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
        value = image(i, of, (ty, y, dy, rh), (tx, x, dx, rw)).astype("int32")
        value = value + config.shift if config.shift else value
        product = value * weight[ob, cb, rh, rw, quad, o, rn].astype("int32")
        return te.sum(product, axis=[rb, rh, rw, rc, rn])

    return te.compute(tiles.window_shape(n, blocks, lanes), tap, name="conv")


def _depthwise(step: Step, given: Operands, tiles: PixelTiles) -> te.Tensor:
    """One filter a channel."""
    weight, image = given.constants[step.choice.kernel.anchor.inputs[1]], image_of(step, given, tiles)
    blocks, kh, kw, lanes = (int(extent) for extent in weight.shape)
    rh, rw = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")

    def tap(i: Any, ob: Any, ty: Any, y: Any, dy: Any, tx: Any, x: Any, dx: Any, o: Any) -> Expr:
        value = image(i, Channel(ob, o, lanes), (ty, y, dy, rh), (tx, x, dx, rw)).astype("int32")
        return te.sum(value * weight[ob, rh, rw, o], axis=[rh, rw])

    return te.compute(tiles.window_shape(step.choice.kernel.output.shape[0], blocks, lanes), tap, name="conv")
