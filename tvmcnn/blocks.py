"""Blocks of channels, as NCHW16c has them, and the groups of a convolution that fill some."""

from __future__ import annotations

import math

from tvmcnn.network import Kernel, Shape, divisors, round_up

BLOCK = 16  # channels: one AVX-512 vector, two of AVX2 (measured: AVX2's best tile used both)
MOST_TOGETHER = 3  # groups that fill no blocks
QUAD = 4  # bytes of a word, of which one instruction of a GPU adds the products with those of another: dp4a
TO_SIGNED = {"int8": 0, "uint8": -128}  # what is added to the bytes of an image first: it takes those of both as signed
STRIP = 16 << 10  # bytes of a block's rows that are read once for each of its channels: half of L1


def groups_together(kernel: Kernel) -> int:
    """How many groups of a convolution are convolved as one, in blocks of channels: 1 where each fills whole blocks of
    channels and of maps, 2 where two do, all where there are at most 3; else 0.

    Their filters have zeros for the others' channels: half the products are wasted, or two in three, and channels lie
    in the lanes. (48 maps of 56 x 56 pixels in 2 groups: 78 GFLOP/s that count in plain layout, 106 so. Of groups of 4
    channels three quarters would be wasted, and nothing won.)
    """
    group = int(kernel.anchor["group"])
    channels, maps = kernel.inputs[0].shape[1] // group, kernel.output.shape[1] // group
    if group <= MOST_TOGETHER and (group == 1 or channels % BLOCK or maps % BLOCK):
        return group
    return next((n for n in (1, 2) if channels * n % BLOCK == maps * n % BLOCK == 0), 0)


def channels_together(kernel: Kernel) -> int:
    """The channels over which a map's sum runs: those of its group, and of the groups that are convolved with it."""
    return int(kernel.inputs[0].shape[1]) // int(kernel.anchor["group"]) * (groups_together(kernel) or 1)


def summed_channels(channels: int, block: int) -> tuple[int, int]:
    """(blocks, channels in one) of the sum over an input's channels, or (1, channels) where half a block is padding.

    24 channels are stored as two blocks, 16 + 8 and 8 zeros, but summed as one run of 24.
    """
    blocks, rounded = -(-channels // block), round_up(channels, 4)
    return (1, rounded) if blocks * block - rounded >= block / 2 > 1 else (blocks, block)


def strip(shape: Shape) -> tuple[int, int]:
    """(channels, rows) of a float32 image N x C x H x W that are taken out of blocks at once; no rows where it may be
    all, or is no image."""
    if len(shape) != 4 or 0 in shape or shape[2] * shape[3] * BLOCK * 4 <= STRIP:
        return 1, 0
    strips = math.ceil(shape[2] / max(1, STRIP // (BLOCK * 4 * shape[3])))
    return max(divisor for divisor in divisors(shape[1]) if divisor <= BLOCK), math.ceil(shape[2] / strips)
