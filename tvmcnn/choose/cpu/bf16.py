"""Bf16: which convolutions multiply factors of bfloat16, `--precision bf16`, and how."""

from __future__ import annotations

import dataclasses
import math

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.blocks import BLOCK, channels_together, summed_channels
from tvmcnn.choose.cpu.amx import by_tiles, fits_tiles, layout_for_tiles
from tvmcnn.choose.cpu.defaults import dense_config, direct_tiles, prefetches, weight_bytes
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.fits import misfit
from tvmcnn.choose.shared import choice_of
from tvmcnn.configs import DenseConfig, PairsConfig, StreamedConfig, WinogradConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import ALIGNMENT, FLOAT32, Choice, Kernel, Layout, Tensor, divisors, round_up
from tvmcnn.targets import Target

FEW_CHANNELS = 8  # below which half of a block is padding, or the image is plain
# Winograd's products are so many times fewer than these, which are twice as fast; its transforms cost 40 % of its time.
WINOGRAD_PAYS = 2 / 0.6
ROUNDING = 3.0  # cycles: load, round and store 16 channels of a pixel
SHARE = 1 / 16  # of the products' time, which rounding the image once more for other maps may take
MAX_BANDS = 8
PAIR = 2  # products that one instruction adds
FEW_WEIGHTS = 1 << 14  # of a matrix, below which a product takes a few microseconds
# By which a matrix is multiplied as fast as it is read, though pairs are slower than FMAs: 2048 x 1000 weights by 1 row
# 0.25 ms, FMAs 0.44; by 4 rows 0.41 and 0.62; by 8 0.74 and 0.89, at best 0.52 both (Xeon with AMX)
FEW_ROWS = 4
MAX_ROUNDED = 4 << 20  # bytes of rows in bfloat16, which each thread has
OTHERWISE = {  # convolutions that no block of channels serves
    "columns": "with columns in the lanes",
    "few_maps": "with channels in the lanes",
    "conv_images": "with images in the lanes",
    "dense": "over the whole image",
    "direct": "where it is faster",
}
MAX_WEIGHT_READS = 2  # of the weights, at most, for each byte of the image: see row_bands.py


def multiplies_in_bf16(state: State, kernel: Kernel, winograd: WinogradConfig | StreamedConfig | None) -> bool:
    """True for a convolution in blocks of channels that is faster so, beside Winograd's of float32 if there is one."""
    node = kernel.anchor
    if state.precision != "bf16" or kernel.dtype != FLOAT32 or node.attributes.get("exact"):
        return False
    if fits_tiles(state, kernel):
        return True
    if not pairs_pay(state.target) or node["group"] > 1 or kernel.inputs[0].shape[1] < FEW_CHANNELS:
        return False
    return winograd is None or _fewer_products(winograd) < WINOGRAD_PAYS


def pairs_pay(target: Target) -> bool:
    """True where pairs are faster than FMAs: not on CPUs with AMX, which are Intel's. (Sapphire Rapids: 75 GFLOP/s,
    FMAs 130; AMD's Zen 4: 226, FMAs 115.)"""
    return target.bf16_pairs and not target.tiles


def _fewer_products(winograd: WinogradConfig | StreamedConfig) -> float:
    """4 for F(4 x 4, 3 x 3), 2.25 for F(2 x 2, 3 x 3)."""
    return (winograd.tile * winograd.kernel / (winograd.tile + winograd.kernel - 1)) ** 2


def in_bf16(state: State, kernel: Kernel, residuals: list[tuple[Tensor, Layout]]) -> Choice:
    """The convolution by AMX's tiles where the target has them and they fit, else with 16 maps in the lanes and pairs
    of channels in an instruction."""
    if fits_tiles(state, kernel):
        read = [state.image(kernel.inputs[0], layout_for_tiles(kernel)), *residuals]
        return by_tiles(state, kernel, read, "amx_bf16")
    read = [state.image(kernel.inputs[0], Layout(BLOCK, kernel.anchor["pads"])), *residuals]
    computed = pairs_config(kernel, state.target)
    config = state.tuned(kernel, "pairs", computed, lambda config: not misfit(kernel, "pairs", config))
    choice = choice_of(kernel, "bf16", read, Layout(BLOCK), "pairs", config)
    return as_pairs(choice, choice.numbers(PairsConfig), state.target)


