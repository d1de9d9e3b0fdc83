"""Operators along one axis that are few others: Hardmax and LpNormalization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from tvmcnn.importer.spelling import New, Spell, Spelled, Steps


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _hardmax(node: onnx.NodeProto, new: New) -> Spelled:
    """y = Hardmax(x)    -->    y = OneHot(ArgMax(x), the extent, [0, 1] in the type of x)"""
    axis, x, steps = _attribute(node, "axis", -1), node.input[0], Steps(node, new)
    first = steps.add("ArgMax", x, axis=axis, keepdims=0)
    extent = steps.add("Gather", steps.add("Shape", x), steps.constant([axis]))
    values = steps.add("CastLike", steps.constant([0, 1]), x)
    steps.add("OneHot", first, extent, values, axis=axis, output=node.output[0])
    return steps.nodes


def _lp_normalization(node: onnx.NodeProto, new: New) -> Spelled:
    """y = LpNormalization(x)    -->    y = x / n, n = ReduceL2(x), or ReduceL1(x), or 1 where that is 0

    Raises ValueError for another norm.
    """
    axis, p = _attribute(node, "axis", -1), _attribute(node, "p", 2)
    if p not in (1, 2):
        raise ValueError(f"its p is {p}; ONNX has 1 and 2")
    x, steps = node.input[0], Steps(node, new)
    length = steps.add(f"ReduceL{p}", x, steps.constant([axis]), keepdims=1)
    zero, one = (steps.add("CastLike", steps.constant(value, np.float32), x) for value in (0, 1))
    divisor = steps.add("Where", steps.add("Equal", length, zero), one, length)
    steps.add("Div", x, divisor, output=node.output[0])
    return steps.nodes


SPELLINGS: Mapping[tuple[str, str], Spell] = {("", "Hardmax"): _hardmax, ("", "LpNormalization"): _lp_normalization}
