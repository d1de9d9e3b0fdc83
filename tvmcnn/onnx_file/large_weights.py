"""Large weights stay in the model's file: the protobuf is parsed without them, and they are views of the mapped file.

    ModelProto: graph: initializer "fc6.weight" 4096x25088, raw_data of 411 MB
      -->
    ModelProto: graph: input "fc6.weight" 4096x25088    and    weights: {"fc6.weight": 411 MB of the page cache}

onnx's own passes (checker, converter, shape inference) each serialise the model and parse it again, seven times over
between them: VGG-16, of 553 MB, took 3.8 GB. As inputs the weights pass through them as a name and a shape. Their bytes
are read when they are packed, one weight at a time.

Only what a graph needs to be walked is read here: fields by number (ModelProto.graph 7, GraphProto.initializer 5,
TensorProto.dims 1, data_type 2, float_data 4, name 8, raw_data 9), the rest is copied as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tvmcnn.network import Array

LARGE = 1 << 16  # bytes; smaller weights may decide shapes, and cost nothing

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
MODEL_GRAPH, GRAPH_INITIALIZER, GRAPH_INPUT = 7, 5, 11
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 1, 2, 4, 8, 9
DTYPES = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}  # TensorProto.DataType of what may be large
FLOAT = 1


class MalformedError(Exception):
    """The bytes are no protobuf: whoever parses them all will say so."""


@dataclass(frozen=True)
class _Field:
    """One field of a message: its number, wire type, the bytes of it all and of its value."""

    number: int
    wire: int
    whole: memoryview
    value: memoryview


def without_large_weights(data: memoryview) -> tuple[bytes, dict[str, Array]]:
    """The ModelProto of `data` with its large initializers as inputs, and these by name as views of `data`.

    Raises MalformedError where the bytes are no protobuf.
    """
    weights: dict[str, Array] = {}
    parts = [
        _encoded(MODEL_GRAPH, b"".join(_graph(field.value, weights)))
        if field.number == MODEL_GRAPH
        else bytes(field.whole)
        for field in _fields(data)
    ]
    return b"".join(parts), weights


def _graph(data: memoryview, weights: dict[str, Array]) -> Iterator[bytes]:
    """The fields of a GraphProto, an input in the place of each large initializer."""
    inputs = {_text(field.value) for field in _fields(data) if field.number == GRAPH_INPUT}
    for field in _fields(data):
        found = None
        if field.number == GRAPH_INITIALIZER and len(field.value) >= LARGE:
            found = _weight(field.value)
        if found is None:
            yield bytes(field.whole)
            continue
        name, code, array = found
        weights[name] = array
        if name not in inputs:  # before ir_version 4 every weight is an input already
            yield _encoded(GRAPH_INPUT, _value_info(name, code, array.shape))


def _weight(data: memoryview) -> tuple[str, int, Array] | None:
    """(name, data_type, view) of a TensorProto whose elements lie side by side; None for any other."""
    dims, code, name, body = [], 0, "", None
    for field in _fields(data):
        if field.number == DIMS:
            packed = field.wire == BYTES
            dims += list(_varints(field.value)) if packed else [_varint(field.value, 0)[0]]
        elif field.number == DATA_TYPE:
            code = _varint(field.value, 0)[0]
        elif field.number == NAME:
            name = bytes(field.value).decode("utf-8", "surrogateescape")
        elif field.number == RAW_DATA:
            body = field.value
        elif field.number == FLOAT_DATA and field.wire == BYTES and body is None:
            body = field.value  # floats lie the same way, if they are floats
            if code not in (0, FLOAT):
                return None
        elif field.number in (13, 14):  # external_data, data_location: in another file
            return None
    if body is None or len(body) < LARGE or code not in DTYPES or not name:
        return None
    dtype = np.dtype(DTYPES[code])
    if any(extent <= 0 for extent in dims) or int(np.prod(dims, dtype=object)) * dtype.itemsize != len(body):
        return None  # whoever checks it says what is wrong
    return name, code, np.frombuffer(body, dtype).reshape(dims)


# ---- protobuf -------------------------------------------------------------------------------------------------------


def _fields(data: memoryview) -> Iterator[_Field]:
    position = 0
    while position < len(data):
        start = position
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        begin = position
        if wire == VARINT:
            _, position = _varint(data, position)
        elif wire == FIXED64:
            position += 8
        elif wire == FIXED32:
            position += 4
        elif wire == BYTES:
            size, begin = _varint(data, position)
            position = begin + size
        else:
            raise MalformedError(f"wire type {wire}")
        if position > len(data) or number == 0:
            raise MalformedError("a field ends past its message")
        yield _Field(number, wire, data[start:position], data[begin:position])


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the least first, and where it ends."""
    value = 0
    for place in range(10):
        if position >= len(data):
            raise MalformedError("a number is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position
    raise MalformedError("a number of more than ten bytes")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _text(value_info: memoryview) -> str:
    """The name of a ValueInfoProto, its field 1."""
    names = [field.value for field in _fields(value_info) if field.number == 1]
    return bytes(names[-1]).decode("utf-8", "surrogateescape") if names else ""


def _number(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _encoded(number: int, value: bytes | int) -> bytes:
    """A field: a message or text, or a whole number."""
    if isinstance(value, int):
        return _number(number << 3 | VARINT) + _number(value)
    return _number(number << 3 | BYTES) + _number(len(value)) + value


def _value_info(name: str, code: int, shape: tuple[int, ...]) -> bytes:
    """ValueInfoProto: name 1, type 2 (TypeProto: tensor_type 1 (elem_type 1, shape 2 (dim 1 (dim_value 1))))."""
    extents = b"".join(_encoded(1, _encoded(1, extent)) for extent in shape)
    tensor = _encoded(1, code) + _encoded(2, extents)
    return _encoded(1, name.encode("utf-8", "surrogateescape")) + _encoded(2, _encoded(1, tensor))