def as_pairs(choice: Choice, config: PairsConfig, target: Target) -> Choice:
    """A convolution by pairs with another tile, in as many bands and parts as suit it, and the scratch of it."""
    kernel, v = choice.kernel, config.vectors
    parts = _parts(kernel, -(-kernel.output.shape[1] // BLOCK) // v, v)
    config = dataclasses.replace(config, bands=_bands(kernel, config, target), parts=parts)
    scratch = round_up(band_bytes(kernel, config.bands), ALIGNMENT)
    return dataclasses.replace(choice, config=config, scratch_bytes=scratch)


def pairs_config(kernel: Kernel, target: Target) -> PairsConfig:
    """The tile that is estimated to be fastest; `as_pairs` gives it bands and parts.

    An image that L2 does not hold must be cut into bands, so that tiles divide its rows.
    """
    maps, channels = kernel.output.shape[1], channels_together(kernel)
    blocks = -(-maps // BLOCK)
    unroll = math.gcd(4, summed_channels(channels, BLOCK)[1] // 2)
    tiles = (
        PairsConfig(*tile, unroll=unroll, prefetch=prefetches(kernel, target))
        for tile in direct_tiles(kernel, maps, min(channels, BLOCK), target)
        if blocks % tile[0] == 0  # `tensorize` takes no part of a tile
    )
    return next(tile for tile in tiles if fits_l2(kernel, tile, target))


def fits_l2(kernel: Kernel, tile: PairsConfig, target: Target) -> bool:
    """Whether L2 holds the image, or it can be cut into bands."""
    return band_bytes(kernel, 1) <= target.l2_bytes or kernel.output.shape[2] % tile.rows == 0


def _bands(kernel: Kernel, config: PairsConfig, target: Target) -> int:
    """As many as the weights allow, which each band reads again, and at least as many as let L2 hold one's image."""
    height = kernel.output.shape[2]
    if height % config.rows:
        return 1  # the last row of tiles is moved back, and would be in two bands
    several = divisors(height // config.rows)
    held = next((each for each in several if band_bytes(kernel, each) <= target.l2_bytes / 2), several[-1])
    image = math.prod(kernel.inputs[0].shape[1:]) * kernel.item_bytes
    most = min(MAX_BANDS, MAX_WEIGHT_READS * image / weight_bytes(kernel))
    return max([each for each in several if each <= most] + [held])


def _parts(kernel: Kernel, tiles: int, vectors: int) -> int:
    """Parts of the maps, in whole tiles, for each of which rounding the image is little beside its products."""
    node = kernel.anchor
    taps = math.prod(node["kernel_shape"]) / math.prod(node["strides"])
    products = taps * BLOCK / 2 * vectors * tiles  # instructions, of 16 channels of a pixel of the image
    return max(each for each in divisors(tiles) if each == 1 or each * ROUNDING <= SHARE * products)


def band_bytes(kernel: Kernel, bands: int) -> int:
    """Bytes of what a band of the output's rows reads, in bfloat16."""
    node, (height, width) = kernel.anchor, kernel.output.shape[2:]
    size = 2 * round_up(kernel.inputs[0].shape[1], BLOCK)
    for axis, extent in enumerate((height // bands, width)):
        taps = (node["kernel_shape"][axis] - 1) * node["dilations"][axis]
        size *= (extent * window_size(kernel)[axis] - 1) * node["strides"][axis] + taps + 1
    return int(size)


# ---- products of rows by a constant matrix --------------------------------------------------------------------------


def multiplies_rows_in_bf16(state: State, kernel: Kernel, rows: int, depth: int) -> bool:
    """True for a product of a large matrix by rows of `depth` elements, which are rounded before it. With few rows it
    waits for the weights, which are half as large, whatever the rate of pairs."""
    if state.precision != "bf16" or not state.target.bf16_pairs or kernel.dtype != FLOAT32:
        return False
    node = kernel.anchor
    if node.op not in ("Gemm", "MatMul") or node.attributes.get("exact"):
        return False
    faster = pairs_pay(state.target) or rows <= FEW_ROWS
    return faster and state.network.constants[node.inputs[1]].size >= FEW_WEIGHTS and 2 * rows * depth <= MAX_ROUNDED


def pairs_of_rows_config(rows: int, depth: int, maps: int, target: Target) -> DenseConfig:
    """The tile of floats, its sum in parts of pairs."""
    config = dense_config(rows, depth, maps, FLOAT32, target)
    return dataclasses.replace(config, parts=math.gcd(config.parts, -(-depth // PAIR)))


def why_float32(choice: Choice, *, tiles: bool) -> str:
    """Why the factors of a kernel's products are not rounded, of a library that multiplies by AMX's tiles or by pairs:
    the words after how many of them there are."""
    kernel, node = choice.kernel, choice.kernel.anchor
    if not ALGORITHMS[choice.algorithm].exact:
        return "by Winograd"
    if kernel.dtype != FLOAT32:
        return f"of {kernel.dtype}"
    if node.op != "Conv":
        if ALGORITHMS[choice.algorithm].weight is None:
            return node.op
        many_rows = tiles and math.prod(kernel.output.shape[:-1]) > FEW_ROWS
        return f"{node.op} of {f'more than {FEW_ROWS} rows' if many_rows else f'fewer than {FEW_WEIGHTS:,} weights'}"
    if node["group"] > 1:
        return "of several groups"
    if tiles:
        return "whose channels and pixels are too few to fill tiles"
    if kernel.inputs[0].shape[1] < FEW_CHANNELS:
        return f"of fewer than {FEW_CHANNELS} channels"
    return OTHERWISE.get(choice.algorithm, f"by the algorithm {choice.algorithm}")
