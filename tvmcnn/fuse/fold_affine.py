"""Per-channel arithmetic behind a convolution becomes part of its weight and bias."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from tvmcnn.fuse import is_anchor, is_per_channel
from tvmcnn.half_weights import holds
from tvmcnn.network import Array, Network, Node

REASON = "folded into the weight and bias of the convolution before it"
Affine = tuple[Array, Array]  # y --> y·scale + shift: (M,) each, in float64


def fold_affine(network: Network) -> Network:
    """The network with what scales and shifts the maps of a convolution folded into it.

    y = Conv(x, w, b), z = Mul(y, s)                                -->  z = Conv(x, w·s, b·s)
    y = Conv(x, w, b), z = Add(y, t)                                -->  z = Conv(x, w, b + t)
    y = Conv(x, w, b), z = BatchNormalization(y, s, t)              -->  z = Conv(x, w·s, b·s + t)

    Only where nothing else wants y. Sub and Div fold likewise. The product is formed in float64, rounded once. An Add
    behind a convolution without a bias stays: it costs the same as an epilogue, and y can still be looked at. So does
    what would scale a weight that is stored in a half type: its products would be no such numbers.
    """
    readers = Counter(name for node in network.nodes for name in node.inputs)
    kept = {tensor.name for tensor in network.outputs}
    constants, folded = dict(network.constants), dict(network.folded)
    nodes: list[Node] = []
    place: dict[str, int] = {}  # tensor -> index of the convolution that makes it
    for node in network.nodes:
        index = next((place[name] for name in node.inputs if name in place), None)
        conv = nodes[index] if index is not None else None
        if conv is None or readers[conv.output] > 1 or conv.output in kept:
            affine = None
        else:
            affine = _affine(network, conv, node)
        if affine is not None and conv is not None and np.any(affine[0] != 1):
            affine = None if holds(network.half_weights.kind, constants[conv.inputs[1]]) else affine
        if index is None or conv is None or affine is None:
            if node.op == "Conv" and is_anchor(network, node):
                place[node.output] = len(nodes)
            nodes.append(node)
            continue
        nodes[index] = _scaled(conv, node.output, affine, constants)
        folded[conv.output] = REASON
        del place[conv.output]
        place[node.output] = index
    read = {name for node in nodes for name in node.inputs}
    constants = {name: array for name, array in constants.items() if name in read}
    return dataclasses.replace(network, nodes=tuple(nodes), constants=constants, folded=folded)


def _affine(network: Network, conv: Node, node: Node) -> Affine | None:
    """What `node` does to the maps of `conv`, if that is one factor and one summand a map."""
    if node.op not in ("Add", "Sub", "Mul", "Div", "BatchNormalization") or node.output not in network.tensors:
        return None
    shape = network.tensors[conv.output].shape
    others = [network.constants.get(name) for name in node.inputs if name != conv.output]
    if network.tensors[node.output].shape != shape or len(others) != len(node.inputs) - 1:
        return None
    if any(other is None or not is_per_channel(other, shape) for other in others):
        return None
    values = [np.broadcast_to(o.astype(np.float64).reshape(-1), shape[1]) for o in others if o is not None]
    one, zero = np.ones(shape[1]), np.zeros(shape[1])
    if node.op == "BatchNormalization":
        return (values[0], values[1]) if len(values) == 2 else None
    first = node.inputs[0] == conv.output
    if node.op in ("Add", "Sub") and len(conv.inputs) < 3:
        return None
    if node.op == "Add":
        return one, values[0]
    if node.op == "Sub":
        return (one, -values[0]) if first else (-one, values[0])
    if node.op == "Mul":
        return values[0], zero
    return (1 / values[0], zero) if first and np.all(values[0] != 0) else None


def _scaled(conv: Node, output: str, affine: Affine, constants: dict[str, Array]) -> Node:
    """The convolution with its weight and bias scaled and shifted; both become constants of its own."""
    scale, shift = affine
    weight = constants[conv.inputs[1]].astype(np.float64)
    bias = constants[conv.inputs[2]].astype(np.float64) if len(conv.inputs) > 2 else 0.0
    names = []
    for role, array in (("weight", weight * scale.reshape(-1, 1, 1, 1)), ("bias", bias * scale + shift)):
        name = f"{output}.{role}"
        while name in constants:
            name += "'"
        constants[name] = array.astype(np.float32)
        names.append(name)
    return dataclasses.replace(conv, inputs=(conv.inputs[0], *names), output=output)
