"""The machine's own limits, in the process that asks: GFLOP/s of independent fused multiply-adds, and GB/s of copying
what no cache holds. A kernel that reaches one of them is done.

Both depend on how many threads there are: a kernel that one thread runs is to be held against the limits of one.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmcnn.codegen.link import c_compiler, run_compiler
from tvmcnn.codegen.templates import NATIVE
from tvmcnn.targets import Target

COPIED = 64 << 20  # bytes
# What else runs on the machine, workers that still look for work too, can only make it seem slower than it is: of a few
# short runs the best is next to the limit, where one long run with two threads has read half of it.
RUNS, RUN_SECONDS = 8, 0.004
COPIES = 3


@dataclass(frozen=True)
class Limit:
    """What some threads can do at most, together."""

    threads: int
    gflops: float
    gigabytes: float  # a second, copied


class Limits:
    """The limits for several numbers of threads; `measure` may be called again, and keeps the best."""

    def __init__(self, target: Target, counts: Iterable[int]) -> None:
        self._peak, self._copy = FmaPeak(target), CopyBandwidth()
        self._found = {count: Limit(count, 0.0, 0.0) for count in sorted({*counts})}

    def measure(self) -> None:
        """Measure all."""
        for count, old in self._found.items():
            gflops = max(self._peak.measure(RUN_SECONDS, count) for _ in range(RUNS))
            gigabytes = max(self._copy.measure(count) for _ in range(COPIES))
            self._found[count] = Limit(count, max(old.gflops, gflops), max(old.gigabytes, gigabytes))

    def found(self) -> dict[int, Limit]:
        """Limits by number of threads: more threads can do what fewer can."""
        pairs = zip(
            self._found,
            itertools.accumulate((each.gflops for each in self._found.values()), max),
            itertools.accumulate((each.gigabytes for each in self._found.values()), max),
            strict=True,
        )
        return {count: Limit(count, gflops, gigabytes) for count, gflops, gigabytes in pairs}


class FmaPeak:
    """A compiled loop of FMAs; `measure` may be called between other measurements, to see the clock drift."""

    def __init__(self, target: Target) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "peak.so"
            flags = ["-std=gnu11", "-O2", f"-march={target.cpu}", "-shared", "-fPIC"]
            run_compiler([*c_compiler(), *flags, "-o", str(library), str(NATIVE / "peak.c")], Path(folder))
            self._peak = ctypes.CDLL(str(library)).tvmcnn_peak
        self._peak.argtypes, self._peak.restype = [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)], ctypes.c_double

    def measure(self, seconds: float = 0.01, threads: int = 1) -> float:
        """GFLOP/s of one run of about `seconds`, of all threads together."""
        sink = ctypes.c_float()
        flop = self._peak(1, sink)  # of one round
        count = max(1000, int(seconds * 1e11 / flop))
        seconds = together(lambda _: self._peak(count, sink), threads)
        return float(threads * flop * count / seconds / 1e9)


class CopyBandwidth:
    """Two arrays; `measure` may be called between other measurements. It leaves the caches full of them."""

    def __init__(self, size: int = COPIED) -> None:
        self._source, self._target = np.ones(size, np.uint8), np.ones(size, np.uint8)  # ones: every page is there

    def measure(self, threads: int = 1) -> float:
        """GB/s of one copy, bytes read plus bytes written; each thread copies its part."""
        parts = [np.array_split(array, threads) for array in (self._target, self._source)]
        return (
            2 * self._source.size / together(lambda index: np.copyto(parts[0][index], parts[1][index]), threads) / 1e9
        )


def together(work: Callable[[int], object], threads: int) -> float:
    """Seconds from the first start to the last end of `work(0)`, `work(1)`, ..., each in a thread and on a CPU of its
    own: on a virtual machine Linux may leave them on one, of two FMA loops of 2 ms most.
    """
    spans: list[tuple[float, float]] = []
    barrier = threading.Barrier(threads)
    allowed = os.sched_getaffinity(0)
    cpus = sorted(allowed)

    def timed(index: int) -> None:
        os.sched_setaffinity(0, {cpus[index % len(cpus)]})  # of this thread
        barrier.wait()
        start = time.perf_counter()
        work(index)
        spans.append((start, time.perf_counter()))

    others = [threading.Thread(target=timed, args=(index,)) for index in range(1, threads)]
    for thread in others:
        thread.start()
    try:
        timed(0)
    finally:
        os.sched_setaffinity(0, allowed)
    for thread in others:
        thread.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)
