"""AMX: convolutions by matrix tiles, on CPUs that have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.defaults import prefetches, weight_bytes
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.fits import misfit
from tvmcnn.choose.shared import choice_of
from tvmcnn.configs import AmxConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import ALIGNMENT, Choice, Kernel, Layout, Tensor, divisors, round_up
from tvmcnn.packed_band import ROW_BYTES, ROWS, PackedBand
from tvmcnn.targets import Target

MOST_SUMS = 128  # of a map in a band: with 32 maps 16 KiB
MOST_COLUMNS = 1024  # of a row, of which a band has one at least


def fits_tiles(state: State, kernel: Kernel) -> bool:
    """A convolution of one group whose tiles are filled well enough."""
    if not state.target.tiles or kernel.anchor["group"] > 1:
        return False
    band = PackedBand.of(kernel, AmxConfig(rows=min(kernel.output.shape[2], ROWS)))
    return band.sums >= ROWS and band.columns <= MOST_COLUMNS and band.pays


def layout_for_tiles(kernel: Kernel, fill: int = 0) -> Layout:
    """What the convolution wants of its image: blocks of all its channels if they are few, and its halo."""
    band = PackedBand.of(kernel, AmxConfig())
    return Layout(band.together or BLOCK, band.wanted(kernel.inputs[0].shape[3]), fill=fill)


def by_tiles(state: State, kernel: Kernel, read: Sequence[tuple[Tensor, Layout]], algorithm: str) -> Choice:
    """The convolution of images in blocks, of bytes or of floats whose factors are rounded to bfloat16."""
    computed = amx_config(kernel, state.target)
    config = state.tuned(kernel, "amx", computed, lambda config: not misfit(kernel, "amx", config))
    choice = choice_of(kernel, algorithm, read, Layout(BLOCK), "amx", config)
    return as_tiles(choice, choice.numbers(AmxConfig))


def as_tiles(choice: Choice, config: AmxConfig) -> Choice:
    """A convolution by tiles with another config, its maps in as many parts as threads want."""
    return loading(dataclasses.replace(choice, config=dataclasses.replace(config, parts=_parts(choice.kernel, config))))


def loading(choice: Choice) -> Choice:
    """The choice with its tiles loaded from the image itself where that has the form of a packed one, which is made
    else, and the scratch that it takes."""
    kernel, config = choice.kernel, dataclasses.replace(choice.numbers(AmxConfig), in_place=_may_stay(choice))
    beyond = PackedBand.of(kernel, config).beyond_bytes if config.in_place else 0
    return dataclasses.replace(choice, config=config, scratch_bytes=_scratch(kernel, config), reads_beyond=beyond)


def _may_stay(choice: Choice) -> bool:
    """Whether the image has the blocks, the rows and the halo of a packed one, and nothing else of the kernel reads
    it."""
    kernel, layout = choice.kernel, choice.reads[0]
    if kernel.prologue or kernel.anchor["strides"] != (1, 1):
        return False
    image = kernel.inputs[0]
    band, width = PackedBand.of(kernel, choice.numbers(AmxConfig)), layout.physical(image.shape)[3]
    whole = layout.narrow and layout.block == band.whole_row and not band.together and not layout.pitch
    rows = width == band.pitch and layout.halo[1] == kernel.anchor["pads"][1]
    return whole and rows and image.name not in {name for node in kernel.nodes[1:] for name in node.inputs}


def _scratch(kernel: Kernel, config: AmxConfig) -> int:
    """Bytes of the packed image of a band, of its sums, and of the sums in registers, which LLVM leaves out."""
    band = PackedBand.of(kernel, config)
    packed = band.depth * band.phases(0) * band.phases(1) * band.elements * ROW_BYTES // band.whole_row
    packed = 0 if config.in_place else packed
    tile = config.maps * config.pixels * ROWS * ROW_BYTES
    return sum(round_up(size, ALIGNMENT) for size in (packed, band.runs * tile, tile))


def amx_config(kernel: Kernel, target: Target) -> AmxConfig:
    """Two tiles of maps by two of pixels where the maps divide so, and bands whose sums stay in L1: of 128 pixels, or
    of 256 where bands share rows of the image. A lone band is cut for threads: in two where weights are less than
    images, else into parts of the maps, by `as_tiles`."""
    blocks, height = _blocks(kernel), kernel.output.shape[2]
    maps = next(count for count in (2, 3, 1) if blocks % count == 0)
    most = MOST_SUMS if kernel.anchor["kernel_shape"][0] == 1 else 2 * MOST_SUMS
    rows = largest_rows(kernel, most)
    if rows == height:
        images = sum(tensor.size for tensor in (*kernel.inputs, kernel.output))
        if weight_bytes(kernel) <= images and PackedBand.of(kernel, AmxConfig(rows=-(-height // 2))).sums >= ROWS:
            rows = -(-height // 2)
    config = AmxConfig(maps, 1, rows, prefetch=prefetches(kernel, target))
    # No run is longer than the band: its last pixels would be computed in vain.
    pixels = min(PackedBand.of(kernel, config).sums // ROWS, {1: 3, 2: 2, 3: 1}[maps])
    return dataclasses.replace(config, pixels=pixels)


def _blocks(kernel: Kernel) -> int:
    """Blocks of maps."""
    return -(-kernel.output.shape[1] // BLOCK)


def _parts(kernel: Kernel, config: AmxConfig) -> int:
    """Parts of the maps for threads, which a lone band leaves idle else."""
    if config.rows < kernel.output.shape[2]:
        return 1
    return next((each for each in divisors(_blocks(kernel) // config.maps) if each > 1), 1)


def largest_rows(kernel: Kernel, sums: int) -> int:
    """The rows of the output in a band of about so many sums, the bands of about one size; 16 at least."""
    height = kernel.output.shape[2]
    least = next(rows for rows in range(1, height + 1) if PackedBand.of(kernel, AmxConfig(rows=rows)).sums >= ROWS)
    a_row = PackedBand.of(kernel, AmxConfig(rows=1)).columns * window_size(kernel)[0]
    bands = -(-height // max(1, sums // a_row))
    return max(least, -(-height // bands))
