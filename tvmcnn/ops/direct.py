"""Direct convolution: channels in the lanes, tiles of output pixels by rows and columns, see tiles.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import BLOCK, channels_together, groups_together, summed_channels
from tvmcnn.configs import TileConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import Channel, Choice, Layout, Node, Pixel, Shape, Step
from tvmcnn.ops.bfloat16 import narrowed
from tvmcnn.ops.conv import finished
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.operands import Operands, as_stored, dtype_of, float32, inside, output_pixel
from tvmcnn.ops.tiles import Tiled, Tiles


def direct(step: Step, given: Operands) -> Tiled:
    """Channels in the lanes. x: NCHW or NCHW{b}c with a halo that holds the pads; y: NCHW16c; weight: OIHW{b}i16o.

    "conv" is (N, M/16, H'/r, r, p, W'/c, c, q, 16): tiles of r x c pixels, and p x q the window of a fused pool (1 x 1
    without one). A prologue makes x first, as the stage "prologue", for a tile; a plain x without a halo gets one, as
    the stage "padded", for a row of tiles.
    """
    choice, tiles = step.choice, PixelTiles.of(step.choice)
    node = choice.kernel.anchor
    weight, image = given.constants[node.inputs[1]], image_of(step, given, tiles)
    n, maps = choice.kernel.output.shape[:2]
    blocks, depth, kh, kw, block, lanes = (int(extent) for extent in weight.shape)
    group, together = node["group"], groups_together(choice.kernel)
    blocks_per_group = -(-maps // group * together // lanes)
    blocks_read, terms = summed_channels(channels_together(choice.kernel), block)
    rb, rc = te.reduce_axis((0, blocks_read), "rb"), te.reduce_axis((0, terms), "rc")
    rh, rw = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")
    cb, c = (rb, rc) if terms == block else (rc // block, rc % block)

    def tap(i: Any, ob: Any, ty: Any, y: Any, dy: Any, tx: Any, x: Any, dx: Any, o: Any) -> Expr:
        channel = Channel((ob // blocks_per_group) * depth + cb if group > together else cb, c, block)
        product = image(i, channel, (ty, y, dy, rh), (tx, x, dx, rw)) * weight[ob, cb, rh, rw, c, o]
        return te.sum(product, axis=[rb, rh, rw, rc])

    conv = te.compute(tiles.window_shape(n, blocks, lanes), tap, name="conv")
    return tiles.finish(step, conv, functools.partial(finished, step, given))


def depthwise(step: Step, given: Operands) -> Tiled:
    """One filter a channel, channels in the lanes. x and y: NCHW16c, x with a halo; weight: (C/16, kH, kW, 16).

    "conv" is that of `direct`.
    """
    choice, tiles = step.choice, PixelTiles.of(step.choice)
    weight, image = given.constants[choice.kernel.anchor.inputs[1]], image_of(step, given, tiles)
    blocks, kh, kw, lanes = (int(extent) for extent in weight.shape)
    rh, rw = te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")

    def tap(i: Any, ob: Any, ty: Any, y: Any, dy: Any, tx: Any, x: Any, dx: Any, o: Any) -> Expr:
        pixel = image(i, Channel(ob, o, lanes), (ty, y, dy, rh), (tx, x, dx, rw))
        return te.sum(pixel * weight[ob, rh, rw, o], axis=[rh, rw])

    conv = te.compute(tiles.window_shape(choice.kernel.output.shape[0], blocks, lanes), tap, name="conv")
    return tiles.finish(step, conv, functools.partial(finished, step, given))


Finish = Callable[[Pixel, Callable[[int, int], Expr]], Expr]  # (the pixel, the sum at a place in the pool's window)
Position = tuple[Any, Any, Any, Any]  # along an axis: the tile, the pixel in it, that in the pool's window, the tap


@dataclass(frozen=True)
class PixelTiles:
    """Tiles of output pixels, rows by columns, and what of the image one reads."""

    rows: Tiles
    columns: Tiles
    window: tuple[int, int]  # of a fused pool
    node: Node

    @staticmethod
    def of(choice: Choice) -> PixelTiles:
        """The tiles of a direct convolution; one of all pixels, which the schedule cuts up, where none overlap."""
        config, extents = choice.numbers(TileConfig), choice.kernel.output.shape[2:]
        sizes = (config.rows, config.columns) if config.overlap else extents
        rows, columns = (Tiles(extent, size) for extent, size in zip(extents, sizes, strict=True))
        return PixelTiles(rows, columns, window_size(choice.kernel), choice.kernel.anchor)

    def window_shape(self, n: int, blocks: int, lanes: int) -> Shape:
        """The shape of a stage that has every pixel of the pool's windows."""
        (p, q), rows, columns = self.window, self.rows, self.columns
        return (n, blocks, rows.count, rows.tile, p, columns.count, columns.tile, q, lanes)

    def first(self, axis: int, tile: Any) -> Any:
        """The row or column of the image under the first tap of a tile."""
        along = (self.rows, self.columns)[axis]
        return along.element(tile, 0) * self.window[axis] * self.node["strides"][axis] - self.node["pads"][axis]

    def offset(self, axis: int, pixel: Any, within: Any, tap: Any) -> Any:
        """Rows or columns of the image from the first to that of a pixel, a position in the pool's window and a tap."""
        return (pixel * self.window[axis] + within) * self.node["strides"][axis] + tap * self.node["dilations"][axis]

    def extent(self, axis: int) -> int:
        """How many rows or columns of the image a tile reads."""
        tile, size, kernel = (self.rows, self.columns)[axis].tile, self.window[axis], self.node["kernel_shape"][axis]
        return int(self.offset(axis, tile - 1, size - 1, kernel - 1)) + 1

    def finish(self, step: Step, conv: te.Tensor, finished: Finish) -> Tiled:
        """What `finished` makes of the sums in a pool's window: "out" is (N, M/16, H'/r, r, W'/c, c, 16)."""
        layout = step.choice.makes
        memory = layout.physical(step.choice.kernel.output.shape)

        def place(at: Sequence[Any]) -> tuple[Any, ...]:
            i, ob, ty, y, tx, x, o = at
            return layout.index(Pixel(i, Channel(ob, o, BLOCK), self.rows.element(ty, y), self.columns.element(tx, x)))

        def element(*at: Any) -> Expr:
            i, ob, ty, y, tx, x, o = at
            pixel = output_pixel(layout, *place(at))
            return finished(pixel, lambda dy, dx: conv[i, ob, ty, y, dy, tx, x, dx, o])

        rows, columns = self.rows, self.columns
        blocks = memory[1] * memory[4] // BLOCK
        by_tiles = (memory[0], blocks, rows.count, rows.tile, columns.count, columns.tile, BLOCK)
        return Tiled(te.compute(by_tiles, element, name="out"), memory, place)


