"""Operators that onnx.reference evaluates: those that tvmcnn has no kernel for, and that its importer may fold.

onnx.reference is not an oracle as it is: its LRN sums over the batch, and its BatchNormalization was wrong on a real
network. So an operator is taken from it only if the tests compare it with onnxruntime, on all ONNX node cases of it and
on sizes of which no two are equal (`tests/check/test_reference_taken.py`), in float64 as everything here. What failed
there is written anew in the other files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper

from tvmcnn.check.reference_ops.registry import Array

TAKEN = {
    # elements in other places, or some of them
    **{"CenterCropPad": 18, "Compress": 9, "NonZero": 9, "Scatter": 9, "ScatterElements": 11, "ScatterND": 11},
    **{"TensorScatter": 24, "TopK": 1},
    # sums, products and functions of them
    **{"Attention": 23, "CausalConvWithState": 27, "ConvInteger": 10, "CumProd": 26, "CumSum": 11, "DFT": 17},
    **{"Det": 11, "Einsum": 12, "MatMulInteger": 10, "MelWeightMatrix": 17},
    **{"RMSNormalization": 23, "RotaryEmbedding": 23, "STFT": 17, "Shrink": 9},
    # images and boxes
    **{"AffineGrid": 20, "Col2Im": 18, "NonMaxSuppression": 10},
}
"""The operators, and the first opset at which each is taken."""


def attributes_and_outputs(name: str, opset: int) -> tuple[set[str], int]:
    """The names of an operator's attributes, and how many outputs it makes at most."""
    schema = onnx.defs.get_schema(name, opset)
    return set(schema.attributes), schema.max_output


def evaluate(node: onnx.NodeProto, opset: int, arrays: Sequence[Array | None]) -> list[Array | None]:
    """What onnx.reference makes of a node: one array an output, None for one that is left out."""
    from onnx.reference import ReferenceEvaluator  # which takes a while to load, and few models need it

    one, opset = _newer(node, opset)
    if one.op_type == "NonMaxSuppression":
        arrays = _with_limits(*arrays)
    del one.input[:], one.output[:]
    one.input.extend("" if array is None else f"x{place}" for place, array in enumerate(arrays))
    one.output.extend(f"y{place}" if name else "" for place, name in enumerate(node.output))
    feeds = {name: array for name, array in zip(one.input, arrays, strict=True) if name}
    outputs = [name for name in one.output if name]
    info = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph([one], "one", [info(name) for name in feeds], [info(name) for name in outputs])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    found = dict(zip(outputs, ReferenceEvaluator(model).run(outputs, feeds), strict=True))
    return [found.get(name) for name in one.output]


def _newer(node: onnx.NodeProto, opset: int) -> tuple[onnx.NodeProto, int]:
    """A copy of the node, in the newer form where onnx.reference does not know the old one, and its opset."""
    one = onnx.NodeProto()
    one.CopyFrom(node)
    one.domain = ""
    if one.op_type == "Scatter":  # as it was called before it got a sibling
        one.op_type, opset = "ScatterElements", 11
    return one, opset


def _with_limits(
    boxes: Array | None, scores: Array | None, most: Array | None = None, overlap: Array | None = None, *least: Any
) -> list[Array | None]:
    """NonMaxSuppression's inputs, its limits as vectors: without defaults onnx.reference fails, and on scalars."""
    limits = [np.zeros(1, np.int64) if most is None else most, np.zeros(1) if overlap is None else overlap, *least]
    return [boxes, scores, *(None if limit is None else limit.reshape(-1) for limit in limits)]


def selected_boxes(
    boxes: Array, scores: Array, *, most: int, overlap: float, least: float | None, centered: bool
) -> Array:
    """The rows of NonMaxSuppression, which may select `most` boxes of a class."""
    node = onnx.helper.make_node("NonMaxSuppression", list("bsmol"), ["y"], center_point_box=int(centered))
    limits = [np.array([most], np.int64), np.array([overlap]), None if least is None else np.array([least])]
    (found,) = evaluate(node, onnx.defs.onnx_opset_version(), [boxes.astype(float), scores.astype(float), *limits])
    return np.asarray(found, np.int64).reshape(-1, 3)


def result_types(node: onnx.NodeProto, opset: int, given: Sequence[np.dtype[Any] | None]) -> list[np.dtype[Any] | None]:
    """The ONNX type of each output that shares its type with an input; None where the array's own is right."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    bound: dict[str, np.dtype[Any]] = {}
    for place, dtype in enumerate(given):
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]  # the last may stand for many
        if dtype is not None:
            bound.setdefault(formal.type_str, dtype)
    formals = [schema.outputs[min(place, len(schema.outputs) - 1)] for place in range(len(node.output))]
    return [bound.get(formal.type_str) for formal in formals]
