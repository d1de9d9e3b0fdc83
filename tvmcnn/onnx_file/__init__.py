"""ONNX files: read, and checked before anything trusts them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tvmcnn.cache import digest_of, file_digest
from tvmcnn.errors import ModelError
from tvmcnn.network import Array, dims
from tvmcnn.onnx_file.large_weights import LARGE, MalformedError, without_large_weights
from tvmcnn.onnx_file.repair import tensors, tidy

Model = str | os.PathLike[str] | bytes | onnx.ModelProto

LINE_LIMIT = 400  # characters of another library's error


@dataclass(frozen=True)
class ModelFile:
    """A model's path, with a folder besides its own that its data may lie in: a `Model` like the path alone."""

    path: str
    external_data: Path

    def __fspath__(self) -> str:
        return self.path


def with_external_data(model: Model, external_data: str | os.PathLike[str] | None) -> Model:
    """The model, whose data may also lie in the folder `external_data`, also behind links. None allows nothing new.

    Model hubs keep files as links from a folder of names to one of hashes. Raises ModelError for what is no folder, and
    for a model that is no file.
    """
    if external_data is None:
        return model
    if not isinstance(model, str | os.PathLike):
        raise ModelError("external_data is for models that are files, whose data lie in other files")
    if not Path(external_data).is_dir():
        raise ModelError(f"the folder of external data {os.fspath(external_data)} is not there")
    return ModelFile(os.fspath(model), Path(external_data))


def allowed_folder(model: Model) -> Path | None:
    """The folder besides its own that a model's data may lie in."""
    return model.external_data if isinstance(model, ModelFile) else None


@dataclass(frozen=True)
class Opened:
    """A checked model: the proto without its large weights, which are inputs there, and these by name."""

    proto: onnx.ModelProto
    weights: Mapping[str, Array]


def read_model(model: Model) -> Opened:
    """The checked model of a path, of bytes, or of a proto (copied, so that the caller's stays as it was).

    Raises ModelError naming the file where it is missing, empty, truncated or no ONNX.
    """
    folder: Path | None = None
    if isinstance(model, onnx.ModelProto):
        proto, label = onnx.ModelProto(), "the model"
        proto.CopyFrom(model)
        weights = _taken_out(proto)
    elif isinstance(model, bytes):
        label = "the model"
        proto, weights = _parse(memoryview(model), label)
    else:
        label, folder = os.fspath(model), Path(model).parent
        try:
            with open(label, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {label}: {getattr(error, 'strerror', error)}") from error
        proto, weights = _parse(memoryview(data), label)
    weights |= _external(proto, folder, allowed_folder(model), label)
    _check(proto, label)
    return Opened(proto, weights)


def _check(proto: onnx.ModelProto, label: str) -> None:
    if not proto.graph.node:
        raise ModelError(f"{label} is not an ONNX model: it holds no nodes")
    if not proto.graph.output:
        raise ModelError(f"{label} has no outputs: there is nothing to compute")
    _check_text(proto, label)
    tidy(proto, label)
    with _declared(proto):
        try:
            onnx.checker.check_model(proto)
        except Exception as error:
            raise ModelError(f"{label} is not a valid ONNX model: {one_line(error)}") from error
    for place, tensor in enumerate(tensors(proto)):
        _check_size(tensor, "initializer" if place < len(proto.graph.initializer) else "constant", label)


@contextlib.contextmanager
def _declared(proto: onnx.ModelProto) -> Iterator[None]:
    """Give outputs without a type or shape, and inputs without a shape, some for the checker: import finds the real."""
    untyped = [v for v in proto.graph.output if not v.type.WhichOneof("value") or _is_unknown(v.type)]
    for value in untyped:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    shapeless = [v for v in (*proto.graph.input, *proto.graph.output) if _has_no_shape(v.type)]
    for value in shapeless:
        value.type.tensor_type.shape.SetInParent()
    try:
        yield
    finally:
        for value in shapeless:
            value.type.tensor_type.ClearField("shape")
        for value in untyped:
            value.ClearField("type")


def _is_unknown(kind: onnx.TypeProto) -> bool:
    return kind.HasField("tensor_type") and not kind.tensor_type.elem_type


def _has_no_shape(kind: onnx.TypeProto) -> bool:
    return kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")


def _taken_out(proto: onnx.ModelProto) -> dict[str, Array]:
    """The large initializers, as inputs from now on."""
    found = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if len(tensor.raw_data) >= LARGE and _fits(tensor) and tensor.name
    }
    _lend(proto, found)
    return found


