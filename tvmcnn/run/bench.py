"""Bench: latency of the one native call, and where it goes, kernel by kernel."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcnn.errors import InputError, caught
from tvmcnn.machine import cpu_name
from tvmcnn.network import dims
from tvmcnn.run.arrays import ArrayInfo, random_array
from tvmcnn.run.batched import BatchedRunner
from tvmcnn.run.runner import KernelProfile, Runner
from tvmcnn.run.sized import SizedRunner

if TYPE_CHECKING:
    from tvmcnn.run import Net


@dataclass(frozen=True)
class Latency:
    """µs a call: the median of batches, and the 90th and 99th percentile."""

    median: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Bench:
    """The figures of one library on this machine."""

    network: str
    target: str
    machine: str
    threads: int
    batch: int
    call: Latency  # net(x): outputs allocated by the call
    bound: Latency  # net.bind(x, out=y)(): nothing is checked or allocated
    kernels: tuple[KernelProfile, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs; times in µs."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        total = sum(kernel.microseconds for kernel in self.kernels)
        plural = "" if self.threads == 1 else "s"
        lines = [
            f"{self.network} for {self.target} on {self.machine}, {self.threads} thread{plural}, batch {self.batch}"
        ]
        for name, figure in (("net(x)", self.call), ("net.bind(x)()", self.bound)):
            rate = self.batch / figure.median * 1e6
            spread = f"p90 {figure.p90:.1f}, p99 {figure.p99:.1f}"
            lines.append(f"{name:<14} median {figure.median:>9.1f} µs, {spread}; {rate:,.0f} a second")
        if not self.kernels:
            return "\n".join([*lines, "no profile: this batch runs in parts"])
        lines.append(
            f"{'kernel':<13} {'nodes':<23} {'algorithm':<11} {'µs':>9} {'share':>6} {'GFLOP/s':>7} {'GB/s':>5}"
        )
        for kernel in self.kernels:
            gflops = f"{kernel.gflops:.1f}" if kernel.flops else ""
            lines.append(
                f"{kernel.name[:13]:<13} {kernel.ops[:23]:<23} {kernel.algorithm[:11]:<11} {kernel.microseconds:>9.2f}"
                f" {kernel.microseconds / total:>6.1%} {gflops:>7} {kernel.bytes / kernel.microseconds / 1e3:>5.1f}"
            )
        lines.append(f"{'sum':<49} {total:>9.2f}")
        return "\n".join(lines)


def rounds(calls: Sequence[Callable[[], object]], batch: float) -> Iterator[tuple[float, ...]]:
    """Endless rounds of µs a call: each of `calls` in turn, in batches of about `batch` seconds.

    Taking turns, all of them see the same drift of the machine's speed. Each is called twice before, to warm up.
    """
    counts = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        counts.append(max(1, int(batch / max(time.perf_counter() - start, 1e-7))))
    while True:
        spent = []
        for call, count in zip(calls, counts, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            spent.append((time.perf_counter() - start) / count * 1e6)
        yield tuple(spent)


@caught
def bench(
    net: Net, seconds: float, batch: int | None = None, shapes: Mapping[str, Sequence[int | None]] | None = None
) -> Bench:
    """Time a network on seeded random input for about `seconds`, the two kinds of call interleaved.

    `batch` is one that the library takes, and `shapes` one of its sizes, by default the first. Raises InputError for
    others.
    """
    if shapes:
        net = _of_size(net, shapes)
        batch = batch or next((extents[0] for extents in shapes.values() if extents[0] is not None), None)
    first = net.inputs[0].shape[0] if net.inputs and net.inputs[0].shape else 1
    batch = batch or first
    if batch != first and len(net.programs) == 1 and not net.programs[0].open_batch:
        raise InputError(f"{net.path} is compiled for {net.inputs[0].shape}: compile it with --batch {batch}")
    given, made = ([_at_batch(info, batch, first) for info in infos] for infos in (net.inputs, net.outputs))
    arrays = [random_array(info, seed) for seed, info in enumerate(given)]
    outputs = tuple(np.empty(info.shape, info.dtype) for info in made)
    end, times = time.perf_counter() + 0.7 * seconds, []
    for sample in rounds((lambda: net(*arrays), net.bind(*arrays, out=outputs)), 0.001):
        times.append(sample)
        if time.perf_counter() >= end and len(times) >= 5:
            break
    call_time, bound_time = (
        Latency(*(float(v) for v in np.percentile(samples, [50, 90, 99]))) for samples in zip(*times, strict=True)
    )
    known = batch == first or batch in {program.inputs[0].shape[0] for program in net.programs}
    kernels = tuple(net.profile(*arrays, seconds=0.3 * seconds)) if known else ()
    return Bench(net.name, net.target, cpu_name(), net.threads, batch, call_time, bound_time, kernels)


def _of_size(net: Net, shapes: Mapping[str, Sequence[int | None]]) -> Runner | BatchedRunner:
    """What runs the size that is asked for; an input that is not named has its first size."""
    if unknown := sorted(set(shapes) - {info.name for info in net.inputs}):
        names = ", ".join(info.name for info in net.inputs)
        raise InputError(f"{net.path} has no input '{unknown[0]}'; its inputs are {names}")
    asked = [shapes.get(info.name, info.shape) for info in net.inputs]
    if isinstance(net, SizedRunner):
        return net.of(asked)
    for info, shape in zip(net.inputs, asked, strict=True):
        if tuple(shape[1:]) != info.shape[1:]:
            raise InputError(f"input '{info.name}' is asked for as {dims(shape)}; {net.path} has {dims(info.shape)}")
    return net


def _at_batch(info: ArrayInfo, batch: int, first: int) -> ArrayInfo:
    return ArrayInfo(info.name, (info.shape[0] * batch // first, *info.shape[1:]), info.dtype) if info.shape else info
