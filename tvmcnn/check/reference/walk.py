"""One node after another, and into branches, loops and functions."""

from __future__ import annotations

import functools
import itertools
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import onnx

from tvmcnn.check.reference import control
from tvmcnn.check.reference.half_weights import in_half
from tvmcnn.check.reference.inlined import is_twin, parts
from tvmcnn.check.reference.integers import Patterns, varying
from tvmcnn.check.reference.model import attribute_value, attributes_of, describe, initializers, plain_domain, versions
from tvmcnn.check.reference.narrow import Rounding
from tvmcnn.check.reference.operate import objections, operate, version
from tvmcnn.check.reference.order import in_order, reads
from tvmcnn.check.reference.words import Context, Held, Values
from tvmcnn.errors import ModelError, TvmcnnError, UnsupportedError

CONTROL = ("If", "Loop", "Scan")

Step = Callable[[onnx.NodeProto, list[Held | None], Values, Context], Sequence[Held | None]]


def run(nodes: Iterable[onnx.NodeProto], values: Values, context: Context, outputs: Collection[str]) -> None:
    """Evaluate nodes: what they make goes into `values`. `outputs` has the names that are read from outside.

    Every node that cannot be evaluated, as far as its text tells, is told before any is evaluated.
    """
    listed = list(nodes)
    ordered = [attributes_of(listed[place], context.attributes) for place in in_order(listed, context.label)]
    read = {*outputs, *(name for node in ordered for name in reads(node))}
    operators = [node for node in ordered if _step(node, context) is _operate]
    reasons = [f"{describe(node)}: {reason}" for node in operators for reason in objections(node, read, context)]
    if reasons:
        raise UnsupportedError(context.label, reasons)
    fed = varying(context.source.proto.graph)
    patterns = None if context.depth else Patterns(ordered, values, context, outputs, fed)
    for node, twins in zip(ordered, parts(ordered, context), strict=True):
        inner = context.with_twins(twins)
        missing = [name for name in node.input if name and name not in values]
        if missing:
            raise ModelError(f"{context.label}: {describe(node)} reads {missing}, which nothing makes.")
        given, names = [values[name] if name else None for name in node.input], _names(node, inner)
        if names and names[0] in context.narrow:
            given = _rounded(given, context.narrow[names[0]])
        made = _guarded(_step(node, context), node, given, values, inner)
        if patterns is not None and (integers := patterns.ends(node)) is not None:
            made = [integers]
        for name, shown, held in zip(node.output, names, made, strict=False):
            if name and held is not None:
                kind = context.half_weights.get(name)
                stored = held if kind is None else in_half(held, kind)
                values[name] = _noted(shown, stored, inner) if shown else stored


def _names(node: onnx.NodeProto, context: Context) -> Sequence[str]:
    """What the model calls a node's outputs once functions are in place; "" where it has no such name, or several."""
    inlined = bool(context.twins) and _function(node, context) is not None and not is_twin(context.twins[0], node)
    if context.shown is None or inlined or (context.in_function and not context.twins):
        return [""] * len(node.output)  # of what is inlined the last node inside has the name
    names = context.twins[0].output if context.twins else node.output
    return [name if not context.depth or name not in context.unclear else "" for name in names]


def _rounded(given: Sequence[Held | None], rounding: Rounding) -> list[Held | None]:
    """The operands of a product, its first two as a library multiplies them."""
    x, weight, *others = given
    assert x is not None
    assert weight is not None
    arrays = rounding(x.array, weight.array)
    return [replace(x, array=arrays[0]), replace(weight, array=arrays[1]), *others]


def _noted(name: str, held: Held, context: Context) -> Held:
    """A tensor with a name of its own as later nodes read it."""
    if context.follow is not None:
        held = replace(held, array=context.follow(name, held.array))
    if context.shown is not None:
        context.shown[name] = held
    return held


def run_graph(graph: onnx.GraphProto, values: Values, context: Context, given: Sequence[Held]) -> list[Held]:
    """The outputs of a subgraph, which sees the tensors around it."""
    if len(given) != len(graph.input):
        raise ModelError(f"{context.label}: {graph.name!r} has {len(graph.input)} inputs and is given {len(given)}.")
    own: dict[str, Held | None] = {n: Held(array, array.dtype) for n, array in initializers(graph, context.source)}
    own |= {value.name: held for value, held in zip(graph.input, given, strict=True)}
    inner = values.new_child(own)
    run(graph.node, inner, context, [value.name for value in graph.output])
    found = [inner.get(value.name) for value in graph.output]
    if None in found:
        raise ModelError(f"{context.label}: {graph.name!r} declares outputs that no node makes.")
    return [held for held in found if held is not None]


def _function(node: onnx.NodeProto, context: Context) -> onnx.FunctionProto | None:
    return context.functions.get((node.domain, node.op_type, node.overload))


def _step(node: onnx.NodeProto, context: Context) -> Step:
    if _function(node, context) is not None:
        return _call
    return _control if not plain_domain(node.domain) and node.op_type in CONTROL else _operate


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


def _operate(node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context) -> Sequence[Held | None]:
    return operate(node, given, context)


def _control(node: onnx.NodeProto, given: list[Held | None], values: Values, context: Context) -> Sequence[Held | None]:
    """If, Loop and Scan. Only an If shows what its branch makes: in a loop a name has many values."""
    graphs = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
    if node.op_type == "If":
        name = "then_branch" if control.truth(given[0]) else "else_branch"
        twin = [a.g.node for node in context.twins for a in node.attribute if a.name == name]
        return run_graph(graphs[name], values, context.deeper(twins=twin[0] if twin else ()), [])
    body = functools.partial(run_graph, graphs["body"], values, context.deeper(shown=None, twins=()))
    if node.op_type == "Loop":
        trip, condition, *carried = (*given, None)[: max(2, len(given))]
        return control.loop(body, graphs["body"], trip, condition, [held for held in carried if held is not None])
    if version(node, context) < 9:
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
    run(function.node, inner, context.deeper(opsets=opsets, attributes=attributes, in_function=True), function.output)
    return [inner.get(name) for name in function.output]
