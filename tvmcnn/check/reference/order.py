"""Nodes in an order in which each finds what it reads."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import onnx

from tvmcnn.errors import ModelError


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads of the graph that it stands in: its inputs, and what its subgraphs do not make."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        own |= {name for inner in graph.node for name in inner.output}
        names |= {name for inner in graph.node for name in reads(inner)} - own
        names |= {value.name for value in graph.output} - own
    return names


def in_order(nodes: Sequence[onnx.NodeProto], label: str) -> list[int]:
    """The places of the nodes so that each comes after those whose outputs it reads, else in the file's order.

    Raises ModelError for nodes that wait for one another and for a name that is made twice.
    """
    maker: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in maker:
                raise ModelError(f"{label} makes {name!r} twice; every tensor has a name of its own.")
            maker[name] = place
    before = [{maker[name] for name in reads(node) if name in maker} for node in nodes]
    after: list[list[int]] = [[] for _ in nodes]
    for place, needed in enumerate(before):
        for other in needed:
            after[other].append(place)
    waiting = [len(needed) for needed in before]
    ready = [place for place, count in enumerate(waiting) if not count]  # sorted, and so a heap
    order = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for other in after[place]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, other)
    if len(order) < len(nodes):
        stuck = [name for place, node in enumerate(nodes) if waiting[place] for name in node.output][:4]
        raise ModelError(f"{label} has nodes that wait for one another: those that make {stuck}.")
    return order
