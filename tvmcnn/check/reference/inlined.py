"""The names that tensors inside the model's functions have once onnx's inliner has put these in place of their calls.

Only the names come from the inliner: the oracle evaluates each call itself. (That of onnx 1.23 leaves out an attribute
that the call does not give, where the function has a default for it.)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import onnx
import onnx.inliner

from tvmcnn.check.reference.model import plain_domain
from tvmcnn.check.reference.order import in_order, subgraphs
from tvmcnn.check.reference.words import DEEPEST, Context, Nodes
from tvmcnn.errors import ModelError

NODE_LIMIT = 100_000

Key = tuple[str, str, str]


def own_functions(proto: onnx.ModelProto, label: str) -> dict[Key, onnx.FunctionProto]:
    """The model's functions by domain, name and overload, their nodes in order.

    Refused are functions that call one another in a circle, and too many nodes: 30 functions that call two each make a
    thousand million.
    """
    found = {}
    for function in proto.functions:
        copy = onnx.FunctionProto.FromString(function.SerializeToString())
        _sort(copy, label)
        found[copy.domain, copy.name, copy.overload] = copy
    sizes: dict[Key, int] = {}

    def size(nodes: Nodes, depth: int) -> int:
        if depth > DEEPEST:
            raise ModelError(f"{label} has functions that call one another more than {DEEPEST} deep.")
        total = 0
        for node in nodes:
            key = node.domain, node.op_type, node.overload
            if key in found and key not in sizes:
                sizes[key] = size(found[key].node, depth + 1)
            total += sizes.get(key, 1) + sum(size(graph.node, depth + 1) for graph in subgraphs(node))
        return total

    if (count := size(proto.graph.node, 0)) > NODE_LIMIT:
        raise ModelError(f"{label} has {count:,} nodes with its functions in place; allowed are {NODE_LIMIT:,}.")
    return found


def inlined_nodes(proto: onnx.ModelProto, functions: Iterable[onnx.FunctionProto], label: str) -> Nodes:
    """The model's nodes in order, those of its functions in place of the calls; none where the inliner declines.

    It numbers the calls as it comes to them, so the nodes are in order before. It does not see the weights, whose data
    it would copy many times: their names stand where they are read.
    """
    graph = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=functions)
    light.graph.MergeFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    _sort(light.graph, label)
    for convert in (True, False):  # functions of another opset; what cannot be converted is left where it is
        try:
            return list(onnx.inliner.inline_local_functions(light, convert).graph.node)
        except Exception:  # of classes without a name in onnx
            continue
    return []


def _sort(owner: onnx.GraphProto | onnx.FunctionProto, label: str) -> None:
    ordered = [
        onnx.NodeProto.FromString(owner.node[place].SerializeToString()) for place in in_order(owner.node, label)
    ]
    del owner.node[:]
    owner.node.extend(ordered)
    for node in owner.node:
        for graph in subgraphs(node):
            _sort(graph, label)


def unclear_names(nodes: Nodes, given: Iterable[str]) -> set[str]:
    """The names that several tensors have, in branches and around them, those that are `given` among them."""
    counts = Counter([*_made(nodes), *given])
    return {name for name, count in counts.items() if count > 1}


def _made(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        yield from filter(None, node.output)
        for graph in subgraphs(node):
            yield from _made(graph.node)


def parts(nodes: Sequence[onnx.NodeProto], context: Context) -> list[Nodes]:
    """What each node has become among `context.twins`, the inlined nodes of all of them; nothing where they differ."""
    ends = [0]
    try:
        for node in nodes:
            ends.append(_end(node, context, ends[-1]))
    except LookupError:
        return [()] * len(nodes)
    return [context.twins[start:end] for start, end in itertools.pairwise(ends)]


def is_twin(twin: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """Whether an inlined node can be the node itself, and not one of the function that it calls."""
    return (twin.op_type, plain_domain(twin.domain)) == (node.op_type, plain_domain(node.domain))


def _end(node: onnx.NodeProto, context: Context, start: int) -> int:
    """Where the part of a node ends that starts at `start`: one node on, or behind those of the function it calls.

    Raises LookupError where another node stands there.
    """
    if is_twin(context.twins[start], node):
        return start + 1
    end = start
    for inner in context.functions[node.domain, node.op_type, node.overload].node:
        end = _end(inner, context, end)
    return end
