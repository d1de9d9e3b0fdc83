"""Convolutions: the algorithm of each, with its layouts, rule and config."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.blocks import BLOCK, channels_together, groups_together
from tvmcnn.choose.cpu.bf16 import in_bf16, multiplies_in_bf16
from tvmcnn.choose.cpu.defaults import (
    columns_config,
    direct_config,
    direct_tiles,
    divides,
    few_maps_config,
    images_config,
    pixels_config,
    rows_config,
    winograd_config,
    winograd_fits,
)
from tvmcnn.choose.cpu.product import dense
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.cpu.winograd_choice import as_streamed, as_winograd, winograd_data
from tvmcnn.choose.fits import recorded
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import NEAREST
from tvmcnn.choose.shared import choice_of, covers
from tvmcnn.configs import DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.fuse import deinterleaved, is_depthwise, pool_of, squashes, window_size
from tvmcnn.half_weights import holds
from tvmcnn.network import NO_PADS, PLAIN, Choice, Kernel, Layout, Tensor, round_up
from tvmcnn.targets import Target
from tvmcnn.winograd import halo

MAX_TILES = 28  # register tiles, those estimated to be fastest
BY_WINOGRAD = ("winograd", "streamed")
SAME_SUMS = (*BY_WINOGRAD, "direct")  # algorithms, and rules, of which records may have several for one kernel
MOST_LIVE = 0.95  # of the products
ADD_LANES = 12  # instructions by which those of a vector of sums are added up
FEWER = 1.0  # times the instructions that 16 maps in the lanes take,
FEWER_THAN_WINOGRAD = 0.35  # and as many where Winograd's algorithm has a quarter of these, and its transforms
IMAGE_LIMIT = 32 << 10  # bytes of an image that a kernel copies: it is on the stack, in L1


def conv(state: State, kernel: Kernel) -> Choice:
    """Choose the first algorithm of CONVOLUTIONS that applies to a kernel whose anchor is a Conv."""
    return next(make(state, kernel) for applies, make in CONVOLUTIONS if applies(state, kernel))


def reads_blocks(state: State, kernel: Kernel) -> bool:
    """True for a convolution that wants its image in blocks of channels, if it has so many."""
    make = next(make for applies, make in CONVOLUTIONS if applies(state, kernel))
    return (
        make in (_by_depthwise, _by_few_maps, _by_bf16, _by_winograd, _by_direct) and kernel.inputs[0].shape[1] >= BLOCK
    )


def plain(state: State, kernel: Kernel) -> Choice:
    """A convolution of any number of groups that reads and writes plain images, with a halo of its pads."""
    image, *residuals = kernel.inputs
    read = [state.image(image, Layout(1, kernel.anchor["pads"])), *(state.plain(tensor) for tensor in residuals)]
    if pool_of(kernel) is not None or kernel.prologue:
        return choice_of(kernel, "grouped", read, PLAIN, "fallback")
    return choice_of(kernel, "grouped", read, PLAIN, "rows", (rows_config(state.network, kernel), "default"))


# ---- when an algorithm applies --------------------------------------------------------------------------------------


def _blocks_are_off(state: State, kernel: Kernel) -> bool:
    """No image may lie in blocks of channels, which is slow: see `bisect`."""
    return not state.blocked


def _covers_its_input(state: State, kernel: Kernel) -> bool:
    """One product with the whole image."""
    return covers(kernel)


def _images_fill_lanes(state: State, kernel: Kernel) -> bool:
    """The batch is whole vectors of images, for which these choices are made."""
    several = state.images > 1 and kernel.inputs[0].shape[0] % state.images == 0
    return several and kernel.anchor["group"] == 1 and _alone(kernel)


def _columns_fill_lanes(state: State, kernel: Kernel) -> bool:
    """Columns fill the lanes better than channels do, and the image is small enough for the stack."""
    if kernel.anchor["group"] > 1 or not _alone(kernel):
        return False
    _, maps, height, width = kernel.output.shape
    lanes = round_up(width, state.target.lanes(kernel.dtype))
    rows, phases, pitch = deinterleaved(kernel, height, lanes)
    size = kernel.inputs[0].shape[1] * rows * phases * pitch * kernel.item_bytes
    return width / lanes > maps / round_up(maps, BLOCK) and size <= IMAGE_LIMIT


def _has_few_maps(state: State, kernel: Kernel) -> bool:
    """So few maps that adding up the lanes at last costs less than those that would compute nothing."""
    (_, channels, *_), maps = kernel.inputs[0].shape, kernel.output.shape[1]
    if kernel.anchor["group"] > 1 or channels < BLOCK or not _alone(kernel) or pool_of(kernel) is not None:
        return False
    taps: int = math.prod(kernel.anchor["kernel_shape"])
    fewer = FEWER_THAN_WINOGRAD if winograd_fits(kernel) and not state.exact else FEWER
    return maps * (taps * -(-channels // BLOCK) + ADD_LANES) <= fewer * taps * channels


def _one_channel_a_group(state: State, kernel: Kernel) -> bool:
    """As many groups as channels and maps."""
    return is_depthwise(kernel)


def _multiplies_in_bf16(state: State, kernel: Kernel) -> bool:
    """As `decide_bf16` has said before the first kernel: halos depend on it."""
    return kernel.output.name in state.narrow


def _goes_by_winograd(state: State, kernel: Kernel) -> bool:
    """As `decide_winograd` has said before the first kernel, since halos depend on it."""
    return _groups_are_blocks(state, kernel) and state.winograd.get(kernel.output.name) is not None


def _groups_are_blocks(state: State, kernel: Kernel) -> bool:
    """One group, or groups that are whole blocks of channels and of maps."""
    return groups_together(kernel) == 1


def _groups_share_blocks(state: State, kernel: Kernel) -> bool:
    """So few groups are one that not too many products are wasted; not where NaN must keep to its group."""
    return groups_together(kernel) > 0 and not state.exact


def _pixels_fill_lanes(state: State, kernel: Kernel) -> bool:
    """Filters of 1 x 1 that read every pixel of maps of at least one vector, unpadded."""
    node = kernel.anchor
    once = node["kernel_shape"] == node["strides"] == (1, 1) and node["pads"] == NO_PADS
    return once and not kernel.prologue and pool_of(kernel) is None and math.prod(kernel.output.shape[2:]) >= BLOCK


def _always(state: State, kernel: Kernel) -> bool:
    return True


def _alone(kernel: Kernel) -> bool:
    """Without residuals or a prologue."""
    return len(kernel.inputs) == 1 and not kernel.prologue


def _maps(state: State, kernel: Kernel) -> int:
    """Output channels of the convolution itself: a pool in the kernel keeps them, an epilogue too."""
    return int(state.network.constants[kernel.anchor.inputs[1]].shape[0])


# ---- how it is made -------------------------------------------------------------------------------------------------


def _by_images(state: State, kernel: Kernel) -> Choice:
    """Images in the lanes: a batch of a network that has fewer maps than a vector has lanes."""
    image = kernel.inputs[0]
    window = math.prod(window_size(kernel))
    tile = images_config(_maps(state, kernel), kernel.output.shape[3], window, 0, state.target)
    read = [state.image(image, Layout(halo=kernel.anchor["pads"], images=state.images))]
    return choice_of(kernel, "conv_images", read, Layout(images=state.images), "images", (tile, "default"))


def _by_columns(state: State, kernel: Kernel) -> Choice:
    """Output columns in the lanes."""
    width = kernel.output.shape[3]
    writes = Layout(1, (0, 0, 0, round_up(width, state.target.lanes(kernel.dtype)) - width))
    config = state.tuned(kernel, "columns", columns_config(kernel, _maps(state, kernel), width, state.target))
    return choice_of(kernel, "columns", [state.plain(kernel.inputs[0])], writes, "columns", config)


def _by_pixels(state: State, kernel: Kernel) -> Choice:
    """Pixels in the lanes, in plain layout: what groups that fill no block of channels leave."""
    image, *residuals = kernel.inputs
    read = [state.image(image, Layout(1, kernel.anchor["pads"])), *(state.plain(tensor) for tensor in residuals)]
    config = state.tuned(kernel, "pixels", pixels_config(kernel, kernel.anchor["group"], state.target))
    return choice_of(kernel, "pixels", read, PLAIN, "pixels", config)


def _by_few_maps(state: State, kernel: Kernel) -> Choice:
    """Channels in the lanes, and the maps plain."""
    read = [state.image(kernel.inputs[0], Layout(BLOCK, kernel.anchor["pads"]))]
    config = few_maps_config(kernel, state.target)
    return choice_of(kernel, "few_maps", read, PLAIN, "few_maps", (config, "default"))


def _by_depthwise(state: State, kernel: Kernel) -> Choice:
    """Channels in the lanes, each with its own filter."""
    config = _tile(state, kernel, _maps(state, kernel), 0)
    return _in_blocks(state, kernel, "depthwise", (kernel.inputs[0], BLOCK), config)


def _by_direct(state: State, kernel: Kernel) -> Choice:
    """16 output channels in the lanes. An image of fewer channels is read plain, and may be padded on the way."""
    image, maps = kernel.inputs[0], _maps(state, kernel)
    few = image.shape[1] < BLOCK and state.stored[image.name][1].block == 1
    block = 1 if few else BLOCK
    config = _tile(state, kernel, maps, min(channels_together(kernel), block))
    padded = few and _alone(kernel) and state.stored[image.name][1].plain
    if padded and pads_itself(kernel, config[0], state.target):
        return choice_of(kernel, "direct", [state.plain(image)], Layout(BLOCK), "direct", config)
    return _in_blocks(state, kernel, "direct", (image, block), config)


def _in_blocks(
    state: State, kernel: Kernel, algorithm: str, image: tuple[Tensor, int], config: tuple[DirectConfig, str]
) -> Choice:
    """A convolution whose image is in blocks of so many channels, and its residuals and output in blocks of 16."""
    tensor, block = image
    read = [state.image(tensor, Layout(block, kernel.anchor["pads"])), *_residuals(state, kernel)]
    choice = choice_of(kernel, algorithm, read, Layout(BLOCK), "direct", config)
    return dataclasses.replace(choice, skips_padding=_skips_padding(state, kernel, config[0]))


def _skips_padding(state: State, kernel: Kernel, config: DirectConfig) -> bool:
    """True where so many taps of its tiles meet nothing but padding that a test for each costs less. Not where one is
    no number: times zero it is NaN."""
    weight = state.network.constants[kernel.anchor.inputs[1]]
    live = math.prod(_live(kernel, axis, tile) for axis, tile in enumerate((config.rows, config.columns)))
    return live <= MOST_LIVE and bool(np.isfinite(weight).all())


def _live(kernel: Kernel, axis: int, tile: int) -> float:
    """The share of pairs of a tap and a tile along an axis of which a pixel meets the image. Counted by taps: of tiles
    there may be millions."""
    node, extent, made = kernel.anchor, kernel.inputs[0].shape[2 + axis], kernel.output.shape[2 + axis]
    step = window_size(kernel)[axis] * node["strides"][axis]  # rows or columns of the image from one output to the next
    tiles, last = -(-made // tile), (min(tile, made) * step) - node["strides"][axis]
    met = 0
    for tap in range(node["kernel_shape"][axis]):
        offset = tap * node["dilations"][axis] - node["pads"][axis]
        first = max(0, -((offset + last) // (tile * step)))
        met += max(0, min(tiles, -((offset - extent) // (tile * step))) - first)
    return float(met / (tiles * node["kernel_shape"][axis]))


def _residuals(state: State, kernel: Kernel) -> list[tuple[Tensor, Layout]]:
    """What the epilogue reads besides constants, in blocks; a gate has one value a map, in any layout."""
    found = kernel.inputs[1:]
    return [state.gate(t) if t.shape[2:] == (1, 1) else state.image(t, Layout(BLOCK)) for t in found]


def _tile(state: State, kernel: Kernel, maps: int, depth: int) -> tuple[DirectConfig, str]:
    """A record's, a similar kernel's if it is among the best estimates for this one, or the best estimate.

    What LLVM makes of tiles that are cut short only a measurement tells (the rate of 19 x 23 pixels is 69 to 103
    GFLOP/s by the width of the tile): without one they overlap, which is as fast as it is estimated to be.
    """

    @functools.cache  # and not at all where there is a record
    def best() -> set[tuple[int, int, int]]:
        return set(direct_tiles(kernel, maps, depth, state.target)[:MAX_TILES])

    def fits(config: DirectConfig) -> bool:
        return max(1, depth) % config.unroll == 0 and (config.vectors, config.rows, config.columns) in best()

    config, tier = state.tuned(kernel, "direct", direct_config(kernel, maps, depth, state.target), fits)
    if tier == NEAREST:
        config = dataclasses.replace(config, overlap=not divides(kernel, config.rows, config.columns))
    return config, tier


def pads_itself(kernel: Kernel, config: DirectConfig, target: Target) -> bool:
    """True if each row of tiles may copy the rows that it reads between zeros, instead of a kernel before.

    Each row of the image is copied at most twice then, and what a tile reads is a small part of the stack. (The first
    convolution of MobileNetV2: 182 µs, with a kernel before it 190; that of ResNet-18 would copy each row 14 times.)
    """
    node, (_, channels, _, width) = kernel.anchor, kernel.inputs[0].shape
    per_block = BLOCK // target.lanes(kernel.dtype)
    tiles = -(-kernel.output.shape[1] // BLOCK) * per_block / config.vectors
    rows = config.rows * window_size(kernel)[0] * node["strides"][0]
    read = rows + (node["kernel_shape"][0] - 1) * node["dilations"][0]
    size = channels * read * (width + node["pads"][1] + node["pads"][3]) * kernel.item_bytes
    return bool(tiles * read / rows <= 2 and size <= IMAGE_LIMIT)


def decide_winograd(state: State, kernel: Kernel) -> tuple[WinogradConfig | StreamedConfig, str] | None:
    """Winograd's config with its tier, or None where direct convolution is faster: by record, else by estimate.

    `--exact` leaves out the algorithms that ALGORITHMS calls inexact, and a weight of a half type those that transform
    it: of 3 x 3 filters F(4x4) has four times the elements, in float32, so that they would take eight times the bytes.
    """
    if _has_few_maps(state, kernel):
        return None
    half = holds(state.network.half_weights.kind, state.network.constants[kernel.anchor.inputs[1]])
    known = ((rule, ALGORITHMS[rule]) for rule in SAME_SUMS)
    rules = [rule for rule, how in known if (how.exact or not state.exact) and (how.keeps or not half)]
    if squashes(kernel) or not set(rules) & set(BY_WINOGRAD):
        return None
    rule = state.records.fastest(kernel_words(state.network, kernel), rules)
    if rule is None:
        computed = None if half else winograd_config(kernel, state.target)
        return None if computed is None else (computed, "default")
    return recorded(state.records, state.network, kernel, rule) if rule in BY_WINOGRAD else None


def _by_winograd(state: State, kernel: Kernel) -> Choice:
    """Winograd's algorithm: its tiles read a halo that fills the last row and column of them."""
    decided = state.winograd[kernel.output.name]
    assert decided is not None
    (config, tier), image = decided, kernel.inputs[0]
    pads = halo(kernel.anchor, image.shape, config.tile, window_size(kernel))
    read = [state.image(image, Layout(BLOCK, pads)), *_residuals(state, kernel)]
    choice = choice_of(kernel, "direct", read, Layout(BLOCK), "direct", (None, tier))
    if isinstance(config, WinogradConfig):
        return as_winograd(choice, config)
    data = winograd_data(choice, config.tile)
    if data.kernel.output.name not in state.stored:  # else another convolution has had it made
        state.add(data)
    return as_streamed(choice, config, data.kernel.output, state.target)


