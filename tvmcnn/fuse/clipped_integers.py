"""Clipped integers: bounds of fewer bits, as Brevitas writes them, are those of the kernel that makes the integers.

q = QLinearConv(…), y = Clip(q, 0, 15)    -->    y = QLinearConv(…) with these bounds
t = Table(x, bytes), y = Clip(t, 0, 15)   -->    y = Table(x, bytes between the bounds)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tvmcnn.fuse.added import Additions
from tvmcnn.fuse.dequantised import Finder
from tvmcnn.network import BYTES, Network, Node

REASON = "between integers: bounded where it is made"


def clipped_integers(network: Network) -> Network:
    """The network with bounds where integers are made that one Clip alone reads; the same object if there is none."""
    finder, added = Finder(network), Additions(network)
    bounded, gone = dict[str, Node](), dict[str, str]()
    for node in network.nodes:
        maker = finder.alone(node.inputs[0]) if node.op == "Clip" and len(node.inputs) == 1 else None
        if maker is None or network.tensors[node.output].dtype not in BYTES:
            continue
        if (found := _bounded(added, maker, node)) is not None:
            bounded[maker.output], gone[node.output] = found, maker.output
    if not bounded:
        return network
    nodes = [bounded.get(node.output, node) for node in network.nodes if node.output not in gone]
    for name in gone.values():
        del added.tensors[name]
    folded = {**network.folded, **dict.fromkeys(gone.values(), REASON)}
    return dataclasses.replace(added.applied(network, nodes), folded=folded)


def _bounded(added: Additions, maker: Node, clip: Node) -> Node | None:
    """The node that makes the integers between the bounds of a Clip."""
    limits = np.iinfo(added.tensors[clip.output].dtype)
    low = int(limits.min) if clip["min"] is None else int(clip["min"])
    high = int(limits.max) if clip["max"] is None else int(clip["max"])
    if maker.op == "Table":
        x, table = maker.inputs
        held = added.constant(f"{clip.output}.table", np.minimum(np.maximum(added.constants[table], low), high))
        return dataclasses.replace(maker, inputs=(x, held), output=clip.output)
    if not maker.op.startswith("QLinear") or low > high:
        return None
    bounds = {"low": min(max(maker["low"], low), high), "high": max(min(maker["high"], high), low)}
    return dataclasses.replace(maker, output=clip.output, attributes={**maker.attributes, **bounds})
