"""Products of narrow factors: a library that multiplies bfloat16 rounds both factors, and so does the oracle then.

    y = Conv(x, w), z = BatchNormalization(y, …)     the library: z = Conv(bf16(x), bf16(s·w)) + t
    oracle: y = Conv(bf16(x), bf16(s·w) / s), and z of this y

What follows is in float64 as ever. A library that has a scale of the maps in its weights, s·w in float32, rounds those:
the oracle is told them, and takes them for factors only where they are its own weights, each map times one number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import onnx

from tvmcnn.check.reference_ops import Array

Rounding = Callable[[Array, Array], tuple[Array, Array]]
"""Makes of two factors those that a library multiplies."""

Narrow = Mapping[str, Rounding]
"""The rounding of a node that multiplies, by the name of what it makes."""

SCALES = ("Add", "Sub", "Mul", "Div", "BatchNormalization", "Identity", "Dropout")
"""Operators behind a convolution that a library may have folded into its weight and bias, or left out."""

BITS = 8  # of bfloat16's mantissa, the first one, which is not stored, among them
CLOSE = 2.0**-22  # of a weight: a product of a scale and it, rounded once or twice to float32


def bfloat16(values: Array) -> Array:
    """The nearest numbers of eight bits of mantissa, of two the even one; infinities and NaN as they are."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    nearest: Array = np.ldexp(np.rint(mantissa * 2.0**BITS) / 2.0**BITS, exponent)
    return nearest


def rounded_weight(weight: Array, known: Array | None) -> Array:
    """The weight rounded as that is which a library has in float32, perhaps scaled map by map: `known`."""
    if known is None or known.size != weight.size:
        return bfloat16(weight)
    ours, theirs = (each.reshape(weight.shape[0], -1).astype(np.float64) for each in (weight, known))
    squares = (ours * ours).sum(axis=1, keepdims=True)
    scale = np.divide((ours * theirs).sum(axis=1, keepdims=True), squares, where=squares > 0, out=np.ones_like(squares))
    same = np.abs(theirs - scale * ours) <= CLOSE * np.abs(scale * ours)
    if not same.all():
        return bfloat16(weight)
    rounded: Array = np.divide(bfloat16(theirs), scale, where=scale != 0, out=bfloat16(ours))
    return rounded.reshape(weight.shape)


def multiplying(nodes: Iterable[onnx.NodeProto], made: Collection[str]) -> dict[str, str]:
    """The nodes that multiply, those of branches among them, by their outputs, with what a library makes there: one of
    `made`, the output itself or what scales and shifts lead to."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    listed, found = list(nodes), dict[str, str]()
    for node in listed:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in listed:
        for attribute in node.attribute:
            found |= multiplying(attribute.g.node, made)
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        name = node.output[0]
        while name not in made and len(following := readers.get(name, [])) == 1 and following[0].op_type in SCALES:
            name = following[0].output[0]
        if name in made:
            found[node.output[0]] = name
    return found
