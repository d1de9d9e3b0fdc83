"""Control flow: the nodes of branches and bodies take the place of If, Loop and Scan.

y = If(c, then_branch: a, else_branch: b)  -->  y = Where(c, a, b)
y = Loop(3, true, x, body: f)              -->  y = f(2, f(1, f(0, x)))
y = Scan(s, x, body: f)                    -->  y = f(f(s, x[0]), x[1])

Conditions, trip counts and shapes inside are known only once what is around them has folded, so this takes turns with
`fold`: each round spells the outermost nodes that are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

from tvmcnn.errors import ModelError
from tvmcnn.importer.control_flow import loops
from tvmcnn.importer.control_flow.making import CHOICE, Making, stem
from tvmcnn.importer.control_flow.scopes import Known, graphs_of
from tvmcnn.importer.fold import CONTROL, fold
from tvmcnn.importer.functions import expand_defined
from tvmcnn.importer.operators import Undecided, Unsupported
from tvmcnn.importer.shapes import infer_shapes
from tvmcnn.importer.spelling import Steps
from tvmcnn.network import Array, dims


def fold_control(
    proto: onnx.ModelProto, label: str, original: Mapping[str, str], weights: Mapping[str, Array], *, scales: bool
) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, str], list[str]]:
    """`fold`, with other nodes for control flow as far as there are any, and what to tell of that.

    What cannot be spelled stays, and `refuse` says why. Raises UnsupportedError for more than LIMIT nodes.
    """
    rounds = _Rounds(label)
    rounds.scopes.separate(proto.graph)
    proto, left, folded = fold(proto, label, original, weights, scales=scales)
    while any(map(is_control, proto.graph.node)) and rounds.round(proto):
        expand_defined(proto)
        remaining = {name: original[name] for name in original.keys() - folded.keys()}
        proto, left, lost = fold(proto, label, remaining, left, scales=scales)
        folded |= lost
    return proto, left, folded, list(rounds.notes)


def is_control(node: onnx.NodeProto) -> bool:
    """Whether a node is an If, Loop or Scan, or what is left of one."""
    return node.domain in ("", CHOICE) and node.op_type in CONTROL


def refuse(node: onnx.NodeProto, label: str, proto: onnx.ModelProto) -> None:
    """Raise Unsupported with what keeps a control node from being spelled; the shapes of its model are inferred."""
    _Rounds(label).spelled(node, Known(proto))
    raise Unsupported("it reads what such a node makes")


class _Rounds(Making):
    """Rounds of spelling, each of the outermost control nodes that are left."""

    def round(self, proto: onnx.ModelProto) -> bool:
        """Spell what can be spelled by now, in place; says whether there was any."""
        self.scopes.separate(proto.graph)
        if all(entry.domain != CHOICE for entry in proto.opset_import):
            proto.opset_import.append(onnx.helper.make_opsetid(CHOICE, 1))
        expanded = self._replace(proto, Known(infer_shapes(proto, self.label)), "")
        guess = onnx.ModelProto.FromString(proto.SerializeToString())
        for node in guess.graph.node:  # if the shapes of both operands are equal, they are the result's too
            if node.domain == CHOICE:
                node.CopyFrom(onnx.helper.make_node("Identity", node.input[1:2], list(node.output)))
        return self._replace(proto, Known(infer_shapes(guess, self.label)), CHOICE) or expanded

    def _replace(self, proto: onnx.ModelProto, known: Known, domain: str) -> bool:
        """Spell the control nodes of a domain; a choice that cannot be leaves in doubt all that is inferred from it."""
        nodes: list[onnx.NodeProto] = []
        doubtful: set[str] = set()
        replaced = False
        for node in proto.graph.node:
            doubted = not doubtful.isdisjoint(node.input) or bool(doubtful and graphs_of(node))
            if is_control(node) and node.domain == domain and not doubted:
                try:
                    nodes += self.spelled(node, known)
                    replaced = True
                    continue
                except Unsupported:
                    doubted = domain == CHOICE
            if doubted:
                doubtful.update(node.output)
            nodes.append(node)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)
        proto.graph.initializer.extend(self.constants)
        self.constants = []
        return replaced

    def spelled(self, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
        """The nodes that a control node means. Raises Unsupported, and ModelError for one that means nothing."""
        if node.domain == CHOICE:
            return self._chosen(node, known)
        try:
            return RULES[node.op_type](self, node, known)
        except ValueError as error:
            raise ModelError(f"{self.label}: {self.scopes.title(node)}: {error}") from error

    # ---- If ---------------------------------------------------------------------------------------------------------

    def _if(self, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
        """The nodes of both branches, and a choice between what they make.

        y = If(c, then_branch: a, else_branch: b)  -->  y = Choice(c, a, b)
        """
        steps = Steps(node, self.scopes.new)
        graphs = {word: self.graph(node, f"{word}_branch", 0, len(node.output)) for word in ("then", "else")}
        then, other = (self.inlined(steps, graph, [], f"{stem(node)}.{word}.") for word, graph in graphs.items())
        self.choose(steps, node.input[0], then, other, node.output)
        return steps.nodes

    def _chosen(self, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
        """One of two tensors of one shape and type, by a condition of one element and any rank.

        y = Choice(c, a, b)  -->  y = Where(Squeeze(c), a, b)
        """
        condition, *both = node.input
        holds = known.array(condition)
        if holds is not None and holds.size == 1:
            return [onnx.helper.make_node("Identity", [both[0 if holds.item() else 1]], list(node.output), node.name)]
        asked = known.shape(condition)
        if asked is not None and math.prod(asked) != 1:
            raise Unsupported(f"its condition '{condition}' is {dims(asked)}; it must be one element")
        shapes = [known.shape(name) for name in both]
        kinds = [known.described(name) for name in both]
        if asked is None or (None in shapes and not known.differ(*both)):
            raise Undecided("condition", condition, "the shapes of its outputs must then be known, and are not")
        if kinds[0] != kinds[1]:
            must = f"its output '{node.output[0]}' must then have one shape and type, not {' and '.join(kinds)}"
            raise Undecided("condition", condition, must)
        steps = Steps(node, self.scopes.new)
        if node.op_type == "If":
            self.tell(node, "both branches are computed every time")
        steps.add("Where", steps.add("Squeeze", condition) if asked else condition, *both, output=node.output[0])
        return steps.nodes


RULES = {"If": _Rounds._if, "Loop": loops.loop, "Scan": loops.scan}
