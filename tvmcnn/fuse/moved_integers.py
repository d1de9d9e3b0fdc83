"""Moved integers: what only moves dequantised elements, or chooses among them, does so before they are dequantised.

f = DequantizeLinear(x), g = MaxPool(f)    -->    y = MaxPool(x), g = DequantizeLinear(y)

Every float stays the same, as one scale above 0 keeps the order; and what computes with g can do so on integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmcnn.fuse.added import Additions
from tvmcnn.fuse.dequantised import Finder, Integers
from tvmcnn.fuse.real_functions import FUNCTIONS
from tvmcnn.network import BYTES, Network, Node

ALONE = ("DepthToSpace", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Transpose")  # their first operand is moved
MOVES = (*ALONE, "Concat")


def moved_integers(network: Network, consumers: Sequence[str]) -> Network:
    """The network with integers moved where one of `consumers` reads them, or a function of one operand."""
    finder, added, nodes = Finder(network), Additions(network), list[Node]()
    wanted = _wanted(network, {*consumers, *FUNCTIONS})
    moved = dict[str, Integers]()
    for node in network.nodes:
        count = len(node.inputs) if node.op == "Concat" else node.op in MOVES
        given = [moved.get(name) or finder.integers(name) for name in node.inputs[:count]]
        if node.output not in wanted or (found := _alike(network, given)) is None:
            nodes.append(node)
            continue
        shape = network.shape(node.output)
        name = added.tensor(f"{node.output}.integers", shape, found.dtype)
        sources = [each.name for each in given if each is not None]
        nodes.append(dataclasses.replace(node, inputs=(*sources, *node.inputs[count:]), output=name))
        form, zero = (1,) * len(shape), found.zero.astype(found.dtype)
        scales = [
            added.constant(f"{node.output}.{word}", array.reshape(form))
            for word, array in (("scale", found.scale), ("zero", zero))
        ]
        nodes.append(Node("DequantizeLinear", node.output, (name, *scales), node.output))
        moved[node.output] = dataclasses.replace(found, name=name)
    return added.applied(network, nodes) if moved else network


def _wanted(network: Network, consumers: set[str]) -> set[str]:
    """The tensors that consumers read, also those that they read once they have been moved."""
    wanted = set[str]()
    for node in reversed(network.nodes):
        if node.op in consumers or (node.op in MOVES and node.output in wanted):
            wanted.update(node.inputs)
    return wanted


def _alike(network: Network, given: Sequence[Integers | None]) -> Integers | None:
    """Integers of which all mean the same by the same byte, and that come at run time."""
    first = given[0] if given else None
    if first is None or first.dtype not in BYTES or first.name in network.constants:
        return None
    return first if all(each is not None and each.like(first) for each in given) else None
