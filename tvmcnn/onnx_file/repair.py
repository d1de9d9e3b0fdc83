"""Repair: what files have and runtimes take, but onnx's checker refuses, becomes what it accepts.

    node Relu of domain "ai.onnx", before the Conv that it reads  -->  node Relu of domain "", behind it

ONNX's own domain has one name, nodes come after those that they read, a graph has a name, and GroupNormalization of
opset 18, which onnx has deprecated, is what it means.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from tvmcnn.errors import ModelError, UnsupportedError

ONNX_DOMAINS = ("", "ai.onnx")


def tidy(proto: onnx.ModelProto, label: str) -> None:
    """Mend a model in place. Raises ModelError for a cycle, and for opset imports that contradict each other."""
    _rename_domain(proto, label)
    if not proto.graph.name:
        proto.graph.name = "graph"
    for owner, nodes in node_lists(proto):
        opset = opset_of(proto.opset_import if owner is None else owner.opset_import)
        if 18 <= opset < 21 and any(_is_group_norm(node) for node in nodes):
            _spell_group_norm(proto, nodes, label)
        _sort(nodes, label)


def node_lists(proto: onnx.ModelProto) -> Iterator[tuple[onnx.FunctionProto | None, Any]]:
    """The nodes of the graph, of each function and of every graph within them, with the function that they are in."""
    owners: list[tuple[onnx.FunctionProto | None, Any]] = [(None, proto.graph.node)]
    owners += [(function, function.node) for function in proto.functions]
    for owner, nodes in owners:
        yield owner, nodes
        for graph in inner_graphs(nodes):
            yield owner, graph.node


def inner_graphs(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Every graph in the attributes of nodes, and in those of their nodes."""
    for node in nodes:
        for graph in own_graphs(node):
            yield graph
            yield from inner_graphs(graph.node)


def own_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Every graph in the attributes of a node, without those inside."""
    for attribute in node.attribute:
        yield from _graphs(attribute)


def _graphs(attribute: onnx.AttributeProto) -> tuple[onnx.GraphProto, ...]:
    return (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a model: initializers and attributes, those of functions and inner graphs too."""
    yield from proto.graph.initializer
    for _, nodes in node_lists(proto):
        for node in nodes:
            for attribute in node.attribute:
                yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
                for graph in _graphs(attribute):
                    yield from graph.initializer


def title(node: onnx.NodeProto) -> str:
    """A node in a message: by its name, or by what it makes."""
    name = f"node '{node.name}'" if node.name else f"the node that makes '{next(iter(node.output), '')}'"
    return f"{name} ({node.op_type})"


def tensor_names(proto: onnx.ModelProto) -> set[str]:
    """The names of all tensors of a model."""
    found = {name for _, nodes in node_lists(proto) for node in nodes for name in (*node.input, *node.output)}
    given = (*proto.graph.initializer, *proto.graph.input)
    return found | {each.name for each in given}


def fresh(name: str, taken: set[str]) -> str:
    """Return `name` with as many primes as make it one that no tensor has; it is taken from now on."""
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def _rename_domain(proto: onnx.ModelProto, label: str) -> None:
    """ai.onnx --> "", its other name, in nodes, functions and opset imports."""
    for _, nodes in node_lists(proto):
        for node in nodes:
            node.domain = "" if node.domain in ONNX_DOMAINS else node.domain
    for owner in (proto, *proto.functions):
        versions = {entry.version for entry in owner.opset_import if entry.domain in ONNX_DOMAINS}
        if len(versions) > 1:
            found = " and ".join(map(str, sorted(versions)))
            raise ModelError(f"{label} imports ONNX's operators of opset {found}; it must be one")
        kept = [entry for entry in owner.opset_import if entry.domain not in ONNX_DOMAINS]
        if len(kept) < len(owner.opset_import) and [e.domain for e in owner.opset_import].count("") != 1:
            del owner.opset_import[:]
            owner.opset_import.extend([onnx.helper.make_opsetid("", versions.pop()), *kept])


