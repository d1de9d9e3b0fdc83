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
from typing import Any

import numpy as np
import onnx

from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer.fold import CONTROL, fold
from tvmcnn.importer.functions import expand_defined
from tvmcnn.importer.operators import Undecided, Unsupported
from tvmcnn.importer.scopes import Known, Scopes, graphs_of, reads, size
from tvmcnn.importer.shapes import infer_shapes
from tvmcnn.importer.spelling import Steps
from tvmcnn.importer.turns import known_turns
from tvmcnn.network import Array, dims

CHOICE = "tvmcnn.choice"  # domain of (condition, a, b) -> a or b, until it is known that their shapes are equal
LIMIT = 10_000  # nodes that the turns of all loops may become
ENDLESS = 1 << 62  # exporters write the greatest int64 where there is no trip count


def fold_control(
    proto: onnx.ModelProto, label: str, original: Mapping[str, str], weights: Mapping[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, str], list[str]]:
    """`fold`, with other nodes for control flow as far as there are any, and what to tell of that.

    What cannot be spelled stays, and `refuse` says why. Raises UnsupportedError for more than LIMIT nodes.
    """
    control = _Control(label)
    control.scopes.separate(proto.graph)
    proto, left, folded = fold(proto, label, original, weights)
    while any(map(is_control, proto.graph.node)) and control.round(proto):
        expand_defined(proto)
        proto, left, lost = fold(proto, label, {name: original[name] for name in original.keys() - folded.keys()}, left)
        folded |= lost
    return proto, left, folded, list(control.notes)


def is_control(node: onnx.NodeProto) -> bool:
    """Whether a node is an If, Loop or Scan, or what is left of one."""
    return node.domain in ("", CHOICE) and node.op_type in CONTROL


def refuse(node: onnx.NodeProto, label: str, proto: onnx.ModelProto) -> None:
    """Raise Unsupported with what keeps a control node from being spelled; the shapes of its model are inferred."""
    _Control(label).spelled(node, Known(proto))
    raise Unsupported("it reads what such a node makes")


