"""Cost: the estimated time of a choice, by which whole ways to lay out a network are compared."""

from __future__ import annotations

from collections.abc import Iterable

from tvmcnn.configs import DirectConfig
from tvmcnn.fuse import multiply_accumulates
from tvmcnn.network import Choice, Network, moved_bytes
from tvmcnn.targets import Target

GFLOPS = 15.0  # a second and lane, of FMAs (two units at 3.75 GHz)
GIGABYTES = 13.0  # a second, of a kernel that moves: a transpose reaches 12.7
# Of the FMA peak, measured on AVX-512 in LeNet-5 at batch 256
PEAK_SHARES = {"columns": 0.58, "few channels": 0.68, "conv_images": 0.85}
PEAK_SHARE = 0.9  # of the others


def microseconds(network: Network, choices: Iterable[Choice], target: Target) -> float:
    """Estimated time of all choices one after the other, on one thread."""
    return sum(_one(network, choice, target) for choice in choices if not choice.is_view)


def _one(network: Network, choice: Choice, target: Target) -> float:
    few = isinstance(choice.config, DirectConfig) and choice.reads[0].block == 1
    share = PEAK_SHARES.get("few channels" if few else choice.algorithm, PEAK_SHARE)
    computed = 2 * multiply_accumulates(network, choice.kernel) / (share * GFLOPS * target.lanes(choice.kernel.dtype))
    return (computed or moved_bytes(choice) / GIGABYTES) / 1e3
