"""Worker: where candidates run. A process on this machine, or one that drives a machine over TVM's RPC.

These functions run inside an `Isolated` process, which keeps one open library: `open_library`, then `check` and `times`
for its trials. A place is None, this machine, or (tracker's host, port, key).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.network import ALIGNMENT, Array
from tvmcnn.tuning.candidate import Trial

Place = tuple[str, int, str] | None  # the tracker's host and port and the key; None: this machine
SESSION = 600  # seconds after which a server ends a session whose client may be gone


@dataclass
class _Library:
    """An open library of trials, on this machine or on another."""

    module: Any
    session: Any = None  # TVM's, of the other machine
    memory: Any = None

    def tensor(self, array: Array) -> Any:
        """The array as an argument: itself, or a copy on the other machine."""
        if self.session is None:
            import tvm_ffi

            return tvm_ffi.from_dlpack(array)
        import tvm

        return tvm.runtime.tensor(array, self.session.cpu(0))

    def back(self, tensor: Any, array: Array) -> Array:
        """What a function has written to a tensor of `array`."""
        return array if self.session is None else tensor.numpy()


_open: list[_Library] = []


def open_library(path: Path, memory: int, place: Place) -> str:
    """Open a library of trials that take up to `memory` bytes, in place of the one before; returns the CPU's name.

    Raises RuntimeError for a CPU that cannot run it.
    """
    old = _open.pop() if _open else None
    if place is None:
        import tvm_ffi

        library = _Library(tvm_ffi.load_module(str(path)))
    else:
        from tvm import rpc

        old = None  # its session is ours no longer
        gc.collect()
        host, port, key = place
        session = rpc.connect_tracker(host, port).request(key, session_timeout=SESSION)
        session.upload(str(path))
        library = _Library(session.load_module(path.name), session)
    name = aligned(64)
    tensor = library.tensor(name)
    if not library.module["machine"](tensor):
        raise RuntimeError("the CPU lacks instructions of the target")
    if old is not None and old.memory is not None and old.memory.shape[0] >= memory:
        library.memory = old.memory
    else:
        library.memory = library.tensor(aligned(memory)) if place is None else _remote_memory(library, memory)
        library.module["fill"](library.memory)
    _open.append(library)
    return library.back(tensor, name).tobytes().split(b"\0")[0].decode(errors="replace").strip()


def _remote_memory(library: _Library, size: int) -> Any:
    import tvm

    return tvm.runtime.empty((size,), "uint8", library.session.cpu(0))


def aligned(size: int) -> Array:
    """Bytes that begin a cache line."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def check(index: int, trial: Trial) -> float:
    """Run a trial once; the largest |difference| of its output from the expected, relative to the largest |value|; NaN
    for an output that has some."""
    (library,) = _open
    image = aligned(trial.image.stat().st_size)
    image[:] = np.fromfile(trial.image, np.uint8)
    tensor = library.tensor(image)
    library.module["run"](index, tensor)
    after = library.back(tensor, image)
    size = math.prod(trial.layout.physical(trial.shape)) * trial.layout.item_bytes(trial.dtype)
    stored = after[trial.output : trial.output + size].view(trial.layout.stored_dtype(trial.dtype))
    made = trial.layout.unpack(stored, trial.shape)
    expected = np.fromfile(trial.expected, np.float64).reshape(trial.shape)
    return float(np.max(np.abs(made - expected), initial=0.0)) / trial.scale  # of NaNs it is NaN


def times(indices: Sequence[int], rounds: int, seconds: float) -> list[list[float]]:
    """µs a call of each trial: one sample of about `seconds` a round, all trials in turn in each round."""
    (library,) = _open
    measure = library.module["time"]
    samples: list[list[float]] = [[] for _ in indices]
    for _ in range(rounds):
        for index, values in zip(indices, samples, strict=True):
            values.append(float(measure(index, library.memory, seconds)))
    return samples


def peak(seconds: float) -> float:
    """GFLOP/s of fused multiply-adds, now."""
    (library,) = _open
    return float(library.module["peak"](seconds))
