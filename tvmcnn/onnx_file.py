"""ONNX files: read, and checked before anything trusts them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from tvmcnn.cache import digest_of, file_digest
from tvmcnn.errors import ModelError
from tvmcnn.network import Array, dims

Model = str | os.PathLike[str] | bytes | onnx.ModelProto

LINE_LIMIT = 400  # characters of another library's error


def read_model(model: Model) -> onnx.ModelProto:
    """The checked ModelProto of a path, of bytes, or of a proto (copied, so that the caller's stays as it was).

    Raises ModelError naming the file where it is missing, empty, truncated or no ONNX.
    """
    if isinstance(model, onnx.ModelProto):
        proto, label = onnx.ModelProto(), "the model"
        proto.CopyFrom(model)
    elif isinstance(model, bytes):
        proto, label = _parse(model, "the model"), "the model"
    else:
        label = os.fspath(model)
        try:
            data = Path(label).read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {label}: {error.strerror}") from error
        proto = _parse(data, label)
        try:
            onnx.external_data_helper.load_external_data_for_model(proto, str(Path(label).parent))
        except Exception as error:
            raise ModelError(f"{label}: its external data cannot be loaded: {one_line(error)}") from error
    if not proto.graph.node:
        raise ModelError(f"{label} is not an ONNX model: it holds no nodes")
    if not proto.graph.output:
        raise ModelError(f"{label} has no outputs: there is nothing to compute")
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise ModelError(f"'{value.name}' of {label} has no shape: an input or output must have one, open or not")
    _check_text(proto, label)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ModelError(f"{label} is not a valid ONNX model: {one_line(error)}") from error
    for tensor in proto.graph.initializer:
        _check_size(tensor, label)
    return proto


def model_digest(model: Model) -> str:
    """The SHA-256 of a model, the data in other files included."""
    if isinstance(model, onnx.ModelProto):
        return digest_of([model.SerializeToString(deterministic=True)])
    if isinstance(model, bytes):
        return digest_of([model])
    path = Path(model)
    parts = [file_digest(path)]
    proto = onnx.load(str(path), load_external_data=False)
    places = {entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"}
    return digest_of([*parts, *(file_digest(path.parent / place) for place in sorted(places))])


def read_tensor(path: Path) -> Array:
    """The array of a TensorProto file, such as the ONNX model zoo's input_0.pb. Raises ModelError if it is none."""
    try:
        array: Array = onnx.numpy_helper.to_array(onnx.load_tensor(str(path)))
    except Exception as error:
        raise ModelError(f"{path} is not an ONNX tensor: {one_line(error)}") from error
    return array


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:
        raise ModelError(f"{label} is not an ONNX model or is truncated ({len(data)} bytes do not parse)") from error


def _check_text(message: Any, label: str) -> None:
    """Refuse text that is not UTF-8: protobuf hands it on as bytes, which no later step expects."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in (value,) if hasattr(value, "ListFields") or isinstance(value, str | bytes) else value:
            if isinstance(item, bytes):
                raise ModelError(f"{label} is damaged: the text in its field '{field.full_name}' is not UTF-8")
            if not isinstance(item, str):
                _check_text(item, label)


def _check_size(tensor: onnx.TensorProto, label: str) -> None:
    """Refuse an initializer whose data is not as long as its shape says."""
    try:
        fits = min(tensor.dims, default=0) >= 0 and onnx.numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except Exception:  # NumPy's and onnx's errors for a length that does not fit, a type that does not exist
        fits = False
    if not fits:
        raise ModelError(
            f"{label} is damaged: the data of its initializer '{tensor.name}' is not {dims(tuple(tensor.dims))}"
        )


def one_line(error: Exception) -> str:
    """The text of an error in one line: onnx's checker names the node in its second line."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text if len(text) <= LINE_LIMIT else f"{text[:LINE_LIMIT]} ...") or type(error).__name__
