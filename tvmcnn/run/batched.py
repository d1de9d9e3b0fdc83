"""Any batch: run in parts of the sizes that the library was compiled for, image by image where that is 1 alone.

Each size has kernels of its own, chosen for it; the weights are shared where their packing is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvmcnn.artifact.container import Manifest
from tvmcnn.errors import InputError, caught
from tvmcnn.network import Array
from tvmcnn.run.arrays import ArrayInfo, with_batch
from tvmcnn.run.parts import alone, batch_of, bound_in_parts, in_parts
from tvmcnn.run.runner import KernelProfile, Runner, named_outputs


class BatchedRunner:
    """A network that takes any batch, by the runners of the batch sizes that it was compiled for.

    What it shows is that of the smallest size.
    """

    def __init__(self, runners: Sequence[Runner], manifest: Manifest) -> None:
        self.path, self.manifest, self.threads = runners[0].path, manifest, runners[0].threads
        self.programs = tuple(sorted(runners, key=lambda runner: runner.inputs[0].shape[0]))
        self.name, self.target = self.programs[0].name, self.programs[0].target
        self.sizes = {runner.inputs[0].shape[0]: runner for runner in self.programs}
        self.inputs, self.outputs = self.programs[0].inputs, self.programs[0].outputs

    @caught
    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """The outputs for a batch of any size: as `Runner.__call__`, the leading dimension free.

        An image's result is the same within rounding, not bit for bit, whichever size its part is run at. Raises
        InputError for inputs of different batches, an empty one, and what does not fit.
        """
        return alone(in_parts(self.sizes, arrays, out))

    @caught
    def bind(self, *arrays: Any, out: Any = None) -> Callable[[], Any]:
        """`Runner.bind` for a batch of any size; one that is no compiled size runs in parts, checked each time."""
        return bound_in_parts(self.sizes, arrays, out)

    @caught
    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
        """onnxruntime's form: a list of the named outputs (None: all) for inputs by name."""
        return named_outputs(self, output_names, feeds)

    def get_inputs(self) -> list[ArrayInfo]:
        """Names and shapes of the inputs, the batch as N."""
        return [self._shown(info) for info in self.inputs]

    def get_outputs(self) -> list[ArrayInfo]:
        """Names and shapes of the outputs, as those of the inputs."""
        return [self._shown(info) for info in self.outputs]

    def _shown(self, info: ArrayInfo) -> ArrayInfo:
        return with_batch(info, "N", min(self.sizes))

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
        return self.at(batch_of(self.sizes, arrays)).step_by_step(*arrays)

    @caught
    def activations(self, *arrays: Any) -> dict[str, Array]:
        """`Runner.activations` of a batch that is one of the compiled sizes."""
        return self.at(batch_of(self.sizes, arrays)).activations(*arrays)

    @caught
    def profile(self, *arrays: Any, seconds: float = 0.2, kernel: str | None = None) -> list[KernelProfile]:
        """`Runner.profile` of a batch that is one of the compiled sizes, by default the smallest."""
        runner = self.at(batch_of(self.sizes, arrays)) if arrays else self.programs[0]
        return runner.profile(*arrays, seconds=seconds, kernel=kernel)

    def __repr__(self) -> str:
        return f"{repr(self.programs[0])[:-1]}; batches {', '.join(map(str, self.sizes))}>"
