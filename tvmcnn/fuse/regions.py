"""Element-wise nodes that read a tensor several times and come together again, as activations do that an exporter has
written out: one epilogue, however they are spelled.

    y = Conv(x), s = Sigmoid(y), z = Mul(y, s)                                      -->  y's region: Sigmoid, Mul
    y = Conv(x), d = Div(y, √2), e = Erf(d), f = Add(e, 1), g = Mul(y, f), …        -->  y's region: Div, Erf, Add, Mul
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from tvmcnn.network import Network, Node

LONGEST = 16  # nodes: Mish written out has 7


def regions(network: Network, inner: Collection[str]) -> dict[str, tuple[Node, ...]]:
    """For every tensor that is read several times and whose readers all end in one: those nodes, in order.

    All are of operators in `inner`, and make float32 tensors of its shape, of which only the last is read by others.
    """
    readers: Mapping[str, list[int]] = defaultdict(list)
    for index, node in enumerate(network.nodes):
        for name in {*node.inputs}:
            readers[name].append(index)
    kept = {tensor.name for tensor in network.outputs}
    several = [name for name, places in readers.items() if len(places) > 1 and name in network.tensors]
    found = {name: _region(network, name, readers, kept, inner) for name in several if name not in kept}
    return {name: nodes for name, nodes in found.items() if nodes}


def _region(
    network: Network, start: str, readers: Mapping[str, Sequence[int]], kept: Collection[str], inner: Collection[str]
) -> tuple[Node, ...]:
    """The nodes from `start` to the first that sees all the readers so far; empty if they never come together."""
    shape, nodes, waiting = network.tensors[start].shape, list[Node](), [*readers[start]]
    heapq.heapify(waiting)
    while waiting and len(nodes) < LONGEST:
        node = network.nodes[heapq.heappop(waiting)]
        made = network.tensors[node.output]
        if node.op not in inner or made.shape != shape or made.dtype != "float32":
            return ()
        nodes.append(node)
        if not waiting:
            return tuple(nodes)
        if node.output in kept or not readers[node.output]:
            return ()
        for place in {*readers[node.output]} - {*waiting}:
            heapq.heappush(waiting, place)
    return ()
