"""The onnx.backend API: prepare, run_model, run_node, supports_device, is_compatible.

A prepared model is compiled when it first sees inputs of some shapes, and the library is kept for the next time. Inputs
whose values decide shapes, such as the `shape` of Reshape, are read then and become constants of the library.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from tvmcnn.codegen.cuda.nvcc import nvcc
from tvmcnn.compiler import compile  # noqa: A004 (the contract's name)
from tvmcnn.errors import InputError, TargetError, ToolError, UnsupportedError, caught
from tvmcnn.importer import import_model
from tvmcnn.importer.shapes import open_inputs
from tvmcnn.network import Array, Shape
from tvmcnn.run import load
from tvmcnn.run.runner import Runner

TARGETS = {"CPU": "native", "CUDA": "cuda:sm_80"}  # the oldest GPUs that many have; newer ones compile its PTX


class TvmcnnRep(BackendRep):
    """A prepared model: `run(inputs)` compiles it for what decides its shapes, once for each."""

    def __init__(self, model: onnx.ModelProto, target: str = "native") -> None:
        self.model, self.target = model, target
        self.names = [value.name for value in open_inputs(model)]
        self.deciding: tuple[str, ...] = ()  # inputs whose values decide shapes: constants of the library
        self.libraries: dict[tuple[Any, ...], Runner] = {}

    @caught
    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """The outputs in graph order for inputs in graph order, by name, or a lone array.

        Raises InputError for another number of inputs, and what `compile` raises.
        """
        arrays = dict(zip(self.names, self._arrays(inputs), strict=True))
        runner = self.specialised(arrays)
        result = runner(*(array for name, array in arrays.items() if name not in self.deciding))
        return result if isinstance(result, tuple) else (result,)

    def specialised(self, arrays: Mapping[str, Array]) -> Runner:
        """The library for inputs of these shapes, and for these very values of those that decide shapes."""
        while True:
            values = {name: arrays[name] for name in self.deciding}
            shapes = {name: array.shape for name, array in arrays.items() if name not in values}
            key = (*shapes.values(), *((array.shape, array.tobytes()) for array in values.values()))
            if key not in self.libraries:
                try:
                    self.libraries[key] = _compiled(self.model, self.target, shapes, values)
                except UnsupportedError as error:
                    if not (found := [name for name in arrays if name in error.undecided and name not in values]):
                        raise
                    self.deciding += tuple(found)
                    continue
            return self.libraries[key]

    def _arrays(self, inputs: Any) -> list[Array]:
        if isinstance(inputs, Mapping):
            missing = [name for name in self.names if name not in inputs]
            values = [inputs[name] for name in self.names if name in inputs]
            if missing or len(inputs) != len(self.names):
                raise InputError(f"the inputs given are {', '.join(inputs)}; the model takes {', '.join(self.names)}")
        else:
            values = [inputs] if isinstance(inputs, np.ndarray) or not isinstance(inputs, Iterable) else list(inputs)
        if len(values) != len(self.names):
            raise InputError(f"{len(values)} inputs given; the model takes {len(self.names)}: {', '.join(self.names)}")
        return [np.asarray(value) for value in values]


def _compiled(model: onnx.ModelProto, target: str, shapes: Mapping[str, Shape], values: Mapping[str, Array]) -> Runner:
    with tempfile.TemporaryDirectory(prefix="tvmcnn-") as folder:
        path = Path(folder) / "network.so"
        compile(model, target, path, input_shapes=shapes, input_values=values, verify=False, activations=False)
        return load(path).programs[0]


class TvmcnnBackend(Backend):
    """tvmcnn behind the API that ONNX's own tests and tools speak; devices "CPU" and, where nvcc is, "CUDA"."""

    @classmethod
    @caught
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """True if every node can be compiled, with open leading dimensions at 1."""
        try:
            import_model(model)
        except UnsupportedError:
            return False
        return cls.supports_device(device)

    @classmethod
    @caught
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> TvmcnnRep:
        """The model, ready to `run`. Raises TargetError for a device that is not supported."""
        if not cls.supports_device(device):
            raise TargetError(f"device '{device}' is not supported; allowed are CPU and, where nvcc is, CUDA")
        return TvmcnnRep(model, TARGETS[device.partition(":")[0]])

    @classmethod
    @caught
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Array, ...]:
        """`prepare`, then `run`."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    @caught
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, Shape | None]] | None = None,
        **kwargs: Any,
    ) -> tuple[Array, ...]:
        """One node as a model of its own, of the newest opset or that of `opset_version`.

        `outputs_info` gives each output's dtype and shape; without it the shapes are inferred.
        """
        names = [name for name in node.input if name]
        arrays = [np.asarray(v) for v in (inputs.values() if isinstance(inputs, Mapping) else inputs)]
        if len(arrays) != len(names):
            raise InputError(f"{len(arrays)} inputs given; the node takes {len(names)}: {', '.join(names)}")
        given = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        infos = outputs_info or [(np.float32, None)] * len(node.output)
        made = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in zip(node.output, infos, strict=True)
        ]
        graph = onnx.helper.make_graph([node], node.op_type, given, made)
        opset = onnx.helper.make_opsetid("", kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        for value in model.graph.output:  # of unknown shape where an operand decides it: import finds it anew
            value.type.tensor_type.shape.SetInParent()
        return cls.run_model(model, arrays, device)

    @classmethod
    @caught
    def supports_device(cls, device: str) -> bool:
        """True for "CPU", and for "CUDA" where nvcc is."""
        kind = device.partition(":")[0]
        if kind != "CUDA":
            return kind in TARGETS
        try:
            return bool(nvcc())
        except ToolError:
            return False


is_compatible = TvmcnnBackend.is_compatible
prepare = TvmcnnBackend.prepare
run_model = TvmcnnBackend.run_model
run_node = TvmcnnBackend.run_node
supports_device = TvmcnnBackend.supports_device
