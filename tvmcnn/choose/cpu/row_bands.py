"""Row bands: the rows of a convolution's output in a few parts, all maps of one before all maps of the next.

    for maps in 6, y in 14: …    -->    for band in 2: for maps in 6, y in 7: …

The first half of the outer loops is one core's. Cut by maps, it reads all channels, of which another core made half:
they come from that core's cache at 9 GB/s. Cut by rows, kernel after kernel, each core reads what it made, and both
read all weights instead, which are prefetched from L3. (ResNet-50's 1024 channels of 14 x 14 pixels to 256 maps on 2
threads: 353 µs, in bands 276; ResNet-50 4 % in all.) So bands are for convolutions with less weights than images.

They are the network's choice, whatever a record says: on the tuner's one thread they change nothing (2 % in 60 configs
of ResNet-18 and MobileNetV2, with either sign), and what two threads gain depends on the neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmcnn.choose.cpu.defaults import weight_bytes
from tvmcnn.choose.cpu.tasks import cut_by_rows, task_count
from tvmcnn.configs import DirectConfig
from tvmcnn.fuse import is_depthwise
from tvmcnn.network import Choice, Network, divisors, moved_bytes
from tvmcnn.targets import Target

MAX_BANDS = 4
MAX_WEIGHT_READS = 2  # of the weights, at most, for each byte of images


def in_bands(network: Network, choices: Sequence[Choice], target: Target) -> tuple[Choice, ...]:
    """The choices with the direct convolutions in as many bands as pay; depthwise ones follow what they read."""
    made = [in_one_band(choice) for choice in choices]
    cut: set[str] = set()  # names of the tensors of which each core has rows
    for i, choice in enumerate(made):
        direct = isinstance(choice.config, DirectConfig)
        if direct and (not is_depthwise(choice.kernel) or choice.sources[0].name in cut):
            made[i] = banded(network, choice, target)
        if cut_by_rows(made[i]):
            cut.add(choice.kernel.output.name)
    return tuple(made)


def banded(network: Network, choice: Choice, target: Target) -> Choice:
    """The choice in the most bands that divide its rows of tiles and read the weights seldom enough."""
    config = choice.config
    if not isinstance(config, DirectConfig) or choice.tasks == 1:
        return choice
    images, _, height, _ = choice.kernel.output.shape
    # Where a smaller tile is at the end, LLVM cuts it from the loop over all rows, not from one over a band's: 512 to
    # 128 maps of 28 rows in tiles of 3 took 1078 µs in bands, 520 without.
    if images > 1 or (height % config.rows and not config.overlap):
        return choice
    most = min(MAX_BANDS, MAX_WEIGHT_READS * moved_bytes(choice) / weight_bytes(choice.kernel))
    bands = max((each for each in divisors(-(-height // config.rows)) if each <= most), default=1)
    choice = dataclasses.replace(choice, config=dataclasses.replace(config, bands=bands))
    return dataclasses.replace(choice, tasks=task_count(network, choice, target))


def in_one_band(choice: Choice) -> Choice:
    """The choice without bands."""
    if not isinstance(choice.config, DirectConfig) or choice.config.bands == 1:
        return choice
    return dataclasses.replace(choice, config=dataclasses.replace(choice.config, bands=1))
