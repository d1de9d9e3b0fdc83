"""Loops: the body of a Loop or a Scan once for each turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tvmcnn.importer.control_flow.making import LIMIT, Making, stem
from tvmcnn.importer.control_flow.scopes import Known, reads, size
from tvmcnn.importer.control_flow.turns import known_turns
from tvmcnn.importer.operators import Undecided, Unsupported
from tvmcnn.importer.spelling import Steps
from tvmcnn.network import dims

ENDLESS = 1 << 62  # exporters write the greatest int64 where there is no trip count


def loop(making: Making, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
    """The body once for each turn, with the number of the turn as a constant.

    v, s = Loop(2, true, x, body: c, v, s)  -->  c0, v0, s0 = body(0, true, x); c1, v, s1 = body(1, true, v0)
                                                 s = Concat(Unsqueeze(s0), Unsqueeze(s1))

    Where the body computes whether there is another turn, each has `v1 = Choice(c0, w1, v0)` behind it.
    """
    trip, go, *carried = (*node.input, "")[: max(2, len(node.input))]
    count = len(carried)
    body = making.graph(node, "body", 2 + count, 1 + max(count, len(node.output)))
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
    making.count(node, turns, each)
    making.tell(node, f"unrolled to {_turns(turns)}{', all computed every time' if masked else ''}")
    steps = Steps(node, making.scopes.new)
    true, state = steps.constant(True, np.bool_), carried
    numbered = reads(body, body.input[0].name)
    parts: list[list[str]] = []
    for turn in range(turns):
        prefix = f"{stem(node)}.{turn}."
        names = (*(node.output[:count] if turn + 1 == turns else ()), *[""] * count)[:count]
        given = [steps.constant(turn) if numbered else true, true, *state]
        holds, *made = making.inlined(steps, body, given, prefix, ["", *([] if asked else names)])
        if asked:
            formal = [value.name for value in body.input[2:]]
            names = tuple(name or making.scopes.new(prefix + old) for name, old in zip(names, formal, strict=True))
            making.choose(steps, asked, made, state, names)
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


def scan(making: Making, node: onnx.NodeProto, known: Known) -> Sequence[onnx.NodeProto]:
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
    body = making.graph(node, "body", len(node.input), max(count, len(node.output)))
    stacked = len(body.output) - count
    axes, backwards = (_each(words, f"scan_input_{word}", many) for word in ("axes", "directions"))
    to_axes, to_backwards = (_each(words, f"scan_output_{word}", stacked) for word in ("axes", "directions"))
    lengths = [_length(name, axis, known) for name, axis in zip(scanned, axes, strict=True)]
    if len(set(lengths)) > 1:
        raise ValueError(f"its scanned inputs have {' and '.join(map(str, lengths))} slices; allowed is one number")
    turns = lengths[0]
    making.count(node, turns, size(body) + many + stacked)
    making.tell(node, f"unrolled to {_turns(turns)}")
    steps = Steps(node, making.scopes.new)
    parts: list[list[str]] = []
    for turn in range(turns):
        slices = [
            steps.add("Gather", name, steps.constant(turns - 1 - turn if back else turn), axis=axis)
            for name, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        names = node.output[:count] if turn + 1 == turns else ()
        made = making.inlined(steps, body, [*state, *slices], f"{stem(node)}.{turn}.", names)
        state = made[:count]
        parts.append(made[count:])
    if not turns:
        _hand_on(steps, state, node.output)
    for place, output in enumerate(node.output[count:]):
        pieces = [made[place] for made in parts]
        _stack(steps, pieces[::-1] if to_backwards[place] else pieces, output, to_axes[place], known)
    return steps.nodes


def _turns(count: int) -> str:
    return f"{count} turn{'s' if count != 1 else ''}"


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
