"""The packed image of a band of output rows, as the tiles of AMX read it: see ops/amx.py.

3x3, stride 1, rows of 14:   pitch 16; tap (1, 2) is 18 pixels from the first
3x3, stride 2, rows of 14:   even and odd rows and columns apart, 4 phases of pitch 15
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvmcnn.configs import AmxConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import Kernel, Node

ROWS, ROW_BYTES = 16, 64  # of a tile register


@dataclass(frozen=True)
class PackedBand:
    """Phases, rows, pitch and runs of pixels of a band."""

    node: Node
    window: tuple[int, int]  # of a fused pool
    sum_rows: int
    columns: int  # of the sums
    pixels: int  # whose sums are in registers at once

    @staticmethod
    def of(kernel: Kernel, config: AmxConfig) -> PackedBand:
        """The band of a convolution by AMX."""
        p, q = window_size(kernel)
        return PackedBand(kernel.anchor, (p, q), config.rows * p, kernel.output.shape[3] * q, ROWS * config.pixels)

    def phases(self, axis: int) -> int:
        """How many images of every so many rows or columns are packed apart: as many as the stride, if taps reach so
        many."""
        stride, taps = self.node["strides"][axis], self.node["kernel_shape"][axis]
        return min(stride, taps) if self.node["dilations"][axis] == 1 else stride if taps > 1 else 1

    def tap(self, axis: int, tap: Any) -> tuple[Any, Any]:
        """The phase that a tap reads, and its rows or columns from the first tap's there."""
        offset, stride = tap * self.node["dilations"][axis], self.node["strides"][axis]
        return offset % stride, offset // stride

    def reach(self, axis: int) -> int:
        """Rows or columns from the first tap to the last, at most."""
        return max(int(self.tap(axis, tap)[1]) for tap in range(self.node["kernel_shape"][axis]))

    @property
    def pitch(self) -> int:
        """Pixels from a row to the next, in the packed image and in the sums."""
        return self.columns + self.reach(1)

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
        last = self.runs * self.pixels + self.reach(0) * self.pitch + self.reach(1)
        return -(-last // self.pitch)
