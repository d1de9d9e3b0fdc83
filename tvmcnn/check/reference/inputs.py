"""The arrays that the caller gives, checked against what the graph declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from tvmcnn.check.reference_ops import Array, is_float, known_dtype
from tvmcnn.errors import InputError


def checked_inputs(graph: onnx.GraphProto, inputs: Mapping[str, Array] | Array, label: str) -> dict[str, Array]:
    """The arrays by input name in graph order, with names, ranks and kinds of type checked."""
    initialized = {tensor.name for tensor in graph.initializer}
    declared = {value.name: value for value in graph.input}
    needed = [name for name in declared if name not in initialized]
    if not isinstance(inputs, Mapping):
        if len(needed) != 1:
            raise InputError(f"{label} has the inputs {needed}; give a mapping from name to array, not one array.")
        inputs = {needed[0]: inputs}
    wrong = [name for name in inputs if name not in declared]
    absent = [name for name in needed if name not in inputs]
    if wrong or absent:
        raise InputError(f"Arrays are given for {list(inputs)}; {label} has the inputs {needed}.")
    return {name: _checked(declared[name], inputs[name], label) for name in declared if name in inputs}


def _checked(value: onnx.ValueInfoProto, array: Array, label: str) -> Array:
    given, tensor, name = np.asarray(array), value.type.tensor_type, value.name
    if tensor.HasField("shape") and given.ndim != len(tensor.shape.dim):
        sizes = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
        raise InputError(f"Input {name!r} has the shape {given.shape}; {label} declares the axes {sizes}.")
    wanted = known_dtype(tensor.elem_type)
    if wanted is None or not (given.dtype == wanted or (is_float(given.dtype) and is_float(wanted))):
        raise InputError(f"Input {name!r} is {given.dtype}; {label} declares {wanted or 'no known type'}.")
    return given


def declared_dtype(graph: onnx.GraphProto, name: str) -> np.dtype[Any] | None:
    """The NumPy type of a graph input, None for one that NumPy lacks."""
    return next((known_dtype(v.type.tensor_type.elem_type) for v in graph.input if v.name == name), None)
