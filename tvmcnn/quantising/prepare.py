"""Preparation: a float32 network as onnxruntime's quantiser takes it, and what cannot be quantised, in words.

    MODEL.onnx of opset 7, x: Nx3x224x224, weights among the inputs, Conv, BatchNormalization, Relu without names
      -->
    opset 21, x: 1x3x224x224, Conv with the BatchNormalization folded in, Relu, each named by what it makes

The order matters. onnxruntime folds no weight that is an input too, as files of ir_version 3 have them; its quantiser
writes DequantizeLinear by channel for opset 12 and older, which has no such thing; and the importer's conversion, which
keeps what an old Upsample meant, must come before onnxruntime's own to opset 11.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import quant_pre_process

from tvmcnn.errors import ModelError
from tvmcnn.importer.convert import convert_opset, remove_initializers_from_inputs
from tvmcnn.importer.functions import inline_functions
from tvmcnn.importer.shapes import bind_inputs
from tvmcnn.network import Asked
from tvmcnn.onnx_file import Opened
from tvmcnn.onnx_file.repair import fresh, node_lists, opset_of, tensor_names, title
from tvmcnn.quantising.sessions import heard

BY_CHANNEL = 13  # the opset in which DequantizeLinear got its axis
QUANTISED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm")
)


@dataclass(frozen=True)
class Prepared:
    """The network of the file with its shapes closed, and the same one as the quantiser takes it."""

    closed: onnx.ModelProto
    ready: onnx.ModelProto


def prepare(
    model: Opened, label: str, shapes: Mapping[str, Asked], folder: Path, report: Callable[[str], None]
) -> Prepared:
    """Close, convert, fold and name. Raises ModelError for what onnxruntime cannot load."""
    closed = _whole(model)
    inline_functions(closed, label)
    notes, _ = bind_inputs(closed, label, shapes, None, {})
    remove_initializers_from_inputs(closed)
    ready = onnx.ModelProto()
    ready.CopyFrom(closed)
    if opset_of(ready.opset_import) < BY_CHANNEL:
        notes += convert_opset(ready, label)
    for note in notes:
        report(note)
    _name(ready)
    _spell_sums(ready)
    source, target = folder / "closed.onnx", folder / "ready.onnx"
    onnx.save(ready, source)
    with heard(report, f"onnxruntime cannot prepare {label}", logging.ERROR):
        quant_pre_process(source, target, skip_symbolic_shape=True)  # shapes are closed: nothing is symbolic
    ready = onnx.load(target)
    _name(ready)
    _flatten_biases(ready)
    del ready.metadata_props[:]
    ready.metadata_props.extend(closed.metadata_props)
    ready.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # it asks for this
    return Prepared(closed, ready)


def refuse_quantised(model: Opened, label: str) -> None:
    """Raise ModelError for a network that has integers with scales already."""
    found = [node for _, nodes in node_lists(model.proto) for node in nodes if _is_quantised(node.op_type)]
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(
            f"{label} is quantised already: {title(found[0])}{others}; give the float32 network, or compile this one"
        )


def _is_quantised(op: str) -> bool:
    return op in QUANTISED or op.startswith("QLinear")


def _whole(model: Opened) -> onnx.ModelProto:
    """The proto with all its weights in it."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in [value for value in proto.graph.input if value.name in model.weights]:
        proto.graph.input.remove(value)
    for name, array in model.weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return proto


def _name(proto: onnx.ModelProto) -> None:
    """Name each node that has no name by what it makes, so that it can be kept by that."""
    for node in proto.graph.node:
        node.name = node.name or next(filter(None, node.output), "")


def _spell_sums(proto: onnx.ModelProto) -> None:
    """Spell sums of two as Add, for the quantiser knows no Sum and would leave a ResNet-50's residuals in float32.

    y = Sum(a, b)    -->    y = Add(a, b)
    """
    for node in proto.graph.node:
        if node.op_type == "Sum" and len(node.input) == 2 and not node.domain:
            node.op_type = "Add"


def _flatten_biases(proto: onnx.ModelProto) -> None:
    """Give each Gemm a bias of rank 1, for onnxruntime's quantiser takes the bias of a channel by its first axis.

    y = Gemm(x, w, c of 1xN)    -->    y = Gemm(x, w, c of N)
    """
    arrays = {tensor.name: tensor for tensor in proto.graph.initializer}
    taken = tensor_names(proto)
    for node in proto.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] not in arrays or node.input[1] not in arrays:
            continue
        bias = onnx.numpy_helper.to_array(arrays[node.input[2]])
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        columns = arrays[node.input[1]].dims[0 if turned else 1]
        if bias.shape == (columns,) or (bias.ndim == 2 and len(bias) > 1):
            continue
        flat = np.ascontiguousarray(np.broadcast_to(bias, (1, columns))[0])
        node.input[2] = fresh(f"{node.input[2]}.flat", taken)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(flat, node.input[2]))
    read = {name for _, nodes in node_lists(proto) for node in nodes for name in node.input}
    read |= {value.name for value in proto.graph.output}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in read]:
        proto.graph.initializer.remove(tensor)
