"""Space: the configs of a kernel that are worth a try, in the order in which they are tried.

    default, what records have for this kernel and the nearest ones, then of each rule in turn the best by estimate:
    direct 2x1x14, winograd 4/28, streamed 1x16, direct 1x2x14, ...

The order depends on the kernel, the target, the records and a seed, on no measurement. Behind it come the neighbours of
the best so far: its config with one number changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from tvmcnn.blocks import BLOCK, channels_together
from tvmcnn.choose.cpu.amx import as_tiles
from tvmcnn.choose.cpu.bf16 import as_pairs
from tvmcnn.choose.cpu.convolution import pads_itself
from tvmcnn.choose.cpu.defaults import (
    MAX_BLOCKS,
    MAX_SCRATCH,
    dense_cost,
    direct_tiles,
    divides,
    fits_registers,
    pixels_tiles,
    prefetches,
    streamed_scratch,
    winograd_cycles,
    winograd_fits,
    winograd_scratch,
)
from tvmcnn.choose.cpu.shared_prologue import sharing_prologue
from tvmcnn.choose.cpu.tasks import task_count
from tvmcnn.choose.cpu.winograd_choice import as_direct, as_streamed, as_winograd, winograd_data, without_data
from tvmcnn.configs import (
    AmxConfig,
    ColumnsConfig,
    Config,
    DenseConfig,
    DirectConfig,
    DotsConfig,
    PairsConfig,
    PixelsConfig,
    StreamedConfig,
    WinogradConfig,
)
from tvmcnn.fuse import is_depthwise, window_size
from tvmcnn.network import Choice, Network, divisors, round_up, row_shape
from tvmcnn.targets import Target
from tvmcnn.tuning import narrow_spaces
from tvmcnn.winograd import grid, tiles_for

ORDERS = ("rb rh rw rc", "rh rw rb rc", "rw rb rh rc", "rb rw rh rc")
UNROLLS = (1, 2, 4, 8, 16)
MAX_TILES = 14  # register tiles of direct convolution: those estimated to be fastest
SMALL_TILE = 16  # pixels: LLVM may keep the weights of a depthwise convolution in registers beside so many accumulators
JITTER = 2.0  # places that a seed may move a candidate by
MAX_WEIGHT_BYTES = 64 << 20  # bytes of a matrix that comes from memory, at the rate of that under any config
MAX_WINOGRAD = 48  # configs, those estimated to be fastest

T = TypeVar("T")
Key = tuple[str, Any]  # a candidate of a kernel: its rule and config


def key_of(choice: Choice) -> Key:
    """Key by which a candidate of a kernel is known."""
    return choice.rule, choice.config


def ordered(
    network: Network, default: Choice, target: Target, preferred: Iterable[Key] = (), seed: int = 0
) -> list[Choice]:
    """The candidates of a kernel, each once: the default, the preferred ones, the rules in turn by their estimates."""
    rng = random.Random(f"{seed} {default.kernel.ops} {default.sources}")
    found = {key_of(each): each for each in candidates(default, network, target)}
    ranks: dict[str, int] = {}
    places = {}
    for key in found:
        ranks[key[0]] = rank = ranks.get(key[0], -1) + 1
        places[key] = rank + JITTER * rng.random() * (rank > 0)  # each rule's first stays first
    first = [key for key in dict.fromkeys(preferred) if key in found]
    keys = dict.fromkeys([key_of(default), *first, *sorted(found, key=lambda key: places[key])])
    found[key_of(default)] = default
    return [_shared_out(network, found[key], target) for key in keys]


def made(network: Network, default: Choice, key: Key, target: Target) -> Choice:
    """The candidate of a rule and config, for the kernel whose default is given."""
    _, config = key
    plain = without_data(default) if isinstance(default.config, StreamedConfig) else default
    if isinstance(config, WinogradConfig):
        choice = as_winograd(plain, config)
    elif isinstance(config, StreamedConfig):
        choice = as_streamed(plain, config, winograd_data(plain, config.tile).kernel.output, target)
    elif isinstance(config, AmxConfig):
        choice = as_tiles(plain, config)
    elif isinstance(config, PairsConfig):
        choice = as_pairs(plain, config, target)
    elif isinstance(config, DirectConfig) and not isinstance(default.config, DirectConfig):
        choice = as_direct(plain, config)
    else:
        choice = dataclasses.replace(plain, config=config)
    return _shared_out(network, choice, target)


def _shared_out(network: Network, choice: Choice, target: Target) -> Choice:
    choice = sharing_prologue(choice, target)
    return dataclasses.replace(choice, tasks=task_count(network, choice, target))


def neighbours(network: Network, choice: Choice, target: Target) -> Iterator[Choice]:
    """The candidate with one number changed, as far as it still fits: what the grid leaves out."""
    config = choice.config
    assert config is not None  # a problem's kernel has a space
    for name, values in _steps(choice, target).items():
        for value in values:
            try:
                changed = dataclasses.replace(config, **{name: value})
            except ValueError:  # more sums than any tile may have
                continue
            if value != getattr(config, name) and _fits(choice, changed, target):
                yield _shared_out(network, dataclasses.replace(choice, config=changed), target)


def _steps(choice: Choice, target: Target) -> Mapping[str, Sequence[Any]]:
    """Values to try for each field of the config: the neighbours of the present one where they have an order."""
    config, shape = choice.config, choice.kernel.output.shape
    if type(config) is DirectConfig:
        deep = not is_depthwise(choice.kernel) and choice.reads[0].block > 1
        rows, columns = ([n + d for d in (-1, 1, 2) if n + d > 0] for n in (config.rows, config.columns))
        per_block = BLOCK // target.lanes(choice.kernel.dtype)
        whole = [per_block * n for n in range(1, 1 + (MAX_BLOCKS if not is_depthwise(choice.kernel) else 1))]
        vectors = sorted(
            {*(v for v in divisors(per_block)), *(v for v in whole if v <= per_block * -(-shape[1] // BLOCK))}
        )
        at = vectors.index(config.vectors) if config.vectors in vectors else 0
        steps: dict[str, Sequence[Any]] = {"order": ORDERS, "rows": rows, "columns": columns}
        steps |= {"vectors": vectors[max(0, at - 1) : at + 2], "overlap": (False, True)}
        return steps | ({"unroll": UNROLLS, "prefetch": (False, True)} if deep else {})
    if isinstance(config, WinogradConfig | StreamedConfig):
        return {"unroll": UNROLLS, "prefetch": (False, True)}
    if isinstance(config, DenseConfig):
        width = [
            w
            for w in (
                config.width - target.lanes(choice.kernel.dtype),
                config.width + target.lanes(choice.kernel.dtype),
            )
            if w > 0
        ]
        return {"unroll": (1, 2, 4, 8), "parts": (1, 2, 4, 8), "width": width}
    return {}


def _fits(choice: Choice, config: Any, target: Target) -> bool:
    if isinstance(config, DirectConfig):
        (p, q), (height, width) = window_size(choice.kernel), choice.kernel.output.shape[2:]
        fits = fits_registers(config.vectors, config.rows * config.columns * p * q, target)
        alike = _reads_alike(choice, dataclasses.replace(choice, config=config), target)
        whole = config.overlap and divides(choice.kernel, config.rows, config.columns)  # then it changes nothing
        return fits and alike and not whole and config.rows <= height and config.columns <= width
    if isinstance(config, DenseConfig):
        return bool(config.width // target.lanes(choice.kernel.dtype) * config.rows * config.parts < target.registers)
    return True


# ---- candidates -----------------------------------------------------------------------------------------------------


def candidates(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Every config of the grid, of the kernel's rule and of the others that compute the same, each rule's fastest by
    estimate first; none for a kernel without a space."""
    space = SPACES.get(type(choice.config))
    return space(choice, network, target) if space is not None else iter(())