def image_element(step: Step, given: Operands, pixel: Pixel) -> Expr:
    """What a convolution in blocks multiplies at a pixel: the image, or what the prologue makes of it.

    Read by its layout, not by `Operands.read`, to which an image of one row or column is a gate without a halo.
    """
    kernel, layout = step.choice.kernel, step.choice.reads[0]
    name = kernel.inputs[0].name
    value = given.element(name, layout.index(pixel))
    if not kernel.prologue:
        return value
    # Past the last channel it may be NaN, 0 / 0 or a gate's neighbour, which a weight of 0 does not make 0.
    made = apply(kernel.prologue, value, given, pixel)
    return as_stored(Layout(layout.block), given.shapes[name], pixel, made)


def rounded_element(step: Step, given: Operands, pixel: Pixel, counts: Expr | None = None) -> Expr:
    """The element of `image_element` in bfloat16, which may be how it is stored; 0 where it does not count."""
    kernel, layout = step.choice.kernel, step.choice.reads[0]
    as_it_is = layout.narrow and not kernel.prologue
    name = kernel.inputs[0].name
    value = given.inputs[name][layout.index(pixel)] if as_it_is else image_element(step, given, pixel)
    if counts is not None:
        value = tirx.Select(counts, value, tirx.const(0, dtype_of(value)))
    return value if as_it_is else narrowed(value)


def image_of(step: Step, given: Operands, tiles: PixelTiles) -> Callable[[Any, Channel, Position, Position], Expr]:
    """The image that the convolution reads: as it is stored, between zeros, or what the prologue makes of it.

    "prologue" is (N, C/b, H'/r, W'/c, rows, columns, b): what each tile reads. "padded" is (N, C, H'/r, rows, W).
    """
    kernel, layout = step.choice.kernel, step.choice.reads[0]
    name, shape = kernel.inputs[0].name, given.shapes[kernel.inputs[0].name]

    if kernel.prologue:

        def computed(i: Any, b: Any, ty: Any, tx: Any, row: Any, column: Any, lane: Any) -> Expr:
            pixel = Pixel(i, Channel(b, lane, layout.block), tiles.first(0, ty) + row, tiles.first(1, tx) + column)
            return image_element(step, given, pixel)

        blocks = -(-shape[1] // layout.block)
        by_tiles = (tiles.rows.count, tiles.columns.count, tiles.extent(0), tiles.extent(1))
        made = te.compute((shape[0], blocks, *by_tiles, layout.block), computed, name="prologue")
        return lambda i, channel, y, x: made[
            i, channel.block, y[0], x[0], tiles.offset(0, *y[1:]), tiles.offset(1, *x[1:]), channel.lane
        ]

    def pixel_at(i: Any, channel: Channel, y: Position, x: Position) -> Pixel:
        row, column = tiles.first(0, y[0]) + tiles.offset(0, *y[1:]), tiles.first(1, x[0]) + tiles.offset(1, *x[1:])
        return Pixel(i, channel, row, column)

    if layout.plain and any(kernel.anchor["pads"]):
        padded = Layout(halo=kernel.anchor["pads"])
        left, width = kernel.anchor["pads"][1], padded.physical(shape)[3]

        def bordered(i: Any, c: Any, ty: Any, row: Any, column: Any) -> Expr:
            pixel = Pixel(i, Channel(c, 0, 1), tiles.first(0, ty) + row, column - left)
            return tirx.if_then_else(inside(padded, shape, pixel), given.read(name, pixel), float32(0.0))

        copied = te.compute((*shape[:2], tiles.rows.count, tiles.extent(0), width), bordered, name="padded")
        return lambda i, channel, y, x: copied[
            i, channel.flat, y[0], tiles.offset(0, *y[1:]), pixel_at(i, channel, y, x).w + left
        ]
    return lambda i, channel, y, x: given.element(name, layout.index(pixel_at(i, channel, y, x)))
