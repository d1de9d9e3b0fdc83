"""Operators that only move elements, or choose among them, on the integers themselves.

y = QuantizeLinear(MaxPool(DequantizeLinear(x, s, z)), s, z)                 -->    y = MaxPool(x)
y = QuantizeLinear(Concat(DequantizeLinear(a, s, z), …(b, t, u)), s, z)      -->    y = Concat(a, Table(b, bytes))

QuantizeLinear never reverses an order, so that what is chosen before it is what would be chosen behind it.
"""

from __future__ import annotations

from tvmcnn.fuse.dequantised import Finder, Form, Integers
from tvmcnn.fuse.tables import requantised
from tvmcnn.network import Node

# Those whose first operand alone is moved; the others say where
MOVES = frozenset(
    """
    Reshape Transpose Slice Expand Tile DepthToSpace SpaceToDepth Gather GatherElements GatherND ReverseSequence MaxPool
    """.split()  # noqa: SIM905
)


def moved(finder: Finder, name: str, to: Integers, output: str, form: Form) -> bool:
    """Whether the integers of the float tensor `name` are others moved; then `form` has the nodes that make them."""
    given = finder.integers(name)
    if given is not None:
        if not given.like(to):
            return _requantised(given, to, output, form)
        form.nodes.append(Node("Reshape", output, (given.name,), output))
        return True
    node = finder.alone(name)
    if node is None:
        return False
    node_inputs = list(node.inputs)
    places = range(len(node_inputs)) if node.op == "Concat" else range(1) if _moves(node) else ()
    for place in places:
        source = _source(finder, node_inputs[place], to, f"{output}.{place}", form)
        if source is None:
            return False
        node_inputs[place] = source
    if not places:
        return False
    attributes = {**node.attributes, "value": to.shift} if node.op == "Pad" else node.attributes
    form.nodes.append(Node(node.op, node.name, tuple(node_inputs), output, attributes))
    form.parts.add(name)
    return True


def _moves(node: Node) -> bool:
    if node.op == "Resize":
        return node["mode"] == "nearest" and node.attributes.get("extrapolation") is None
    if node.op == "Pad":  # by zeros, which are the zero point
        return len(node.inputs) == 1 and (node["mode"] != "constant" or node["value"] == 0)
    return node.op in MOVES


def _source(finder: Finder, name: str, to: Integers, like: str, form: Form) -> str | None:
    """The integers behind a float operand: those that are there, or a new tensor that nodes of `form` make."""
    given = finder.integers(name)
    if given is not None and given.like(to):
        return given.name
    made = form.added.tensor(like, finder.network.tensors[name].shape, to.dtype)
    return made if moved(finder, name, to, made, form) else None


def _requantised(given: Integers, to: Integers, output: str, form: Form) -> bool:
    """Whether integers become others that mean the same by a table; then `form` has it."""
    table = requantised(given, to) if given.name in form.added.tensors else None
    if table is None:
        return False
    form.nodes.append(Node("Table", output, (given.name, form.keep(f"{output}.table", table)), output))
    return True
