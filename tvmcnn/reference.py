"""The oracle: the original ONNX file, evaluated node by node in NumPy with float64 throughout.

It shares nothing with the importer or the compiler, so that a mistake there cannot hide here. The operators are in
`reference_ops`; this file reads the model, walks its nodes and keeps each tensor's declared type.

Every float tensor is held as float64 and rounded to its ONNX type only on return, so that the oracle's own error is
that of one rounding. Integers and bools keep their type. Shapes come from the arrays, never from the file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from tvmcnn.errors import InputError, ModelError, UnsupportedError
from tvmcnn.reference_ops import Array, lookup

TYPE_OF_RESULT = {"Cast", "Constant", "ConstantOfShape"}
"""Operators whose float output has the type of the array they return."""

TYPE_OF_INPUT = {"Where": 1, "CastLike": 1, "OneHot": 2}
"""Which input's type a float output has, where that is not the first's."""

OUTPUTS_MADE = {"Dropout": 2, "MaxPool": 2, "LayerNormalization": 3, "Split": 1 << 20}
"""How many outputs are made, where that is not one."""


def reference(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    inputs: Mapping[str, Array] | Array,
    *,
    every_tensor: bool = False,
    follow: Callable[[str, Array], Array] | None = None,
) -> dict[str, Array]:
    """Evaluate an ONNX model: its outputs by name in graph order, each in the type that the model declares.

    `inputs` maps names to arrays; a lone array will do where the graph has one input. The arrays' shapes hold, whatever
    the file says of sizes; only the number of axes must agree. With `every_tensor` the result has each tensor of the
    graph by its ONNX name: the inputs and what every node makes, but not the initializers.

    `follow` is shown each tensor that a node makes, by its name, floats in float64 and not yet rounded to their type;
    later nodes read what it answers.
    """
    proto, label = _load(model)
    graph = proto.graph
    opset = _opset(proto, label)
    if graph.sparse_initializer:
        raise ModelError(f"{label} has sparse initializers; only dense ones can be evaluated.")
    functions = _functions(graph, opset, label)

    values: dict[
        str, Array
    ] = {}  # every tensor so far, floats as float64; initializers as they are, until they are used
    types: dict[str, np.dtype[Any]] = {}  # the ONNX type of each
    for tensor in graph.initializer:
        values[tensor.name] = _array(tensor, label, tensor.name)
        types[tensor.name] = values[tensor.name].dtype
    made = []
    for name, given in _checked_inputs(graph, inputs, label).items():
        values[name], _ = _widen(given)
        types[name] = _declared_dtype(graph, name) or given.dtype
        made.append(name)

    with np.errstate(all="ignore"):  # infinities and nans go through, as they do in the compiled network
        for node, function in zip(graph.node, functions, strict=True):
            outputs = _evaluate(node, function, values, types, label)
            made += outputs
            if follow is not None:
                values |= {name: follow(name, values[name]) for name in outputs}

    wanted = made if every_tensor else [output.name for output in graph.output]
    missing = [name for name in wanted if name not in values]
    if missing:
        raise ModelError(f"{label} declares the outputs {missing}, which no node makes.")
    return {name: np.array(values[name], types[name]) for name in wanted}


def _load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model, and what to call it in messages."""
    if isinstance(model, onnx.ModelProto):
        return model, f"model {model.graph.name!r}"
    label = "the model" if isinstance(model, bytes) else os.fspath(model)
    try:
        return (onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(label)), label
    except Exception as error:  # protobuf's errors have no name in onnx
        raise ModelError(f"{label} cannot be read as an ONNX model: {error}") from error


