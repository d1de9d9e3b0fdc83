"""Import: an ONNX file becomes a Network with closed shapes, explicit attributes and constant weights.

onnx, onnx-ir and onnxscript do what is ONNX's own (conversion of opsets, folding, shape inference); `operators/` says
what each node means to tvmcnn. The order of the steps is the one that proved right on 25 trained models:
shapes are bound before anything folds, initializers leave the inputs before they are lifted, and the C++ converter
runs rather than onnxscript's, which only relabels models older than opset 18.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tvmcnn.fuse.fold_affine import fold_affine
from tvmcnn.fuse.split_transposed import split_transposed
from tvmcnn.importer.budget import refuse_bombs
from tvmcnn.importer.convert import OPSET, convert_opset, drop_valid, refuse_training, remove_initializers_from_inputs
from tvmcnn.importer.crash_guard import needs_rehearsal, rehearse
from tvmcnn.importer.fold import fold
from tvmcnn.importer.functions import drop_unread, inline_functions
from tvmcnn.importer.microsoft import spell_microsoft
from tvmcnn.importer.nodes import build_network
from tvmcnn.importer.shapes import bind_inputs, bind_values, infer_shapes, open_inputs
from tvmcnn.network import Array, Network, Shape
from tvmcnn.onnx_file import Model, Opened, read_model

__all__ = ["OPSET", "c_identifier", "import_model", "import_opened", "open_inputs"]

UNREAD = "unread: no node takes it, and it is no output"


def import_model(
    model: Model,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | None = None,
    values: Mapping[str, Array] | None = None,
    name: str | None = None,
) -> Network:
    """The Network of an ONNX model, every dimension bound and every constant folded.

    `input_shapes` binds open dimensions or overrides fixed ones; `batch` does so for every leading dimension. An open
    leading dimension that nobody binds becomes 1, and `Network.notes` says so. `values` makes inputs constants, which
    may decide shapes and are inputs no more. `name` prefixes the C symbols; the default is the file's stem.

    Raises ModelError for what is no ONNX, is damaged or contradicts itself, UnsupportedError with every node that
    tvmcnn cannot compile.
    """
    label = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    opened = read_model(model)
    if needs_rehearsal(opened.proto):
        rehearse(opened, label, input_shapes or {}, batch, values or {})
    return import_opened(opened, label, input_shapes or {}, batch, values or {}, name)


def import_opened(
    opened: Opened,
    label: str,
    shapes: Mapping[str, Shape],
    batch: int | None,
    values: Mapping[str, Array],
    name: str | None = None,
) -> Network:
    """`import_model` of what has been read, in this process."""
    proto, weights = opened.proto, opened.weights
    original = {output: node.op_type for node in proto.graph.node for output in node.output if output}
    inline_functions(proto, label)
    unread = [name for name in drop_unread(proto) if original.pop(name, None) is not None]
    refuse_training(proto, label)
    bind_values(proto, label, values, weights)
    notes = bind_inputs(proto, label, shapes, batch, weights)
    remove_initializers_from_inputs(proto)
    notes += convert_opset(proto, label)
    spell_microsoft(proto, label)
    drop_valid(proto)
    refuse_bombs(proto, label, weights)
    proto, weights, folded = fold(proto, label, original, weights)
    folded |= dict.fromkeys(unread, UNREAD)
    proto = infer_shapes(proto, label)
    stem = name or (Path(label).stem if label != "the model" else proto.graph.name)
    network = build_network(Opened(proto, weights), label, c_identifier(stem), folded, tuple(notes))
    return fold_affine(split_transposed(network))


def c_identifier(text: str) -> str:
    """squeezenet-1.1 --> squeezenet_1_1: a name that C and the linker accept."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII) or "model"
    return name if not name[0].isdigit() else f"model_{name}"
