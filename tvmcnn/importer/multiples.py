"""Multiples: the arithmetic of small tensors of integers whose elements are multiples of N, the number of images.

A tensor is an array of factors: [1, 0, 0] is what Shape gives of N x 8 x 7, with 0 for what has nothing of N, whatever
its value. A rule takes a node, its operands and the constants of the graph. It gives None where a result would not be
such a tensor for every N: Div(N, 3) is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tvmcnn.network import Array

Multiples = np.ndarray[Any, Any]
UNKNOWN = -1  # N times a number that is not looked up
END = 2**31 - 1  # and above: what exporters write for the end of an axis
Rule = Callable[[onnx.NodeProto, Sequence[Multiples], Mapping[str, Array]], Multiples | None]


def nothing(*shapes: tuple[int, ...]) -> Multiples:
    """What has nothing of N, of the shape that these broadcast to."""
    return np.zeros(np.broadcast_shapes(*shapes), np.int64)


def elementwise(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    """Any operator element by element, of operands that have nothing of N."""
    return None if any(each.any() for each in operands) else nothing(*(each.shape for each in operands))


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def _second(node: onnx.NodeProto, values: Mapping[str, Array]) -> Array | None:
    return values.get(node.input[1]) if len(node.input) > 1 else None


def _same(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    return operands[0]


def _cast(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    """To integers: of a float a part could be taken, and rounded."""
    to = onnx.helper.tensor_dtype_to_np_dtype(_attribute(node, "to", 0))
    return operands[0] if to.kind in "iu" or not operands[0].any() else None


def _squeezed(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    axes = _second(node, values)
    return np.asarray(np.squeeze(operands[0], None if axes is None else tuple(axes.reshape(-1).tolist())))


def _unsqueezed(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    axes = _second(node, values)
    return None if axes is None else np.asarray(np.expand_dims(operands[0], tuple(axes.reshape(-1).tolist())))


def _reshaped(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    shape = _second(node, values)
    return None if shape is None or not operands[0].size else operands[0].reshape(shape.tolist())


def _gathered(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    indices = _second(node, values)
    return None if indices is None else np.asarray(np.take(operands[0], indices, _attribute(node, "axis", 0)))


def _sliced(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    bounds = [values.get(name) for name in node.input[1:]]
    known = [int(each.reshape(-1)[0]) for each in bounds if each is not None and each.size == 1]
    if len(known) < len(bounds) or operands[0].ndim != 1:
        return None
    start, end, step = known[0], known[1], known[3] if len(known) > 3 else 1
    return operands[0][start : None if abs(end) >= END else end : step]


def _concatenated(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    return np.concatenate(operands) if all(each.ndim == 1 for each in operands) else None


def _multiplied(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    """A multiple of N by what has nothing of N, whose value may be known."""
    first, second = operands
    if first.any() and second.any():
        return None
    multiple, factor = (first, values.get(node.input[1])) if first.any() else (second, values.get(node.input[0]))
    shape = np.broadcast_shapes(first.shape, second.shape)
    if factor is None or (factor < 1).any() or (multiple == UNKNOWN).any():
        return np.where(np.broadcast_to(multiple, shape) != 0, UNKNOWN, 0)
    return np.asarray(multiple * factor.astype(np.int64))


def _divided(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    """A multiple of N by a constant that divides it for every N."""
    first, second = operands
    divisor = _second(node, values)
    if not first.any() and not second.any():
        return nothing(first.shape, second.shape)
    if second.any() or divisor is None or (divisor < 1).any() or (first < 1).any():
        return None
    quotients, rests = np.divmod(first, divisor)
    return None if rests.any() else np.asarray(quotients)


def _equal(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    """Compared with numbers below 1, which no multiple of N is."""
    first, second = operands
    other = values.get(node.input[1] if first.any() else node.input[0])
    apart = not (first.any() or second.any()) or (other is not None and bool((other < 1).all()))
    return nothing(first.shape, second.shape) if apart else None


def _chosen(node: onnx.NodeProto, operands: Sequence[Multiples], values: Mapping[str, Array]) -> Multiples | None:
    """Where, by a condition that has nothing of N: for every N it chooses alike."""
    condition, first, second = operands
    shape = np.broadcast_shapes(*(each.shape for each in operands))
    first, second = np.broadcast_to(first, shape), np.broadcast_to(second, shape)
    if condition.any() or ((first != second) & (first != 0) & (second != 0)).any():
        return None
    return np.where((first != 0) & (second != 0), first, np.where((first != 0) | (second != 0), UNKNOWN, 0))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mod", "Min", "Max", "Floor", "Ceil", "Less", "Greater", "Not", "And"), elementwise),
    **{"Identity": _same, "Cast": _cast, "Squeeze": _squeezed, "Unsqueeze": _unsqueezed, "Reshape": _reshaped},
    **{"Gather": _gathered, "Slice": _sliced, "Concat": _concatenated, "Mul": _multiplied, "Div": _divided},
    **{"Equal": _equal, "Where": _chosen},
}
