"""The ONNX file as the oracle reads it: proto, weights in other files, versions, attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from tvmcnn.check.reference_ops import Array, known_dtype
from tvmcnn.errors import ModelError, UnsupportedError


@dataclass(frozen=True)
class Source:
    """A model, what to call it in messages, and the folders that its other files may lie in: its own one first."""

    proto: onnx.ModelProto
    label: str
    folders: tuple[Path, ...] = ()


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto, external_data: Any = None) -> Source:
    """The model, and where its other files may lie."""
    folders = [] if external_data is None else [Path(external_data)]
    if isinstance(model, onnx.ModelProto):
        proto, label = model, f"model {model.graph.name!r}"
    else:
        label = "the model" if isinstance(model, bytes) else os.fspath(model)
        try:
            if isinstance(model, bytes):
                proto = onnx.load_model_from_string(model)
            else:
                proto = onnx.load_model(label, load_external_data=False)
                folders.insert(0, Path(model).parent)
        except Exception as error:  # protobuf's errors have no name in onnx
            raise ModelError(f"{label} cannot be read as an ONNX model: {error}") from error
    return Source(proto, label, tuple(folders))


def versions(proto: onnx.ModelProto | onnx.FunctionProto, label: str) -> dict[str, int]:
    """The version of each operator set that a model or a function was written for; "" is ONNX's own."""
    found: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = plain_domain(entry.domain)
        if found.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"{label} imports the operator set {domain or 'ai.onnx'!r} twice, in two versions.")
    if isinstance(proto, onnx.ModelProto) and "" not in found:
        if proto.ir_version >= 3:
            raise ModelError(f"{label} imports the ONNX operator set 0 times; once is right.")
        found[""] = 1  # files older than opset_import
    return found


def plain_domain(domain: str) -> str:
    """ONNX's own operators have two names for their domain."""
    return "" if domain == "ai.onnx" else domain


def describe(node: onnx.NodeProto) -> str:
    """A node in a message: its name, or what it makes where it has none, and its operator."""
    name = repr(node.name) if node.name else f"the node that makes {node.output[0]!r}" if node.output else "a node"
    return f"{name} ({node.op_type})"


def initializers(graph: onnx.GraphProto, source: Source) -> Iterator[tuple[str, Array]]:
    """The constants of a graph by name."""
    if graph.sparse_initializer:
        raise ModelError(f"{source.label} has sparse initializers; only dense ones can be evaluated.")
    for tensor in graph.initializer:
        yield tensor.name, tensor_array(tensor, source, repr(tensor.name))


def tensor_array(tensor: onnx.TensorProto, source: Source, where: str) -> Array:
    """A TensorProto as an array."""
    dtype = known_dtype(tensor.data_type)
    if dtype is None:
        kinds = onnx.TensorProto.DataType
        kind = kinds.Name(tensor.data_type) if tensor.data_type in kinds.values() else str(tensor.data_type)
        raise UnsupportedError(source.label, [f"{where}: a tensor of type {kind} is not in the NumPy reference"])
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError(f"its shape is {list(tensor.dims)}")
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        data = _external(tensor, source)
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tuple(tensor.dims))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{source.label}: the data of {where} cannot be read: {error}") from error


def _external(tensor: onnx.TensorProto, source: Source) -> Any:
    """The bytes of a tensor that are in another file, which must lie in the model's folder or an allowed one."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not source.folders or not location:
        raise ValueError(f"they are in the file {location!r}, and a model that is no file has no folder for it")
    places = [folder / location for folder in source.folders]
    path = next((place for place in places if place.is_file()), places[0])
    if not any(path.resolve().is_relative_to(folder.resolve()) for folder in source.folders):
        allowed = " and ".join(str(folder) for folder in source.folders)
        raise ValueError(f"the file {location!r} is at {path.resolve()}, which is outside {allowed}")
    size = path.stat().st_size
    begin = int(entries.get("offset", 0))
    length = int(entries.get("length", max(size - begin, 0)))
    if begin < 0 or length < 0 or begin + length > size:
        raise ValueError(f"bytes {begin} to {begin + length} of {location!r}, which has {size}")
    return np.memmap(path, np.uint8, "r", begin, (length,)) if length else b""


def attributes_of(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """The node with each attribute that refers to one of the function's replaced by what the call gives for it."""
    if not any(attribute.ref_attr_name for attribute in node.attribute):
        return node
    resolved = onnx.NodeProto()
    resolved.CopyFrom(node)
    del resolved.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            resolved.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            value = resolved.attribute.add()
            value.CopyFrom(given[attribute.ref_attr_name])
            value.name = attribute.name
    return resolved


def attribute_value(attribute: onnx.AttributeProto, source: Source, node: onnx.NodeProto) -> Any:
    """An attribute as Python has it: text for bytes, an array for a tensor."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return tensor_array(value, source, describe(node))
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode() for text in value]
    return value
