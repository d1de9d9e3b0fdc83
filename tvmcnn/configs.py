"""The numbers that a rule reads: one frozen dataclass a rule. Records store them, the tuner writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STACK_LIMIT = 256 << 10  # bytes of a kernel: a thread may have as little as 512 KB


@dataclass(frozen=True)
class DirectConfig:
    """The register tile of a direct convolution: vectors of output channels by rows by columns of output pixels."""

    vectors: int = 2
    rows: int = 1
    columns: int = 1
    order: str = "rb rh rw rc"  # reductions, outermost first: input block, kernel row and column, input channel
    unroll: int = 4  # input channels in one loop body
    prefetch: bool = False  # the next tile's weights into L2 while this one computes
    bands: int = 1  # of rows, outermost: all maps of one, then of the next; the network's choice, see bands.py


@dataclass(frozen=True)
class WinogradConfig:
    """F(tile x tile, 3x3): `rows` x `columns` output pixels a tile (fewer with a pool), `strip` tiles at a time, the
    maps in `parts`; the products in register tiles of vectors of maps by `tiles`."""

    tile: int = 4
    rows: int = 4
    columns: int = 4
    strip: int = 28
    parts: int = 1
    vectors: int = 2
    tiles: int = 14
    unroll: int = 4  # input channels in one loop body
    prefetch: bool = False  # the next tile's weights into L2 while this one computes


@dataclass(frozen=True)
class StreamedConfig:
    """F(tile x tile, 3x3) with filters transformed on the way: `rows` x `columns` output pixels a tile (fewer with a
    pool), `vectors` vectors of maps at a time; the products in register tiles of those by `tiles`."""

    tile: int = 4
    rows: int = 4
    columns: int = 4
    vectors: int = 1
    tiles: int = 16
    unroll: int = 4  # input channels in one loop body
    prefetch: bool = False  # the next maps' filters into L2 while these are multiplied


@dataclass(frozen=True)
class ColumnsConfig:
    """The register tile of a convolution with columns in the lanes: maps by vectors of columns, times the pool's
    window."""

    maps: int = 1
    vectors: int = 1


@dataclass(frozen=True)
class PixelsConfig:
    """The register tile of a convolution with pixels in the lanes: maps of one of `groups` by a run of pixels."""

    maps: int = 1
    pixels: int = 16  # divides the image, at least a vector
    groups: int = 1


@dataclass(frozen=True)
class ImagesConfig:
    """The register tile with images in the lanes: maps by columns of pixels, times the pool's window, of a
    convolution; maps by vectors of images of a matrix product."""

    maps: int = 1
    columns: int = 1


@dataclass(frozen=True)
class DenseConfig:
    """The register tile of a matrix product: rows by `width` packed columns, the sum over k in `parts` interleaved
    parts."""

    width: int = 64
    rows: int = 1
    parts: int = 1
    unroll: int = 1

    def tiles_across(self, columns: int) -> int:
        """How many tiles across of so many columns are computed one after the other; 1 where a row of them is computed
        as one, because its last tile is cut short. Then its sums are on the stack, if they have room there."""
        tiles = -(-columns // self.width)
        whole = columns % self.width == 0
        return tiles if whole or 4 * self.rows * self.parts * tiles * self.width > STACK_LIMIT else 1


@dataclass(frozen=True)
class RowsConfig:
    """The tile of a reduction in plain layout, and how many terms of it go into one pass over the tile."""

    rows: int = 1
    columns: int = 512
    unroll: int = 1


@dataclass(frozen=True)
class SoftmaxConfig:
    """Which axis the rows lie along, and whether their elements are in the lanes: then it is the last."""

    axis: int = 1
    in_lanes: bool = True


@dataclass(frozen=True)
class GemmConfig:
    """The tile of a block of GPU threads: maps by pixels, those of a pool's window counted, of which each thread has a
    smaller one in registers, `depth` terms at a time in shared memory."""

    maps: int = 64
    pixels: int = 64
    thread_maps: int = 4
    thread_pixels: int = 4
    depth: int = 16
    split: int = 1  # parts of the sum, each for blocks of its own; another kernel adds them
    winograd: int = 0  # tile of Winograd's transform, whose planes are then what is multiplied; 0: none


@dataclass(frozen=True)
class MmaConfig:
    """The tile of a block of GPU threads for tensor cores: maps by pixels, of which each warp has a smaller one,
    `depth` terms at a time in shared memory; the factors are rounded to `precision`, "tf32" or "fp16"."""

    maps: int = 64
    pixels: int = 64
    warp_maps: int = 32
    warp_pixels: int = 32
    depth: int = 32
    split: int = 1  # as in GemmConfig
    precision: str = "tf32"

    @property
    def item_bytes(self) -> int:
        """Of a factor in memory: TF32 is a float32 whose last 13 bits are zero."""
        return 2 if self.precision == "fp16" else 4

    @property
    def fragment_terms(self) -> int:
        """Terms that a tensor core takes at once."""
        return 16 if self.precision == "fp16" else 8


@dataclass(frozen=True)
class GemvConfig:
    """In how many parts the sum over k is cut: warps of a block."""

    parts: int = 8


@dataclass(frozen=True)
class PlanesConfig:
    """A transform of Winograd's for GPUs: the tile, of which `rows` x `columns` are stored after a pool, and a block's
    threads."""

    tile: int = 4
    rows: int = 4
    columns: int = 4
    threads: int = 128


@dataclass(frozen=True)
class ThreadsConfig:
    """Threads of a block."""

    threads: int = 128


@dataclass(frozen=True)
class WholeConfig:
    """A network in one kernel: the choices that are its parts, and the threads and images of a block."""

    parts: tuple[Any, ...]
    threads: int = 512
    images: int = 1


CONFIGS = {
    "direct": DirectConfig,
    "winograd": WinogradConfig,
    "streamed": StreamedConfig,
    "columns": ColumnsConfig,
    "pixels": PixelsConfig,
    "dense": DenseConfig,
    "images": ImagesConfig,
    "gemm": GemmConfig,
    "mma": MmaConfig,
    "gemv": GemvConfig,
    "threads": ThreadsConfig,
}