def opset_of(imports: Sequence[onnx.OperatorSetIdProto]) -> int:
    """The version of ONNX's operators that a model or function imports; 0 if it imports none."""
    return max((entry.version for entry in imports if entry.domain == ""), default=0)


# ---- order ----------------------------------------------------------------------------------------------------------


def _sort(nodes: Any, label: str) -> None:
    """Put each node behind those whose outputs it reads; the others keep their order."""
    maker = {name: index for index in reversed(range(len(nodes))) for name in nodes[index].output if name}
    reads = [{maker[name] for name in _read(node) if name in maker} - {index} for index, node in enumerate(nodes)]
    if all(source < index for index, sources in enumerate(reads) for source in sources):
        return
    readers: list[list[int]] = [[] for _ in nodes]
    waiting = [len(sources) for sources in reads]
    for index, sources in enumerate(reads):
        for source in sources:
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]  # a heap: ascending
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers[order[-1]]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        shown = ", ".join(title(nodes[index]) for index in _cycle(reads, {*range(len(nodes))} - {*order}))
        raise ModelError(f"{label} has a cycle, which no graph may have, through {shown}")
    _put(nodes, [nodes[index] for index in order])


def _put(nodes: Any, wanted: Sequence[onnx.NodeProto]) -> None:
    """Let a list of protobuf's hold the nodes `wanted`, some of which may be its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in wanted]
    del nodes[:]
    nodes.extend(copies)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its inner graphs take from around them too."""
    yield from (name for name in node.input if name)
    for graph in inner_graphs([node]):
        yield from (name for inner in graph.node for name in inner.input if name)
        yield from (value.name for value in graph.output)


def _cycle(reads: Sequence[set[int]], left: set[int], most: int = 4) -> list[int]:
    """Some of the nodes of a cycle, each read by the one before: each of those `left` reads another of them."""
    path: list[int] = []
    index = min(left)
    while index not in path:
        path.append(index)
        index = min(reads[index] & left)
    return path[path.index(index) :][:most]


# ---- GroupNormalization of opset 18 ---------------------------------------------------------------------------------


def _is_group_norm(node: onnx.NodeProto) -> bool:
    return node.op_type == "GroupNormalization" and not node.domain


def _spell_group_norm(proto: onnx.ModelProto, nodes: Any, label: str) -> None:
    """GroupNormalization with a scale and a bias a group, not a channel, as before opset 21, by what it means.

    y = GroupNormalization(x, scale, bias)  -->  y = Reshape(InstanceNormalization(Reshape(x, [0, groups, -1]), scale,
    bias), Shape(x))
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    taken = tensor_names(proto)
    spelled: list[onnx.NodeProto] = []
    for node in nodes:
        if not _is_group_norm(node) or len(node.input) != 3 or len(node.output) != 1:
            spelled.append(node)
            continue
        groups = next((a.i for a in node.attribute if a.name == "num_groups"), 0)
        kept = [a for a in node.attribute if a.name == "epsilon"]
        if groups < 1 or len(node.attribute) != 1 + len(kept):
            raise ModelError(f"{label}: {title(node)} must have num_groups, at least 1, and may have epsilon")
        x, scale, bias = node.input
        if wrong := next((n for n in (scale, bias) if n in sizes and sizes[n] != (groups,)), None):
            found = "x".join(map(str, sizes[wrong]))
            reason = f"'{wrong}' is {found}; opset 18 has one value a group, {groups}, and opset 21 one a channel"
            raise UnsupportedError(label, [f"{title(node)}: {reason}"])
        shape, to, flat, normal = (fresh(f"{node.output[0]}.{word}", taken) for word in ("shape", "to", "flat", "n"))
        make = onnx.helper.make_node
        spelled += [
            make("Shape", [x], [shape]),
            make("Constant", [], [to], value_ints=[0, groups, -1]),
            make("Reshape", [x, to], [flat]),
            make("InstanceNormalization", [flat, scale, bias], [normal], name=node.name),
            make("Reshape", [normal, shape], list(node.output)),
        ]
        spelled[-2].attribute.extend(kept)
    _put(nodes, spelled)
