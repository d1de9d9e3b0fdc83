"""Tune: a plain grid over the configs of each kernel, measured on this machine, becomes records.

A candidate is compiled alone and called in turn on several copies of its operands, more than L2 holds together: in a
network, too, a kernel finds its weights in L3 or memory. The best few are measured again, interleaved with the default.
"""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.cache import Cache
from tvmcnn.codegen.jobs import Job, without_names
from tvmcnn.codegen.link import c_compiler
from tvmcnn.codegen.workers import JobError, build
from tvmcnn.configs import ColumnsConfig, DenseConfig, DirectConfig, WinogradConfig
from tvmcnn.defaults import BLOCK, fits_registers, winograd_fits, winograd_scratch
from tvmcnn.fusion import window_size
from tvmcnn.layout import pack, stored_bytes
from tvmcnn.network import ALIGNMENT, FLOAT, Array, Choice, Layout, Network, Step, Tensor, divisors, round_up
from tvmcnn.targets import Target
from tvmcnn.tasks import tasks
from tvmcnn.winograd import grid, halo

ORDERS = ("rw rb rh rc", "rb rh rw rc", "rh rw rb rc")
TOP = 4  # candidates of a kernel that are measured again
AGAIN = 9  # times
BEYOND_L2 = 8 << 20  # bytes of operands that are used in turn
MAX_COPIES = 32
SECONDS = 0.01  # of one measurement


@dataclass(frozen=True)
class Found:
    """The best config of a kernel under one rule, and the default's time in the same rounds (0.0: another rule's)."""

    choice: Choice
    microseconds: float
    default_microseconds: float
    tried: int


def best(network: Network, step: Step, target: Target, folder: Path, processes: int) -> list[Found]:
    """The fastest candidate of one kernel under each rule that computes it. `folder` takes the files."""
    default = step.choice
    rivals = [default, *candidates(default, network, target)]
    timed = _compiled(network, rivals, target, folder, processes)
    rivals = [choice for choice, each in zip(rivals, timed, strict=True) if each is not None]
    functions = [each for each in timed if each is not None]
    once = [function.microseconds() for function in functions]
    samples: dict[int, list[float]] = {}
    for rule in {choice.rule for choice in rivals}:
        same = [i for i, choice in enumerate(rivals) if choice.rule == rule]
        samples |= {i: [] for i in sorted(same, key=lambda i: once[i])[:TOP]}
    is_default = [choice.config == default.config for choice in rivals]
    samples[is_default.index(True)] = []
    for _ in range(AGAIN):
        for i, values in samples.items():
            values.append(functions[i].microseconds())
    medians = {i: float(np.median(values)) for i, values in samples.items()}
    reference = medians[is_default.index(True)]
    found = []
    for rule in {choice.rule for choice in rivals}:
        i = min((i for i in medians if rivals[i].rule == rule), key=lambda i: medians[i])
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
    elif isinstance(config, DirectConfig | WinogradConfig):
        direct = dataclasses.replace(choice, config=None, scratch_bytes=0)
        if choice.rule == "winograd":
            first = Layout(BLOCK, choice.kernel.anchor["pads"])
            direct = dataclasses.replace(direct, algorithm="direct", rule="direct", reads=(first, *choice.reads[1:]))
        for each in _direct(direct, target):
            yield dataclasses.replace(direct, config=each)
        if direct.algorithm == "direct" and winograd_fits(choice.kernel):
            for winograd in _winograd(choice, target):
                yield as_winograd(choice, winograd)


def as_winograd(choice: Choice, config: WinogradConfig) -> Choice:
    """A convolution by Winograd with `config`."""
    image, maps = choice.kernel.inputs[0], choice.kernel.output.shape[1]
    first = Layout(BLOCK, halo(choice.kernel.anchor, image.shape, config.tile))
    scratch = winograd_scratch(config, round_up(image.shape[1], BLOCK), round_up(maps, BLOCK))
    reads = (first, *choice.reads[1:])
    choice = dataclasses.replace(choice, algorithm="winograd", rule="winograd", reads=reads)
    return dataclasses.replace(choice, config=config, scratch_bytes=scratch)


