"""Anchors: the algorithm, layouts, rule and config of convolutions and matrix products."""

from __future__ import annotations

import functools
import math

from tvmcnn.choose.cpu.defaults import (
    BLOCK,
    columns_config,
    dense_config,
    direct_config,
    direct_tiles,
    images_config,
    pixels_config,
    rows_config,
    winograd_config,
)
from tvmcnn.choose.cpu.state import Walk, choice_of
from tvmcnn.choose.cpu.winograd import as_streamed, as_winograd, winograd_data
from tvmcnn.choose.fits import recorded
from tvmcnn.choose.records import kernel_words
from tvmcnn.configs import DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.fuse import deinterleaved, pool_of, squashes, window_size
from tvmcnn.network import FLOAT, NO_PADS, PLAIN, Choice, Kernel, Layout, Pads, round_up
from tvmcnn.targets import Target
from tvmcnn.winograd import halo

ROW_LIMIT = 4096  # columns of a product whose rows cannot be padded: their accumulators may have to lie on the stack
TILES = 28  # register tiles, those estimated to be fastest
IMAGE_LIMIT = 32 << 10  # bytes of an image that a kernel copies: it is on the stack, in L1


def conv(walk: Walk, kernel: Kernel, is_output: bool) -> Choice:
    """Choose the algorithm that is fastest for the channels, groups and batch, as far as it is known or estimated."""
    node, image, residuals = kernel.anchor, kernel.inputs[0], kernel.inputs[1:]
    weight = walk.network.constants[node.inputs[1]]
    group, maps, channels = node["group"], weight.shape[0], image.shape[1]
    pads: Pads = node["pads"]
    covers = group == 1 and weight.shape[2:] == image.shape[2:] and pads == NO_PADS and node["dilations"] == (1, 1)
    covers = covers and maps <= ROW_LIMIT
    alone = not residuals and not kernel.prologue
    if covers and pool_of(kernel) is None and alone:
        return dense(walk, kernel, is_output)
    if walk.images > 1 and group == 1 and alone and image.shape[0] % walk.images == 0:
        tile = images_config(maps, kernel.output.shape[3], math.prod(window_size(kernel)), 0, walk.target)
        read = [walk.image(image, Layout(halo=pads, images=walk.images))]
        return choice_of(kernel, "conv_images", read, Layout(images=walk.images), "images", (tile, "default"))
    if group == 1 and alone and _fits_columns(walk, kernel):
        width = kernel.output.shape[3]
        writes = Layout(1, (0, 0, 0, round_up(width, walk.target.lanes) - width))
        config = walk.tuned(kernel, "columns", columns_config(kernel, maps, width, walk.target))
        return choice_of(kernel, "columns", [walk.plain(image)], writes, "columns", config)
    if group == channels == maps:
        algorithm, depth = "depthwise", 0
    elif group == 1 or (channels // group % BLOCK == 0 and maps // group % BLOCK == 0):
        algorithm, depth = "direct", channels // group
    elif _fits_pixels(kernel):
        read = [walk.image(image, Layout(1, pads)), *(walk.plain(tensor) for tensor in residuals)]
        config = walk.tuned(kernel, "pixels", pixels_config(kernel, group, walk.target))
        return choice_of(kernel, "pixels", read, PLAIN, "pixels", config)
    else:
        return plain(walk, kernel)
    if algorithm == "direct" and (found := winograd_of(walk, kernel)) is not None:
        return _winograd(walk, kernel, *found)
    few = algorithm == "direct" and channels < BLOCK and walk.stored[image.name][1].block == 1
    block = 1 if few else BLOCK
    direct, tier = _tile(walk, kernel, maps, min(depth, block))
    padded = few and alone and walk.stored[image.name][1].plain and pads_itself(kernel, direct, walk.target)
    read = [walk.plain(image) if padded else walk.image(image, Layout(block, pads))]
    read += [walk.gate(t) if t.shape[2:] == (1, 1) else walk.image(t, Layout(BLOCK)) for t in residuals]
    return choice_of(kernel, algorithm, read, Layout(BLOCK), "direct", (direct, tier))


def plain(walk: Walk, kernel: Kernel) -> Choice:
    """A convolution of any number of groups that reads and writes plain images, with a halo of its pads."""
    image, *residuals = kernel.inputs
    read = [walk.image(image, Layout(1, kernel.anchor["pads"])), *(walk.plain(tensor) for tensor in residuals)]
    if pool_of(kernel) is not None or kernel.prologue:
        return choice_of(kernel, "grouped", read, PLAIN, "fallback")
    return choice_of(kernel, "grouped", read, PLAIN, "rows", (rows_config(walk.network, kernel), "default"))


def _tile(walk: Walk, kernel: Kernel, maps: int, depth: int) -> tuple[DirectConfig, str]:
    """A record's, a similar kernel's if it is among the best estimates for this one, or the best estimate."""

    @functools.cache  # and not at all where there is a record
    def best() -> set[tuple[int, int, int]]:
        return set(direct_tiles(kernel, maps, depth, walk.target)[:TILES])

    def fits(config: DirectConfig) -> bool:
        return max(1, depth) % config.unroll == 0 and (config.vectors, config.rows, config.columns) in best()

    return walk.tuned(kernel, "direct", direct_config(kernel, maps, depth, walk.target), fits)


def pads_itself(kernel: Kernel, config: DirectConfig, target: Target) -> bool:
    """True if each row of tiles may copy the rows that it reads between zeros, instead of a kernel before.

    Each row of the image is copied at most twice then, and what a tile reads is a small part of the stack. (The first
    convolution of MobileNetV2: 182 µs, with a kernel before it 190; that of ResNet-18 would copy each row 14 times.)
    """
    node, (_, channels, _, width) = kernel.anchor, kernel.inputs[0].shape
    per_block = BLOCK // target.lanes
    tiles = -(-kernel.output.shape[1] // BLOCK) * per_block / config.vectors
    rows = config.rows * window_size(kernel)[0] * node["strides"][0]
    read = rows + (node["kernel_shape"][0] - 1) * node["dilations"][0]
    size = channels * read * (width + node["pads"][1] + node["pads"][3]) * FLOAT
    return bool(tiles * read / rows <= 2 and size <= IMAGE_LIMIT)


def winograd_of(walk: Walk, kernel: Kernel) -> tuple[WinogradConfig | StreamedConfig, str] | None:
    """The config with its tier, or None where direct convolution is faster: by record, else by estimate."""
    if walk.exact or squashes(kernel):
        return None
    rule = walk.records.fastest(kernel_words(walk.network, kernel), ("winograd", "streamed", "direct"))
    if rule is None:
        computed = winograd_config(kernel, walk.target)
        return None if computed is None else (computed, "default")
    return None if rule == "direct" else recorded(walk.records, walk.network, kernel, rule)


def _winograd(walk: Walk, kernel: Kernel, config: WinogradConfig | StreamedConfig, tier: str) -> Choice:
    """The convolution by Winograd: its tiles read a halo that fills the last row and column of them."""
    image, residuals = kernel.inputs[0], kernel.inputs[1:]
    pads = halo(kernel.anchor, image.shape, config.tile)
    read = [walk.image(image, Layout(BLOCK, pads))]
    read += [walk.gate(t) if t.shape[2:] == (1, 1) else walk.image(t, Layout(BLOCK)) for t in residuals]
    choice = choice_of(kernel, "direct", read, Layout(BLOCK), "direct", (None, tier))
    if isinstance(config, WinogradConfig):
        return as_winograd(choice, config)
    data = winograd_data(choice, config.tile)
    if data.kernel.output.name not in walk.stored:  # else another convolution has had it made
        walk.add(data)
    return as_streamed(choice, config, data.kernel.output, walk.target)


def _fits_pixels(kernel: Kernel) -> bool:
    """True for 1x1 filters that read every pixel of maps of at least one vector, unpadded."""
    node = kernel.anchor
    once = node["kernel_shape"] == node["strides"] == (1, 1) and node["pads"] == NO_PADS
    return once and not kernel.prologue and pool_of(kernel) is None and math.prod(kernel.output.shape[2:]) >= BLOCK


def _fits_columns(walk: Walk, kernel: Kernel) -> bool:
    """True if columns fill the lanes better than channels do, and the image is small enough for the stack."""
    _, maps, height, width = kernel.output.shape
    lanes = round_up(width, walk.target.lanes)
    rows, phases, pitch = deinterleaved(kernel, height, lanes)
    size = kernel.inputs[0].shape[1] * rows * phases * pitch * FLOAT
    return width / lanes > maps / round_up(maps, BLOCK) and size <= IMAGE_LIMIT


def dense(walk: Walk, kernel: Kernel, is_output: bool) -> Choice:
    """A matrix product reads its rows as they lie in memory, halo and all; only a stack of matrices must be plain."""
    image = kernel.inputs[0]
    rows = kernel.output.shape[0]
    source, layout = walk.stored[image.name]
    if layout.images > 1:
        if (
            source.shape[0] == rows
            and len(kernel.inputs) == 1
            and kernel.output.size == math.prod(kernel.output.shape[:2])
        ):
            maps = kernel.output.shape[1]
            depth = math.prod(source.shape[1:])
            tile = images_config(maps, rows // walk.images, 1, depth, walk.target)
            writes = Layout(images=walk.images)
            return choice_of(kernel, "dense_images", [(source, layout)], writes, "images", (tile, "default"))
        source, layout = walk.plain(image)
    if len(kernel.output.shape) != 2 and kernel.anchor.op == "Gemm":
        source, layout = walk.plain(image)
        rows = math.prod(kernel.output.shape[:-1])
    elif source.shape[0] != rows:
        source, layout = walk.plain(image)
    maps = kernel.output.shape[1 if kernel.anchor.op == "Conv" else -1]
    depth = math.prod(layout.physical(source.shape)) // rows
    config, tier = walk.tuned(kernel, "dense", dense_config(rows, depth, maps, walk.target))
    read = [(source, layout), *(walk.plain(tensor) for tensor in kernel.inputs[1:])]
    # Rows of whole tiles cost nothing where only matrix products read them, and where a row has several tiles they keep
    # the accumulators in registers. Not with a second tensor in the epilogue, whose rows have no halo to read.
    inner = not is_output and walk.readers.get(kernel.output.name) == frozenset({"Gemm"})
    tiled = maps > config.width and maps % config.width > 0
    padded = len(kernel.output.shape) == 2 and len(kernel.inputs) == 1 and (inner or tiled)
    writes = Layout(1, (0, 0, 0, round_up(maps, config.width) - maps)) if padded else PLAIN
    return choice_of(kernel, "dense", read, writes, "dense", (config, tier))
