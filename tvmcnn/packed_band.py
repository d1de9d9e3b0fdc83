"""The packed image of a band of output rows, as the tiles of AMX read it: see ops/amx.py.

Many channels: 64 bytes of them side by side for each pixel, the pixels of a row as far apart as the sums of theirs.

    3x3, stride 1, rows of 14    pitch 16; tap (1, 2) is 18 pixels from the first
    3x3, stride 2, rows of 14    even and odd rows and columns apart: 4 phases of pitch 15

Few channels: 4, 8 or 16 side by side, so that the taps of a row are one run of memory and are multiplied together.

    7x7, stride 2, 3 channels    28 products in one row of a tile: 7 pixels of 4 channels, of which one is padding

An image of bfloat16 in blocks of 32 channels with a halo of the pads has this form already where the stride is 1: its
bands need not be packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvmcnn.configs import AmxConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import FLOAT32, Kernel, Node

ROWS, ROW_BYTES = 16, 64  # of a tile register
VECTOR = 16  # elements that are packed at once
LEAST_USE = 4  # at least one in so many products must count: VNNI and FMAs are 8 and 16 times slower, but waste none


@dataclass(frozen=True)
class PackedBand:
    """Phases, rows, pitch and runs of pixels of a band."""

    node: Node
    window: tuple[int, int]  # of a fused pool
    sum_rows: int
    columns: int  # of the sums
    pixels: int  # whose sums are in registers at once
    channels: int
    terms: int  # products that are added in 32 bits of a tile: 4 of bytes, 2 of bfloat16

    @staticmethod
    def of(kernel: Kernel, config: AmxConfig) -> PackedBand:
        """The band of a convolution by AMX."""
        (p, q), image = window_size(kernel), kernel.inputs[0]
        rows, columns = config.rows * p, kernel.output.shape[3] * q
        terms = 2 if image.dtype == FLOAT32 else 4
        return PackedBand(kernel.anchor, (p, q), rows, columns, ROWS * config.pixels, image.shape[1], terms)

    @property
    def whole_row(self) -> int:
        """Elements of a full row of a tile."""
        return ROWS * self.terms

    @property
    def together(self) -> int:
        """The channels of a pixel, padding included, where taps of a row are multiplied together; else 0."""
        block = next((size for size in (4, 8, 16) if size >= self.channels), 0)
        return block if self.node["dilations"][1] == 1 else 0

    @property
    def run(self) -> int:
        """Elements of a tile's row that are multiplied: all, or an equal part of the taps of a row together, which must
        be whole groups of terms; else 0."""
        if not self.together:
            return self.whole_row
        taps = int(self.node["kernel_shape"][1]) * self.together
        parts = -(-taps // self.whole_row)
        return 0 if taps % (parts * self.terms) else taps // parts

    @property
    def pays(self) -> bool:
        """Whether enough of the products count."""
        if not self.run:
            return False
        taps = int(self.node["kernel_shape"][1])
        return taps * self.channels * LEAST_USE >= self.steps(1) * self.depth * self.whole_row

    def steps(self, axis: int) -> int:
        """Tiles of the packed image, from one tap to the next, along rows or columns of a filter."""
        taps = int(self.node["kernel_shape"][axis])
        return taps * self.together // self.run if axis == 1 and self.together else taps

    @property
    def depth(self) -> int:
        """Tiles that have all channels of a pixel."""
        return 1 if self.together else -(-self.channels // self.whole_row)

    def phases(self, axis: int) -> int:
        """How many images of every so many rows or columns are packed apart: as many as the stride, if taps reach so
        many."""
        stride, taps = self.node["strides"][axis], self.node["kernel_shape"][axis]
        if axis == 1 and self.together:
            return 1
        return min(stride, taps) if self.node["dilations"][axis] == 1 else stride if taps > 1 else 1

    def tap(self, axis: int, tap: Any) -> tuple[Any, Any]:
        """The phase that a tap reads, and its rows or columns from the first tap's there."""
        offset, stride = tap * self.node["dilations"][axis], self.node["strides"][axis]
        return offset % stride, offset // stride

    def reach(self, axis: int) -> int:
        """Rows or columns from the first tap to the last, at most."""
        return max(int(self.tap(axis, tap)[1]) for tap in range(self.node["kernel_shape"][axis]))

    @property
    def spacing(self) -> int:
        """Elements from the pixel of a sum to that of the next."""
        return self.node["strides"][1] * self.together if self.together else self.whole_row

    @property
    def pitch(self) -> int:
        """Sums from a row to the next, and pixels of the packed image; rows are whole vectors."""
        pitch = self.columns + self.reach(1)
        while pitch * self.spacing % VECTOR:
            pitch += 1
        return pitch

    @property
    def sums(self) -> int:
        """Sums of a map from the first to the last, with those between rows."""
        return (self.sum_rows - 1) * self.pitch + self.columns

    @property
    def runs(self) -> int:
        """How many runs of pixels have them."""
        return -(-self.sums // self.pixels)

    @property
    def rows(self) -> int:
        """Rows that tiles reach into, the last of them in vain."""
        last = self.runs * self.pixels + self.reach(0) * self.pitch + self.reach(1) + -(-self.whole_row // self.spacing)
        return -(-last // self.pitch)

    def first(self, rh: Any, rw: Any) -> tuple[Any, Any, Any]:
        """The phases of rows and of columns, and the element there, that a tile of the first sums begins with."""
        ph, down = self.tap(0, rh)
        if self.together:
            return ph, 0, down * self.pitch * self.spacing + rw * self.run
        pw, right = self.tap(1, rw)
        return ph, pw, (down * self.pitch + right) * self.spacing

    @property
    def beyond_bytes(self) -> int:
        """Bytes past the last row of an image in place that tiles of the last band reach into, in vain."""
        last = self.runs * self.pixels + self.reach(0) * self.pitch + self.reach(1)
        return max(0, last - (self.sum_rows + self.reach(0)) * self.pitch) * ROW_BYTES

    @property
    def elements(self) -> int:
        """Elements of a packed phase."""
        return self.rows * self.pitch * self.spacing

    def wanted(self, width: int) -> tuple[int, int, int, int]:
        """The halo of the image: the pads, and with few channels the columns that fill a row."""
        top, left, bottom, right = (int(pad) for pad in self.node["pads"])
        if self.together:
            right = max(right, self.pitch * self.node["strides"][1] - left - width)
        return top, left, bottom, right
