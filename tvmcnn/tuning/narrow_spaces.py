"""Narrow spaces: the configs of convolutions of bytes and of bfloat16 that are worth a try."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from tvmcnn.blocks import BLOCK, channels_together, summed_channels
from tvmcnn.choose.cpu.amx import as_tiles, largest_rows
from tvmcnn.choose.cpu.bf16 import PAIR, as_pairs, fits_l2
from tvmcnn.choose.cpu.defaults import direct_tiles, divides
from tvmcnn.choose.cpu.dots import MOST_SUMS
from tvmcnn.configs import AmxConfig, DotsConfig, PairsConfig
from tvmcnn.fuse import is_depthwise
from tvmcnn.network import FLOAT32, Choice, Network
from tvmcnn.targets import Target

ORDERS = ("rb rh rw rc", "rh rw rb rc")
UNROLLS = (1, 2, 4, 8)
TILES = 14  # register tiles: those estimated to be fastest
# Maps by pixels in tile registers, beside those of the factors: eight in all. Square ones load least for each product.
AMX_TILES = ((2, 2), (3, 1), (1, 3), (2, 1), (1, 2), (1, 1))
SUMS = (128, 256, 64, 512, 32, 384, 1024)  # of a map in a band
DEPTHWISE_ROWS, DEPTHWISE_COLUMNS = 4, 14


def by_tiles(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Bands of rows, tiles in registers, and whether the next weights are fetched."""
    kernel, default = choice.kernel, choice.numbers(AmxConfig)
    blocks = -(-kernel.output.shape[1] // BLOCK)
    rows = dict.fromkeys(largest_rows(kernel, sums) for sums in SUMS)
    for (maps, pixels), height, fetched in itertools.product(AMX_TILES, rows, (default.prefetch, not default.prefetch)):
        if blocks % maps == 0:
            yield as_tiles(choice, AmxConfig(maps, pixels, height, prefetch=fetched))


def by_pairs(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Register tiles, pairs of channels in one body of the loop, the order of the reductions."""
    kernel, default = choice.kernel, choice.numbers(PairsConfig)
    blocks, channels = -(-kernel.output.shape[1] // BLOCK), channels_together(kernel)
    pairs = summed_channels(channels, BLOCK)[1] // PAIR
    tiles = direct_tiles(kernel, kernel.output.shape[1], min(channels, BLOCK), target)
    for tile in [each for each in tiles if blocks % each[0] == 0][:TILES]:
        for order, unroll in itertools.product(_orders(choice), (each for each in UNROLLS if pairs % each == 0)):
            config = PairsConfig(*tile, order, unroll, default.prefetch)
            if fits_l2(kernel, config, target):
                yield as_pairs(choice, config, target)


def by_dots(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Register tiles, groups of channels in one body of the loop, the order of the reductions."""
    kernel, default = choice.kernel, choice.numbers(DotsConfig)
    maps, deep = kernel.output.shape[1], not is_depthwise(kernel)
    vectors = -(-maps // BLOCK) * (BLOCK // target.lanes(FLOAT32))
    channels = summed_channels(channels_together(kernel), choice.reads[0].block)[1]
    unrolls = [each for each in UNROLLS if channels // default.terms % each == 0] if deep else [default.unroll]
    tiles = direct_tiles(kernel, maps, min(channels, BLOCK) if deep else 0, target)
    tiles = [each for each in tiles if vectors % each[0] == 0][:TILES]
    if not deep and default.terms > 1:
        tiles = _tiles_of_rows(choice)
    for tile in tiles:
        v, rows, columns = tile
        overlap = not divides(kernel, rows, columns)
        for order, unroll in itertools.product(_orders(choice) if deep else (default.order,), unrolls):
            config = dataclasses.replace(
                default, vectors=v, rows=rows, columns=columns, order=order, unroll=unroll, overlap=overlap
            )
            yield dataclasses.replace(choice, config=config)


def _orders(choice: Choice) -> tuple[str, ...]:
    """The orders of the reductions that differ: of a filter of one tap there is one."""
    return ORDERS[:1] if choice.kernel.anchor["kernel_shape"] == (1, 1) else ORDERS


def _tiles_of_rows(choice: Choice) -> list[tuple[int, int, int]]:
    """One vector by rows that share the pixels that are loaded and turned."""
    height, width = choice.kernel.output.shape[2:]
    sizes = itertools.product(range(1, min(height, DEPTHWISE_ROWS) + 1), range(1, min(width, DEPTHWISE_COLUMNS) + 1))
    return [(1, *size) for size in sorted(sizes, key=math.prod, reverse=True) if math.prod(size) <= MOST_SUMS]
