"""One node after another: each gets its inputs as float64, and leaves its outputs with their types."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tvmcnn.errors import ModelError, TvmcnnError, UnsupportedError
from tvmcnn.reference import control
from tvmcnn.reference.model import attribute_value, attributes_of, describe, initializers, plain_domain, versions
from tvmcnn.reference.order import in_order, reads
from tvmcnn.reference.words import Context, Held, Values
from tvmcnn.reference_ops import Array, is_float, known_dtype, lookup, onnx_reference

TYPE_OF_RESULT = {"BitCast", "Cast", "CastLike", "Constant", "ConstantOfShape", "DynamicQuantizeLinear"}
"""Operators whose float output has the type of the array they return."""

TYPE_OF_INPUT = {"DequantizeLinear": 1, "OneHot": 2, "Where": 1}
"""Which input's type a float output has, where that is not the first's."""

TYPE_OF_ATTRIBUTE = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), ("output_datatype", 1)),
    **{"DequantizeLinear": ("output_dtype", 0), "EyeLike": ("dtype", 0)},
}
"""The attribute that names a float output's type, and its default; 0 leaves it to the input."""

STORED = {"BitCast", "CastLike", "DynamicQuantizeLinear", "QuantizeLinear"}
"""Operators that depend on how their input is stored: a float comes to them in its ONNX type, not as float64."""

OUTPUTS_MADE = {"Dropout": 2, "DynamicQuantizeLinear": 3, "LayerNormalization": 3, "MaxPool": 2, "Unique": 4}
"""How many outputs are made, where that is not one; Split makes as many as are asked for."""

CONTROL = ("If", "Loop", "Scan")

Step = Callable[[onnx.NodeProto, list[Held | None], Values, Context], Sequence[Held | None]]


def run(nodes: Iterable[onnx.NodeProto], values: Values, context: Context, outputs: Collection[str]) -> None:
    """Evaluate nodes: what they make goes into `values`. `outputs` has the names that are read from outside.

    Every node that cannot be evaluated, as far as its text tells, is told before any is evaluated.
    """
    ordered = [attributes_of(node, context.attributes) for node in in_order(nodes, context.label)]
    read = {*outputs, *(name for node in ordered for name in reads(node))}
    reasons = [f"{describe(node)}: {reason}" for node in ordered for reason in _objections(node, read, context)]
    if reasons:
        raise UnsupportedError(context.label, reasons)
    for node in ordered:
        missing = [name for name in node.input if name and name not in values]
        if missing:
            raise ModelError(f"{context.label}: {describe(node)} reads {missing}, which nothing makes.")
        given = [values[name] if name else None for name in node.input]
        made = _guarded(_step(node, context), node, given, values, context)
        for name, held in zip(node.output, made, strict=False):
            if name and held is not None:
                values[name] = _followed(name, held, context)


def _followed(name: str, held: Held, context: Context) -> Held:
    if context.follow is None or context.shown is None:
        return held
    return dataclasses.replace(held, array=context.follow(name, held.array))


def run_graph(graph: onnx.GraphProto, values: Values, context: Context, given: Sequence[Held]) -> list[Held]:
    """The outputs of a subgraph, which sees the tensors around it."""
    if len(given) != len(graph.input):
        raise ModelError(f"{context.label}: {graph.name!r} has {len(graph.input)} inputs and is given {len(given)}.")
    own: dict[str, Held | None] = {n: Held(array, array.dtype) for n, array in initializers(graph, context.source)}
    own |= {value.name: held for value, held in zip(graph.input, given, strict=True)}
    known, outputs, inner = set(own), [value.name for value in graph.output], values.new_child(own)
    run(graph.node, inner, context, outputs)
    if context.shown is not None:  # a name that two branches have says nothing
        context.shown.update({n: None if n in context.shown else held for n, held in own.items() if n not in known})
    return _found(inner, outputs, context)


def _found(values: Values, names: Iterable[str], context: Context) -> list[Held]:
    found = {name: values.get(name) for name in names}
    missing = [name for name, held in found.items() if held is None]
    if missing:
        raise ModelError(f"{context.label} declares the outputs {missing} of a subgraph, which no node makes.")
    return [found[name] for name in names]  # type: ignore[misc]


# ---- what a node is -------------------------------------------------------------------------------------------------


def _function(node: onnx.NodeProto, context: Context) -> onnx.FunctionProto | None:
    return context.functions.get((node.domain, node.op_type, node.overload))


