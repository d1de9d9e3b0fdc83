"""Tune: a plain grid over the configs of each kernel, measured on this machine, becomes records.

A candidate is compiled alone and called on copies of its weights in turn, three times as many bytes as the network's
weights take: it finds them in the cache or in memory, as it will in the network beside other programs. (With the
weights always in L3, a config won for Winograd on 14 x 14 pixels of 256 channels that is 1.5 times slower inside
ResNet-18.) The best few are measured again, interleaved with the default.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.bands import banded
from tvmcnn.cache import Cache
from tvmcnn.codegen.jobs import Job, without_names
from tvmcnn.codegen.link import c_compiler
from tvmcnn.codegen.workers import JobError, build
from tvmcnn.configs import ColumnsConfig, DenseConfig, DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.defaults import BLOCK, direct_tiles, fits_registers, prefetches, streamed_scratch, winograd_fits
from tvmcnn.fusion import window_size
from tvmcnn.layout import pack, stored_bytes
from tvmcnn.network import ALIGNMENT, FLOAT, Array, Choice, Network, Step, Tensor, divisors, round_up
from tvmcnn.targets import Target
from tvmcnn.tasks import tasks
from tvmcnn.variants import as_direct, as_streamed, as_winograd, winograd_data, without_data
from tvmcnn.winograd import grid

ORDERS = ("rb rh rw rc", "rh rw rb rc", "rw rb rh rc")
TILES = 14  # register tiles of direct convolution: those estimated to be fastest
WHOLE = 1.05  # on one core what is in no bands must be so much faster: on two cores it is slower by far more
TOP = 4  # candidates of a kernel that are measured again
AGAIN = 9  # times
ENOUGH = 256 << 20  # bytes of weights in turn are as good as any number: no L3 of a few cores' share holds them
OTHERS = 3  # of L3 a third is the network's: with 96 MB in turn weights came from L3 that ResNet-18 has from memory
MAX_COPIES = 256
SECONDS = 0.01  # of one measurement


@dataclass(frozen=True)
class Found:
    """The best config of a kernel under one rule, and the default's time in the same rounds (0.0: another rule's)."""

    choice: Choice
    microseconds: float
    default_microseconds: float
    tried: int


def best(network: Network, step: Step, target: Target, folder: Path, processes: int, weights: int) -> list[Found]:
    """The fastest candidate of one kernel under each rule that computes it.

    `folder` takes the files; `weights` is the bytes of weights that the whole network has.
    """
    default = step.choice
    rivals = [default, *candidates(default, network, target)]
    helpers = {c.config.tile: winograd_data(c, c.config.tile) for c in rivals if c.rule == "streamed"}
    timed = _compiled(network, [*rivals, *helpers.values()], target, folder, processes, weights)
    data = dict(zip(helpers, timed[len(rivals) :], strict=True))
    for choice, each in zip(rivals, timed, strict=False):
        if each is not None and choice.rule == "streamed":
            each.before = data[choice.config.tile]
    timed = timed[: len(rivals)]
    rivals = [choice for choice, each in zip(rivals, timed, strict=True) if each is not None]
    functions = [each for each in timed if each is not None]
    once = [function.microseconds() for function in functions]
    bands = [getattr(choice.config, "bands", 0) for choice in rivals]  # 1 where the rows of tiles cannot be cut
    weight = [WHOLE if each == 1 < max(bands) else 1.0 for each in bands]
    samples: dict[int, list[float]] = {}
    for rule in {choice.rule for choice in rivals}:
        same = [i for i, choice in enumerate(rivals) if choice.rule == rule]
        samples |= {i: [] for i in sorted(same, key=lambda i: once[i] * weight[i])[:TOP]}
    is_default = [choice.config == default.config for choice in rivals]
    samples[is_default.index(True)] = []
    for _ in range(AGAIN):
        for i, values in samples.items():
            values.append(functions[i].microseconds())
    medians = {i: float(np.median(values)) for i, values in samples.items()}
    reference = medians[is_default.index(True)]
    found = []
    for rule in {choice.rule for choice in rivals}:
        i = min((i for i in medians if rivals[i].rule == rule), key=lambda i: medians[i] * weight[i])
        found.append(Found(rivals[i], medians[i], reference if rule == default.rule else 0.0, len(rivals)))
    return sorted(found, key=lambda each: each.microseconds)


# ---- candidates -----------------------------------------------------------------------------------------------------


def candidates(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Every config that is worth a try, of the kernel's rule and of the other that computes the same."""
    config = choice.config
    if isinstance(config, ColumnsConfig):
        for columns in _columns(choice, target):
            yield dataclasses.replace(choice, config=columns)
    elif isinstance(config, DenseConfig):
        for dense in _dense(choice, network, target):
            yield dataclasses.replace(choice, config=dense)
    elif isinstance(config, DirectConfig | WinogradConfig | StreamedConfig):
        yield from _convolutions(choice, network, target)


