"""Several sizes in one library: the program whose input shape it is runs, of any batch where that is open.

Each size has kernels of its own, chosen for it; the weights are shared where their packing is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmcnn.artifact.container import Manifest
from tvmcnn.errors import InputError, caught
from tvmcnn.network import Array, dims
from tvmcnn.run.arrays import ArrayInfo
from tvmcnn.run.batched import BatchedRunner
from tvmcnn.run.runner import KernelProfile, Runner, named_outputs


class SizedRunner:
    """A network compiled for several sizes of its inputs, by the runner of each. What it shows is that of the first."""

    def __init__(self, nets: Sequence[Runner | BatchedRunner], manifest: Manifest) -> None:
        self.nets, self.manifest = tuple(nets), manifest
        first = nets[0]
        self.path, self.threads, self.name, self.target = first.path, first.threads, first.name, first.target
        self.inputs, self.outputs = first.inputs, first.outputs
        self.programs = tuple(program for net in nets for program in net.programs)
        self._by_image = {tuple(info.shape[1:] for info in net.inputs): net for net in nets}

    @caught
    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """The outputs for inputs of one of the sizes, as `Runner.__call__`. Raises InputError for another size."""
        return self.of(map(np.shape, arrays))(*arrays, out=out)

    @caught
    def bind(self, *arrays: Any, out: Any = None) -> Callable[[], Any]:
        """`Runner.bind` for inputs of one of the sizes."""
        return self.of(map(np.shape, arrays)).bind(*arrays, out=out)

    @caught
    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
        """onnxruntime's form: a list of the named outputs (None: all) for inputs by name."""
        return named_outputs(self, output_names, feeds)

    def of(self, shapes: Any) -> Runner | BatchedRunner:
        """The runner for inputs of these shapes, whatever their batch. Raises InputError for a size that is none."""
        asked = [tuple(shape) for shape in shapes]
        if len(asked) != len(self.inputs):
            raise InputError(f"{len(asked)} inputs given; {self.name} takes {len(self.inputs)}")
        net = self._by_image.get(tuple(shape[1:] for shape in asked))
        if net is None:
            found = ", ".join(dims(shape) for shape in asked)
            raise InputError(f"the inputs given are {found}; {self.name} is compiled for {', '.join(self._sizes())}")
        return net

    def _sizes(self) -> list[str]:
        return [" and ".join(dims(info.shape) for info in net.inputs) for net in self.nets]

    def get_inputs(self) -> list[ArrayInfo]:
        """Names and shapes of the inputs; an extent that sizes differ in as all that it may be: "480|640"."""
        return self._shown([net.get_inputs() for net in self.nets])

    def get_outputs(self) -> list[ArrayInfo]:
        """Names and shapes of the outputs, as those of the inputs."""
        return self._shown([net.get_outputs() for net in self.nets])

    @staticmethod
    def _shown(sizes: Sequence[Sequence[ArrayInfo]]) -> list[ArrayInfo]:
        found = []
        for infos in zip(*sizes, strict=True):
            extents = [dict.fromkeys(each) for each in zip(*(info.shape for info in infos), strict=True)]
            shape = tuple(next(iter(each)) if len(each) == 1 else "|".join(map(str, each)) for each in extents)
            found.append(dataclasses.replace(infos[0], shape=shape))
        return found

    @property
    def folded(self) -> dict[str, str]:
        """ONNX tensors that no kernel computes, each with the reason."""
        return self.nets[0].folded

    @caught
    def step_by_step(self, *arrays: Any) -> Any:
        """`Runner.step_by_step` for inputs of one of the sizes."""
        return self.of(map(np.shape, arrays)).step_by_step(*arrays)

    @caught
    def activations(self, *arrays: Any) -> dict[str, Array]:
        """`Runner.activations` for inputs of one of the sizes."""
        return self.of(map(np.shape, arrays)).activations(*arrays)

    @caught
    def profile(self, *arrays: Any, seconds: float = 0.2, kernel: str | None = None) -> list[KernelProfile]:
        """`Runner.profile` for inputs of one of the sizes, by default the first."""
        net = self.of(map(np.shape, arrays)) if arrays else self.nets[0]
        return net.profile(*arrays, seconds=seconds, kernel=kernel)

    def __repr__(self) -> str:
        return f"<tvmcnn network {self.name} for {self.target}: sizes {', '.join(self._sizes())}>"