def _convolutions(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Direct, and by Winograd in both ways where it fits."""
    if isinstance(choice.config, DirectConfig) and (is_depthwise(choice.kernel) or choice.reads[0].block == 1):
        found = (dataclasses.replace(choice, config=each) for each in _direct(choice, target))
        yield from (each for each in found if _reads_alike(choice, each, target))
        return
    if isinstance(choice.config, StreamedConfig):
        choice = without_data(choice)
    yield from (as_direct(choice, each) for each in _direct(choice, target))
    if winograd_fits(choice.kernel):
        yield from (as_winograd(choice, each) for each in _fastest(choice, _winograd(choice, target), target))
        for each in _streamed(choice, target):
            data = winograd_data(choice, each.tile).kernel.output
            yield as_streamed(choice, each, data, target)


def _reads_alike(choice: Choice, other: Choice, target: Target) -> bool:
    """Whether two configs of a convolution of few channels read the same memory: the image itself, or a padded copy,
    which another kernel makes, whose time nobody would measure."""
    padded = [pads_itself(choice.kernel, each.numbers(DirectConfig), target) for each in (choice, other)]
    return choice.reads[0].block > 1 or padded[0] == padded[1]


def _columns(choice: Choice, network: Network, target: Target) -> Iterator[ColumnsConfig]:
    shape = choice.makes.physical(choice.kernel.output.shape)
    for maps in divisors(shape[1]):
        for vectors in divisors(shape[3] // target.lanes(choice.kernel.dtype)):
            if maps * vectors <= 8:
                yield ColumnsConfig(maps, vectors)


def _direct(choice: Choice, target: Target) -> Iterator[DirectConfig]:
    kernel, block = choice.kernel, choice.reads[0].block
    depth = channels_together(kernel)
    deep = not is_depthwise(choice.kernel) and depth > 1
    one = kernel.anchor["kernel_shape"] == (1, 1)
    variants = [("rb rh rw rc", u) for u in (4, 16)] if one else [("rb rh rw rc", 4), ("rh rw rb rc", 4)]
    variants = variants if deep and block > 1 else [(order, 1) for order in ORDERS]
    fetched = deep and block > 1 and prefetches(kernel, target)
    tiles = direct_tiles(kernel, kernel.output.shape[1], depth if deep else 0, target)
    rest = (tile for tile in tiles[MAX_TILES:] if tile[1] * tile[2] <= SMALL_TILE)
    small = [] if deep else [tile for tile in rest if divides(kernel, *tile[1:])]
    for tile in _alternating(tiles[:MAX_TILES], small[:MAX_TILES]):
        for order, unroll in variants:
            for overlap in (False,) if divides(kernel, *tile[1:]) else (True, False):
                yield DirectConfig(*tile, order, unroll, fetched, overlap)


def _alternating(one: Sequence[T], other: Sequence[T]) -> list[T]:
    """The first of one, the first of the other, the second of one, …"""
    pairs = itertools.zip_longest(one, other)
    return [each for pair in pairs for each in pair if each is not None]


def _winograd(choice: Choice, target: Target) -> Iterator[WinogradConfig]:
    fetched, filters = prefetches(choice.kernel, target), choice.kernel.anchor["kernel_shape"][0]
    for (tile, p, q), count in _grids(choice):
        blocks = -(-choice.kernel.output.shape[1] // BLOCK)
        for strip in divisors(count):
            if not min(7, count) <= strip <= 64:
                continue
            parts = 2 if strip == count and blocks % 2 == 0 else 1  # two threads shall have work
            for v, tiles in _register_tiles(
                blocks * BLOCK // parts // target.lanes(choice.kernel.dtype), strip, target
            ):
                yield WinogradConfig(tile, p, q, strip, parts, v, tiles, prefetch=fetched, kernel=filters)


def _fastest(choice: Choice, configs: Iterable[WinogradConfig], target: Target) -> list[WinogradConfig]:
    shapes = choice.kernel.inputs[0].shape[1], choice.kernel.output.shape[1]
    depth, maps = (round_up(channels, BLOCK) for channels in shapes)

    def cycles(config: WinogradConfig) -> float:
        rows, columns = grid(
            choice.kernel.anchor, choice.kernel.inputs[0].shape, config.tile, window_size(choice.kernel)
        )
        return winograd_cycles(config, rows * columns // config.strip, depth, maps, target)

    fitting = (each for each in configs if winograd_scratch(each, depth, maps) <= MAX_SCRATCH)
    return sorted(fitting, key=cycles)[:MAX_WINOGRAD]


def _streamed(choice: Choice, target: Target) -> Iterator[StreamedConfig]:
    """Where few tiles share the filters' transform, and L2 has room for it."""
    depth, filters = round_up(choice.kernel.inputs[0].shape[1], BLOCK), choice.kernel.anchor["kernel_shape"][0]
    for (tile, p, q), count in _grids(choice):
        maps = round_up(choice.kernel.output.shape[1], BLOCK)
        for v, tiles in _register_tiles(maps // target.lanes(choice.kernel.dtype), count, target):
            config = StreamedConfig(tile, p, q, v, tiles, prefetch=True, kernel=filters)
            whole = v * target.lanes(choice.kernel.dtype) % BLOCK == 0
            if count <= 64 and whole and streamed_scratch(config, depth, count, target) <= 1.5 * target.l2_bytes:
                yield config


def _grids(choice: Choice) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Winograd's tile, the output pixels that it makes, and the number of tiles."""
    p, q = window_size(choice.kernel)
    for tile in tiles_for(choice.kernel.anchor["kernel_shape"][0]):
        if tile % p == 0 and tile % q == 0:
            rows, columns = grid(choice.kernel.anchor, choice.kernel.inputs[0].shape, tile, (p, q))
            yield (tile, tile // p, tile // q), rows * columns


def _register_tiles(vectors: int, count: int, target: Target) -> Iterator[tuple[int, int]]:
    """(vectors, tiles) that divide both and have accumulators enough for the FMA's latency."""
    for v in divisors(vectors):
        for tiles in divisors(count):
            if v * tiles >= min(12, count) and v <= 4 and fits_registers(v, tiles, target):
                yield v, tiles


def _pixels(choice: Choice, network: Network, target: Target) -> Iterator[PixelsConfig]:
    yield from pixels_tiles(choice.kernel, choice.numbers(PixelsConfig).groups, target)


def _dense(choice: Choice, network: Network, target: Target) -> Iterator[DenseConfig]:
    lanes = target.lanes(choice.kernel.dtype)
    maps = choice.kernel.output.shape[1 if choice.kernel.anchor.op == "Conv" else -1]
    rows = choice.kernel.output.size // maps
    weight = network.constants[choice.kernel.anchor.inputs[1]]
    if weight.nbytes > MAX_WEIGHT_BYTES:
        return
    inputs = math.prod(weight.shape[1:]) if choice.kernel.anchor.op == "Conv" else weight.shape[0]
    depth = math.prod(choice.reads[0].physical((1, *row_shape(choice.sources[0].shape, inputs))))
    tiles = itertools.product(
        range(1, target.registers), range(1, min(rows, target.registers) + 1), (1, 2, 4, 8), (1, 2, 4)
    )
    found = [
        DenseConfig(vectors * lanes, tile, parts, unroll)
        for vectors, tile, parts, unroll in tiles
        if vectors * tile * parts < target.registers and depth % parts == 0
        if vectors * lanes < maps + 8 * lanes
    ]
    yield from sorted(found, key=lambda config: dense_cost(config, rows, maps, choice.kernel.dtype, target))


Space: TypeAlias = Callable[[Choice, Network, Target], Iterator[Choice]]


def _of_one_rule(configs: Callable[[Choice, Network, Target], Iterable[Config]]) -> Space:
    """The space of a kernel that only one rule computes."""

    def space(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
        for config in configs(choice, network, target):
            yield dataclasses.replace(choice, config=config)

    return space


SPACES: Mapping[type, Space] = {  # by the class of the kernel's config
    DirectConfig: _convolutions,
    WinogradConfig: _convolutions,
    StreamedConfig: _convolutions,
    ColumnsConfig: _of_one_rule(_columns),
    PixelsConfig: _of_one_rule(_pixels),
    DenseConfig: _of_one_rule(_dense),
    AmxConfig: narrow_spaces.by_tiles,
    PairsConfig: narrow_spaces.by_pairs,
    DotsConfig: narrow_spaces.by_dots,
}
