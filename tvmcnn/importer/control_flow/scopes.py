"""Scopes: the graphs inside nodes, whose nodes are put in the place of these under names that nothing else has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from tvmcnn.network import Array, Shape
from tvmcnn.onnx_file.repair import fresh, inner_graphs, opset_of, own_graphs, title

Names = Mapping[str, str]


def graphs_of(node: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    """The graphs in a node's attributes by the attribute's name."""
    return {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}


def size(graph: onnx.GraphProto) -> int:
    """How many nodes a graph has, those of its inner graphs too."""
    return len(graph.node) + sum(len(inner.node) for inner in inner_graphs(graph.node))


def reads(graph: onnx.GraphProto, name: str) -> bool:
    """Whether a node of a graph or of its inner graphs reads a tensor, or one of these hands it on."""
    everything = (graph, *inner_graphs(graph.node))
    inputs = (given for each in everything for node in each.node for given in node.input)
    return name in inputs or any(value.name == name for each in everything for value in each.output)


class Known:
    """What a graph tells of its tensors: the values of its constants, and types as far as they are inferred."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph, self.opset = proto.graph, opset_of(proto.opset_import)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.input, *graph.value_info, *graph.output)
        self._types = {each.name: each.type.tensor_type for each in values if each.type.HasField("tensor_type")}

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """A constant, None if it is none."""
        return self._tensors.get(name)

    def array(self, name: str) -> Array | None:
        """The values of a constant, None if it is none."""
        tensor = self.tensor(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def extents(self, name: str) -> list[int | None] | None:
        """The extents of a tensor, each None where it is open; None for a tensor of any rank."""
        if name in self._tensors:
            return list(self._tensors[name].dims)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return [extent.dim_value if extent.HasField("dim_value") else None for extent in kind.shape.dim]

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor, None where one of its extents is open."""
        extents = self.extents(name)
        closed = tuple(extent for extent in extents or () if extent is not None)
        return closed if extents is not None and len(closed) == len(extents) else None

    def described(self, name: str) -> str:
        """The type and shape of a tensor in a message."""
        extents = self.extents(name)
        shape = "?" if extents is None else "x".join("?" if each is None else str(each) for each in extents) or "scalar"
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.element(name)) if self.element(name) else "of any type"
        return f"{dtype} {shape}"

    def differ(self, one: str, other: str) -> bool:
        """Whether two tensors are of unequal types or shapes, whatever their open extents turn out to be."""
        pair = self.extents(one), self.extents(other)
        if not self.element(one) or not self.element(other) or pair[0] is None or pair[1] is None:
            return False
        extents = zip(pair[0], pair[1], strict=False)
        unequal = len(pair[0]) != len(pair[1]) or any(a != b for a, b in extents if None not in (a, b))
        return self.element(one) != self.element(other) or unequal

    def element(self, name: str) -> int:
        """The element type of a tensor, 0 where it is not known."""
        if name in self._tensors:
            return int(self._tensors[name].data_type)
        kind = self._types.get(name)
        return 0 if kind is None else int(kind.elem_type)


class Scopes:
    """Makes copies of nodes whose tensors have new names, and remembers what the copies were."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self._titles: dict[str, str] = {}

    def title(self, node: onnx.NodeProto) -> str:
        """A node in a message: as the user's file has it, whatever turn it was copied for."""
        return self._titles.get(node.output[0] if node.output else "", title(node))

    def name(self, output: str, node: onnx.NodeProto) -> None:
        """Let the node whose first output this is be called as `node` is."""
        self._titles[output] = self.title(node)

    def new(self, name: str) -> str:
        """A name like `name` that no tensor has."""
        return fresh(name, self.taken)

    def separate(self, graph: onnx.GraphProto) -> None:
        """Give each tensor of an inner graph a name that no other graph has, and forget shapes inferred from older
        ones.

        Branches that exclude each other may name their tensors alike, until both are put in the places of their nodes.
        """
        named = (*graph.input, *graph.initializer, *graph.output)
        self.taken = {each.name for each in named} | {name for node in graph.node for name in node.output}
        for node in graph.node:
            for inner in own_graphs(node):
                self._separated(inner, {}, "")

    def inlined(
        self, graph: onnx.GraphProto, given: Sequence[str], prefix: str, wanted: Sequence[str] = ()
    ) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes of a graph whose inputs are the tensors `given`, and its outputs, which are named as `wanted`.

        Names begin with the prefix; "" is no wish.
        """
        made = {name for node in graph.node for name in node.output}
        wishes: dict[str, str] = {}
        for value, wish in zip(graph.output, wanted, strict=False):
            if wish and value.name in made:
                wishes.setdefault(value.name, wish)
        names = dict(zip((value.name for value in graph.input), given, strict=True))
        nodes, names = self._copied(graph.node, {**names, **wishes}, prefix, wishes)
        found = [names.get(value.name, value.name) for value in graph.output]
        for place, wish in enumerate(wanted):
            if wish and found[place] != wish:  # an operand that is handed on, or a tensor that is two outputs
                nodes.append(onnx.helper.make_node("Identity", [found[place]], [wish]))
                found[place] = wish
        return nodes, found

    def _copied(
        self, nodes: Sequence[onnx.NodeProto], names: Names, prefix: str, own: Names
    ) -> tuple[list[onnx.NodeProto], dict[str, str]]:
        """Copies of nodes that read what `names` says, and the names of what these make; `own` has some of them."""
        made = [name for node in nodes for name in node.output if name and name not in own]
        names = {**names, **{name: self.new(prefix + name) for name in made}}
        copies = []
        for node in nodes:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.name = prefix + node.name if node.name else ""
            for listed in (copy.input, copy.output):
                listed[:] = [names.get(name, name) for name in listed]
            if copy.output and graphs_of(node):
                self.name(copy.output[0], node)
            for inner in own_graphs(copy):
                self._separated(inner, names, prefix)
            copies.append(copy)
        return copies, names

    def _separated(self, graph: onnx.GraphProto, names: Names, prefix: str) -> None:
        """Rename a graph's tensors in place."""
        own = dict.fromkeys(each.name for each in (*graph.input, *graph.initializer))
        names = {**names, **{name: self.new(prefix + name) for name in own}}
        nodes, names = self._copied(graph.node, names, prefix, {})
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        for each in (*graph.input, *graph.initializer, *graph.output):
            each.name = names.get(each.name, each.name)