class _Control:
    """Control flow in the making, over all rounds."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.scopes = Scopes()
        self.notes: dict[str, None] = {}  # a set in order
        self.made = 0
        self.constants: list[onnx.TensorProto] = []  # those of inner graphs, which all turns share

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

    def _graph(self, node: onnx.NodeProto, word: str, inputs: int, outputs: int) -> onnx.GraphProto:
        """A graph of a node. Raises ValueError where its inputs or outputs are not those of the node."""
        graph = graphs_of(node)[word]
        if len(graph.input) != inputs or len(graph.output) < outputs:
            found = f"{len(graph.input)} inputs and {len(graph.output)} outputs"
            raise ValueError(f"its {word} has {found}; it must have {inputs} and at least {outputs}")
        return graph

    def _inlined(
        self, steps: Steps, graph: onnx.GraphProto, given: Sequence[str], prefix: str, wanted: Sequence[str] = ()
    ) -> list[str]:
        """The outputs of a graph whose nodes are put here; its constants are kept once."""
        self.constants += graph.initializer
        del graph.initializer[:]
        nodes, outputs = self.scopes.inlined(graph, given, prefix, wanted)
        steps.nodes += nodes
        return outputs

    def _count(self, node: onnx.NodeProto, turns: int, each: int) -> None:
        """Refuse a loop that would become too many nodes, before they are made."""
        made = self.made + turns * max(1, each)
        if made > LIMIT:
            reason = f"it would be unrolled to {made:,} nodes; allowed are {LIMIT:,} of all loops"
            raise UnsupportedError(self.label, [f"{self.scopes.title(node)}: {reason}"])
        self.made = made

    def _tell(self, node: onnx.NodeProto, what: str) -> None:
        self.notes[f"{self.scopes.title(node)}: {what}"] = None

    # ---- If ---------------------------------------------------------------------------------------------------------

    def _if(self, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
        """The nodes of both branches, and a choice between what they make.

        y = If(c, then_branch: a, else_branch: b)  -->  y = Choice(c, a, b)
        """
        steps = Steps(node, self.scopes.new)
        self._tell(node, "both branches are computed every time")
        graphs = {word: self._graph(node, f"{word}_branch", 0, len(node.output)) for word in ("then", "else")}
        then, other = (self._inlined(steps, graph, [], f"{_stem(node)}.{word}.") for word, graph in graphs.items())
        _choose(steps, node.input[0], then, other, node.output)
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
        steps.add("Where", steps.add("Squeeze", condition) if asked else condition, *both, output=node.output[0])
        return steps.nodes

    # ---- Loop -------------------------------------------------------------------------------------------------------

    def _loop(self, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
        """The body once for each turn, with the number of the turn as a constant.

        v, s = Loop(2, true, x, body: c, v, s)  -->  c0, v0, s0 = body(0, true, x); c1, v, s1 = body(1, true, v0)
                                                     s = Concat(Unsqueeze(s0), Unsqueeze(s1))

        Where the body computes whether there is another turn, each has `v1 = Choice(c0, w1, v0)` behind it.
        """
        trip, go, *carried = (*node.input, "")[: max(2, len(node.input))]
        count = len(carried)
        body = self._graph(node, "body", 2 + count, 1 + max(count, len(node.output)))
        stacked = list(node.output[count:])
        limit = _trip_count(trip, known)
        each = size(body) + len(stacked)
        most = LIMIT // max(1, each) + 1
        turns = known_turns(body, carried, go, limit, most, known)
        masked = turns is None
        asked = go if go and known.array(go) is None else ""
        if turns is None:
            name, only = asked or body.output[0].name, "only a constant one is supported"
            if found := next(filter(None, stacked), ""):
                raise Undecided("condition", name, f"{only} with the stacked output '{found}'")
            if limit is None:
                raise Undecided("condition", name, f"{only} without a trip count")
            turns, each = limit, each + count + 2
        elif turns == most:  # counted no further
            turns = limit or most
        self._count(node, turns, each)
        self._tell(node, f"unrolled to {_turns(turns)}{', all computed every time' if masked else ''}")
        steps = Steps(node, self.scopes.new)
        true, state = steps.constant(True, np.bool_), carried
        numbered = reads(body, body.input[0].name)
        parts: list[list[str]] = []
        for turn in range(turns):
            prefix = f"{_stem(node)}.{turn}."
            names = (*(node.output[:count] if turn + 1 == turns else ()), *[""] * count)[:count]
            given = [steps.constant(turn) if numbered else true, true, *state]
            holds, *made = self._inlined(steps, body, given, prefix, ["", *([] if asked else names)])
            if asked:
                formal = [value.name for value in body.input[2:]]
                names = tuple(name or self.scopes.new(prefix + old) for name, old in zip(names, formal, strict=True))
                _choose(steps, asked, made, state, names)
            state = list(names) if asked else made[:count]
            parts.append(made[count:])
            if masked:
                holds = steps.add("Squeeze", holds)
                asked = steps.add("And", asked, holds) if asked else holds
        if not turns:
            _hand_on(steps, carried, node.output)
        for place, output in enumerate(stacked):
            _stack(steps, [made[place] for made in parts], output, 0, known)
        return steps.nodes

    # ---- Scan -------------------------------------------------------------------------------------------------------

    def _scan(self, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
        """The body once for each slice of the scanned inputs, forwards or backwards.

        v, s = Scan(x, y, body: v, s)  -->  v0, s0 = body(x, y[0]); v, s1 = body(v0, y[1])
                                            s = Concat(Unsqueeze(s0), Unsqueeze(s1))
        """
        words = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute if each.name != "body"}
        many = words["num_scan_inputs"]
        if not 1 <= many <= len(node.input):
            raise ValueError(f"its num_scan_inputs is {many}; allowed are 1 to {len(node.input)}, the inputs it has")
        state, scanned = list(node.input[:-many]), list(node.input[-many:])
        count = len(state)
        body = self._graph(node, "body", len(node.input), max(count, len(node.output)))
        stacked = len(body.output) - count
        axes, backwards = (_each(words, f"scan_input_{word}", many) for word in ("axes", "directions"))
        to_axes, to_backwards = (_each(words, f"scan_output_{word}", stacked) for word in ("axes", "directions"))
        lengths = [_length(name, axis, known) for name, axis in zip(scanned, axes, strict=True)]
        if len(set(lengths)) > 1:
            raise ValueError(f"its scanned inputs have {' and '.join(map(str, lengths))} slices; allowed is one number")
        turns = lengths[0]
        self._count(node, turns, size(body) + many + stacked)
        self._tell(node, f"unrolled to {_turns(turns)}")
        steps = Steps(node, self.scopes.new)
        parts: list[list[str]] = []
        for turn in range(turns):
            slices = [
                steps.add("Gather", name, steps.constant(turns - 1 - turn if back else turn), axis=axis)
                for name, axis, back in zip(scanned, axes, backwards, strict=True)
            ]
            names = node.output[:count] if turn + 1 == turns else ()
            made = self._inlined(steps, body, [*state, *slices], f"{_stem(node)}.{turn}.", names)
            state = made[:count]
            parts.append(made[count:])
        if not turns:
            _hand_on(steps, state, node.output)
        for place, output in enumerate(node.output[count:]):
            pieces = [made[place] for made in parts]
            _stack(steps, pieces[::-1] if to_backwards[place] else pieces, output, to_axes[place], known)
        return steps.nodes


RULES = {"If": _Control._if, "Loop": _Control._loop, "Scan": _Control._scan}


def _stem(node: onnx.NodeProto) -> str:
    """What the names of a node's copies begin with."""
    return node.name or next(filter(None, node.output), node.op_type)


