"""The machine's own limit: GFLOP/s of independent fused multiply-adds, in the process that asks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tvmcnn.codegen.link import c_compiler
from tvmcnn.targets import Target

# Independent accumulators: the latency of 4 cycles times two units, and some to spare; 16 registers hold them.
CHAINS = 12

_SOURCE = """
typedef float vector __attribute__((vector_size({bytes})));
float peak(long count) {{
  vector x = {{0}}, y = {{0}}, {zeros};
  x += 0.999f, y += 0.001f;
  for (long n = 0; n < count; ++n) {{
    {body}
  }}
  return ({total})[0];
}}
"""


class FmaPeak:
    """A compiled loop of FMAs; `measure` may be called between other measurements, to see the clock drift."""

    def __init__(self, target: Target) -> None:
        names = [f"a{c}" for c in range(CHAINS)]
        source = _SOURCE.format(
            bytes=4 * target.lanes,
            zeros=", ".join(f"{name} = {{0}}" for name in names),
            # The empty asm keeps each value in a register and the loop from being folded.
            body=" ".join(f'{name} = {name} * x + y; __asm__("" : "+v"({name}));' for name in names),
            total=" + ".join(names),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peak.c"
            path.write_text(source)
            flags = ["-O2", f"-march={target.name}", "-ffp-contract=fast", "-shared", "-fPIC"]
            library = path.with_suffix(".so")
            subprocess.run([*c_compiler(), *flags, "-o", str(library), str(path)], check=True)
            self._peak = ctypes.CDLL(str(library)).peak
        self._peak.argtypes, self._peak.restype = [ctypes.c_long], ctypes.c_float
        self._flops = 2 * target.lanes * CHAINS

    def measure(self, seconds: float = 0.01, threads: int = 1) -> float:
        """GFLOP/s of one run of about `seconds`, of all threads together."""
        count = max(1000, int(seconds * 1e11 / self._flops))
        return threads * self._flops * count / together(lambda _: self._peak(count), threads) / 1e9


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