def _lend(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Make inputs of the initializers that are in `weights`."""
    inputs = {value.name for value in proto.graph.input}
    for place in reversed(range(len(proto.graph.initializer))):
        tensor = proto.graph.initializer[place]
        if tensor.name in weights:
            if tensor.name not in inputs:
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                proto.graph.input.append(info)
            del proto.graph.initializer[place]


def _external(
    proto: onnx.ModelProto, folder: Path | None, allowed: Path | None, label: str, *, views: bool = True
) -> dict[str, Array]:
    """The initializers whose data are in other files, inside the model's folder or the `allowed` one: the large ones as
    views of these.

    The small ones go into the proto, as do the tensors of attributes and inner graphs, and without `views` all.
    """
    large: dict[str, Array] = {}
    for tensor in tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        try:
            data = _external_bytes(tensor, folder, allowed)
        except (OSError, ValueError) as error:
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
            if isinstance(error, FileNotFoundError) and Path(label).is_symlink():
                reason += f"; {label} is a link: name the file {Path(label).resolve()}, or allow its folder by"
                reason += " --external-data DIR"
            raise ModelError(f"{label}: its external data cannot be loaded: '{tensor.name}': {reason}") from error
        array = _viewed(tensor, data)
        lent = views and array is not None and array.nbytes >= LARGE
        if array is not None and lent and any(tensor is t for t in proto.graph.initializer):
            large[tensor.name] = array
            continue
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = bytes(data)
    _lend(proto, large)
    return large


def _external_bytes(tensor: onnx.TensorProto, folder: Path | None, allowed: Path | None) -> memoryview:
    """The bytes of a tensor in another file. Raises ValueError for a place outside both folders, OSError as the
    system."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ValueError(f"it is in the file '{location}', and a model that is no file has no folder for it")
    if not location:
        raise ValueError("it has no place")
    folders = [folder] if allowed is None else [folder, allowed]
    path = _found(location, folders)
    real = path.resolve()
    if not any(real.is_relative_to(each.resolve()) for each in folders):
        raise ValueError(
            f"the place '{location}' is {real}, outside the model's folder{' and the allowed one' if allowed else ''}:"
            " allow it by --external-data DIR (external_data in Python), a folder that holds it"
        )
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = int(entries.get("offset", 0))
        length = int(entries.get("length", max(size - begin, 0)))
        if begin < 0 or length < 0 or begin + length > size:
            raise ValueError(f"bytes {begin} to {begin + length} of '{location}', which has {size}")
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    return memoryview(whole)[begin : begin + length]


def _found(location: str, folders: Sequence[Path]) -> Path:
    """Where a file is: in the first of the folders that has it."""
    return next((each / location for each in folders if (each / location).is_file()), folders[0] / location)


def _viewed(tensor: onnx.TensorProto, data: memoryview) -> Array | None:
    """The bytes as an array; None where they are not as long as the shape says."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(data, dtype).reshape(tuple(tensor.dims)) if dtype.kind in "iufb" else None
    except (KeyError, ValueError, TypeError):
        return None


def model_digest(model: Model) -> str:
    """The SHA-256 of a model, the data in other files included: of a file the same as of its bytes."""
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString(deterministic=True)
    if isinstance(model, bytes):
        return digest_of([hashlib.sha256(model).hexdigest()])
    path = Path(model)
    parts = [file_digest(path)]
    proto = onnx.load(str(path), load_external_data=False)
    places = {entry.value for t in tensors(proto) for entry in t.external_data if entry.key == "location"}
    folders = [path.parent, *filter(None, [allowed_folder(model)])]
    return digest_of([*parts, *(file_digest(_found(place, folders)) for place in sorted(places))])


def whole_model(model: str | os.PathLike[str]) -> onnx.ModelProto:
    """The proto of a file with all its data in it. Raises ModelError where it cannot be read."""
    label = os.fspath(model)
    try:
        proto = onnx.load(label, load_external_data=False)
    except Exception as error:
        raise ModelError(f"cannot read {label}: {one_line(error)}") from error
    _external(proto, Path(label).parent, allowed_folder(model), label, views=False)
    return proto


def read_tensor(path: Path) -> Array:
    """The array of a TensorProto file, such as the ONNX model zoo's input_0.pb. Raises ModelError if it is none."""
    try:
        array: Array = onnx.numpy_helper.to_array(onnx.load_tensor(str(path)))
    except Exception as error:
        raise ModelError(f"{path} is not an ONNX tensor: {one_line(error)}") from error
    return array


def _parse(data: memoryview, label: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    try:
        text, weights = without_large_weights(data)
    except MalformedError:
        text, weights = bytes(data), {}
    try:
        return onnx.load_model_from_string(text), weights
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


def _check_size(tensor: onnx.TensorProto, kind: str, label: str) -> None:
    """Refuse a tensor whose data is not as long as its shape says."""
    if not _fits(tensor):
        raise ModelError(
            f"{label} is damaged: the data of its {kind} '{tensor.name}' is not {dims(tuple(tensor.dims))}"
        )


def _fits(tensor: onnx.TensorProto) -> bool:
    try:
        return min(tensor.dims, default=0) >= 0 and onnx.numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except Exception:  # NumPy's and onnx's errors for a length that does not fit, a type that does not exist
        return False


def one_line(error: BaseException) -> str:
    """The text of an error in one line: onnx's checker names the node in its second line."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text if len(text) <= LINE_LIMIT else f"{text[:LINE_LIMIT]} ...") or type(error).__name__
