"""Convolutions by AMX: tiles of 16 pixels of 64 bytes of channels, by tiles of 64 bytes of channels of 16 maps.

    sums[pixel, map] += Σ_k packed[pixel, k] · weight[k, map]          k 64 bytes

A tile's rows are pixels at one distance in memory. The image of a band of rows is therefore packed first: 64 bytes of
channels side by side, and pixels one behind the other, so that 16 output pixels in a row are 16 rows of a tile for
every tap. Rows of the output are as far apart as those of the packed image, which are wider by the taps: the sums of
the pixels between are computed too, and nobody reads them (2 of 16 where rows have 14 pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import BLOCK
from tvmcnn.configs import AmxConfig
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.dots import finished, is_quick, moved_within, requantised, rint
from tvmcnn.ops.operands import Operands, output_pixel
from tvmcnn.ops.tiles import Tiled, Tiles
from tvmcnn.packed_band import PackedBand

QUAD = 4  # pixels
QUADS = 16  # rows of a tile of weights, each with the channels of one 32-bit element


def amx(step: Step, given: Operands) -> Tiled:
    """QLinearConv of one group. x: NCHW16c with a halo of its zero point; y: NCHW16c; weight: see packing.amx.

    "packed" is (N, bands, ⌈C/64⌉, phases of rows, of columns, pixels, 64), "conv" (N, M/16/t, bands, runs of pixels,
    pixels, 16·t), "sums" the same in memory, "out" (N, M/16, bands, rows, W'/4, 4, 16).
    """
    choice, band, config = step.choice, PackedBand.of(step.choice), step.choice.numbers(AmxConfig)
    weight, output = given.constants[choice.kernel.anchor.inputs[1]], choice.kernel.output.shape
    bands = Tiles(output[2], config.rows)
    groups, depth, kh, kw, quads, lanes, terms = (int(extent) for extent in weight.shape)
    packed = _packed(step, given, bands, quads * terms)
    rb, rh, rw = (te.reduce_axis((0, size), name) for size, name in ((depth, "rb"), (kh, "rh"), (kw, "rw")))
    rc, rn = te.reduce_axis((0, quads), "rc"), te.reduce_axis((0, terms), "rn")

    def tap(i: Any, g: Any, b: Any, run: Any, row: Any, o: Any) -> Expr:
        (ph, down), (pw, right) = band.tap(0, rh), band.tap(1, rw)
        pixel = run * band.pixels + row + down * band.pitch + right
        value = packed[i, b, rb, ph, pw, pixel, rc * terms + rn].astype("int32")
        return te.sum(value * weight[g, rb, rh, rw, rc, o, rn].astype("int32"), axis=[rb, rh, rw, rc, rn])

    conv = te.compute((output[0], groups, bands.count, band.runs, band.pixels, lanes), tap, name="conv")
    sums = te.compute(conv.shape, lambda *at: conv[at], name="sums")

    return _finished(step, given, sums, bands)


def _finished(step: Step, given: Operands, sums: te.Tensor, bands: Tiles) -> Tiled:
    """The sums as they are stored: rounded by four neighbouring pixels of 16 maps, 64 bytes, as the stage "rounded",
    where that is exact and rows are so long; see schedule/x86/quads.py."""
    choice, band, config = step.choice, PackedBand.of(step.choice), step.choice.numbers(AmxConfig)
    layout, output, last = choice.makes, choice.kernel.output, choice.kernel.nodes[-1]
    memory, by_quads = layout.physical(output.shape), is_quick(step) and output.shape[3] >= QUAD
    columns = Tiles(output.shape[3], QUAD if by_quads else 1)

    def place(at: Sequence[Any]) -> tuple[Any, ...]:
        i, ob, b, y, tx, x, o = at
        return (i, ob, bands.element(b, y), columns.element(tx, x), o)

    def total(at: Sequence[Any]) -> Expr:
        i, ob, b, y, tx, x, o = at
        pixel = y * band.pitch + columns.element(tx, x)
        first = ob % config.maps * BLOCK
        return sums[i, ob // config.maps, b, pixel // band.pixels, pixel % band.pixels, first + o]

    shape = (*memory[:2], bands.count, bands.tile, columns.count, columns.tile, memory[4])
    if not by_quads:
        made = te.compute(shape, lambda *at: requantised(step, given, output_pixel(layout, *place(at)), total(at)), name="out")
        return Tiled(made, memory, place)
    rounded = te.compute(
        shape,
        lambda *at: rint(finished(step, given, output_pixel(layout, *place(at)), total(at))).astype("int32"),
        name="rounded",
    )
    attrs = {"tvmcnn.narrowed": [last["to"], last["low"], last["high"]]}
    made = te.compute(shape, lambda *at: moved_within(rounded[at], last).astype(output.dtype), name="out", attrs=attrs)
    return Tiled(made, memory, place)


def filter_tap(step: Step, weight: te.Tensor, o: Any, c: Any, rh: Any, rw: Any) -> Expr:
    """The weight of a map for a channel, as packing.amx has it."""
    columns, terms = int(weight.shape[5]), int(weight.shape[6])
    row = c % (QUADS * terms)
    return weight[o // columns, c // (QUADS * terms), rh, rw, row // terms, o % columns, row % terms]


def _packed(step: Step, given: Operands, bands: Tiles, channels: int) -> te.Tensor:
    """The image of each band as tiles read it. Past its halo and past its last block of channels it repeats what is
    there: no output has the first, and the second is multiplied by 0."""
    kernel, layout, band = step.choice.kernel, step.choice.reads[0], PackedBand.of(step.choice)
    node, depth = kernel.anchor, -(-kernel.inputs[0].shape[1] // channels)
    name, (n, _, height, width) = kernel.inputs[0].name, given.shapes[kernel.inputs[0].name]
    (sh, sw), (top, left, bottom, right) = node["strides"], node["pads"]
    blocks = layout.physical(given.shapes[name])[1]

    def pixel(i: Any, b: Any, rb: Any, ph: Any, pw: Any, at: Any, k: Any) -> Expr:
        block = rb * (channels // BLOCK) + k // BLOCK
        if depth * channels > blocks * BLOCK:
            block = tirx.min(block, blocks - 1)
        row = (bands.element(b, 0) + at // band.pitch) * sh + ph - top
        column = at % band.pitch * sw + pw - left
        where = tirx.min(row, height + bottom - 1), tirx.min(column, width + right - 1)
        return given.inputs[name][layout.index(Pixel(i, Channel(block, k % BLOCK, BLOCK), *where))]

    shape = (n, bands.count, depth, band.phases(0), band.phases(1), band.rows * band.pitch, channels)
    return te.compute(shape, pixel, name="packed")
