"""Operators that only move elements, or choose among them, on the integers themselves where the scales are equal.

y = QuantizeLinear(MaxPool(DequantizeLinear(x, s, z)), s, z)    -->    y = MaxPool(x)
"""

from __future__ import annotations

from tvmcnn.fuse.dequantised import Finder, Form, Integers
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
            return False
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
    if given is not None:
        return given.name if given.like(to) else None
    made = form.added.tensor(like, finder.network.tensors[name].shape, to.dtype)
    return made if moved(finder, name, to, made, form) else None