def _turns(count: int) -> str:
    return f"{count} turn{'s' if count != 1 else ''}"


def _choose(steps: Steps, condition: str, first: Sequence[str], second: Sequence[str], outputs: Sequence[str]) -> None:
    """Outputs that are each one of two tensors; whether that is a Where is known once their shapes are."""
    for one, other, output in zip(first, second, outputs, strict=False):
        if output:
            steps.add(steps.node.op_type, condition, one, other, output=output, domain=CHOICE)


def _hand_on(steps: Steps, state: Sequence[str], outputs: Sequence[str]) -> None:
    """Outputs of a loop without a turn: what it starts from."""
    for name, output in zip(state, outputs, strict=False):
        if output:
            steps.add("Identity", name, output=output)


def _stack(steps: Steps, parts: Sequence[str], output: str, axis: int, known: Known) -> None:
    """The parts along a new axis; of no part a tensor of the shape that is inferred, with an extent of 0."""
    if not output:
        return
    if parts:
        axes = steps.constant([axis])
        steps.add("Concat", *(steps.add("Unsqueeze", part, axes) for part in parts), output=output, axis=axis)
        return
    extents = known.extents(output)
    if extents is not None and -len(extents) <= axis < len(extents):
        extents[axis] = 0
    if extents is None or None in extents or not known.element(output):
        raise Unsupported(f"it takes no turn, and the shape of its output '{output}' is not known then")
    empty = onnx.helper.make_tensor("", known.element(output), [extent or 0 for extent in extents], [])
    steps.add("Constant", output=output, value=empty)


def _each(words: Mapping[str, Any], word: str, count: int) -> list[int]:
    """An attribute of Scan that has a number for each of `count` tensors, 0 if it is left out."""
    values = list(words.get(word) or [0] * count)
    if len(values) != count:
        raise ValueError(f"its {word} has {len(values)} values; it must have {count}")
    return values


def _length(name: str, axis: int, known: Known) -> int:
    """The extent of a scanned axis."""
    extents = known.extents(name)
    if extents is not None and not -len(extents) <= axis < len(extents):
        raise ValueError(f"it scans axis {axis} of '{name}', which has {len(extents)} axes")
    length = None if extents is None else extents[axis]
    if length is None:
        raise Unsupported(f"the extent of its scanned input '{name}' is not known when it is compiled")
    return length


def _trip_count(name: str, known: Known) -> int | None:
    """How many turns a Loop takes at most, None for any number. Raises Undecided where it is computed."""
    if not name:
        return None
    count = known.array(name)
    if count is None:
        raise Undecided("trip count", name)
    if count.size != 1 or count.dtype.kind not in "iu":
        raise ValueError(f"its trip count '{name}' is {count.dtype} {dims(count.shape)}; it must be one integer")
    return None if count.item() >= ENDLESS else max(0, int(count.item()))
