"""Composed tables: tables of tables are one, and so are sums and products of a byte with what depends on it.

t = Table(x, a), y = QLinearMul(x, t)    -->    y = Table(x, b)

Integers between that others read stay, each by a table of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tvmcnn.fuse.added import Additions
from tvmcnn.fuse.tables import all_bytes
from tvmcnn.network import BYTES, Array, Network, Node

REASON = "between integers: computed with the table of {}"
BINARY = ("QLinearAdd", "QLinearMul")
FUNCTIONS = ("Table", "Reshape", *BINARY)  # of bytes, element by element where no shape changes


def composed_tables(network: Network) -> Network:
    """The network in which each function of one byte is a table of it; the same object if nothing changes."""
    known, added, nodes = _Known(network), Additions(network), list[Node]()
    for node in network.nodes:
        made = known.add(node)
        if made is not None and (node.op in BINARY or (node.op == "Table" and node.inputs[0] != made[0])):
            name = added.constant(f"{node.output}.table", np.ascontiguousarray(made[1]))
            nodes.append(Node("Table", node.name, (made[0], name), node.output))
        else:
            nodes.append(node)
    if all(node is old for node, old in zip(nodes, network.nodes, strict=True)):
        return network
    return _without_unread(added.applied(network, nodes), network)


def _without_unread(network: Network, before: Network) -> Network:
    """The network without the integers that only tables read that are gone."""
    outputs = {tensor.name for tensor in network.outputs}
    nodes, tensors, folded = list(network.nodes), dict(network.tensors), dict(network.folded)
    readers: dict[str, str] = {name: node.output for node in before.nodes for name in node.inputs}
    read = {name for node in nodes for name in node.inputs}
    for node in reversed(network.nodes):
        if node.output in read | outputs or node.output not in readers or node.op not in FUNCTIONS:
            continue
        nodes.remove(node)
        del tensors[node.output]
        folded[node.output] = REASON.format(readers[node.output])
        read = {name for each in nodes for name in each.inputs}
    kept = {name: array for name, array in network.constants.items() if name in read}
    return dataclasses.replace(network, nodes=tuple(nodes), tensors=tensors, folded=folded, constants=kept)


@dataclass
class _Known:
    """What is known to depend on one byte: by tensor the root, and the table."""

    network: Network
    found: dict[str, tuple[str, Array]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[str, Array] | None:
        """Root and table of an operand, itself its root where it is a function of no other; a constant has no root."""
        array = self.network.constants.get(name)
        if array is not None:
            alike = array.size and array.dtype in BYTES and (array == array.reshape(-1)[0]).all()
            return ("", np.broadcast_to(array.reshape(-1)[:1], (256,))) if alike else None
        tensor = self.network.tensors[name]
        if tensor.dtype not in BYTES:
            return None
        return self.found.get(name) or (name, all_bytes(tensor.dtype))

    def add(self, node: Node) -> tuple[str, Array] | None:
        """Root and table of what a node makes; None where it depends on more than one byte."""
        if node.op not in FUNCTIONS:
            return None
        given = [self.of(name) for name in node.inputs[: 2 if node.op in BINARY else 1]]
        roots = {each[0] for each in given if each is not None} - {""}
        if None in given or len(roots) != 1:
            return None
        (root,) = roots
        if self.network.shape(root) != self.network.shape(node.output):
            return None
        self.found[node.output] = root, self._table(node, [each[1] for each in given if each is not None])
        return self.found[node.output]

    def _table(self, node: Node, tables: Sequence[Array]) -> Array:
        if node.op == "Reshape":
            return tables[0]
        constants = [self.network.constants[name] for name in node.inputs[len(tables) :]]
        if node.op == "Table":
            return np.asarray(constants[0][tables[0].view(np.uint8)])
        steps = _combined(
            node, [table.astype(np.int32) for table in tables], [array.reshape(()) for array in constants]
        )
        whole = np.clip(np.rint(steps).astype(np.float64) + node["to"], node["low"], node["high"])
        return np.asarray(whole, self.network.tensors[node.output].dtype)


def _combined(node: Node, tables: Sequence[Array], numbers: Sequence[Array]) -> Array:
    """What a sum or product of integers rounds, in the form that it has (tried_forms.py), in float32."""
    first, second, last = numbers
    with np.errstate(all="ignore"):
        if node["form"] == "linear":
            a, b = (table.astype(np.float32) for table in tables)
            return np.asarray(a * first + (b * second + last))
        zeros = node["zero"], node["other"]
        a, b = ((table - zero).astype(np.float32) for table, zero in zip(tables, zeros, strict=True))
        a, b = a * first, b * second
        value = a * b if node.op == "QLinearMul" else a + b
        return np.asarray(value * last if node["form"] == "reciprocal" else value / last)