def decide_bf16(state: State, kernel: Kernel) -> bool:
    """Whether a convolution of one group in blocks of channels multiplies factors of bfloat16, see bf16.py."""
    make = next(make for applies, make in CONVOLUTIONS if applies(state, kernel))
    found = state.winograd[kernel.output.name]
    return make in (_by_winograd, _by_direct) and multiplies_in_bf16(state, kernel, found and found[0])


def _by_bf16(state: State, kernel: Kernel) -> Choice:
    """Factors of bfloat16, by tiles or in pairs."""
    return in_bf16(state, kernel, _residuals(state, kernel))


Applies: TypeAlias = Callable[[State, Kernel], bool]
Make: TypeAlias = Callable[[State, Kernel], Choice]
CONVOLUTIONS: tuple[tuple[Applies, Make], ...] = (  # the first that applies
    (_blocks_are_off, plain),
    (_covers_its_input, dense),
    (_images_fill_lanes, _by_images),
    (_columns_fill_lanes, _by_columns),
    (_one_channel_a_group, _by_depthwise),
    (_has_few_maps, _by_few_maps),
    (_multiplies_in_bf16, _by_bf16),
    (_goes_by_winograd, _by_winograd),
    (_groups_are_blocks, _by_direct),
    (_pixels_fill_lanes, _by_pixels),
    (_groups_share_blocks, _by_direct),
    (_always, plain),
)
