"""The machine's own limit: GFLOP/s of independent fused multiply-adds on one core, in the process that asks."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
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

    def measure(self, seconds: float = 0.01) -> float:
        """GFLOP/s of one run of about `seconds`."""
        count = max(1000, int(seconds * 1e11 / self._flops))
        start = time.perf_counter()
        self._peak(count)
        return self._flops * count / (time.perf_counter() - start) / 1e9
