"""Products of narrow factors: a library that multiplies bfloat16 rounds both factors, and so does the oracle then.

    y = Conv(x, w), z = BatchNormalization(y, …)     the library: z = Conv(bf16(x), bf16(s·w)) + t
    oracle: y = Conv(bf16(x), bf16(s·w) / s), and z of this y

What follows is in float64 as ever. A library that has a scale of the maps in its weights, s·w in float32, rounds those:
the oracle is told them, and takes them for factors only where they are its own weights, each map times one number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

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
    """The weight rounded as that is which a library has in float32: `known`, perhaps scaled map by map, turned, without
    taps, or in another order of each map's taps."""
    if known is None:
        return bfloat16(weight)
    for turned in (False, True):
        ours = weight.swapaxes(0, 1) if turned else weight
        for theirs in (known, known.T) if known.ndim == 2 else (known,):
            found = _as_scaled(ours, theirs)
            if found is not None:
                return found.swapaxes(0, 1) if turned else found
    return bfloat16(weight)


def _as_scaled(weight: Array, known: Array) -> Array | None:
    """The weight, maps first, rounded as `known` is, if that has each map times one number: all of its taps, or those
    in one box, in any order. None if it has not."""
    maps = weight.shape[0]
    if known.shape[0] != maps or not known.size:
        return None
    for box in _boxes(weight.shape[2:], known.size / math.prod(weight.shape[:2])):
        part = weight[:, :, *box]
        found = _matched(part.reshape(maps, -1).astype(np.float64), known.reshape(maps, -1).astype(np.float64))
        if found is not None:
            rounded = bfloat16(weight)
            rounded[:, :, *box] = found.reshape(part.shape)
            return rounded
    return None


def _boxes(extents: tuple[int, ...], taps: float) -> Iterator[tuple[slice, ...]]:
    """Where so many taps may lie that are neighbours in a window of these extents."""
    ends = [itertools.combinations(range(extent + 1), 2) for extent in extents]
    for along in itertools.product(*ends):
        if math.prod(last - first for first, last in along) == taps:
            yield tuple(slice(first, last) for first, last in along)


def _matched(ours: Array, theirs: Array) -> Array | None:
    """(maps, taps) rounded as `theirs` is: each map of ours times one number, rounded to float32, in any order."""
    if ours.shape != theirs.shape:
        return None
    squares, none = (ours * ours).sum(axis=1), np.zeros(len(ours))
    scale = np.divide((ours * theirs).sum(axis=1), squares, where=squares > 0, out=none.copy())
    if (found := _in_order(ours, theirs, scale)) is not None:
        return found
    # When sorted both are in one order, since rounding keeps it, or where the number is negative in the opposite one.
    size = np.sqrt(np.divide((theirs * theirs).sum(axis=1), squares, where=squares > 0, out=none))
    values, rows = np.sort(theirs, axis=1), list[Array]()
    for taps, sorted_, length in zip(ours, values, size, strict=True):
        for sign in (1, -1):
            place = np.argsort(sign * taps)
            row = _in_order(taps[None, place], sorted_[None], np.asarray([sign * length]))
            if row is not None:
                rows.append(row[0, np.argsort(place)])
                break
        else:
            return None
    return np.stack(rows)


def _in_order(ours: Array, theirs: Array, scale: Array) -> Array | None:
    """(maps, taps) rounded as `theirs` is, if that is ours with each map times its number; None where it is not."""
    scaled = scale[:, None] * ours
    if not np.all(np.abs(theirs - scaled) <= CLOSE * np.abs(scaled)):
        return None
    return np.divide(bfloat16(theirs), scale[:, None], where=scale[:, None] != 0, out=bfloat16(ours))


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
