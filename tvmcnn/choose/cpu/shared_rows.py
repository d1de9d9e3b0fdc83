"""Shared rows: all maps of a row of tiles before the next row, of images that L2 does not hold but such a row.

    for maps in 2, y in 112: …    -->    for y in 112, maps in 2: …

Unfolded frames are large images: each has the channels of all frames that a window meets, and a filter of k x 1 x 1
reads them once. With the maps outside they come from L3 again for every tile of maps. (448 to 64 maps of 8 x 112 x 112
pixels: 76.4 ms, so 64.0; 576 to 192 of 8 x 56 x 56: 56.3 and 52.2; AVX-512, AMD EPYC.)
"""

from __future__ import annotations

import dataclasses
import math

from tvmcnn.choose.cpu.shared_prologue import row_bytes
from tvmcnn.configs import DirectConfig
from tvmcnn.network import Choice
from tvmcnn.targets import Target


def sharing_rows(choice: Choice, target: Target) -> Choice:
    """The choice with `rows_first` as it pays for images that share their frames."""
    config, kernel = choice.config, choice.kernel
    if not isinstance(config, DirectConfig) or kernel.prologue or kernel.anchor["kernel_shape"] != (1, 1):
        return choice
    image, layout = choice.sources[0], choice.reads[0]
    shared = 0 < layout.pitch * layout.block < image.shape[1]
    maps = math.ceil(kernel.output.shape[1] / target.lanes(kernel.dtype) / config.vectors)
    large = math.prod(image.shape[1:]) * image.item_bytes > target.l2_bytes
    pays = shared and large and maps > 1 and row_bytes(choice, config) <= target.l2_bytes / 2
    return dataclasses.replace(choice, config=dataclasses.replace(config, rows_first=pays))
