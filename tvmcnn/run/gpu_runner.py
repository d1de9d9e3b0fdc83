"""Run a library for GPUs. Needs numpy and apache-tvm-ffi; the library has CUDA's runtime, the machine its driver.

NumPy in gives NumPy out; arrays on a GPU (of PyTorch or CuPy, say) give arrays on it, without a copy, on the caller's
stream.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from tvmcnn.errors import ArtifactError, InputError, ToolError, caught
from tvmcnn.network import Array
from tvmcnn.run.dlopen import Mapped
from tvmcnn.run.runner import KernelProfile, Runner

REASONS = {
    4: "there is no NVIDIA driver or GPU here",
    5: "it has no code for this GPU",
    6: "the GPU has no memory left for it",
    7: "CUDA reports an error",
}
CUDA = 2  # DLPack's kind of device
_kept: dict[str, Mapped] = {}  # CUDA's runtime has registered their code, and may call it when the process ends


class GpuRunner(Runner):
    """A loaded network on the current GPU. Any number of threads may call it; calls take their turns on the device."""

    def _open(self, library: Mapped) -> None:
        _kept.setdefault(library.spelling, library)
        if status := self._symbols[f"{self.symbol}_check"]():
            reason = REASONS.get(status, f"status {status}")
            raise ArtifactError(f"{self.path} is made for {self.target}; {reason}")
        self._native = tvm_ffi.load_module(library.spelling).get_function(f"{self.symbol}_run")

    @caught
    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """The outputs for the inputs in graph order: one array, or a tuple if the network has several.

        All are NumPy's (or __dlpack__'s on the CPU), or all on one GPU: then the outputs are of the first input's
        library, there when its stream is. Raises InputError for what does not fit.
        """
        if self._is_other_batch(arrays) and not _is_there(arrays[0]):
            return self._in_parts(arrays, out)
        if out is None:
            outputs: tuple[Any, ...] = self._on_gpu(arrays) if arrays and _is_there(arrays[0]) else self._allocate()
        else:
            outputs = tuple(out) if type(out) in (tuple, list) else (out,)
        if arrays and _is_there(arrays[0]):
            self._check_counts(arrays, outputs)
            try:
                self._native(*arrays, *outputs)
            except (TypeError, ValueError) as error:
                raise InputError(str(error)) from error
        else:
            self._check(self._symbols[f"{self.symbol}_run"](*self._addresses(arrays, outputs), None))
        return outputs[0] if len(outputs) == 1 else outputs

    def run_in(self, arrays: Sequence[Array], outputs: Sequence[Array], arena: Array) -> None:
        """One call on the caller's arrays; a GPU has its own arena."""
        self(*arrays, out=tuple(outputs))

    def _check(self, status: int) -> None:
        """Raise ToolError for the status of a call that failed."""
        if status:
            raise ToolError(f"{self.name} did not run: {REASONS.get(status, f'status {status}')}")

    def _on_gpu(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """New outputs where the inputs are, by the library that made these."""
        name = type(arrays[0]).__module__.split(".")[0]
        theirs = sys.modules[name]
        if name == "torch":
            kinds = [getattr(theirs, info.dtype) for info in self.outputs]
            infos = zip(self.outputs, kinds, strict=True)
            return tuple(theirs.empty(info.shape, dtype=kind, device=arrays[0].device) for info, kind in infos)
        if name == "cupy":
            return tuple(theirs.empty(info.shape, info.dtype) for info in self.outputs)
        raise InputError(f"for arrays of {name} on a GPU the outputs must be given: out=")

    @caught
    def bind(self, *arrays: Any, out: Any = None) -> Callable[[], Any]:
        """A function without arguments that runs the network on these arrays, whatever they hold by then."""
        result = self(*arrays, out=out)
        outputs = result if isinstance(result, tuple) else (result,)

        def call() -> Any:
            return self(*arrays, out=outputs)

        return call

    def step_by_step(self, *arrays: Any) -> Any:
        """What `__call__` returns: on a GPU every kernel is a launch of its own."""
        return self(*arrays)

    def activations(self, *arrays: Any) -> dict[str, Array]:
        """Not for GPUs: raises InputError."""
        raise InputError(f"{self.path.name} is for GPUs: compile for a CPU to see every tensor")

    @caught
    def profile(self, *arrays: Any, seconds: float = 0.2, kernel: str | None = None) -> list[KernelProfile]:
        """Each kernel's cost (or that of the one named), by the GPU's clock."""
        kernels = self.manifest["kernels"]
        self._check_kernel(kernel)
        profiles = []
        for index, entry in enumerate(kernels):
            if kernel in (None, entry["name"]):
                words = (entry["name"], "+".join(entry["ops"]), entry["algorithm"])
                spent = self._time(index, seconds / len(kernels))
                profiles.append(KernelProfile(*words, spent, 2 * entry["macs"], entry["bytes"]))
        return profiles

    def _time(self, index: int, seconds: float) -> float:
        """Median µs of a launch."""

        def batch(repeat: int) -> float:
            spent = ctypes.c_float()
            self._symbols[f"{self.symbol}_step"](ctypes.c_int32(index), ctypes.c_int32(repeat), ctypes.byref(spent))
            return spent.value

        repeat = min(1 << 16, max(1, int(seconds * 1e6 / 10 / max(batch(2), 0.1))))
        return float(np.median([batch(repeat) for _ in range(9)]))


def _is_there(array: Any) -> bool:
    """Whether an array lies on a GPU."""
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return False
    return int(array.__dlpack_device__()[0]) == CUDA


def why_not_here(library: Path, name: str) -> str:
    """Why this machine cannot run an image for GPUs; empty if it can."""
    status = ctypes.CDLL(str(library.resolve()))[f"{name}_check"]()
    return REASONS.get(status, f"status {status}") if status else ""
