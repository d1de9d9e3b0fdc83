"""Turns: how many a Loop takes, where constants alone tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.reference

from tvmcnn.importer.budget import DRAWN
from tvmcnn.importer.control_flow.scopes import Known, graphs_of
from tvmcnn.network import dims

RANDOM = (*DRAWN, "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def known_turns(
    body: onnx.GraphProto, carried: Sequence[str], go: str, limit: int | None, most: int, known: Known
) -> int | None:
    """How many turns a Loop takes, counted up to `most`; None where a condition is computed at run time.

    Raises ValueError for a condition that is not one element.

    Of `i, x = 0, image; while i < 5: i, x = i + 2, f(x)` the nodes that make i are evaluated, and no others.
    """
    if go:
        asked = known.array(go)
        if asked is None:
            return None
        if asked.size != 1:
            raise ValueError(f"its condition '{go}' is {dims(asked.shape)}; it must be one element")
        if not asked.item():
            return 0
    part = _condition(body, carried, known)
    if part is None:
        return None
    most = most if limit is None else min(limit, most)
    turn_name, goes_name, *names = (value.name for value in body.input)
    state = {name: known.array(start) for name, start in zip(names, carried, strict=True)}
    read = [value.name for value in part.graph.input]
    try:
        evaluator = onnx.reference.ReferenceEvaluator(part)
        for turn in range(most):
            feeds = {**state, turn_name: np.array(turn), goes_name: np.array(True)}
            holds, *after = map(np.asarray, evaluator.run(None, {name: feeds[name] for name in read}))
            if not holds.item():
                return turn + 1
            state.update(zip([name for name in read if name in state], after, strict=True))
    except Exception:  # of many classes, where what is read contradicts itself: the importer says how
        return None
    return most


def _condition(body: onnx.GraphProto, carried: Sequence[str], known: Known) -> onnx.ModelProto | None:
    """The part of a body that makes its condition, and of what it starts from the next; None if constants do not tell.

    Its inputs are those of the body that it reads, its outputs the condition and what these of its inputs that are
    carried become.
    """
    maker = {name: node for node in body.node for name in node.output if name}
    place = {value.name: index for index, value in enumerate(body.input)}
    own = {tensor.name: tensor for tensor in body.initializer}
    wanted, pending = set(), [body.output[0].name]
    constants = []
    while pending:
        name = pending.pop()
        if not name or name in wanted:
            continue
        wanted.add(name)
        if name in maker:
            node = maker[name]
            if node.domain or node.op_type in RANDOM or graphs_of(node):
                return None
            pending += node.input
        elif name in place:
            if place[name] > 1 and known.array(carried[place[name] - 2]) is None:
                return None
            pending += [body.output[place[name] - 1].name] if place[name] > 1 else []
        else:
            tensor = own.get(name) or known.tensor(name)
            if tensor is None:
                return None
            constants.append(tensor)
    nodes = [node for node in body.node if not wanted.isdisjoint(node.output)]
    read = [value for value in body.input if value.name in wanted]
    after = [body.output[index - 1].name for value in read if (index := place[value.name]) > 1]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in (body.output[0].name, *after)]
    graph = onnx.helper.make_graph(nodes, "condition", read, outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", known.opset)])
