"""Several batch sizes in one library: any batch is run in parts of the sizes that it was compiled for.

Each size has kernels of its own, chosen for it; the weights are shared where their packing is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.artifact.container import Manifest
from tvmcnn.errors import InputError, caught
from tvmcnn.network import Array
from tvmcnn.run.runner import ArrayInfo, KernelProfile, Runner, check_output, checked_array, named_outputs

FILLED = 3 / 4  # of a size must be images for it to run padded: below that smaller sizes do less work


def parts(batch: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(size, images) of the runs that cover `batch` images, with as few as possible computed for nothing.

    Sizes 1, 8, 64:  batch 71 --> 64 of 64, 7 of 8;  batch 5 --> 1 of 1, five times. Without a size that fits what is
    left, the smallest runs padded.
    """
    found, left = [], batch
    for size in sorted(sizes, reverse=True):
        count, left = divmod(left, size)
        found += [(size, size)] * count
        if left >= FILLED * size:
            found.append((size, left))
            left = 0
    return [*found, (min(sizes), left)] if left else found


class BatchedRunner:
    """A network compiled for several batch sizes; it takes any batch. What it shows is that of the smallest size."""

    def __init__(self, path: Path, manifest: Manifest, threads: int, kind: type[Runner] = Runner) -> None:
        self.path, self.manifest, self.threads = path, manifest, threads
        runners = [kind(path, manifest | entry, threads) for entry in ({}, *manifest["specialisations"])]
        self.programs = tuple(sorted(runners, key=lambda runner: runner.inputs[0].shape[0]))
        self.name, self.target = self.programs[0].name, self.programs[0].target
        self.sizes = {runner.inputs[0].shape[0]: runner for runner in self.programs}
        self.inputs, self.outputs = self.programs[0].inputs, self.programs[0].outputs
        self._rows = [info.shape[0] // min(self.sizes) for info in self.outputs]  # of each output for one image

    @caught
    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """The outputs for a batch of any size: as `Runner.__call__`, the leading dimension free.

        An image's result is the same within rounding, not bit for bit, whichever size its part is run at. Raises
        InputError for inputs of different batches, an empty one, and what does not fit.
        """
        given = self._checked(arrays)
        batch = given[0].shape[0]
        outputs = self._outputs(batch, out)
        start = 0
        for size, count in parts(batch, list(self.sizes)):
            runner = self.sizes[size]
            ours = [array[start : start + count] for array in given]
            theirs = [o[start * rows : (start + count) * rows] for o, rows in zip(outputs, self._rows, strict=True)]
            if count == size:
                runner(*ours, out=theirs)
            else:
                padded = [np.concatenate([x, np.zeros((size - count, *x.shape[1:]), x.dtype)]) for x in ours]
                for whole, part in zip(_tuple(runner(*padded)), theirs, strict=True):
                    part[:] = whole[: len(part)]
            start += count
        return outputs[0] if len(outputs) == 1 else outputs

    @caught
    def bind(self, *arrays: Any, out: Any = None) -> Callable[[], Any]:
        """`Runner.bind` for a batch of any size; one that is no compiled size runs in parts, checked each time."""
        batch = self._checked(arrays)[0].shape[0]
        if batch in self.sizes:
            return self.sizes[batch].bind(*arrays, out=out)
        outputs = self._outputs(batch, out)
        return lambda: self(*arrays, out=outputs)

    @caught
    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
        """onnxruntime's form: a list of the named outputs (None: all) for inputs by name."""
        return named_outputs(self, output_names, feeds)

    def get_inputs(self) -> list[ArrayInfo]:
        """Names and shapes of the inputs, at the smallest batch."""
        return list(self.inputs)

    def get_outputs(self) -> list[ArrayInfo]:
        """Names and shapes of the outputs, at the smallest batch."""
        return list(self.outputs)

    @property
    def folded(self) -> dict[str, str]:
        """ONNX tensors that no kernel computes, each with the reason."""
        return self.programs[0].folded

    def at(self, batch: int) -> Runner:
        """The runner of one compiled size. Raises InputError for a size that is none."""
        if batch not in self.sizes:
            raise InputError(f"{self.name} is compiled for the batches {', '.join(map(str, self.sizes))}, not {batch}")
        return self.sizes[batch]

    @caught
    def step_by_step(self, *arrays: Any) -> Any:
        """`Runner.step_by_step` of a batch that is one of the compiled sizes."""
        return self.at(self._checked(arrays)[0].shape[0]).step_by_step(*arrays)

    @caught
    def activations(self, *arrays: Any) -> dict[str, Array]:
        """`Runner.activations` of a batch that is one of the compiled sizes."""
        return self.at(self._checked(arrays)[0].shape[0]).activations(*arrays)

    @caught
    def profile(self, *arrays: Any, seconds: float = 0.2, kernel: str | None = None) -> list[KernelProfile]:
        """`Runner.profile` of a batch that is one of the compiled sizes, by default the smallest."""
        runner = self.at(self._checked(arrays)[0].shape[0]) if arrays else self.programs[0]
        return runner.profile(*arrays, seconds=seconds, kernel=kernel)

    def _checked(self, arrays: Sequence[Any]) -> list[Array]:
        """The inputs as arrays of one batch; all but the batch is as compiled."""
        if len(arrays) != len(self.inputs):
            raise InputError(f"{len(arrays)} inputs given; {self.name} takes {len(self.inputs)}")
        batches = {np.shape(array)[0] if np.ndim(array) else 0 for array in arrays}
        if len(batches) != 1 or 0 in batches:
            shapes = ", ".join(str(np.shape(array)) for array in arrays)
            raise InputError(f"the inputs given are {shapes}; their leading dimensions must be one batch of at least 1")
        batch = batches.pop()
        wanted = [ArrayInfo(info.name, (batch, *info.shape[1:]), info.dtype) for info in self.inputs]
        return [checked_array(array, info) for array, info in zip(arrays, wanted, strict=True)]

    def _outputs(self, batch: int, out: Any) -> tuple[Array, ...]:
        infos = [
            ArrayInfo(info.name, (rows * batch, *info.shape[1:]), info.dtype)
            for info, rows in zip(self.outputs, self._rows, strict=True)
        ]
        if out is None:
            return tuple(np.empty(info.shape, info.dtype) for info in infos)
        given = _tuple(out)
        if len(given) != len(infos):
            raise InputError(f"{len(given)} arrays in out=; {self.name} has {len(infos)} outputs")
        for array, info in zip(given, infos, strict=True):
            check_output(array, info)
        return given

    def __repr__(self) -> str:
        return f"{repr(self.programs[0])[:-1]}; batches {', '.join(map(str, self.sizes))}>"


def _tuple(arrays: Any) -> tuple[Array, ...]:
    return tuple(arrays) if isinstance(arrays, tuple | list) else (arrays,)
