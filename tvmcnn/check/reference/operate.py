"""One operator: found by name and version, given its inputs as float64, its outputs kept with their types."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tvmcnn.check.reference.model import attribute_value, describe, plain_domain
from tvmcnn.check.reference.words import Context, Held
from tvmcnn.check.reference_ops import Array, is_float, known_dtype, lookup, onnx_reference
from tvmcnn.errors import ModelError

TYPE_OF_RESULT = {"BitCast", "Cast", "CastLike", "Constant", "ConstantOfShape", "DynamicQuantizeLinear"}
"""Operators whose float output has the type of the array they return."""

TYPE_OF_INPUT = {"DequantizeLinear": 1, "OneHot": 2, "QGemm": 1, "Where": 1}
"""Which input's type a float output has, where that is not the first's."""

TYPE_OF_ATTRIBUTE = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), ("output_datatype", 1)),
    **{"DequantizeLinear": ("output_dtype", 0), "EyeLike": ("dtype", 0)},
}
"""The attribute that names a float output's type, and its default; 0 leaves it to the input."""

STORED = {"BitCast": 0, "CastLike": 1, "DynamicQuantizeLinear": 0, "QuantizeLinear": 0}
"""Operators that depend on how an input is stored, and from which on: such a float comes in its ONNX type."""

OUTPUTS_MADE = {
    **{
        "Dropout": 2,
        "DynamicQuantizeLSTM": 3,
        "DynamicQuantizeLinear": 3,
        "GRU": 2,
        "LSTM": 3,
        "LayerNormalization": 3,
        "MaxPool": 2,
        "RNN": 2,
    },
    "Unique": 4,
}
"""How many outputs are made, where that is not one; Split makes as many as are asked for."""


def version(node: onnx.NodeProto, context: Context) -> int:
    """The version of the operator set that a node is of."""
    return context.opsets.get(plain_domain(node.domain), 1)


def _is_taken(node: onnx.NodeProto, context: Context) -> bool:
    """Whether onnx.reference evaluates the node."""
    ours = lookup(node.op_type, version(node, context), plain_domain(node.domain))
    return ours is None and not plain_domain(node.domain) and node.op_type in onnx_reference.TAKEN


def objections(node: onnx.NodeProto, read: Collection[str], context: Context) -> Iterable[str]:
    """Why a node cannot be evaluated, as far as its text tells."""
    domain, opset = plain_domain(node.domain), version(node, context)
    if _is_taken(node, context) and opset >= onnx_reference.TAKEN[node.op_type]:
        known, made = onnx_reference.attributes_and_outputs(node.op_type, opset)
    elif (function := lookup(node.op_type, opset, domain)) is not None:
        parameters = inspect.signature(function).parameters.values()
        known = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        made = len(node.output) if node.op_type == "Split" else OUTPUTS_MADE.get(node.op_type, 1)
    else:
        where = f"of domain {domain}" if domain else f"at opset {opset}"
        yield f"the operator {where} is not in the NumPy reference"
        return
    unknown = [attribute.name for attribute in node.attribute if attribute.name not in known]
    if unknown:
        yield f"unknown attribute {', '.join(unknown)}"
    spare = [name for name in node.output[made:] if name in read]
    if spare:
        yield f"the optional output {', '.join(spare)} is not made"


def operate(node: onnx.NodeProto, given: Sequence[Held | None], context: Context) -> Sequence[Held | None]:
    """What an operator makes of its inputs."""
    return (_operate_taken if _is_taken(node, context) else _operate)(node, given, context)


def _operate(node: onnx.NodeProto, given: Sequence[Held | None], context: Context) -> Sequence[Held | None]:
    """An operator of `reference_ops`."""
    function = lookup(node.op_type, version(node, context), plain_domain(node.domain))
    assert function is not None  # or `objections` had refused the node
    arguments = [_argument(held, node, place) for place, held in enumerate(given)]
    attributes = {a.name: attribute_value(a, context.source, node) for a in node.attribute}
    if node.op_type == "Split" and len(node.input) < 2 and "split" not in attributes:
        attributes.setdefault("num_outputs", len(node.output))
    try:
        inspect.signature(function).bind(*arguments, **attributes)
    except TypeError as error:
        raise ModelError(f"{context.label}: {describe(node)} does not fit the operator: {error}") from error
    answer = function(*arguments, **attributes)
    results = answer if isinstance(answer, tuple | list) else (answer,)
    return [_held(np.asarray(r), _type(node, place, attributes, given)) for place, r in enumerate(results)]


def _operate_taken(node: onnx.NodeProto, given: Sequence[Held | None], context: Context) -> Sequence[Held | None]:
    """An operator of onnx.reference."""
    opset = version(node, context)
    results = onnx_reference.evaluate(node, opset, [_argument(held, node, place) for place, held in enumerate(given)])
    types = onnx_reference.result_types(node, opset, [None if held is None else held.dtype for held in given])
    return [None if r is None else _held(np.asarray(r), dtype) for r, dtype in zip(results, types, strict=True)]


def _argument(held: Held | None, node: onnx.NodeProto, place: int) -> Array | None:
    if held is None or not is_float(held.dtype):
        return None if held is None else held.array
    stored = node.op_type in STORED and place >= STORED[node.op_type]
    return held.array.astype(held.dtype if stored else np.float64, copy=False)


def _type(
    node: onnx.NodeProto, place: int, attributes: Mapping[str, Any], given: Sequence[Held | None]
) -> np.dtype[Any] | None:
    """The ONNX type of a node's float output; None for that of the array."""
    if node.op_type in TYPE_OF_RESULT:
        return None
    if node.op_type == "LayerNormalization" and place:
        return known_dtype(attributes.get("stash_type", 1))  # of the statistics
    name, default = TYPE_OF_ATTRIBUTE.get(node.op_type, ("", 0))
    if attributes.get(name, default):
        return known_dtype(attributes.get(name, default))
    source = given[TYPE_OF_INPUT.get(node.op_type, 0)]
    return None if source is None else source.dtype


def _held(array: Array, dtype: np.dtype[Any] | None) -> Held:
    """An operator's result as it is kept, a float in float64."""
    if not is_float(array.dtype):
        return Held(array, array.dtype)
    dtype = array.dtype if dtype is None else dtype
    return Held(array.astype(np.float64 if is_float(dtype) else dtype, copy=False), dtype)
