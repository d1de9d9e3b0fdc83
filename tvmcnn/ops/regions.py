"""Pools of regions of interest: bins of regions whose corners are operands, in plain layout or in blocks of channels.

How many pixels or samples a bin has is known at run time alone, so that the reductions run over the most that it can
have inside the image, and a test ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Pixel, Shape, Step
from tvmcnn.ops.operands import Operands, as_stored, dtype_of, extents, literal, output_pixel
from tvmcnn.ops.pool import lowest, maximum
from tvmcnn.ops.sample import Tap, limited, mixed

FARTHEST = 1 << 20  # pixels from the image: a corner beyond is moved there, so that int32 holds what follows from it

Read = Callable[[Expr, Expr, Expr], Expr]  # (image, row, column) --> the element of x
Bin = Callable[..., Expr]  # (region, row, column of the output) --> something of a bin


def _clamped(index: Expr, extent: int) -> Expr:
    """The index as an int32, inside its axis whatever it is."""
    first, last = (tirx.const(value, dtype_of(index)) for value in (0, extent - 1))
    return tirx.max(tirx.min(index, last), first).astype("int32")


# ---- RoiAlign -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """The samples of bins along one axis, of which the image has `extent` pixels and the output `bins`.

    Sample i of bin b lies at start + b·size + (i + 1/2)·size / n, in pixels. One farther than a pixel outside is 0.
    """

    node: Node
    rois: te.Tensor
    first: int  # the column of `rois` that has the start; the end is two columns on
    extent: int
    bins: int

    @property
    def fixed(self) -> int:
        """Samples a bin, 0 where they follow from its size."""
        return int(self.node["sampling_ratio"])

    @property
    def most(self) -> int:
        """How many of them may be inside the image: about a pixel apart at least, and two to be safe."""
        return self.fixed or self.extent + 4

    def number(self, value: float) -> Expr:
        return literal(value, str(self.rois.dtype))

    def _corner(self, region: Any, column: int) -> Expr:
        """Limited before the half pixel is taken off, which keeps a fused multiply-add from rounding once for both."""
        scaled = self.rois[region, column] * self.number(self.node["spatial_scale"])
        return limited(scaled, -FARTHEST, FARTHEST) - self.number(0.5 if self._half_pixel else 0)

    @property
    def _half_pixel(self) -> bool:
        return bool(self.node["coordinate_transformation_mode"] == "half_pixel")

    def size(self, region: Any) -> Expr:
        """The size of a bin in pixels; no region is smaller than a pixel unless half pixels count."""
        length = self._corner(region, self.first + 2) - self._corner(region, self.first)
        return (length if self._half_pixel else tirx.max(length, self.number(1))) / self.number(self.bins)

    def count(self, region: Any) -> Expr:
        """n, as a float; below 1 for a region whose end lies before its start."""
        return self.number(self.fixed) if self.fixed else tirx.ceil(self.size(region))

    def skipped(self, region: Any, b: Any) -> Expr:
        """How many of the first samples are certainly outside."""
        if self.fixed:
            return self.number(0)
        size, n = self.size(region), self.count(region)
        before = (self.number(-1) - self._corner(region, self.first) - b.astype(self.rois.dtype) * size) * n
        return tirx.max(tirx.floor(before / tirx.max(size, self.number(1e-6))) - self.number(1), self.number(0))

    def samples(self, regions: int, name: str) -> te.Tensor:
        """How many samples of each bin come after those that are skipped, `most` at most, (regions, bins)."""

        def left(region: Any, b: Any) -> Expr:
            return limited(self.count(region) - self.skipped(region, b), 0, self.most).astype("int32")

        return te.compute((regions, self.bins), left, name=name)

    def place(self, region: Any, b: Any, i: Any) -> Expr:
        """Where that sample lies."""
        size, dtype = self.size(region), self.rois.dtype
        sample = self.skipped(region, b) + i.astype(dtype) + self.number(0.5)
        return self._corner(region, self.first) + b.astype(dtype) * size + sample * size / self.count(region)

    def inside(self, place: Expr) -> list[Expr]:
        """The tests that a sample counts."""
        return [place >= self.number(-1), place <= self.number(self.extent)]

    def taps(self, place: Expr) -> list[tuple[Expr, Expr]]:
        """The two pixels around a place, each an index and its weight: between the image and a pixel outside at its
        edge."""
        near = limited(place, 0, self.extent - 1)
        low = tirx.floor(near)
        t, index = near - low, low.astype("int32")
        clamped = [tirx.max(0, tirx.min(index + k, self.extent - 1)) for k in (0, 1)]
        return [(clamped[0], self.number(1) - t), (clamped[1], t)]

    def passes_over(self, region: Any, b: Any) -> Expr:
        """The test that samples are left out, all of which are 0."""
        first = self.skipped(region, b)
        return tirx.any(first > self.number(0), self.count(region) - first > self.number(self.most))


def _aligned(
    node: Node, shape: Shape, sizes: Sequence[int], rois: te.Tensor, image: Callable[[Any], Expr]
) -> tuple[Callable[..., Expr], Callable[..., Expr]]:
    """RoiAlign's reduction, (region, row, column, read) --> the mean's sum or the maximum, and what is made of it,
    (region, row, column, that) --> the output."""
    rows = _Side(node, rois, 1, sizes[0], shape[2])
    columns = _Side(node, rois, 0, sizes[1], shape[3])
    ry, rx = te.reduce_axis((0, rows.most), "ry"), te.reduce_axis((0, columns.most), "rx")
    zero = literal(0, str(rois.dtype))
    mean = node["mode"] == "avg"
    if not rows.fixed:
        down, across = rows.samples(shape[0], "down"), columns.samples(shape[0], "across")

    def term(region: Any, h: Any, w: Any, read: Read) -> Expr:
        y, x = rows.place(region, h, ry), columns.place(region, w, rx)
        taps = [rows.taps(y), columns.taps(x)]
        if mean:
            pairs = [[Tap(*tap) for tap in each] for each in taps]
            value = mixed(pairs, lambda i, j: read(image(region), i, j), tirx.Select)
        else:  # the greatest of the weighted pixels, as ONNX's cases have it, not of their sums
            products = [read(image(region), i, j) * (u * v) for i, u in taps[0] for j, v in taps[1]]
            value = tirx.max(tirx.max(products[0], products[1]), tirx.max(products[2], products[3]))
        value = tirx.if_then_else(tirx.all(*rows.inside(y), *columns.inside(x)), value, zero)
        if not rows.fixed:
            counted = tirx.all(ry < down[region, h], rx < across[region, w])
            value = tirx.if_then_else(counted, value, zero if mean else lowest(str(rois.dtype)))
        return te.sum(value, axis=[ry, rx]) if mean else maximum(value, axis=[ry, rx])

    def result(region: Any, h: Any, w: Any, found: Expr) -> Expr:
        if mean:
            return found / tirx.max(rows.count(region) * columns.count(region), literal(1, str(rois.dtype)))
        if rows.fixed:
            return found
        over = tirx.any(rows.passes_over(region, h), columns.passes_over(region, w))
        found = tirx.Select(over, tirx.max(found, zero), found)
        none = tirx.any(
            rows.count(region) < literal(1, str(rois.dtype)), columns.count(region) < literal(1, str(rois.dtype))
        )
        return tirx.Select(none, zero, found)

    return term, result


# ---- MaxRoiPool -----------------------------------------------------------------------------------------------------


def _rounded(value: Expr) -> Expr:
    """The nearest integer as an int64, halves away from 0; tirx.round takes them to even."""
    whole, half = tirx.trunc(value), literal(0.5, dtype_of(value))
    away = [
        tirx.Select(test, tirx.const(1, "int64"), tirx.const(0, "int64"))
        for test in (value - whole >= half, whole - value >= half)
    ]
    return whole.astype("int64") + away[0] - away[1]


def _bounds(node: Node, rois: te.Tensor, region: Any, b: Any, column: int, extent: int, bins: int) -> tuple[Expr, Expr]:
    """The first pixel of a bin inside the image, and the one after its last: ⌊b·n/bins⌋ and ⌈(b + 1)·n/bins⌉ on."""

    def corner(place: int) -> Expr:
        scaled = rois[region, place] * literal(node["spatial_scale"], str(rois.dtype))
        return _rounded(limited(scaled, -FARTHEST, FARTHEST))

    start, end = corner(column), corner(column + 2)
    one, last, count = (tirx.const(value, "int64") for value in (1, extent, bins))
    length, place = tirx.max(end - start + one, one), b.astype("int64")
    first = start + tirx.truncdiv(place * length, count)
    after = start + tirx.truncdiv((place + one) * length + count - one, count)
    zero = tirx.const(0, "int64")
    return tirx.max(tirx.min(first, last), zero).astype("int32"), tirx.max(tirx.min(after, last), zero).astype("int32")


def _greatest(
    node: Node, shape: Shape, sizes: Sequence[int], rois: te.Tensor, image: Callable[[Any], Expr]
) -> tuple[Callable[..., Expr], Callable[..., Expr]]:
    """The same of MaxRoiPool."""
    ry, rx = te.reduce_axis((0, sizes[0]), "ry"), te.reduce_axis((0, sizes[1]), "rx")

    def bounds(region: Any, h: Any, w: Any) -> list[tuple[Expr, Expr]]:
        places = zip((h, w), (2, 1), sizes, shape[2:], strict=True)
        return [_bounds(node, rois, region, b, column, extent, bins) for b, column, extent, bins in places]

    def count(axis: int, region: Any, b: Any) -> Expr:
        first, after = bounds(region, b, b)[axis]
        return tirx.max(after - first, 0)

    down = te.compute((shape[0], shape[2]), lambda region, h: count(0, region, h), name="down")
    across = te.compute((shape[0], shape[3]), lambda region, w: count(1, region, w), name="across")

    def term(region: Any, h: Any, w: Any, read: Read) -> Expr:
        (top, _), (left, _) = bounds(region, h, w)
        value = read(image(region), tirx.min(top + ry, sizes[0] - 1), tirx.min(left + rx, sizes[1] - 1))
        counted = tirx.all(ry < down[region, h], rx < across[region, w])
        return maximum(tirx.if_then_else(counted, value, lowest(str(rois.dtype))), axis=[ry, rx])

    def result(region: Any, h: Any, w: Any, found: Expr) -> Expr:
        none = tirx.any(down[region, h].equal(0), across[region, w].equal(0))
        return tirx.Select(none, literal(0, str(rois.dtype)), found)

    return term, result


# ---- both -----------------------------------------------------------------------------------------------------------


def regions(step: Step, given: Operands) -> te.Tensor:
    """ONNX RoiAlign and MaxRoiPool: "pool" reduces the samples or pixels of each bin, "out" is made of it."""
    choice = step.choice
    node, shape, layout = choice.kernel.anchor, choice.kernel.output.shape, choice.makes
    name, rois = node.inputs[0], given.tensor(node.inputs[1])
    images, _, *sizes = given.shapes[name] if name in given.shapes else extents(given.tensor(name))

    def image(region: Any) -> Expr:
        index = given.tensor(node.inputs[2])[region] if node.op == "RoiAlign" else rois[region, 0].astype("int32")
        return _clamped(index, images)

    term, result = (_aligned if node.op == "RoiAlign" else _greatest)(node, shape, sizes, rois, image)

    def pooled(*i: Any) -> Expr:
        pixel = output_pixel(layout, *i)

        def read(n: Expr, row: Expr, column: Expr) -> Expr:
            if layout.block > 1:
                return given.read(name, Pixel(n, pixel.channel, row, column))
            return given.tensor(name)[n, i[1], row, column]

        return term(pixel.n, pixel.h, pixel.w, read)

    pool = te.compute(layout.physical(shape), pooled, name="pool")

    def element(*i: Any) -> Expr:
        pixel = output_pixel(layout, *i)
        value = result(pixel.n, pixel.h, pixel.w, pool[i])
        return as_stored(layout, shape, pixel, value) if layout.block > 1 else value

    return te.compute(layout.physical(shape), element, name="out")
