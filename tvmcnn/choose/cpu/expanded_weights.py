"""Expanded weights: a weight of a half type is made float32 once for all tiles that read it, in memory that L2 holds.

    for maps in 3, y in 28, x in 2: … += x·float32(w)
      -->
    for maps in 3: expanded = float32(w); for y in 28, x in 2: … += x·expanded

Expanding a vector takes two of the slots that FMAs have, and a broadcast scalar three. In the loop of 2 vectors by 14
pixels that is 4 beside 28 FMAs: 64 to 96 maps of 14 x 15 pixels took 18 % longer than of float32 weights, so 1 %
(AVX-512; AVX2 17 and 2 %). Where each weight is read by one tile alone, as in a product with one row, it is expanded as
it is read: such a kernel waits for memory, and there is half of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tvmcnn.blocks import BLOCK, channels_together
from tvmcnn.choose.cpu.tasks import task_count
from tvmcnn.configs import ColumnsConfig, DenseConfig, DirectConfig, ImagesConfig, PixelsConfig, RowsConfig
from tvmcnn.fuse import is_depthwise
from tvmcnn.half_weights import PRODUCTS, holds
from tvmcnn.network import ALIGNMENT, Choice, Network, divisors, round_up
from tvmcnn.targets import Target

FEWEST_TILES = 4  # that read each: expanding a vector for one takes a cycle, for all 5, to write it to L2 and read it
FEWEST_TASKS = 4  # threads share no loop inside of that which expands: with fewer tasks some would have none
ENOUGH_TASKS = 16  # for which the rows of a convolution are cut into bands, each of which expands the weight again
BAND = 192  # pixels of a band, at least: expanding a vector takes 5 cycles of L2's, its FMAs 96


def expanding(network: Network, choices: Sequence[Choice], target: Target) -> tuple[Choice, ...]:
    """The choices with `expanded` where that pays, and the scratch that it takes."""
    return tuple(_expanding(network, choice, target) for choice in choices)


def _expanding(network: Network, choice: Choice, target: Target) -> Choice:
    anchor, part = choice.kernel.anchor, PARTS.get(type(choice.config))
    if part is None or anchor.op not in PRODUCTS or is_depthwise(choice.kernel):
        return choice
    weight = network.constants.get(anchor.inputs[1])
    if weight is None or not holds(network.half_weights.kind, weight):
        return choice
    choice = _in_more_bands(network, choice, target)
    elements, tiles = part(choice, weight.size, target.lanes(choice.kernel.dtype))
    size = round_up(elements * choice.kernel.item_bytes, ALIGNMENT)
    made = dataclasses.replace(choice, expanded=True, scratch_bytes=round_up(choice.scratch_bytes, ALIGNMENT) + size)
    made = _shared(network, made, target)
    few = made.tasks < min(choice.tasks, FEWEST_TASKS)
    return choice if tiles < FEWEST_TILES or few or size > target.l2_bytes else made


def _shared(network: Network, choice: Choice, target: Target) -> Choice:
    return dataclasses.replace(choice, tasks=task_count(network, choice, target))


def _in_more_bands(network: Network, choice: Choice, target: Target) -> Choice:
    """The choice in the fewest bands of rows that make enough tasks, the weight expanded in each; see row_bands.py."""
    config, shape = choice.config, choice.kernel.output.shape
    if not isinstance(config, DirectConfig) or choice.tasks == 1 or shape[0] > 1 or config.rows_first:
        return choice
    height, width = shape[2:]
    if height % config.rows and not config.overlap:
        return choice
    best = choice
    for bands in divisors(-(-height // config.rows)):
        if height * width / bands < BAND:
            break
        cut = dataclasses.replace(choice, config=dataclasses.replace(config, bands=bands), expanded=True)
        best = _shared(network, cut, target)
        if best.tasks >= ENOUGH_TASKS:
            break
    return _shared(network, dataclasses.replace(best, expanded=False), target)


# ---- the elements that are expanded at once, at most, and how many tiles read each ----------------------------------


def _direct(choice: Choice, size: int, lanes: int) -> tuple[int, int]:
    config, kernel = choice.numbers(DirectConfig), choice.kernel
    depth = round_up(channels_together(kernel), choice.reads[0].block) * math.prod(kernel.anchor["kernel_shape"])
    (height, width), maps = kernel.output.shape[2:], round_up(kernel.output.shape[1], BLOCK)
    down, across = math.ceil(height / config.rows), math.ceil(width / config.columns)
    if maps // lanes % config.vectors:
        return 0, 0  # tests for a tile that is cut short would keep LLVM from having its sums in registers
    return config.vectors * lanes * depth, across * (1 if config.rows_first else down // config.bands)


def _dense(choice: Choice, size: int, lanes: int) -> tuple[int, int]:
    config, shape = choice.numbers(DenseConfig), choice.kernel.output.shape
    rows = shape[0] if choice.kernel.anchor.op == "Conv" else math.prod(shape[:-1])
    depth = math.prod(choice.reads[0].physical(choice.sources[0].shape)) // rows
    return depth * config.width, math.ceil(rows / config.rows)


def _whole(choice: Choice, size: int, lanes: int) -> tuple[int, int]:
    """All of it, for an image or a row of images at least: the tiles read one scalar after another."""
    return size, FEWEST_TILES


def _of_a_group(choice: Choice, size: int, lanes: int) -> tuple[int, int]:
    return size // choice.numbers(PixelsConfig).groups, FEWEST_TILES


Part: TypeAlias = Callable[[Choice, int, int], tuple[int, int]]  # (choice, elements of the weight, lanes of a vector)
PARTS: Mapping[Any, Part] = {
    DirectConfig: _direct,
    DenseConfig: _dense,
    ColumnsConfig: _whole,
    ImagesConfig: _whole,
    PixelsConfig: _of_a_group,
    RowsConfig: _whole,
}