def _columns(choice: Choice, target: Target) -> Iterator[ColumnsConfig]:
    shape = choice.makes.physical(choice.kernel.output.shape)
    for maps in divisors(shape[1]):
        for vectors in divisors(shape[3] // target.lanes):
            if maps * vectors <= 8:
                yield ColumnsConfig(maps, vectors)


def _direct(choice: Choice, target: Target) -> Iterator[DirectConfig]:
    _, blocks, height, width, block = choice.makes.physical(choice.kernel.output.shape)
    window = int(np.prod(window_size(choice.kernel)))
    deep = choice.algorithm == "direct" and choice.kernel.inputs[0].shape[1] // choice.kernel.anchor["group"] > 1
    per_block = block // target.lanes
    orders = ORDERS if choice.kernel.anchor["kernel_shape"] != (1, 1) else ORDERS[:1]
    for v in [1, *(per_block * b for b in divisors(blocks) if deep or b == 1)]:
        for rows in divisors(height):
            for columns in divisors(width):
                pixels = rows * columns * window
                if rows <= 4 and v * pixels >= min(8, height * width) and fits_registers(v, pixels, target):
                    for order in orders:
                        for unroll in (1, 4, 16) if deep and choice.reads[0].block > 1 else (1,):
                            yield DirectConfig(v, rows, columns, order, unroll)


def _winograd(choice: Choice, target: Target) -> Iterator[WinogradConfig]:
    image, (p, q) = choice.kernel.inputs[0].shape, window_size(choice.kernel)
    blocks = -(-choice.kernel.output.shape[1] // BLOCK)
    for tile in (4, 2):
        if tile % p or tile % q:
            continue
        rows, columns = grid(choice.kernel.anchor, image, tile)
        for strip in divisors(rows * columns):
            if not 4 <= strip <= 112:
                continue
            parts = 2 if strip == rows * columns and blocks % 2 == 0 else 1  # two threads shall have work
            for v in divisors(blocks * BLOCK // parts // target.lanes):
                for tiles in divisors(strip):
                    if v * tiles >= min(12, strip) and v <= 8 and fits_registers(v, tiles, target):
                        yield WinogradConfig(tile, tile // p, tile // q, strip, parts, v, tiles)


def _dense(choice: Choice, network: Network, target: Target) -> Iterator[DenseConfig]:
    rows = choice.kernel.output.shape[0]
    maps = choice.kernel.output.shape[1 if choice.kernel.anchor.op == "Conv" else -1]
    depth = dict(pack(choice, network.constants))[choice.kernel.anchor.inputs[1]].shape[1]
    for vectors in range(1, target.registers):
        for tile in divisors(rows):
            if vectors * tile < target.registers and vectors * target.lanes < maps + 8 * target.lanes:
                for parts in (1, 2, 4, 8):
                    if vectors * tile * parts < target.registers and depth % parts == 0:
                        for unroll in (1, 2, 4):
                            yield DenseConfig(vectors * target.lanes, tile, parts, unroll)


# ---- measurement ----------------------------------------------------------------------------------------------------


class _Timed:
    """A compiled kernel with its operands in several copies."""

    def __init__(self, function: Any, step: Step) -> None:
        choice = step.choice
        sizes = [stored_bytes(t, layout) for t, layout in zip(choice.sources, choice.reads, strict=True)]
        sizes += [tensor.size * tensor.item_bytes for tensor in step.packed.values()]
        sizes.append(stored_bytes(choice.kernel.output, choice.writes))
        spaces = [round_up(size + ALIGNMENT, ALIGNMENT) for size in sizes]
        copies = max(1, min(MAX_COPIES, BEYOND_L2 // sum(spaces)))
        self.function, self.tasks = function, choice.tasks
        self.scratch = _aligned(choice.scratch_bytes + FLOAT)
        self.memory = _aligned(copies * sum(spaces))
        self.memory.view(np.float32)[:] = 0.01
        first = choice.writes.first(choice.kernel.output.shape) * FLOAT
        self.calls = []
        at = self.memory.ctypes.data
        for _ in range(copies):
            addresses = []
            for space in spaces:
                addresses.append(at)
                at += space
            addresses[-1] += first
            pointers = [ctypes.c_void_p(address) for address in (*addresses, self.scratch.ctypes.data)]
            self.calls.append((*pointers, ctypes.c_int32(0), ctypes.c_int32(self.tasks)))

    def microseconds(self) -> float:
        """The mean time of a call over about SECONDS."""
        function, calls = self.function, self.calls
        start, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < SECONDS or count == 0:
            for arguments in calls:
                function(*arguments)
            count += len(calls)
        return spent / count * 1e6


def _aligned(size: int) -> Array:
    memory = np.empty(round_up(size, FLOAT) + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + round_up(size, FLOAT)]


def _compiled(
    network: Network, choices: Sequence[Choice], target: Target, folder: Path, processes: int
) -> list[_Timed | None]:
    """The candidates, ready to be timed; None for one that does not compile and so loses its turn."""
    choices = [dataclasses.replace(choice, tasks=tasks(network, choice, target)) for choice in choices]
    steps = [_step(network, choice) for choice in choices]
    jobs = [Job(without_names(step), False, target) for step in steps]
    objects = _objects({job.symbol: job for job in jobs}, processes)
    for symbol, data in objects.items():
        (folder / f"{symbol}.o").write_bytes(data)
    library = folder / f"{next(iter(objects))}.so"
    command = [*c_compiler(), "-shared", "-o", library.name, *(f"{symbol}.o" for symbol in objects), "-lm"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    symbols = ctypes.CDLL(str(library))
    found = zip(jobs, steps, strict=True)
    return [_Timed(symbols[job.symbol], step) if job.symbol in objects else None for job, step in found]


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


def _step(network: Network, choice: Choice) -> Step:
    packed = {name: Tensor(name, array.shape, str(array.dtype)) for name, array in pack(choice, network.constants)}
    return Step(choice, packed, ())
