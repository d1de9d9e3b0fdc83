"""Turns: a convolution and the kernel that reads its maps one by one, a group of maps at a time.

    for all 96 maps: conv 1x1;  for all 96 maps: depthwise    -->    for each 16 maps: conv 1x1, depthwise

Sixteen maps of 112 x 112 pixels are 0.8 MB: 96 of them, 4.8 MB, go through L3 or memory twice, the 16 at hand stay in
L2. Both kernels are what they are alone, and compute the same bits; the chain calls them in turn, with a part of the
thread's scratch in the place of the tensor between them. (MobileNetV2 takes 4 % less, SqueezeNet 3 %.)
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from tvmcnn.defaults import BLOCK, direct_tiles
from tvmcnn.fusion import window_size
from tvmcnn.layout import stored_bytes
from tvmcnn.network import Choice, Network, Turns
from tvmcnn.targets import Target
from tvmcnn.tasks import all_tasks, outer_loops, tasks

FEWEST = 4  # groups, which threads share
BANDS = 2
TWICE = 0.05  # of the first kernel's rows, at most, are computed in both bands
READERS = ("depthwise", "pool")  # algorithms whose output maps each read one map


def take_turns(network: Network, choices: Sequence[Choice], target: Target) -> tuple[Choice, ...]:
    """The choices with `turns` set where a pair of neighbours should alternate."""
    made = list(choices)
    reads = Counter(source.name for choice in choices for source in choice.sources)
    outputs = {tensor.name for tensor in network.outputs}
    for i in range(len(made) - 1):
        first, second = made[i : i + 2]
        between = first.kernel.output
        alone = reads[between.name] == 1 and between.name not in outputs and first.within is None
        fits = first.rule == "direct" and second.algorithm in READERS and second.reads[0].block == BLOCK
        if not (alone and fits and second.sources[0] == between and not first.turns):
            continue
        if stored_bytes(between, first.writes) < target.l2_bytes:
            continue  # it is in L2 as it is
        first, second = _in_no_bands(first), _in_no_bands(second)
        for each in _with_fewer_maps(network, first, target):
            groups = _groups(each, second, target)
            if groups >= FEWEST and stored_bytes(between, first.writes) / groups < target.l2_bytes:
                each = dataclasses.replace(each, tasks=all_tasks(each, target))
                turns = _turns(groups, each, second, target)
                second = dataclasses.replace(second, turns=turns, tasks=all_tasks(second, target))
                made[i], made[i + 1] = each, second
                break
    return tuple(made)


def _in_no_bands(choice: Choice) -> Choice:
    """The choice without the bands that a record gave it: those of the pair take their place."""
    if choice.rule != "direct" or choice.config.bands == 1:
        return choice
    return dataclasses.replace(choice, config=dataclasses.replace(choice.config, bands=1))


def _with_fewer_maps(network: Network, choice: Choice, target: Target) -> Iterator[Choice]:
    """The convolution as it is, then with tiles of one block of maps."""
    yield choice
    kernel = choice.kernel
    depth = kernel.inputs[0].shape[1] // kernel.anchor["group"]
    block = BLOCK // target.lanes
    for v, rows, columns in direct_tiles(kernel, kernel.output.shape[1], depth, target):
        if v == block and kernel.output.shape[3] % columns == kernel.output.shape[2] % rows == 0:
            config = dataclasses.replace(choice.config, vectors=v, rows=rows, columns=columns)
            choice = dataclasses.replace(choice, config=config)
            yield dataclasses.replace(choice, tasks=tasks(network, choice, target))
            return


def _groups(first: Choice, second: Choice, target: Target) -> int:
    """How many groups of maps both kernels can be cut into by their tasks; 0 if they cannot."""
    n, _, tiles = outer_loops(first, target)[:3]
    blocks = first.writes.physical(first.kernel.output.shape)[1]
    even = blocks % tiles == 0 and math.prod(outer_loops(second, target)[:-1]) % (n * blocks) == 0
    return n * tiles if even and first.tasks > 1 and second.tasks > 1 else 0


def _turns(groups: int, first: Choice, second: Choice, target: Target) -> Turns:
    """In two bands of rows where few rows of the first kernel are in both: each half is one core's, see bands.py.

    With the maps alone shared out, half of what the first reads another core made. (MobileNetV2's three pairs on 2
    threads: 252, 157 and 124 µs, in bands 198, 130 and 114.)
    """
    height = first.kernel.output.shape[2]
    theirs, ours = (outer_loops(choice, target)[-1] for choice in (first, second))
    whole = Turns(groups, (theirs, ours), ((0, theirs, 0, ours),))
    if second.kernel.output.shape[0] > 1 or ours < BANDS or window_size(second.kernel) != (1, 1):
        return whole
    node = second.kernel.anchor
    stride, dilation, size, pad = (node[name][0] for name in ("strides", "dilations", "kernel_shape", "pads"))
    tile = second.config.rows if second.rule == "direct" else 1
    bands = []
    for band in range(BANDS):
        begin, end = ours * band // BANDS, ours * (band + 1) // BANDS
        bottom = (min(end * tile, second.kernel.output.shape[2]) - 1) * stride - pad + (size - 1) * dilation + 1
        top, bottom = max(0, begin * tile * stride - pad), min(bottom, height)
        bands.append((top // first.config.rows, -(-bottom // first.config.rows), begin, end))
    twice = sum(end - begin for begin, end, _, _ in bands) - theirs
    return dataclasses.replace(whole, bands=tuple(bands)) if twice <= TWICE * theirs else whole
