"""Defaults for GPUs: the configs of a kernel that are worth a try, the best by estimate first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from tvmcnn.blocks import QUAD
from tvmcnn.choose.cpu.defaults import winograd_fits
from tvmcnn.configs import Config, GemmConfig, GemvConfig, MmaConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import Choice, Kernel, Network, round_up
from tvmcnn.winograd import grid

WARP = 32  # threads
SHARED_BYTES = 48 << 10  # of a block, on every GPU
PROCESSORS, FMAS, BYTES = 132, 128, 1200  # of an H100, in each of them a cycle, from memory and L2 a cycle
# Instructions by which four bytes of memory become a word of shared memory: loads, PRMTs, and addresses (SASS, sm_90)
WORD = 16
SUM_BYTES = 4  # of a part of a sum, float32 or int32
LAUNCH = 2500  # cycles, of the kernel that adds the parts of a sum
GEMM_TILES = ((128, 128, 8, 8), (64, 128, 8, 8), (64, 64, 4, 4), (32, 64, 4, 4), (16, 64, 4, 4), (64, 32, 4, 4))
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)  # of a sum
# Of the peak: a thread's tile of 4 x 4 waits for loads from shared memory, one of 8 x 8 does not.
GEMM_RATES = (0.6, 0.9)
MMA_TILES = ((64, 128, 32, 32), (64, 64, 32, 32), (32, 64, 16, 32), (16, 64, 16, 16))
MMA_RATES = {"tf32": 256, "fp16": 512}  # FMAs a cycle: half of an A100's peak, which fragments from shared memory allow
GATHERED = 16  # elements a cycle that a multiprocessor brings to shared memory, by address arithmetic
HIDING_WARPS = 12  # warps that hide each other's latency
DEPTHS, MIN_STEPS = (16, 8, 32), 4  # terms at a time, the usual first, and how often at least


def configs(network: Network, choice: Choice) -> Sequence[Config]:
    """The configs of a choice that are worth a try, those estimated to be fastest first; none for a rule without."""
    candidates = CANDIDATES.get(choice.algorithm)
    return candidates(network, choice.kernel) if candidates is not None else ()


def gemm_configs(network: Network, kernel: Kernel) -> list[GemmConfig]:
    """Tiles and parts of the sum, those first by which the GPU is done first, by estimate.

    Large tiles load less, small ones keep all multiprocessors at work; where even those are few, the sum is split:
    7 x 7 pixels of 512 maps are 8 tiles of 64 x 64 for 132 multiprocessors.
    """
    terms = math.prod(network.constants[kernel.anchor.inputs[1]].shape[1:])
    found = _gemm_tiles(kernel, terms) + winograd_configs(kernel)
    return [config for _, config in sorted(found, key=lambda pair: pair[0])]


def words_conv_configs(network: Network, kernel: Kernel) -> list[GemmConfig]:
    """As `gemm_configs`, of words of four channels."""
    _, depth, *window = network.constants[kernel.anchor.inputs[1]].shape
    found = _gemm_tiles(kernel, -(-depth // QUAD) * math.prod(window), WORD)
    return [config for _, config in sorted(found, key=lambda pair: pair[0])]


def _gemm_tiles(kernel: Kernel, terms: int, gathering: int = 0) -> list[tuple[float, GemmConfig]]:
    """Tiles and parts of a convolution's sums of so many terms, with the estimated cycles of each."""
    window = math.prod(window_size(kernel))
    pixels, maps = math.prod(kernel.output.shape[2:]) * window, maps_of(kernel)
    others = kernel.output.shape[0] * int(kernel.anchor["group"])
    found: list[tuple[float, GemmConfig]] = []
    for (tall, wide, rows, columns), split, depth in itertools.product(GEMM_TILES, SPLITS, DEPTHS):
        across = round_up(columns, window)
        config = GemmConfig(tall, wide // columns * across, rows, across, depth, split)
        tiles = -(-maps // tall) * -(-pixels // config.pixels) * others
        if split == 1:
            found.append((_cycles(config, tiles, terms, gathering), config))
        elif terms // split >= DEPTHS[0] * MIN_STEPS:
            adding = LAUNCH + 2 * split * maps * pixels * others * SUM_BYTES / BYTES
            found.append((_cycles(config, tiles, terms, gathering) + adding, config))
    return found


def winograd_configs(kernel: Kernel) -> list[tuple[float, GemmConfig]]:
    """Candidates for Winograd's planes, as (estimated cycles, config); none unless the filters are 3 x 3 of stride 1.

    The transforms move (m+2)²/m² times the image each way, 2.25 times for m = 4, and are two launches more.
    """
    if not winograd_fits(kernel) or kernel.anchor["kernel_shape"] != (3, 3):
        return []
    node, image, (a, b) = kernel.anchor, kernel.inputs[0].shape, window_size(kernel)
    maps, found = maps_of(kernel), []
    for m, (tall, wide, rows, across), depth in itertools.product((4, 2), GEMM_TILES, DEPTHS):
        if m % a or m % b:
            continue
        planes, count = (m + 2) ** 2, image[0] * math.prod(grid(node, image, m))
        config = GemmConfig(tall, wide, rows, across, depth, winograd=m)
        tiles = -(-maps // tall) * -(-count // wide) * planes
        moved = kernel.item_bytes * (math.prod(image) + 2 * planes * count * (image[1] + maps) + kernel.output.size)
        found.append((_cycles(config, tiles, image[1]) + 2 * LAUNCH + moved / BYTES, config))
    return found


def _cycles(config: GemmConfig, tiles: int, terms: int, gathering: int = 0) -> float:
    """Cycles of a multiprocessor: its share of the products, at a rate that its warps and their loads allow; and so
    many instructions for each pixel and term that is gathered."""
    warps = config.maps // config.thread_maps * (config.pixels // config.thread_pixels) / WARP
    each = -(-tiles * config.split // PROCESSORS)  # tiles of one multiprocessor
    rate = FMAS * GEMM_RATES[config.thread_maps > 4] * min(1.0, each * warps / HIDING_WARPS)
    return each * (config.maps + gathering) * config.pixels * (terms / config.split + DEPTHS[0]) / rate


def mma_configs(network: Network, choice: Choice, precision: str) -> list[MmaConfig]:
    """Tiles for tensor cores as in `gemm_configs`; none where a pool's window does not divide them."""
    kernel, dense = choice.kernel, choice.kernel.anchor.op != "Conv"
    window = 1 if dense else math.prod(window_size(kernel))
    weight = network.constants[kernel.anchor.inputs[1]].shape
    if dense:
        maps, pixels, others, terms = weight[1], math.prod(kernel.output.shape[:-1]), 1, weight[0]
    else:
        pixels, maps = math.prod(kernel.output.shape[2:]) * window, maps_of(kernel)
        others, terms = kernel.output.shape[0] * int(kernel.anchor["group"]), math.prod(weight[1:])
    found: list[tuple[float, MmaConfig]] = []
    for (tall, wide, high, across), split in itertools.product(MMA_TILES, SPLITS):
        config = MmaConfig(tall, wide, high, across, split=split, precision=precision)
        if wide % window or (split > 1 and (dense or terms // split < config.depth * MIN_STEPS)):
            continue
        tiles = -(-maps // tall) * -(-pixels // wide) * others
        rounds = -(-tiles * split // PROCESSORS)
        each = (terms / split + config.depth) * max(tall * wide / MMA_RATES[precision], (tall + wide) / GATHERED)
        adding = LAUNCH + 2 * split * maps * pixels * others * kernel.item_bytes / BYTES if split > 1 else 0
        found.append((rounds * each + adding, config))
    return [config for _, config in sorted(found, key=lambda pair: pair[0])]


def dense_configs(network: Network, kernel: Kernel) -> list[GemmConfig]:
    """Tiles of columns by rows, the first as tall as there are rows."""
    rows = math.prod(kernel.output.shape[:-1])
    widths = (64, 32) if rows > 32 else (32, 64)
    return [GemmConfig(64, wide, 4, 4, depth) for wide, depth in itertools.product(widths, DEPTHS)]


def gemv_configs(network: Network, kernel: Kernel) -> list[GemvConfig]:
    """Parts of the sum: as many as leave each warp some terms."""
    weight = network.constants[kernel.anchor.inputs[1]].shape
    return _parts(math.prod(weight[1:]) if kernel.anchor.op == "Conv" else weight[0])


def _parts(terms: int) -> list[GemvConfig]:
    return [GemvConfig(parts) for parts in (16, 8, 32, 4, 2) if terms >= 16 * parts] or [GemvConfig(1)]


def maps_of(kernel: Kernel) -> int:
    """Maps of one group."""
    return kernel.output.shape[1] // int(kernel.anchor["group"])


def words_gemv_configs(network: Network, kernel: Kernel) -> list[GemvConfig]:
    """As `gemv_configs`, of words of four terms."""
    weight = network.constants[kernel.anchor.inputs[1]].shape
    return _parts(-(-(math.prod(weight[1:]) if len(weight) == 4 else weight[0]) // QUAD))


CANDIDATES: Mapping[str, Callable[[Network, Kernel], Sequence[Config]]] = {  # by algorithm
    "gemm_conv": gemm_configs,
    "gemm_dense": dense_configs,
    "gemv": gemv_configs,
    "gemm_words_conv": words_conv_configs,
    "gemm_words_dense": dense_configs,
    "gemv_words": words_gemv_configs,
}