def _version(node: onnx.NodeProto, context: Context) -> int:
    return context.opsets.get(plain_domain(node.domain), 1)


def _is_taken(node: onnx.NodeProto, context: Context) -> bool:
    """Whether onnx.reference evaluates the node."""
    ours = lookup(node.op_type, _version(node, context), plain_domain(node.domain))
    return ours is None and not plain_domain(node.domain) and node.op_type in onnx_reference.TAKEN


def _objections(node: onnx.NodeProto, read: Collection[str], context: Context) -> Iterable[str]:
    """Why a node cannot be evaluated, as far as its text tells."""
    domain, opset = plain_domain(node.domain), _version(node, context)
    if _function(node, context) is not None or (not domain and node.op_type in CONTROL):
        return
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


def _step(node: onnx.NodeProto, context: Context) -> Step:
    if _function(node, context) is not None:
        return _call
    if not plain_domain(node.domain) and node.op_type in CONTROL:
        return _control
    return _operate_taken if _is_taken(node, context) else _operate


def _guarded(
    step: Step, node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context
) -> Sequence[Held | None]:
    """What a step makes; whatever goes wrong in it is the node's mistake, told with its name and shapes."""
    try:
        return step(node, given, values, context)
    except TvmcnnError:
        raise
    except NotImplementedError as error:
        raise UnsupportedError(context.label, [f"{describe(node)}: {error}"]) from error
    except Exception as error:  # NumPy's and onnx.reference's errors are of many classes
        shapes = [None if held is None else held.array.shape for held in given]
        what = str(error) or type(error).__name__
        raise ModelError(f"{context.label}: {describe(node)} fails on inputs of shapes {shapes}: {what}") from error


# ---- steps ----------------------------------------------------------------------------------------------------------


def _operate(node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context) -> Sequence[Held | None]:
    """An operator of `reference_ops`."""
    function = lookup(node.op_type, _version(node, context), plain_domain(node.domain))
    assert function is not None  # or `_objections` had refused the node
    arguments = [_argument(held, node) for held in given]
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


def _operate_taken(
    node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context
) -> Sequence[Held | None]:
    """An operator of onnx.reference."""
    opset = _version(node, context)
    results = onnx_reference.evaluate(node, opset, [_argument(held, node) for held in given])
    types = onnx_reference.result_types(node, opset, [None if held is None else held.dtype for held in given])
    return [None if r is None else _held(np.asarray(r), dtype) for r, dtype in zip(results, types, strict=True)]


def _argument(held: Held | None, node: onnx.NodeProto) -> Array | None:
    if held is None or not is_float(held.dtype):
        return None if held is None else held.array
    return held.array.astype(held.dtype if node.op_type in STORED else np.float64, copy=False)


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


def _control(node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context) -> Sequence[Held | None]:
    """If, Loop and Scan. Only an If shows what its branch makes: in a loop a name has many values."""
    graphs = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
    if node.op_type == "If":
        name = "then_branch" if control.truth(given[0]) else "else_branch"
        return run_graph(graphs[name], values, context.deeper(), [])
    body = functools.partial(run_graph, graphs["body"], values, context.deeper(shown=None))
    if node.op_type == "Loop":
        trip, condition, *carried = (*given, None)[: max(2, len(given))]
        return control.loop(body, graphs["body"], trip, condition, [held for held in carried if held is not None])
    if _version(node, context) < 9:
        raise NotImplementedError("a Scan of opset 8, which has a batch; from opset 9 on it can be evaluated")
    attributes = {a.name: attribute_value(a, context.source, node) for a in node.attribute if a.name != "body"}
    return control.scan(body, graphs["body"], [held for held in given if held is not None], **attributes)


def _call(node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context) -> Sequence[Held | None]:
    """A call of one of the model's own functions, which sees nothing but its inputs."""
    function = _function(node, context)
    assert function is not None
    if len(given) > len(function.input):
        raise ValueError(f"the function has {len(function.input)} inputs and is given {len(given)}")
    attributes = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
    opsets = {**context.opsets, **versions(function, f"{context.label}: the function {function.name!r}")}
    inner: Values = ChainMap(dict(itertools.zip_longest(function.input, given)))
    run(function.node, inner, context.deeper(opsets=opsets, attributes=attributes, shown=None), function.output)
    return [inner.get(name) for name in function.output]
