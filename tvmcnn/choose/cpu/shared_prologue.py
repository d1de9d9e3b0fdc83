"""Shared prologue: what a convolution makes of its image is made once for all maps, a row of tiles at a time.

    for maps in 3, y in 28: prologue(y), conv(y, maps)    -->    for y in 28: prologue(y), for maps in 3: conv(y, maps)

Made for each tile it would be made again for every tile of maps: an addition before 768 to 768 maps of 32 x 32 pixels
left 178 of 255 GFLOP/s, a GELU before 448 maps 75. (DenseNet-121: 18.6 against 18.0 ms by AVX-512, on an AMD EPYC.)
"""

from __future__ import annotations

import dataclasses
import math

from tvmcnn.configs import DirectConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import ALIGNMENT, Choice, round_up
from tvmcnn.targets import Target


def sharing_prologue(choice: Choice, target: Target) -> Choice:
    """The choice with `rows_first` as it pays: several tiles of maps, and rows that L2 holds beside the weights."""
    config, kernel = choice.config, choice.kernel
    if not isinstance(config, DirectConfig) or not kernel.prologue:
        return choice
    maps = math.ceil(kernel.output.shape[1] / target.lanes(kernel.dtype) / config.vectors)
    size = row_bytes(choice, config)
    pays = maps > 1 and size <= target.l2_bytes / 2
    config = dataclasses.replace(config, rows_first=pays)
    return dataclasses.replace(choice, config=config, scratch_bytes=round_up(size, ALIGNMENT) if pays else 0)


def row_bytes(choice: Choice, config: DirectConfig) -> int:
    """Bytes of the image that a row of tiles reads: the filters are of 1 x 1. Tiles that overlap have their own."""
    kernel, image = choice.kernel, choice.kernel.inputs[0]
    (p, q), (sh, sw) = window_size(kernel), kernel.anchor["strides"]
    rows = (config.rows * p - 1) * sh + 1
    columns = math.ceil(kernel.output.shape[3] / config.columns) * ((config.columns * q - 1) * sw + 1)
    width = columns if config.overlap else image.shape[3]
    return int(round_up(image.shape[1], choice.reads[0].block) * rows * width * image.item_bytes)
