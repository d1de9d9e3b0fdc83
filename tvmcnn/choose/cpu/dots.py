"""Dots: images of integers of 8 bits in blocks of channels, and the convolutions of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

from tvmcnn.blocks import BLOCK, channels_together, summed_channels
from tvmcnn.choose.cpu.amx import by_tiles, fits_tiles, layout_for_tiles
from tvmcnn.choose.cpu.defaults import direct_tiles, divides, prefetches
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.configs import DotsConfig
from tvmcnn.fuse import is_depthwise, is_per_channel
from tvmcnn.network import BYTES, FLOAT32, IN_BYTES, NO_PADS, Array, Choice, Kernel, Layout, Pads, Tensor, round_up
from tvmcnn.targets import Target

BINARY = ("QLinearAdd", "QLinearMul")
ELEMENT_WISE = ("QuantizeLinear", "DequantizeLinear", *BINARY, "Table")
MOST_SUMS = 28  # vectors of a tile
POOLS = ("MaxPool", "QLinearAveragePool")


def wanted_bytes(state: State, kernels: Sequence[Kernel]) -> dict[str, Layout]:
    """The layout of each image that convolutions of bytes read, by its name: with the largest halo, of the zero point
    that the first reader has."""
    found: dict[str, Layout] = {}
    for kernel in filter(lambda kernel: convolves_bytes(state, kernel), kernels):
        name, pads, zero = kernel.inputs[0].name, _pads(state, kernel), int(kernel.anchor["zero"])
        have = found.get(name, Layout(BLOCK, NO_PADS, fill=zero))
        top, left, bottom, right = map(max, have.halo, pads if have.fill == zero else NO_PADS)
        found[name] = Layout(BLOCK, (top, left, bottom, right), fill=have.fill)
    return found


def convolves_bytes(state: State, kernel: Kernel) -> bool:
    """A convolution of integers that has a kernel in blocks of channels."""
    return IN_BYTES in kernel.anchor.attributes


def convolve_bytes(state: State, kernel: Kernel) -> Choice:
    """16 maps in the lanes. An image of few channels is in blocks of 4 or 8, of which fewer are padding."""
    image, node = kernel.inputs[0], kernel.anchor
    weight = state.network.constants[node.inputs[1]]
    if weight.dtype == "int8" and fits_tiles(state, kernel):
        read = [state.image(image, layout_for_tiles(kernel, int(node["zero"])))]
        read += [state.image(residual, Layout(BLOCK)) for residual in kernel.inputs[1:]]
        return by_tiles(state, kernel, read, "amx_int8")
    if is_depthwise(kernel):
        block, terms = BLOCK, 4 if _by_quads_of_taps(state, kernel) else 1
    else:
        block = next(size for size in (4, 8, BLOCK) if size >= min(image.shape[1], BLOCK))
        terms = terms_of(state.target, weight)
    shift = shift_of(image, terms)
    stored = state.stored[image.name]
    if stored[1].block == BLOCK and stored[0].shape == image.shape:
        block = BLOCK
    read = [state.image(image, Layout(block, _pads(state, kernel), fill=int(node["zero"])))]
    read += [state.image(residual, Layout(BLOCK)) for residual in kernel.inputs[1:]]
    computed = dots_config(state, kernel, block, terms, shift)

    def fits(config: DotsConfig) -> bool:
        return fits_dots(kernel, config, block, computed, state.target)

    config, tier = state.tuned(kernel, "dots", computed, fits)
    if not fits(config):  # recorded on a CPU with VNNI for one without it, or for an image in other blocks
        config, tier = computed, "default"
    overlap = not divides(kernel, config.rows, config.columns)
    config = dataclasses.replace(config, shift=shift, overlap=overlap)
    return choice_of(kernel, "dots", read, Layout(BLOCK), "dots", (config, tier))


def fits_dots(kernel: Kernel, config: DotsConfig, block: int, computed: DotsConfig, target: Target) -> bool:
    """Whether another tile serves in the place of the computed one, for an image in blocks of so many channels."""
    vectors = -(-kernel.output.shape[1] // BLOCK) * (BLOCK // target.lanes(FLOAT32))
    groups = summed_channels(channels_together(kernel), block)[1] // config.terms if config.terms > 1 else 1
    whole = vectors % config.vectors == 0 and (is_depthwise(kernel) or groups % config.unroll == 0)
    height, width = kernel.output.shape[2:]
    return whole and config.terms == computed.terms and config.rows <= height and config.columns <= width


def terms_of(target: Target, weight: Array) -> int:
    """How many products one instruction adds: four of bytes by VNNI, else two of 16 bits."""
    return 4 if target.quads and weight.dtype == "int8" else 2


def shift_of(image: Tensor, terms: int) -> int:
    """What makes signed bytes unsigned, as VNNI takes them."""
    return 128 if terms == 4 and image.dtype == "int8" else 0


def _by_quads_of_taps(state: State, kernel: Kernel) -> bool:
    """True where VNNI adds four taps of a row at once: a load of 64 bytes has 16 channels of four pixels, which then
    change places (9 taps on 144 maps of 56 x 56: 158 µs with a product for each tap, 68 so)."""
    weight = state.network.constants[kernel.anchor.inputs[1]]
    whole = state.target.quads and state.target.lanes(FLOAT32) == BLOCK and weight.dtype == "int8"
    return whole and kernel.anchor["dilations"][1] == 1 and kernel.anchor["kernel_shape"][1] > 1


def _pads(state: State, kernel: Kernel) -> Pads:
    """What a convolution wants around its image: its pads, and room for the pixels of taps that fill the last four."""
    node, (top, left, bottom, right) = kernel.anchor, kernel.anchor["pads"]
    if not is_depthwise(kernel) or not _by_quads_of_taps(state, kernel):
        return top, left, bottom, right
    last = (kernel.output.shape[3] - 1) * node["strides"][1] - left + round_up(node["kernel_shape"][1], 4)
    return top, left, bottom, max(right, last - kernel.inputs[0].shape[3])


def dots_config(state: State, kernel: Kernel, block: int, terms: int, shift: int) -> DotsConfig:
    """The tile that is estimated to be fastest."""
    maps, depth = kernel.output.shape[1], min(channels_together(kernel), block) if terms > 1 else 0
    vectors = -(-maps // BLOCK) * (BLOCK // state.target.lanes(FLOAT32))
    tiles = direct_tiles(kernel, maps, depth, state.target)
    tiles = [tile for tile in tiles if vectors % tile[0] == 0]  # `tensorize` takes no part of a tile
    v, rows, columns = tiles[0]
    if terms == 2 and state.target.registers > MOST_SUMS:  # ResNet-18: 22.7 ms, and 27.9; with 16: 31, 28.8
        v, rows, columns = min(tiles, key=functools.partial(_instructions, kernel))
    if terms == 4 and is_depthwise(kernel):
        v, rows, columns = _tile_of_rows(kernel)
    unroll = math.gcd(4, summed_channels(channels_together(kernel), block)[1] // terms) if terms > 1 else 1
    prefetch = terms > 1 and prefetches(kernel, state.target)
    order = "rb rh rw rc" if terms > 1 else "rw rb rh rc"
    return DotsConfig(
        v, rows, columns, order, unroll, prefetch, not divides(kernel, rows, columns), terms=terms, shift=shift
    )


def _instructions(kernel: Kernel, tile: tuple[int, int, int]) -> tuple[float, int]:
    """Instructions by pairs of channels: a pixel is spread and widened by two for all vectors of maps, each product is
    two more; fewer than 8 sums wait for each other, and a vector of weights that L1 has not costs one more."""
    (v, rows, columns), (height, width) = tile, kernel.output.shape[2:]
    pixels = rows * columns
    once = max(v * pixels, 8) * (1 + 1 / v) + v
    return -(-height // rows) * -(-width // columns) * once / v, -pixels


def _tile_of_rows(kernel: Kernel) -> tuple[int, int, int]:
    """(1 vector, rows, columns) of a tile whose rows share the pixels that are loaded and turned.

    Counted in instructions: three for a row of four pixels, one for the products of each row of taps. (144 maps of 56 x
    56 pixels: 1 x 28 pixels 90 µs, 4 x 7 68.)
    """
    (height, width), (taps, _) = kernel.output.shape[2:], kernel.anchor["kernel_shape"]
    stride, dilation = kernel.anchor["strides"][0], kernel.anchor["dilations"][0]

    def instructions(tile: tuple[int, int]) -> tuple[int, int]:
        rows, columns = tile
        read = len({row * stride + tap * dilation for row in range(rows) for tap in range(taps)})
        return -(-height // rows) * -(-width // columns) * columns * (3 * read + taps * rows), -columns

    sizes = itertools.product(range(1, min(height, 4) + 1), range(1, min(width, 14) + 1))
    return (1, *min((size for size in sizes if math.prod(size) <= MOST_SUMS), key=instructions))


def works_in_blocks(state: State, kernel: Kernel) -> bool:
    """An element-wise operator on integers whose images are in blocks, with one scale and zero point each; another
    operand may be one integer a channel."""
    if kernel.anchor.op not in ELEMENT_WISE or not kernel.inputs or len(kernel.output.shape) != 4:
        return False
    operands = kernel.anchor.inputs[:2] if kernel.anchor.op in BINARY else ()
    for name in kernel.constants:
        array = state.network.constants[name]
        if (
            array.size > 1
            and kernel.anchor.op != "Table"
            and (name not in operands or not is_per_channel(array, kernel.output.shape))
        ):
            return False
    return all(tensor.shape == kernel.output.shape and lies_in_blocks(state, tensor) for tensor in kernel.inputs)


def in_blocks(state: State, kernel: Kernel) -> Choice:
    """In the layout of its operands."""
    read = [state.stored[tensor.name] for tensor in kernel.inputs]
    return choice_of(kernel, "quantised_blocks", read, Layout(BLOCK), "memory")


def pools_bytes(state: State, kernel: Kernel) -> bool:
    """A pool of an image of bytes in blocks."""
    image = kernel.inputs[0] if kernel.inputs else None
    return kernel.anchor.op in POOLS and image is not None and image.dtype in BYTES and lies_in_blocks(state, image)


def pool_bytes(state: State, kernel: Kernel) -> Choice:
    """Channels in the lanes."""
    return choice_of(kernel, "quantised_pool", [state.stored[kernel.inputs[0].name]], Layout(BLOCK), "pool")


def lies_in_blocks(state: State, tensor: Tensor) -> bool:
    """True for an image in blocks of channels, and no other shape of one."""
    stored, layout = state.stored[tensor.name]
    return layout.block == BLOCK and stored.shape == tensor.shape and tensor.dtype in (FLOAT32, *BYTES)
