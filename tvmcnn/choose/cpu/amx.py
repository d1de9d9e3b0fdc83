"""AMX: convolutions by matrix tiles, on CPUs that have them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.defaults import prefetches, weight_bytes
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.configs import AmxConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import ALIGNMENT, FLOAT32, Choice, Kernel, Layout, Tensor, divisors, round_up
from tvmcnn.packed_band import ROW_BYTES, ROWS, PackedBand
from tvmcnn.targets import Target

LEAST_CHANNELS = 32  # half a tile's row of bytes: with fewer, VNNI is as fast


def fits_tiles(state: State, kernel: Kernel) -> bool:
    """A convolution of one group with channels enough for tiles of 64 bytes."""
    return state.target.tiles and kernel.anchor["group"] == 1 and kernel.inputs[0].shape[1] >= LEAST_CHANNELS


def by_tiles(kernel: Kernel, target: Target, read: Sequence[tuple[Tensor, Layout]], algorithm: str) -> Choice:
    """The convolution of images in blocks, of bytes or of floats whose factors are rounded to bfloat16."""
    choice = choice_of(kernel, algorithm, read, Layout(BLOCK), "amx", (amx_config(kernel, target), "default"))
    return dataclasses.replace(choice, scratch_bytes=_scratch(choice))


def _scratch(choice: Choice) -> int:
    """Bytes of the packed image of a band, of its sums, and of the sums in registers, which LLVM leaves out."""
    band, kernel, config = PackedBand.of(choice), choice.kernel, choice.numbers(AmxConfig)
    item_bytes = 2 if kernel.inputs[0].dtype == FLOAT32 else 1
    depth = -(-kernel.inputs[0].shape[1] * item_bytes // ROW_BYTES)
    packed = depth * band.phases(0) * band.phases(1) * band.rows * band.pitch * ROW_BYTES
    tile = config.maps * config.pixels * ROWS * ROW_BYTES
    return sum(round_up(size, ALIGNMENT) for size in (packed, band.runs * tile, tile))


def amx_config(kernel: Kernel, target: Target) -> AmxConfig:
    """Two tiles of maps by two of pixels where the maps divide so, and bands whose sums stay in L1: of 128 pixels, or
    of 256 where bands share rows of the image. A lone band is cut for threads: into parts of the maps where weights
    are more than images, else into two bands."""
    blocks, (height, width) = -(-kernel.output.shape[1] // BLOCK), kernel.output.shape[2:]
    maps = next(count for count in (2, 3, 1) if blocks % count == 0)
    pixels = {1: 3, 2: 2, 3: 1}[maps]
    sums = math.prod(window_size(kernel)) * width
    most = max(1, (128 if kernel.anchor["kernel_shape"][0] == 1 else 256) // sums)
    bands, parts = -(-height // most), 1
    if bands == 1:
        images = sum(tensor.size for tensor in (*kernel.inputs, kernel.output))
        if weight_bytes(kernel) > images or height == 1:
            parts = next((each for each in divisors(blocks // maps) if each > 1), 1)
        else:
            bands = 2
    return AmxConfig(maps, pixels, -(-height // bands), parts, prefetch=prefetches(kernel, target))