def _convolutions(choice: Choice, network: Network, target: Target) -> Iterator[Choice]:
    """Direct, and by Winograd in both ways where its filters are of 3 x 3."""
    if choice.algorithm != "direct" and choice.rule == "direct":  # depthwise
        yield from (dataclasses.replace(choice, config=each) for each in _direct(choice, target))
        return
    if isinstance(choice.config, StreamedConfig):
        choice = without_data(choice)
    yield from (banded(network, as_direct(choice, each), target) for each in _direct(choice, target))
    if winograd_fits(choice.kernel):
        yield from (as_winograd(choice, each) for each in _winograd(choice, target))
        for each in _streamed(choice, target):
            data = winograd_data(choice, each.tile).kernel.output
            yield as_streamed(choice, each, data, target)


def _columns(choice: Choice, target: Target) -> Iterator[ColumnsConfig]:
    shape = choice.makes.physical(choice.kernel.output.shape)
    for maps in divisors(shape[1]):
        for vectors in divisors(shape[3] // target.lanes):
            if maps * vectors <= 8:
                yield ColumnsConfig(maps, vectors)


def _direct(choice: Choice, target: Target) -> Iterator[DirectConfig]:
    kernel, block = choice.kernel, choice.reads[0].block
    depth = kernel.inputs[0].shape[1] // kernel.anchor["group"]
    deep = choice.algorithm != "depthwise" and depth > 1
    one = kernel.anchor["kernel_shape"] == (1, 1)
    variants = [("rb rh rw rc", u) for u in (4, 16)] if one else [("rb rh rw rc", 4), ("rh rw rb rc", 4)]
    variants = variants if deep and block > 1 else [(order, 1) for order in ORDERS]
    fetched = deep and block > 1 and prefetches(kernel, target)
    tiles = direct_tiles(kernel, kernel.output.shape[1], depth if deep else 0, target)
    for tile in tiles[:TILES]:
        for order, unroll in variants:
            yield DirectConfig(*tile, order, unroll, fetched)


def _winograd(choice: Choice, target: Target) -> Iterator[WinogradConfig]:
    fetched = prefetches(choice.kernel, target)
    for (tile, p, q), count in _grids(choice):
        blocks = -(-choice.kernel.output.shape[1] // BLOCK)
        for strip in divisors(count):
            if not min(7, count) <= strip <= 64:
                continue
            parts = 2 if strip == count and blocks % 2 == 0 else 1  # two threads shall have work
            for v, tiles in _register_tiles(blocks * BLOCK // parts // target.lanes, strip, target):
                yield WinogradConfig(tile, p, q, strip, parts, v, tiles, prefetch=fetched)


def _streamed(choice: Choice, target: Target) -> Iterator[StreamedConfig]:
    """Where few tiles share the filters' transform, and L2 has room for it."""
    depth = round_up(choice.kernel.inputs[0].shape[1], BLOCK)
    for (tile, p, q), count in _grids(choice):
        maps = round_up(choice.kernel.output.shape[1], BLOCK)
        for v, tiles in _register_tiles(maps // target.lanes, count, target):
            config = StreamedConfig(tile, p, q, v, tiles, prefetch=True)
            whole = v * target.lanes % BLOCK == 0
            if count <= 64 and whole and streamed_scratch(config, depth, count, target) <= 1.5 * target.l2_bytes:
                yield config


def _grids(choice: Choice) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Winograd's tile, the output pixels that it makes, and the number of tiles."""
    p, q = window_size(choice.kernel)
    for tile in (4, 2):
        if tile % p == 0 and tile % q == 0:
            rows, columns = grid(choice.kernel.anchor, choice.kernel.inputs[0].shape, tile)
            yield (tile, tile // p, tile // q), rows * columns


def _register_tiles(vectors: int, count: int, target: Target) -> Iterator[tuple[int, int]]:
    """(vectors, tiles) that divide both and have accumulators enough for the FMA's latency."""
    for v in divisors(vectors):
        for tiles in divisors(count):
            if v * tiles >= min(12, count) and v <= 4 and fits_registers(v, tiles, target):
                yield v, tiles


def _dense(choice: Choice, network: Network, target: Target) -> Iterator[DenseConfig]:
    rows = choice.kernel.output.shape[0]
    maps = choice.kernel.output.shape[1 if choice.kernel.anchor.op == "Conv" else -1]
    weight = network.constants[choice.kernel.anchor.inputs[1]]
    if weight.nbytes > ENOUGH // 4:
        return  # it comes from memory, at the rate of that under any config
    depth = dict(pack(choice, network.constants))[choice.kernel.anchor.inputs[1]].shape[1]
    for vectors in range(1, target.registers):
        for tile in divisors(rows):
            if vectors * tile < target.registers and vectors * target.lanes < maps + 8 * target.lanes:
                for parts in (1, 2, 4, 8):
                    if vectors * tile * parts < target.registers and depth % parts == 0:
                        for unroll in (1, 2, 4):
                            yield DenseConfig(vectors * target.lanes, tile, parts, unroll)


# ---- measurement ----------------------------------------------------------------------------------------------------


@functools.cache
def _memory(size: int) -> Array:
    """`size` bytes that every candidate may use: what they compute is nothing, where they find it counts."""
    return np.full(size // FLOAT, 0.01, np.float32)


class _Timed:
    """A compiled kernel with its operands, the weights in several copies."""

    def __init__(self, function: Any, step: Step, weights: int) -> None:
        choice = step.choice
        inputs = [stored_bytes(t, layout) for t, layout in zip(choice.sources, choice.reads, strict=True)]
        constants = [tensor.size * tensor.item_bytes for tensor in step.packed.values()]
        output = stored_bytes(choice.kernel.output, choice.writes)
        copies = max(1, min(MAX_COPIES, min(OTHERS * weights, ENOUGH) // max(1, sum(constants))))
        self.function, self.turn = function, 0
        self.before: _Timed | None = None  # a kernel that this one needs to have run
        sizes = [*inputs, output, choice.scratch_bytes + FLOAT, *constants * copies]
        starts = list(itertools.accumulate((round_up(size, ALIGNMENT) for size in sizes), initial=0))
        memory = _memory(1 << (starts[-1] + 2 * ALIGNMENT).bit_length())
        aligned = memory.ctypes.data + -memory.ctypes.data % ALIGNMENT
        given, (made, scratch, *packed) = (
            [ctypes.c_void_p(aligned + start) for start in part]
            for part in (starts[: len(inputs)], starts[len(inputs) : -1])
        )
        made = ctypes.c_void_p((made.value or 0) + choice.writes.first(choice.kernel.output.shape) * FLOAT)
        tasks = (ctypes.c_int32(0), ctypes.c_int32(choice.tasks))
        width = len(constants)
        self.calls = [
            (*given, *packed[width * turn : width * (turn + 1)], made, scratch, *tasks) for turn in range(copies)
        ]

    def microseconds(self) -> float:
        """The mean time of a call over about SECONDS, with what runs before it."""
        before = 0.0 if self.before is None else self.before.microseconds()
        start, count, spent = time.perf_counter(), 0, 0.0
        while spent < SECONDS:
            self.function(*self.calls[self.turn])
            self.turn = (self.turn + 1) % len(self.calls)
            count, spent = count + 1, time.perf_counter() - start
        return before + spent / count * 1e6


def _compiled(
    network: Network, choices: Sequence[Choice], target: Target, folder: Path, processes: int, weights: int
) -> list[_Timed | None]:
    """The candidates, ready to be timed; None for one that does not compile and so loses its turn."""
    choices = [dataclasses.replace(choice, tasks=tasks(network, choice, target)) for choice in choices]
    steps = _steps(network, choices)
    jobs = [Job(without_names(step), False, target) for step in steps]
    objects = _objects({job.symbol: job for job in jobs}, processes)
    for symbol, data in objects.items():
        (folder / f"{symbol}.o").write_bytes(data)
    library = folder / f"{next(iter(objects))}.so"
    command = [*c_compiler(), "-shared", "-o", library.name, *(f"{symbol}.o" for symbol in objects), "-lm"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    symbols = ctypes.CDLL(str(library))
    found = zip(jobs, steps, strict=True)
    return [_Timed(symbols[job.symbol], step, weights) if job.symbol in objects else None for job, step in found]


def _objects(jobs: Mapping[str, Job], processes: int) -> dict[str, bytes]:
    cache, waiting = Cache.default(), dict(jobs)
    objects = {symbol: data for symbol, job in jobs.items() if (data := cache.get(job.key)) is not None}
    for symbol in objects:
        del waiting[symbol]

    def done(symbol: str, data: bytes) -> None:
        objects[symbol] = data
        cache.put(jobs[symbol].key, data)

    while waiting:
        try:
            build(waiting, processes, done)
            break
        except JobError as error:
            done_with = {*objects, error.symbol}
            waiting = {symbol: job for symbol, job in waiting.items() if symbol not in done_with}
    return objects


def _steps(network: Network, choices: Sequence[Choice]) -> list[Step]:
    """The choices with the shapes of their packed constants, which are packed once for all that pack them alike."""
    packed: dict[object, dict[str, Tensor]] = {}
    for choice in choices:
        key = _packing(choice)
        if key not in packed:
            arrays = pack(choice, network.constants)
            packed[key] = {name: Tensor(name, array.shape, str(array.dtype)) for name, array in arrays}
    return [Step(choice, packed[_packing(choice)], ()) for choice in choices]


def _packing(choice: Choice) -> tuple[object, ...]:
    """What the shapes of the packed constants depend on, of a kernel's candidates."""
    names = ("width",) if choice.algorithm == "dense" else ("tile", "parts")
    return choice.algorithm, choice.reads, *(getattr(choice.config, name, 0) for name in names)
