"""The numbers that a rule reads: one frozen dataclass a rule. Records store them, the tuner writes them.

Each field says what it may be, and a config checks itself against that when it is made: records come from anywhere.
"""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, get_type_hints

Limit = Callable[[Any], str]  # what a value must be, in words; empty where it is that


def within(least: int, most: int) -> Limit:
    """A whole number from `least` to `most`. True and 2.0 are none."""

    def limit(value: Any) -> str:
        if type(value) is not int:
            return "a whole number"
        return f"at least {least}" if value < least else f"at most {most}" if value > most else ""

    return limit


def one_of(*allowed: Any) -> Limit:
    """One of a few values, of their own type."""
    words = " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in allowed)
    return lambda value: "" if any(type(value) is type(each) and value == each for each in allowed) else words


def order_of(*names: str) -> Limit:
    """Each of some names once, a space between two."""
    words = f"{', '.join(names[:-1])} and {names[-1]} in some order"
    return lambda value: "" if type(value) is str and sorted(value.split(" ")) == sorted(names) else words


THREADS = 1024  # of a block, on every GPU
WARP = 32  # threads
SIDE = 16  # of the tile of maps by pixels that a warp's tensor cores make

# No tile has more of anything than a block of threads has threads; a run of pixels or tiles is a part of an image.
Count = Annotated[int, within(1, THREADS)]
Unroll = Annotated[int, within(1, 64)]
Run = Annotated[int, within(1, 1 << 24)]
Order = Annotated[str, order_of("rb", "rh", "rw", "rc")]
Flag = Annotated[bool, one_of(False, True)]
Outputs = Annotated[int, one_of(2, 4)]  # rows and columns that a tile of Winograd's makes: those of winograd.py
Terms = Annotated[int, one_of(1, 2, 4)]
Shift = Annotated[int, one_of(0, 128)]
Filter = Annotated[int, one_of(3, 5)]  # rows and columns of the filters that it transforms
SUMS = 2048  # of one tile of a CPU, which has 512 in registers: many more would keep LLVM busy for hours
LANES = 16  # sums in a vector, at most

STACK_LIMIT = 256 << 10  # bytes of a kernel: a thread may have as little as 512 KB


@dataclass(frozen=True)
class Config:
    """The numbers of some rule. Raises ValueError for one that is not what it may be, and for a tile of too many sums:
    the product of the fields `tile`, of which each is `of` sums."""

    _tile: ClassVar[tuple[str, ...]] = ()
    _most: ClassVar[int] = SUMS

    def __init_subclass__(cls, tile: tuple[str, ...] = (), of: int = 1) -> None:
        cls._tile, cls._most = tile, SUMS // of

    def __post_init__(self) -> None:
        for name, limit in limits(type(self)).items():  # type: ignore[arg-type] # a class has a hash
            value = getattr(self, name)
            if allowed := limit(value):
                raise ValueError(f"{name} is {reprlib.repr(value)}, but must be {allowed}")
        if wrong := self._together():
            raise ValueError(wrong)

    def _together(self) -> str:
        """What is wrong with the numbers together; empty if nothing is."""
        size = math.prod(getattr(self, name) for name in self._tile)
        return f"{' x '.join(self._tile)} is {size}, but must be at most {self._most}" if size > self._most else ""


