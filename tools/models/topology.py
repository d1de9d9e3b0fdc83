"""A network before its weights: nodes, and the shapes of the weights that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Size = int | tuple[int, int]  # of a square image, or rows and columns
BATCH = "N"


@dataclass(frozen=True)
class Topology:
    """One input of N x channels x rows x columns (`size`), nodes in computing order, one output.

    `weights` are the shapes of the float tensors still to be drawn; `constants` the tensors that belong to the
    topology: targets of Reshapes, bounds of Clips. `sizes` has the root of E[y²] that the output of the layer or
    normalisation with this weight shall have, where it is not 1.
    """

    name: str
    channels: int
    size: tuple[int, int]
    input: str
    output: str
    nodes: Sequence[onnx.NodeProto]
    weights: Mapping[str, Shape]
    constants: Mapping[str, Array]
    opset: int
    sizes: Mapping[str, float] = field(default_factory=dict)

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor, 0 for the open batch. Raises ValueError where the input is too small."""
        free = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.weights.items()]
        model = self._model([self._input(), *free], helper.make_empty_tensor_value_info(self.output), self.constants)
        try:
            graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise ValueError(" ".join(str(error).split())) from error
        shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
        for node in self.nodes:
            shape = shapes[node.output[0]]
            if min(shape[1:], default=1) < 1:
                raise ValueError(f"{node.output[0]} would be {shape}")
        return shapes

    def model(self, weights: Mapping[str, Array]) -> onnx.ModelProto:
        """The checked ONNX model that has `weights` as initializers."""
        shape: list[str | int | None] = [BATCH, *self.shapes()[self.output][1:]]
        output = helper.make_tensor_value_info(self.output, TensorProto.FLOAT, shape)
        model = self._model([self._input()], output, {**self.constants, **weights})
        onnx.checker.check_model(model)
        return model

    def _input(self) -> onnx.ValueInfoProto:
        shape: list[str | int | None] = [BATCH, self.channels, *self.size]
        return helper.make_tensor_value_info(self.input, TensorProto.FLOAT, shape)

    def _model(
        self, inputs: list[onnx.ValueInfoProto], output: onnx.ValueInfoProto, stored: Mapping[str, Array]
    ) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
        graph = helper.make_graph(self.nodes, self.name, inputs, [output], tensors)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8, producer_name="make_models"
        )


def extents(size: Size) -> tuple[int, int]:
    """Rows and columns."""
    return (size, size) if isinstance(size, int) else size


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(extent.dim_value for extent in value.type.tensor_type.shape.dim)
