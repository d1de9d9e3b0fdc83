"""The steps of import, in order, for a model that has been read.

The order is the one that proved right on 25 trained models: shapes are bound before anything folds, initializers leave
the inputs before they are lifted, and the C++ converter runs rather than onnxscript's, which only relabels models older
than opset 18.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tvmcnn.importer import along, einsum, half_weights, microsoft, quantised
from tvmcnn.importer.budget import refuse_bombs
from tvmcnn.importer.control_flow import fold_control
from tvmcnn.importer.control_flow.scopes import Scopes
from tvmcnn.importer.convert import convert_opset, drop_valid, refuse_training, remove_initializers_from_inputs
from tvmcnn.importer.functions import drop_unread, expand_defined, inline_functions
from tvmcnn.importer.nodes import build_network
from tvmcnn.importer.shapes import bind_inputs, bind_values, infer_shapes
from tvmcnn.importer.spelling import spell
from tvmcnn.importer.top_k import gather_values
from tvmcnn.network import Array, Asked, Network
from tvmcnn.onnx_file import Opened

UNREAD = "unread: no node takes it, and it is no output"


def import_opened(
    opened: Opened,
    label: str,
    shapes: Mapping[str, Asked],
    batch: int | None,
    values: Mapping[str, Array],
    name: str | None = None,
    kind: str = "fp32",
) -> Network:
    """`import_model` of what has been read, in this process; its weights in the type `kind`."""
    closed = close(opened, label, shapes, batch, values)
    known = (closed.known - values.keys()) & half_weights.weights(opened.proto.graph)
    proto, weights, folded, told = fold_control(
        opened.proto, label, closed.original, opened.weights, scales=kind == "fp32"
    )
    folded |= dict.fromkeys(closed.unread, UNREAD)
    proto = infer_shapes(proto, label)
    gather_values(proto)
    stem = name or (Path(label).stem if label != "the model" else proto.graph.name)
    named, notes = c_identifier(stem), [*closed.notes, *told]
    network = build_network(Opened(proto, weights), label, named, folded, tuple(notes), (kind, known))
    return dataclasses.replace(network, open_batch=closed.open_batch)


class Closed(NamedTuple):
    """What is known of a model once its inputs are bound."""

    notes: list[str]
    open_batch: dict[str, str]  # the names of leading dimensions that became 1, by input
    original: dict[str, str]  # the operator that makes each tensor of the file
    unread: list[str]
    known: set[str]  # the file's own tensors


def close(
    opened: Opened, label: str, shapes: Mapping[str, Asked], batch: int | None, values: Mapping[str, Array]
) -> Closed:
    """Bind the inputs of what has been read, in place, and spell its nodes as the newest opset does; nothing folds."""
    proto, weights = opened.proto, opened.weights
    known = {tensor.name for tensor in proto.graph.initializer} | weights.keys()
    original = {output: node.op_type for node in proto.graph.node for output in node.output if output}
    known |= original.keys()
    inline_functions(proto, label)
    Scopes().separate(proto.graph)
    unread = [name for name in drop_unread(proto) if original.pop(name, None) is not None]
    refuse_training(proto, label, weights)
    bind_values(proto, label, values, weights)
    notes, open_batch = bind_inputs(proto, label, shapes, batch, weights)
    remove_initializers_from_inputs(proto)
    notes += convert_opset(proto, label)
    spell(proto, label, {**microsoft.SPELLINGS, **einsum.SPELLINGS, **along.SPELLINGS, **quantised.SPELLINGS})
    expand_defined(proto)
    drop_valid(proto)
    refuse_bombs(proto, label, weights)
    return Closed(notes, open_batch, original, unread, known)


def c_identifier(text: str) -> str:
    """squeezenet-1.1 --> squeezenet_1_1: a name that C and the linker accept."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII) or "model"
    return name if not name[0].isdigit() else f"model_{name}"
