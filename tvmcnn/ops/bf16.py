"""Convolutions whose factors are bfloat16: the image is rounded first, then channels in the lanes, two products in one
instruction, sums in float32.

    rounded = bf16(x); y = Σ_{c,k} float32(rounded[c, …]) · float32(w[m, c, k])
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import te
from tvm.ir import Expr

from tvmcnn.blocks import channels_together, summed_channels
from tvmcnn.configs import PairsConfig
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.bfloat16 import widened
from tvmcnn.ops.conv import finished
from tvmcnn.ops.direct import PixelTiles, Position, rounded_element
from tvmcnn.ops.operands import Operands
from tvmcnn.ops.tiles import Tiled


def bf16(step: Step, given: Operands) -> Tiled:
    """Conv of one group. x: NCHW16c in float32, with a halo that holds the pads; y: NCHW16c; weight: OIHW8i16o2i.

    "rounded" is what a band of rows reads, (N, C/16, bands, rows, columns, 16); "conv" that of ops/direct.py, whose
    innermost reduction "rn" is the two products of one instruction.
    """
    choice, tiles = step.choice, PixelTiles.of(step.choice)
    weight, image = given.constants[choice.kernel.anchor.inputs[1]], _rounded_image(step, given, tiles)
    blocks, _, kh, kw, pairs, lanes, terms = (int(extent) for extent in weight.shape)
    blocks_read, channels = summed_channels(channels_together(choice.kernel), pairs * terms)
    rb, rc = te.reduce_axis((0, blocks_read), "rb"), te.reduce_axis((0, channels // terms), "rc")
    rh, rw, rn = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw"), te.reduce_axis((0, terms), "rn")
    cb, pair = (rb, rc) if channels == pairs * terms else (rc // pairs, rc % pairs)

    def tap(i: Any, ob: Any, ty: Any, y: Any, dy: Any, tx: Any, x: Any, dx: Any, o: Any) -> Expr:
        value = image(i, Channel(cb, pair * terms + rn, pairs * terms), (ty, y, dy, rh), (tx, x, dx, rw))
        return te.sum(widened(value) * widened(weight[ob, cb, rh, rw, pair, o, rn]), axis=[rb, rh, rw, rc, rn])

    conv = te.compute(tiles.window_shape(choice.kernel.output.shape[0], blocks, lanes), tap, name="conv")
    return tiles.finish(step, conv, functools.partial(finished, step, given))


def _rounded_image(
    step: Step, given: Operands, tiles: PixelTiles
) -> Callable[[Any, Channel, Position, Position], Expr]:
    """The image that the convolution reads, after its prologue if it has one, rounded band by band."""
    kernel, layout, bands = step.choice.kernel, step.choice.reads[0], step.choice.numbers(PairsConfig).bands
    shape = given.shapes[kernel.inputs[0].name]
    tiles_per_band = tiles.rows.count // bands

    def value(i: Any, b: Any, band: Any, row: Any, column: Any, lane: Any) -> Expr:
        first = tiles.first(0, band * tiles_per_band), tiles.first(1, 0)
        pixel = Pixel(i, Channel(b, lane, layout.block), first[0] + row, first[1] + column)
        return rounded_element(step, given, pixel)

    def extent(axis: int, pixels: int) -> int:
        tap = (tiles.window[axis] - 1, tiles.node["kernel_shape"][axis] - 1)
        return int(tiles.offset(axis, pixels - 1, *tap)) + 1

    blocks, height, width = -(-shape[1] // layout.block), tiles.rows.extent // bands, tiles.columns.extent
    sizes = (shape[0], blocks, bands, extent(0, height), extent(1, width), layout.block)
    made = te.compute(sizes, value, name="rounded")

    def read(i: Any, channel: Channel, y: Position, x: Position) -> Expr:
        band = y[0] // tiles_per_band
        row = tiles.first(0, y[0]) - tiles.first(0, band * tiles_per_band) + tiles.offset(0, *y[1:])
        column = tiles.first(1, x[0]) - tiles.first(1, 0) + tiles.offset(1, *x[1:])
        return made[i, channel.block, band, row, column, channel.lane]

    return read