def _opset(proto: onnx.ModelProto, label: str) -> int:
    """The version of ONNX's own operators that the model was written for."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions and proto.ir_version < 3:
        return 1  # files older than opset_import
    if len(versions) != 1:
        raise ModelError(f"{label} imports the ONNX operator set {len(versions)} times; once is right.")
    return int(versions[0])


def _functions(graph: onnx.GraphProto, opset: int, label: str) -> list[Callable[..., Any]]:
    """The function of each node, after a check that every node can be evaluated as far as its text tells."""
    functions, reasons = [], []
    for node in graph.node:
        function = lookup(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
        if function is None:
            where = f"of domain {node.domain}" if node.domain else f"at opset {opset}"
            reasons.append(f"{_describe(node)}: the operator {where} is not in the NumPy reference")
            continue
        functions.append(function)
        parameters = inspect.signature(function).parameters.values()
        known = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        unknown = [attribute.name for attribute in node.attribute if attribute.name not in known]
        if unknown:
            reasons.append(f"{_describe(node)}: unknown attribute {', '.join(unknown)}")
        spare = [name for name in node.output[OUTPUTS_MADE.get(node.op_type, 1) :] if name]
        if spare:
            reasons.append(f"{_describe(node)}: the optional output {', '.join(spare)} is not made")
    if reasons:
        raise UnsupportedError(label, reasons)
    return functions


def _evaluate(
    node: onnx.NodeProto,
    function: Callable[..., Any],
    values: dict[str, Array],
    types: dict[str, np.dtype[Any]],
    label: str,
) -> list[str]:
    """Run one node: its outputs go into `values` and `types`; the answer is their names."""
    missing = [name for name in node.input if name and name not in values]
    if missing:
        raise ModelError(f"{label}: {_describe(node)} reads {missing}, which nothing before it makes.")
    arguments = [_widen(values[name])[0] if name else None for name in node.input]
    attributes = {attribute.name: _attribute(attribute, label, node) for attribute in node.attribute}
    if node.op_type == "Split" and len(node.input) < 2 and "split" not in attributes:
        attributes.setdefault("num_outputs", len(node.output))
    try:
        inspect.signature(function).bind(*arguments, **attributes)
    except TypeError as error:
        raise ModelError(f"{label}: {_describe(node)} does not fit the operator: {error}") from error
    try:
        answer = function(*arguments, **attributes)
    except NotImplementedError as error:
        raise UnsupportedError(label, [f"{_describe(node)}: {error}"]) from error
    except (ValueError, IndexError) as error:
        shapes = [None if argument is None else argument.shape for argument in arguments]
        raise ModelError(f"{label}: {_describe(node)} fails on inputs of shapes {shapes}: {error}") from error

    results = answer if isinstance(answer, tuple | list) else (answer,)
    made = []
    for place, (name, result) in enumerate(zip(node.output, results, strict=False)):
        if not name:
            continue
        value, dtype = _widen(np.asarray(result))
        if dtype == np.float64 and node.op_type not in TYPE_OF_RESULT:
            dtype = types[node.input[TYPE_OF_INPUT.get(node.op_type, 0)]]
        if node.op_type == "LayerNormalization" and place:
            dtype = np.dtype(np.float32)  # the statistics are of the type that stash_type names
        values[name] = value if dtype.kind == "f" else value.astype(dtype)
        types[name] = dtype
        made.append(name)
    return made


def _checked_inputs(graph: onnx.GraphProto, inputs: Mapping[str, Array] | Array, label: str) -> dict[str, Array]:
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
    checked = {}
    for name in declared:
        if name not in inputs:
            continue
        given, tensor = np.asarray(inputs[name]), declared[name].type.tensor_type
        if tensor.HasField("shape") and given.ndim != len(tensor.shape.dim):
            sizes = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
            raise InputError(f"Input {name!r} has the shape {given.shape}; {label} declares the axes {sizes}.")
        wanted = _declared_dtype(graph, name)
        if wanted is None or not (given.dtype == wanted or given.dtype.kind == wanted.kind == "f"):
            raise InputError(f"Input {name!r} is {given.dtype}; {label} declares {wanted or 'no known type'}.")
        checked[name] = given
    return checked


def _declared_dtype(graph: onnx.GraphProto, name: str) -> np.dtype[Any] | None:
    """The NumPy type of a graph input, None for one that NumPy lacks."""
    for value in graph.input:
        if value.name == name and value.type.tensor_type.elem_type:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            return dtype if _is_plain(dtype) else None
    return None


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy itself has the type: bool, integer or float, and not bfloat16, float8 or int4."""
    return dtype.kind in "biuf" and dtype.isbuiltin == 1


def _widen(array: Array) -> tuple[Array, np.dtype[Any]]:
    """The array as it is computed with, floats as float64, and the type that it came in."""
    return (array.astype(np.float64, copy=False) if array.dtype.kind == "f" else array), array.dtype


def _array(tensor: onnx.TensorProto, label: str, where: str) -> Array:
    """A TensorProto as an array."""
    array = onnx.numpy_helper.to_array(tensor)
    if not _is_plain(array.dtype):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise UnsupportedError(label, [f"{where}: a tensor of type {kind} is not in the NumPy reference"])
    return array


def _attribute(attribute: onnx.AttributeProto, label: str, node: onnx.NodeProto) -> Any:
    """An attribute as Python has it: text for bytes, an array for a tensor."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value, label, _describe(node))
    if isinstance(value, bytes):
        return value.decode()
    return value


def _describe(node: onnx.NodeProto) -> str:
    """A node in a message: its name, or what it makes where it has none, and its operator."""
    name = repr(node.name) if node.name else f"the node that makes {node.output[0]!r}" if node.output else "a node"
    return f"{name} ({node.op_type})"
