"""Convolutions by AMX: tiles of 16 pixels by 64 bytes of channels, times tiles of 64 bytes of channels by 16 maps.

    sums[pixel, map] += Σ_k packed[pixel, k] · weight[k, map]          k 64 bytes: 64 channels, of bfloat16 32

A tile's rows are pixels at one distance in memory. The image of a band of rows is therefore packed first: 64 bytes of
channels side by side, and pixels one behind the other, so that 16 output pixels in a row are 16 rows of a tile for
every tap. Rows of the sums are as far apart as those of the packed image, which are wider by the taps: the sums of the
pixels between are computed too, and nobody reads them (2 of 16 where rows have 14 pixels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import BLOCK
from tvmcnn.configs import AmxConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import FLOAT32, Channel, Pixel, Step
from tvmcnn.ops import conv as float_conv
from tvmcnn.ops.bfloat16 import widened
from tvmcnn.ops.direct import image_element, rounded_element
from tvmcnn.ops.dots import finished, is_quick, moved_within, requantised, rint
from tvmcnn.ops.operands import Operands, output_pixel
from tvmcnn.ops.tiles import Tiled, Tiles
from tvmcnn.packed_band import PackedBand

QUAD = 4  # pixels that are narrowed to bytes at once

SPACING = "tvmcnn.spacing"  # annotation of "conv": elements from one row of a tile of the image to the next
Packed = Callable[[Any, Any, Any, Any, Any, Any], Expr]  # (image, band, tile of channels, phases, element) --> it
Sums = Callable[[Any, Any, Any, Any, Any, Any], Expr]  # (image, block of maps, band, row, column, lane) --> a sum


def amx(step: Step, given: Operands) -> Tiled:
    """Conv or QLinearConv of one group. x: NCHW16c with a halo that holds the pads; y: NCHW16c; weight: packing.py.

    "packed" is (N, bands, ⌈C/k⌉, phases of rows, of columns, elements), "conv" (N, M/16/t, bands, runs of pixels, 1,
    pixels, 16·t) of t tiles of maps, "sums" the same in memory, "out" (N, M/16, bands, rows, W'/q, q, 16).
    """
    choice, config = step.choice, step.choice.numbers(AmxConfig)
    band = PackedBand.of(choice.kernel, config)
    weight, output = given.constants[choice.kernel.anchor.inputs[1]], choice.kernel.output
    bands, in_bytes = Tiles(output.shape[2], config.rows), choice.kernel.inputs[0].dtype != FLOAT32
    groups, depth, kh, kw, rows, lanes, terms = (int(extent) for extent in weight.shape)
    packed = (_in_place if config.in_place else _packed)(step, given, bands, band)
    rb, rh, rw = (te.reduce_axis((0, size), name) for size, name in ((depth, "rb"), (kh, "rh"), (kw, "rw")))
    rc, rn = te.reduce_axis((0, rows), "rc"), te.reduce_axis((0, terms), "rn")

    def factor(stored: Expr) -> Expr:
        return stored.astype("int32") if in_bytes else widened(stored)

    def tap(i: Any, g: Any, b: Any, run: Any, one: Any, row: Any, o: Any) -> Expr:
        ph, pw, first = band.first(rh, rw)
        at = (run * band.pixels + row) * band.spacing + first + rc * terms + rn
        return te.sum(
            factor(packed(i, b, rb, ph, pw, at)) * factor(weight[g, rb, rh, rw, rc, o, rn]),
            axis=[rb, rh, rw, rc, rn],
        )

    # An axis of extent 1, lest the reader have more than it: TVM's annotate_buffer_access wants as many of each.
    extents, attrs = (output.shape[0], groups, bands.count, band.runs, 1, band.pixels, lanes), {SPACING: band.spacing}
    conv = te.compute(extents, tap, name="conv", attrs=attrs)
    sums = te.compute(conv.shape, lambda *at: conv[at], name="sums")

    def total(i: Any, ob: Any, b: Any, y: Any, x: Any, o: Any) -> Expr:
        pixel, first = y * band.pitch + x, ob % config.maps * BLOCK
        return sums[i, ob // config.maps, b, pixel // band.pixels, 0, pixel % band.pixels, first + o]

    return (_bytes if in_bytes else _floats)(step, given, total, bands)


def _floats(step: Step, given: Operands, total: Sums, bands: Tiles) -> Tiled:
    """The sums with bias, epilogue and pool, one pixel at a time."""
    p, q = window_size(step.choice.kernel)

    def element(at: Sequence[Any], pixel: Pixel) -> Expr:
        i, ob, b, y, x, o = at
        return float_conv.finished(step, given, pixel, lambda dy, dx: total(i, ob, b, y * p + dy, x * q + dx, o))

    made, memory, place = _by_columns(step, bands, 1, element)
    return Tiled(te.compute(*made, name="out"), memory, place)


def _bytes(step: Step, given: Operands, total: Sums, bands: Tiles) -> Tiled:
    """The sums requantised: by four neighbouring pixels of 16 maps, 64 bytes, as the stage "rounded" where that is
    exact and rows are so long; see schedule/x86/quads.py."""
    output, last = step.choice.kernel.output, step.choice.kernel.nodes[-1]
    if not (is_quick(step) and output.shape[3] >= QUAD):
        made, memory, place = _by_columns(step, bands, 1, lambda at, pixel: requantised(step, given, pixel, total(*at)))
        return Tiled(te.compute(*made, name="out"), memory, place)
    made, memory, place = _by_columns(
        step, bands, QUAD, lambda at, pixel: rint(finished(step, given, pixel, total(*at))).astype("int32")
    )
    rounded = te.compute(*made, name="rounded")
    attrs = {"tvmcnn.narrowed": [last["to"], last["low"], last["high"]]}
    narrow = te.compute(
        made[0], lambda *at: moved_within(rounded[at], last).astype(output.dtype), name="out", attrs=attrs
    )
    return Tiled(narrow, memory, place)


def _by_columns(
    step: Step, bands: Tiles, size: int, element: Callable[[Sequence[Any], Pixel], Expr]
) -> tuple[tuple[Any, Any], Any, Callable[[Sequence[Any]], Sequence[Any]]]:
    """The shape and the elements of an output by bands of rows and `size` columns, its shape in memory and each
    element's place there. `element` is given (image, block, band, row, column, lane) and the pixel."""
    layout, output = step.choice.makes, step.choice.kernel.output
    memory, columns = layout.physical(output.shape), Tiles(output.shape[3], size)

    def place(at: Sequence[Any]) -> tuple[Any, ...]:
        i, ob, b, y, tx, x, o = at
        return layout.index(Pixel(i, Channel(ob, o, BLOCK), bands.element(b, y), columns.element(tx, x)))

    def value(*at: Any) -> Expr:
        i, ob, b, y, tx, x, o = at
        return element((i, ob, b, y, columns.element(tx, x), o), output_pixel(layout, *place(at)))

    blocks = memory[1] * memory[4] // BLOCK
    shape = (memory[0], blocks, bands.count, bands.tile, columns.count, columns.tile, BLOCK)
    return (shape, value), memory, place


def filter_tap(step: Step, weight: te.Tensor, o: Any, c: Any, rh: Any, rw: Any) -> Expr:
    """The weight of a map for a channel, as packing.py has it."""
    band = PackedBand.of(step.choice.kernel, step.choice.numbers(AmxConfig))
    columns, terms = int(weight.shape[5]), int(weight.shape[6])
    if band.together:
        place = rw * band.together + c
        block, along, row = 0, place // band.run, place % band.run
    else:
        block, along, row = c // band.whole_row, rw, c % band.whole_row
    return weight[o // columns, block, rh, along, row // terms, o % columns, row % terms]


def _in_place(step: Step, given: Operands, bands: Tiles, band: PackedBand) -> Packed:
    """The image itself as a run of elements, in which each band has a packed one's form."""
    kernel, layout = step.choice.kernel, step.choice.reads[0]
    stored, above = layout.physical(kernel.inputs[0].shape), layout.halo[0] - kernel.anchor["pads"][0]
    image, map_size = given.flat(kernel.inputs[0].name, band.beyond_bytes // 2), math.prod(stored[2:])

    def element(i: Any, b: Any, rb: Any, ph: Any, pw: Any, at: Any) -> Expr:
        first = (bands.element(b, 0) * band.window[0] + above) * band.pitch * band.spacing
        return image[(i * stored[1] + rb) * map_size + first + at]

    return element


def _packed(step: Step, given: Operands, bands: Tiles, band: PackedBand) -> Packed:
    """The image of each band as tiles read it, after its prologue if it has one, floats rounded to bfloat16.

    What lies past the halo, which no output has, repeats the halo. What lies past the last block of channels is
    multiplied by 0: of floats it is 0 too, lest a NaN be there.
    """
    kernel, layout = step.choice.kernel, step.choice.reads[0]
    (sh, sw), (top, left, bottom, right) = kernel.anchor["strides"], band.wanted(kernel.inputs[0].shape[3])
    image, size = given.shapes[kernel.inputs[0].name], band.together or band.whole_row
    (n, _, height, width), blocks = image, layout.physical(image)[1]
    per_row = band.pitch * band.spacing

    def element(i: Any, b: Any, rb: Any, ph: Any, pw: Any, at: Any) -> Expr:
        row = (bands.element(b, 0) * band.window[0] + at // per_row) * sh + ph - top
        k, column = at % size, at % per_row // size
        column = column - left if band.together else tirx.min(column * sw + pw - left, width + right - 1)
        block = rb * (size // layout.block) + k // layout.block
        held = tirx.min(block, blocks - 1) if band.depth * size > blocks * layout.block else block
        where = Pixel(i, Channel(held, k % layout.block, layout.block), tirx.min(row, height + bottom - 1), column)
        if kernel.inputs[0].dtype != FLOAT32:
            return image_element(step, given, where)
        return rounded_element(step, given, where, None if held is block else block < blocks)

    shape = (n, bands.count, band.depth, band.phases(0), band.phases(1), band.elements)
    packed = te.compute(shape, element, name="packed", attrs={"tvmcnn.pixel": size})
    return lambda *at: packed[at]