@functools.cache
def limits(config: type[Config]) -> Mapping[str, Limit]:
    """What each field of a class may be."""
    hints = get_type_hints(config, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def _block(config: Config, parts: str, side: int = 1, each: int = 1) -> str:
    """What is wrong with a block's tile of maps by pixels: `parts` ("thread" or "warp") of `each` threads have smaller
    ones, of whole sides."""
    count = each
    for whole in ("maps", "pixels"):
        size, part = getattr(config, whole), getattr(config, f"{parts}_{whole}")
        if part % side or size % part:
            multiple = f"a multiple of {side} and " if side > 1 else ""
            return f"{parts}_{whole} is {part}, but must be {multiple}a divisor of {whole}, {size}"
        count *= size // part
    return f"a block has {count} threads, but may have at most {THREADS}" if count > THREADS else ""


@dataclass(frozen=True)
class TileConfig(Config, tile=("vectors", "rows", "columns"), of=LANES):
    """The register tile of a convolution: vectors of output channels by rows by columns of output pixels."""

    vectors: Count = 2
    rows: Count = 1
    columns: Count = 1
    order: Order = "rb rh rw rc"  # reductions, outermost first: input block, kernel row and column, input channel
    unroll: Unroll = 4  # input channels in one loop body; where a map has one the taps of a row, if it is more than 1
    prefetch: Flag = False  # the next tile's weights into L2 while this one computes
    overlap: Flag = False  # the last tile of a row or column is moved back over the one before, not cut short


@dataclass(frozen=True)
class DirectConfig(TileConfig, tile=("vectors", "rows", "columns"), of=LANES):
    """The register tile of a direct convolution, and how its rows and maps follow one another."""

    # What the choice decides, whatever a record says:
    bands: Count = 1  # of rows, the outermost loop: all maps of one before the next; see row_bands.py
    rows_first: Flag = False  # all maps of a row of tiles before the next, for a prologue; see shared_prologue.py


@dataclass(frozen=True)
class DotsConfig(DirectConfig, tile=("vectors", "rows", "columns"), of=LANES):
    """The register tile of a convolution of integers, and how it multiplies them."""

    terms: Terms = 4  # products that one instruction adds: 4 of bytes, 2 of 16 bits, or 1 where a map has one channel
    shift: Shift = 0  # what is added to signed bytes, for an instruction that takes unsigned ones


@dataclass(frozen=True)
class AmxConfig(Config):
    """The sums of a convolution by AMX that are in tile registers at once: tiles of 16 maps by tiles of 16 pixels, each
    kind with registers for its factors; and the band of output `rows` whose image is packed first."""

    maps: Annotated[int, within(1, 6)] = 2
    pixels: Annotated[int, within(1, 6)] = 2
    rows: Count = 1
    parts: Count = 1  # of the maps, for threads: each packs the image for itself
    prefetch: Flag = False  # the next maps' weights into L2 while these are multiplied
    # What the choice decides, whatever a record says:
    in_place: Flag = False  # the image has the form of a packed one, and tiles are loaded from it; see packed_band.py

    def _together(self) -> str:
        tiles = self.maps * self.pixels + self.maps + self.pixels
        return f"{self.maps} x {self.pixels} sums and their factors are {tiles} tiles, of 8" if tiles > 8 else ""


@dataclass(frozen=True)
class PairsConfig(TileConfig, tile=("vectors", "rows", "columns"), of=LANES):
    """The register tile of a convolution of bfloat16, whose tiles always overlap. Its image is rounded once for each of
    the `bands` of its rows and each of the `parts` of its maps."""

    overlap: Annotated[bool, one_of(True)] = True
    bands: Count = 1
    parts: Count = 1


@dataclass(frozen=True)
class FilteringConfig(Config):
    """Winograd's minimal filtering F(tile x tile, kernel x kernel): `rows` x `columns` output pixels a tile, fewer with
    a pool."""

    tile: Outputs = 4
    rows: Count = 4
    columns: Count = 4
    kernel: Filter = field(default=3, kw_only=True)


@dataclass(frozen=True)
class WinogradConfig(FilteringConfig, tile=("vectors", "tiles"), of=LANES):
    """Filters transformed when the model is compiled: `strip` tiles at a time, the maps in `parts`; the products in
    register tiles of vectors of maps by `tiles`."""

    strip: Run = 28
    parts: Count = 1
    vectors: Count = 2
    tiles: Count = 14
    unroll: Unroll = 4  # input channels in one loop body
    prefetch: Flag = False  # the next tile's weights into L2 while this one computes


@dataclass(frozen=True)
class StreamedConfig(FilteringConfig, tile=("vectors", "tiles"), of=LANES):
    """Filters transformed on the way, `vectors` vectors of maps at a time; the products in register tiles of those by
    `tiles`."""

    vectors: Count = 1
    tiles: Count = 16
    unroll: Unroll = 4  # input channels in one loop body
    prefetch: Flag = False  # the next maps' filters into L2 while these are multiplied


@dataclass(frozen=True)
class ColumnsConfig(Config, tile=("maps", "vectors"), of=LANES):
    """The register tile of a convolution with columns in the lanes: maps by vectors of columns, times the pool's
    window."""

    maps: Count = 1
    vectors: Count = 1


@dataclass(frozen=True)
class PixelsConfig(Config):
    """The register tile of a convolution with pixels in the lanes: maps of one of `groups` by a run of pixels."""

    maps: Count = 1
    pixels: Run = 16  # divides the image, at least a vector
    groups: Run = 1


@dataclass(frozen=True)
class FewMapsConfig(Config):
    """The register tile of a convolution with channels in the lanes: all maps by columns of pixels."""

    columns: Count = 1


@dataclass(frozen=True)
class ImagesConfig(Config):
    """The register tile with images in the lanes: maps by columns of pixels, times the pool's window, of a
    convolution; maps by vectors of images of a matrix product."""

    maps: Count = 1
    columns: Count = 1


@dataclass(frozen=True)
class DenseConfig(Config, tile=("width", "rows", "parts")):
    """The register tile of a matrix product: rows by `width` packed columns, the sum over k in `parts` interleaved
    parts."""

    width: Count = 64
    rows: Count = 1
    parts: Count = 1
    unroll: Unroll = 1

    def first_columns(self, columns: int) -> list[int]:
        """The first column of each tile of so many: the last tile overlaps the one before, a lone one may be larger."""
        return [max(0, min(first, columns - self.width)) for first in range(0, columns, self.width)]


@dataclass(frozen=True)
class DenseDotsConfig(DenseConfig, tile=("width", "rows", "parts")):
    """The register tile of a product of integers, and how it multiplies them, as in DotsConfig."""

    terms: Annotated[int, one_of(2, 4)] = 4
    shift: Shift = 0
    narrow: Flag = False  # two terms: weights of 8 bits stay so in memory, and are widened as they are read


@dataclass(frozen=True)
class MatmulConfig(Config, tile=("width", "rows")):
    """The register tile of a product of two computed matrices: rows by `width` columns, whole vectors of them."""

    width: Count = 64
    rows: Count = 1
    packed: Flag = False  # the columns of a tile are copied side by side first, for all rows


@dataclass(frozen=True)
class RowsConfig(Config):
    """The tile of a reduction in plain layout, and how many terms of it go into one pass over the tile."""

    rows: Count = 1
    columns: Count = 512
    unroll: Unroll = 1


@dataclass(frozen=True)
class SoftmaxConfig(Config):
    """Which axis the rows lie along, and whether their elements are in the lanes: then it is the last."""

    axis: Annotated[int, within(0, 1 << 10)] = 1
    in_lanes: Flag = True


@dataclass(frozen=True)
class NormalizeConfig(Config):
    """How many rows a normalisation has, and of how many parts with a scale of its own each."""

    rows: Run = 1
    parts: Run = 1


@dataclass(frozen=True)
class RecurrentConfig(Config):
    """The tile of a step of an LSTM, GRU or RNN: rows of the batch by `width` columns of the hidden state."""

    width: Run = 16
    rows: Count = 1


@dataclass(frozen=True)
class BlockConfig(Config):
    """The tile of a block of GPU threads: maps by pixels, those of a pool's window counted."""

    maps: Count = 64
    pixels: Run = 64


@dataclass(frozen=True)
class GemmConfig(BlockConfig):
    """A tile of which each thread has a smaller one in registers, `depth` terms at a time in shared memory."""

    thread_maps: Count = 4
    thread_pixels: Run = 4
    depth: Count = 16
    split: Count = 1  # parts of the sum, each for blocks of its own; another kernel adds them
    winograd: Annotated[int, one_of(0, 2, 4)] = 0  # tile of Winograd's, whose planes are then multiplied; 0: none

    def _together(self) -> str:
        return _block(self, "thread")


@dataclass(frozen=True)
class MmaConfig(BlockConfig):
    """A tile for tensor cores, of which each warp has a smaller one, `depth` terms at a time in shared memory; the
    factors are rounded to `precision`, "tf32" or "fp16"."""

    warp_maps: Count = 32
    warp_pixels: Count = 32
    depth: Count = 32
    split: Count = 1  # as in GemmConfig
    precision: Annotated[str, one_of("tf32", "fp16")] = "tf32"

    def _together(self) -> str:
        return _block(self, "warp", SIDE, WARP)

    @property
    def item_bytes(self) -> int:
        """Bytes of a factor in memory: TF32 is a float32 whose last 13 bits are zero."""
        return 2 if self.precision == "fp16" else 4

    @property
    def fragment_terms(self) -> int:
        """Terms that a tensor core takes at once."""
        return 16 if self.precision == "fp16" else 8


@dataclass(frozen=True)
class GemvConfig(Config):
    """In how many parts the sum over k is cut: warps of a block."""

    parts: Annotated[int, within(1, THREADS // WARP)] = 8


@dataclass(frozen=True)
class PlanesConfig(FilteringConfig):
    """A transform for GPUs, by so many threads of a block."""

    threads: Count = 128


@dataclass(frozen=True)
class ThreadsConfig(Config):
    """Threads of a block."""

    threads: Count = 128


@dataclass(frozen=True)
class WholeConfig(Config):
    """A network in one kernel: the choices that are its parts, and the threads and images of a block."""

    parts: tuple[Any, ...]
    threads: Count = 512
    images: Count = 1


@dataclass(frozen=True)
class InOrderConfig(Config):
    """Columns of a tile, side by side; and parts of a column, each of which passes over what is for others."""

    width: Run = 64
    parts: Count = 1


CONFIGS: Mapping[str, type[Config]] = {  # by rule: those that records may have
    "direct": DirectConfig,
    "dots": DotsConfig,
    "amx": AmxConfig,
    "pairs": PairsConfig,
    "winograd": WinogradConfig,
    "streamed": StreamedConfig,
    "columns": ColumnsConfig,
    "pixels": PixelsConfig,
    "few_maps": FewMapsConfig,
    "dense": DenseConfig,
    "images": ImagesConfig,
    "gemm": GemmConfig,
    "mma": MmaConfig,
    "gemv": GemvConfig,
    "threads": ThreadsConfig,
}
