"""Oracle: what NumPy computes for the nodes of a kernel, one after the other.

It shares nothing with the expressions and rules that are tried. Floats are float64; integers are computed as
docs/quantised.md says, and must come out equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tvmcnn.check.reference.narrow import bfloat16
from tvmcnn.check.reference_ops.registry import OPERATORS
from tvmcnn.network import BYTES, FLOAT32, Array, Network, Node

WINDOW = ("kernel_shape", "strides", "pads", "dilations", "group")


def knows(network: Network, node: Node) -> bool:
    """True for a node whose output NumPy computes: of float32, or a convolution of bytes."""
    if node.op == "QLinearConv":
        return network.tensors[node.output].dtype in BYTES
    known = node.op == "BatchNormalization" or any(True for _ in _functions(node, len(node.inputs)))
    return known and network.tensors[node.output].dtype == FLOAT32


def evaluate(node: Node, values: Mapping[str, Array], constants: Mapping[str, Array], *, narrow: bool) -> Array:
    """The node's output; `narrow`, its two factors are rounded to bfloat16."""
    given = [values[name] if name in values else constants[name].astype(np.float64) for name in node.inputs]
    if node.op == "QLinearConv":
        return _convolved(node, *given)
    if node.op == "BatchNormalization":  # folded at import to a scale and a shift a channel
        x, scale, shift = given
        form = (-1, *(1,) * (x.ndim - 2))
        return np.asarray(x * scale.reshape(form) + shift.reshape(form))
    if narrow:
        given[:2] = map(bfloat16, given[:2])
    made = next(_functions(node, len(given)))(*given, **node.attributes)
    return np.asarray(made[0] if isinstance(made, tuple) else made)  # the others are indices


def _convolved(node: Node, x: Array, weight: Array, factor: Array, offset: Array | None = None) -> Array:
    """The exact sum, which float64 holds, times a factor in float32, rounded to the nearest integer and kept in range.

    The zero point of the weight is off already; padding is that of the image.
    """
    attributes = {name: node[name] for name in WINDOW}
    (convolve, *_) = _functions(Node("Conv", "", ("x", "w"), "y", attributes), 2)
    form = (-1, *(1,) * (x.ndim - 2))
    total = np.asarray(convolve(x - node["zero"], weight, **attributes))
    total = total if offset is None else total + offset.reshape(form)
    scaled = total.astype(np.float32) * factor.astype(np.float32).reshape(form if factor.size > 1 else ())
    rounded: Array = np.rint(scaled).astype(np.float64) + node["to"]
    return np.clip(rounded, node["low"], node["high"])


def _functions(node: Node, operands: int) -> Iterator[Any]:
    """The meanings of an operator, newest first, that take so many operands and the node's attributes."""
    for _, function in sorted(OPERATORS.get(node.op, {}).items(), reverse=True):
        try:
            inspect.signature(function).bind(*range(operands), **node.attributes)
        except TypeError:  # Clip's bounds were attributes once, and are here
            continue
        yield function
