"""Products of narrow factors: a library that multiplies bfloat16 rounds both factors, and so does the oracle then.

    y = Conv(x, w), z = BatchNormalization(y, …)     the library: z = Conv(bf16(x), bf16(s·w)) + t
    oracle: y = Conv(bf16(x), bf16(s·w) / s), and z of this y

What follows is in float64 as ever. A library that has a scale of the maps in its weights, s·w in float32, rounds those:
the oracle is told them, and takes them for factors only where they are its own weights, each map times one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx

from tvmcnn.check.reference_ops import Array

Rounding = Callable[[Array, Array], tuple[Array, Array]]
"""Makes of two factors those that a library multiplies."""

Narrow = Mapping[str, Rounding]
"""The rounding of a node that multiplies, by the name of what it makes."""

SCALES = ("Add", "Sub", "Mul", "Div", "BatchNormalization", "Identity", "Dropout")
"""Operators behind a convolution that a library may have folded into its weight and bias, or left out."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

BITS = 8  # of bfloat16's mantissa, the first one, which is not stored, among them
CLOSE = 2.0**-22  # of a weight: a product of a scale and it, rounded once or twice to float32


def bfloat16(values: Array) -> Array:
    """The nearest numbers of eight bits of mantissa, of two the even one; infinities and NaN as they are."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    nearest: Array = np.ldexp(np.rint(mantissa * 2.0**BITS) / 2.0**BITS, exponent)
    return nearest


def rounded_weight(weight: Array, known: Array | None) -> Array:
    """The weight rounded as that is which a library has in float32: `known`, perhaps scaled map by map, or turned."""
    if known is None or known.size != weight.size:
        return bfloat16(weight)
    turned = weight.ndim == known.ndim == 2 and known.shape == weight.shape[::-1]
    for candidate in (known, known.T) if turned else (known,):
        found = _as_scaled(weight, candidate)
        if found is not None:
            return found
    return bfloat16(weight)


def _as_scaled(weight: Array, known: Array) -> Array | None:
    """The weight rounded as `known` is, which is the weight with each map times one number; None where it is not."""
    ours, theirs = (each.reshape(weight.shape[0], -1).astype(np.float64) for each in (weight, known))
    squares = (ours * ours).sum(axis=1, keepdims=True)
    scale = np.divide((ours * theirs).sum(axis=1, keepdims=True), squares, where=squares > 0, out=np.ones_like(squares))
    if not np.all(np.abs(theirs - scale * ours) <= CLOSE * np.abs(scale * ours)):
        return None
    rounded: Array = np.divide(bfloat16(theirs), scale, where=scale != 0, out=bfloat16(ours))
    return rounded.reshape(weight.shape)


def multiplying(nodes: Iterable[onnx.NodeProto], made: Mapping[str, str]) -> dict[str, str]:
    """The nodes that multiply, those of branches among them, by their outputs, with what a library makes there: what
    `made` has for the output itself, for what scales and shifts lead to, or for what an If makes of it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    listed, found = list(nodes), dict[str, str]()
    for node in listed:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def leads_to(name: str) -> str | None:
        while name not in made and len(following := readers.get(name, [])) == 1 and following[0].op_type in SCALES:
            name = following[0].output[0]
        return made.get(name)

    for node in listed:
        if node.op_type in PRODUCTS and (name := leads_to(node.output[0])) is not None:
            found[node.output[0]] = name
        for branch in (attribute.g for attribute in node.attribute if node.op_type == "If"):
            pairs = zip(branch.output, map(leads_to, node.output), strict=False)
            found |= multiplying(branch.node, {**made, **{each.name: name for each, name in pairs if name is not None}})
    return found
