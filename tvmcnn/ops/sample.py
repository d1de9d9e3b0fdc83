"""Sampling: images read between their pixels, at places that are computed.

Along an axis a place c, in pixels, becomes taps: the pixels around it with their weights, linear or cubic by the
distance. A tap past the ends is a zero, the pixel at the end, or the mirrored one. Every index is clamped to its axis,
so that no place, NaN among them, reads outside its tensor. TVM wants to see all of an index where it is used, so that a
Let names weights alone; LLVM computes what is written more than once a single time.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Channel, Node, Pixel, Step, Tensor
from tvmcnn.ops.operands import Let, Operands, as_stored, dtype_of, extents, literal, output_pixel, unravel

Where = Callable[[Expr, Expr, Expr], Expr]
CUBIC = -0.75  # Keys' coefficient, which ONNX's GridSample has no attribute for


@dataclass(frozen=True)
class Tap:
    """A pixel along an axis: its index, inside whatever it is, its weight, and the test that it is no padding."""

    index: Expr
    weight: Expr | None = None
    inside: Expr | None = None


@dataclass(frozen=True)
class _Image:
    """What is sampled: its spatial extents, its dtype, how it is read, and how padding is told from it."""

    sizes: Sequence[int]
    dtype: str
    read: Callable[..., Expr]
    where: Where


def limited(value: Expr, low: float, high: float) -> Expr:
    """The float between two bounds; NaN is the lower."""
    bounds = [literal(bound, dtype_of(value)) for bound in (low, high)]
    return tirx.Select(value >= bounds[0], tirx.min(value, bounds[1]), bounds[0])


def mixed(taps: Sequence[Sequence[Tap]], read: Callable[..., Expr], where: Where, *found: Expr) -> Expr:
    """Σ over the taps of each axis of their weights times `read` at their indices, axis by axis; padding is 0.

    `where` decides: tirx.Select where lanes have places of their own, tirx.if_then_else where they share one.
    """
    if len(found) == len(taps):
        return read(*found)
    values = []
    for tap in taps[len(found)]:
        value = mixed(taps, read, where, *found, tap.index)
        value = value if tap.weight is None else value * tap.weight
        values.append(value if tap.inside is None else where(tap.inside, value, literal(0, dtype_of(value))))
    return functools.reduce(operator.add, values)


# ---- GridSample -----------------------------------------------------------------------------------------------------


def _place(node: Node, coordinate: Expr, extent: int) -> Expr:
    """The place in pixels of a coordinate from −1 to 1: at the centres of the outermost pixels, or at their edges."""
    one, half, size = (literal(value, dtype_of(coordinate)) for value in (1, 0.5, extent))
    if node["align_corners"]:
        return (coordinate + one) * half * (size - one)
    return (coordinate + one) * size * half - half  # a fused multiply-add rounds this as its two halves would


def _within(node: Node, place: Expr, extent: int) -> Expr:
    """The place where it reads the same pixels, so near that an int32 holds their indices.

    Mirrored images repeat every `_period` pixels; past 3 pixels outside there are only zeros, or the last pixel.
    """
    if node["padding_mode"] == "reflection":
        dtype, period = dtype_of(place), max(_period(node, extent), 1)
        times = tirx.floor(place * literal(1 / period, dtype))
        return limited(place - times * literal(period, dtype), 0, period)
    return limited(place, -3, extent + 2)


def _period(node: Node, extent: int) -> int:
    """After how many pixels a mirrored axis repeats; its ends are mirrored too, or stand once."""
    return 2 * (extent - 1) if node["align_corners"] else 2 * extent


def _tap(node: Node, index: Expr, weight: Expr | None, extent: int) -> Tap:
    if node["padding_mode"] == "reflection":
        period = _period(node, extent)
        if not period:
            return Tap(tirx.const(0, "int32"), weight)
        around = tirx.truncmod(index + period, period)
        mirrored = (period if node["align_corners"] else period - 1) - around
        return Tap(tirx.max(0, tirx.min(tirx.min(around, mirrored), extent - 1)), weight)
    clamped = tirx.max(0, tirx.min(index, extent - 1))
    return Tap(clamped, weight, index.equal(clamped) if node["padding_mode"] == "zeros" else None)


def _cubic_weights(t: Expr) -> list[Expr]:
    """Keys' kernel at the distances 1 + t, t, 1 − t and 2 − t (Cubic Convolution Interpolation for Digital Image
    Processing, 1981)."""
    a, one = (literal(value, dtype_of(t)) for value in (CUBIC, 1))

    def near(d: Expr) -> Expr:
        return ((a + literal(2, dtype_of(t))) * d - (a + literal(3, dtype_of(t)))) * d * d + one

    def far(d: Expr) -> Expr:  # a·(d³ − 5d² + 8d − 4) with d = 1 + e: a·e·(e − 1)²
        e = d - one
        return a * e * (e - one) * (e - one)

    return [far(t + one), near(t), near(one - t), far(literal(2, dtype_of(t)) - t)]


def _taps(node: Node, let: Let, coordinate: Expr, extent: int, dtype: str) -> list[Tap]:
    """The taps of one axis, whose weights are of `dtype`."""
    place = _within(node, _place(node, coordinate, extent), extent)
    if node["mode"] == "nearest":
        return [_tap(node, tirx.nearbyint(place).astype("int32"), None, extent)]
    first = tirx.floor(place)
    t = let((place - first).astype(dtype))
    weights = [literal(1, dtype) - t, t] if node["mode"] == "linear" else _cubic_weights(t)
    before = 0 if node["mode"] == "linear" else 1
    start = first.astype("int32")
    return [_tap(node, start + (k - before), let(weight), extent) for k, weight in enumerate(weights)]


def _sampled(node: Node, grid: te.Tensor, n: Any, at: Sequence[Any], image: _Image) -> Expr:
    """The image n at the place for position `at` of the output.

    A float64 image is sampled at float64 places, whatever the grid's type is.
    """
    let, axes = Let(), len(image.sizes)
    wide = "float64" if image.dtype == "float64" else str(grid.dtype)
    weight = image.dtype if image.dtype.startswith("float") else wide
    taps = [
        _taps(node, let, grid[(n, *at, axes - 1 - axis)].astype(wide), extent, weight)
        for axis, extent in enumerate(image.sizes)
    ]
    return let.within(mixed(taps, image.read, image.where))


def grid_sample(node: Node, output: Tensor, x: te.Tensor, grid: te.Tensor) -> te.Tensor:
    """ONNX GridSample: y[n, c, o] = x[n, c] at the place grid[n, o]."""
    sizes = extents(x)[2:]

    def element(n: Any, c: Any, *at: Any) -> Expr:
        image = _Image(sizes, output.dtype, lambda *where: x[(n, c, *where)], tirx.Select)
        return _sampled(node, grid, n, at, image)

    return te.compute(output.shape, element, name="out")


def grid_sample_blocks(step: Step, given: Operands) -> te.Tensor:
    """The same of images in blocks of channels, all of which share a place; in plain layout of any number of axes."""
    node, output, layout = step.choice.kernel.anchor, step.choice.kernel.output, step.choice.makes
    name, grid = node.inputs[0], given.tensor(node.inputs[1])
    if layout.block == 1:
        return grid_sample(node, output, given.tensor(name), grid)

    def element(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)

        def read(row: Expr, column: Expr) -> Expr:
            return given.read(name, Pixel(pixel.n, pixel.channel, row, column))

        image = _Image(given.shapes[name][2:], "float32", read, tirx.if_then_else)
        value = _sampled(node, grid, pixel.n, (pixel.h, pixel.w), image)
        return as_stored(layout, output.shape, pixel, value)

    return te.compute(layout.physical(output.shape), element, name="out")


# ---- DeformConv -----------------------------------------------------------------------------------------------------


def _deformed(
    node: Node, channels: int, image: _Image, moves: Sequence[te.Tensor], n: Any, column: Any, at: Sequence[Any]
) -> Expr:
    """The sample of column (g·K + k)·C/G + c for position `at` of the output: of tap k, channel g·C/G + c.

    It lies at o·s + k·d − p + offset along each axis. `moves` are the offsets and, if there is one, the mask; the image
    is read at a channel and indices.
    """
    let, window, dtype, (offset, *mask) = Let(), node["kernel_shape"], image.dtype, moves
    depth, taps = channels // node["group"], math.prod(window)
    channel = column // (taps * depth) * depth + column % depth
    tap = column // depth % taps
    place = channel // (channels // node["offset_group"]) * taps + tap
    moved: list[list[Tap]] = []
    numbers = zip(image.sizes, at, unravel(tap, window), node["strides"], node["dilations"], node["pads"], strict=False)
    for axis, (extent, o, k, s, d, p) in enumerate(numbers):
        c = limited((o * s + k * d - p).astype(dtype) + offset[(n, place * len(window) + axis, *at)], -2, extent + 1)
        first = tirx.floor(c)
        t, start = let(c - first), first.astype("int32")
        weights = [literal(1, dtype) - t, t]
        clamped = [tirx.max(0, tirx.min(start + k, extent - 1)) for k in (0, 1)]
        moved.append(
            [Tap(i, let(w), i.equal(start + k)) for k, (i, w) in enumerate(zip(clamped, weights, strict=True))]
        )
    value = mixed(moved, lambda *where: image.read(channel, *where), image.where)
    return let.within(value * mask[0][(n, place, *at)] if mask else value)


def deform_columns(node: Node, output: Tensor, x: te.Tensor, *moves: te.Tensor) -> te.Tensor:
    """What the windows of ONNX DeformConv read: (N, G·k·C/G, …), see fuse/sample_deformed.py."""
    _, channels, *sizes = extents(x)

    def element(n: Any, column: Any, *at: Any) -> Expr:
        image = _Image(sizes, output.dtype, lambda c, *where: x[(n, c, *where)], tirx.Select)
        return _deformed(node, channels, image, moves, n, column, at)

    return te.compute(output.shape, element, name="out")


def deform_columns_blocks(step: Step, given: Operands) -> te.Tensor:
    """The same in blocks of channels, each of one tap and one group of offsets; or in plain layout."""
    node, output, layout = step.choice.kernel.anchor, step.choice.kernel.output, step.choice.makes
    name, moves = node.inputs[0], [given.tensor(each) for each in node.inputs[1:]]
    if layout.block == 1:
        return deform_columns(node, output, given.tensor(name), *moves)
    _, channels, *sizes = given.shapes[name]

    def element(*indices: Any) -> Expr:
        pixel = output_pixel(layout, *indices)

        def read(first: Expr, row: Expr, column: Expr) -> Expr:
            channel = Channel(first // layout.block, pixel.channel.lane, layout.block)
            return given.read(name, Pixel(pixel.n, channel, row, column))

        image = _Image(sizes, "float32", read, tirx.if_then_else)
        return _deformed(node, channels, image, moves, pixel.n, pixel.channel.block * layout.block, (pixel.h, pixel.w))

    return te.compute(layout.physical(output.shape), element, name="out")


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {"GridSample": grid_sample, "DeformColumns": deform_columns}
