"""The names that tensors inside the model's functions have once onnx's inliner has put these in place of their calls.

Only the names come from the inliner: the oracle evaluates each call itself. (That of onnx 1.23 leaves out an attribute
that the call does not give, where the function has a default for it.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx
import onnx.inliner

from tvmcnn.reference.model import plain_domain
from tvmcnn.reference.words import Context, Nodes


def inlined_nodes(proto: onnx.ModelProto) -> Nodes:
    """The model's nodes with those of its functions in place of the calls; none where the inliner declines.

    The inliner sees no more than the names of the weights: it would copy their data many times.
    """
    graph = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    light.graph.MergeFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    for tensor in graph.initializer:
        light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=[0])
    try:
        return list(onnx.inliner.inline_local_functions(light).graph.node)
    except Exception:  # of classes without a name in onnx
        return []


def parts(nodes: Sequence[onnx.NodeProto], context: Context) -> list[Nodes]:
    """What each node has become among `context.twins`, the inlined nodes of all of them; nothing where they differ."""
    ends = [0]
    try:
        for node in nodes:
            ends.append(_end(node, context, ends[-1]))
    except LookupError:
        ends = []
    if not ends or ends[-1] != len(context.twins):
        return [()] * len(nodes)
    return [context.twins[start:end] for start, end in itertools.pairwise(ends)]


def _end(node: onnx.NodeProto, context: Context, start: int) -> int:
    """Where the part of a node ends that starts at `start`: one node on, or behind those of the function it calls.

    Raises LookupError where another node stands there.
    """
    twin = context.twins[start]
    if (twin.op_type, plain_domain(twin.domain)) == (node.op_type, plain_domain(node.domain)):
        return start + 1
    end = start
    for inner in context.functions[node.domain, node.op_type, node.overload].node:
        end = _end(inner, context, end)
    return end
