"""Jumps: operators whose answer jumps, and which of their answers a right library may give.

Floor(2.9999999) is 2, Floor(3.0000001) is 3: behind a rounding error either may be right, and no bound on the answer
says so. Which elements stand so near a step is decided one by one, from the oracle's operands and how far the library's
may be from them. Everywhere else the answer is exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmcnn.check.reference_ops.onnx_reference import selected_boxes
from tvmcnn.check.reference_ops.regions import max_roi_pool, roi_align
from tvmcnn.check.reference_ops.sample import grid_sample
from tvmcnn.check.reference_ops.windows import max_pool
from tvmcnn.network import Array, Node, Shape

PLACE_ROUNDING = 4 * 2.0**-24  # of a place by the few operations that lead to a pixel, relative to their size
COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}
ROUNDINGS: dict[str, Callable[[Array], Array]] = {  # that never decrease
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sign": np.sign,
}
PLACES: dict[str, Callable[..., Array]] = {  # that choose where to read by places, the second operand
    "GridSample": grid_sample,
    "RoiAlign": roi_align,
    "MaxRoiPool": max_roi_pool,
}


def _places(x: Array) -> Array:
    return np.stack(np.nonzero(x)).astype(np.int64)


# Operators that find as many as there are
CHOSEN: dict[str, Callable[..., Array]] = {"NonZero": _places, "NonMaxSuppression": selected_boxes}
STEPS = frozenset(
    {
        *(*COMPARISONS, *ROUNDINGS, "Mod", "IsNaN", "IsInf", "ArgMax", "ArgMin", "TopK", "MaxPoolIndices"),
        *("Shrink", "ThresholdedRelu", "QuantizeLinear", "DynamicZeroPoint", *CHOSEN),
    }
)


def is_step(node: Node) -> bool:
    """True for an operator whose answer may jump where its operand moves by a rounding error."""
    if node.op in PLACES:
        return node.op != "GridSample" or bool(node["mode"] == "nearest")
    return node.op in STEPS or (node.op == "Cast" and not node["to"].startswith("float"))


def chosen(node: Node, operands: Sequence[Array]) -> Array:
    """All that an operator of CHOSEN finds in its operands: no element of that can be judged by itself."""
    return CHOSEN[node.op](*operands, **{key: value for key, value in node.attributes.items() if key != "along"})


def also_rounds(node: Node) -> bool:
    """True for a step between whose jumps sums round."""
    return node.op == "RoiAlign"


def same_side(node: Node, second: Array | None, value: Array, clean: Array, reach: float) -> Array:
    """What a step answers to a disturbed operand, on the side where `clean` is, its answer to the operand as it is.

    ThresholdedRelu, Shrink and Mod move with their operand between jumps, and what reads at places moves by `reach` at
    most; the others stay. `second` is the second operand, Mod's divisor.
    """
    if node.op in PLACES and clean.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            return np.where(np.abs(value - clean) <= reach, value, clean)
    if node.op in ("Shrink", "ThresholdedRelu"):
        return np.where((value == 0) == (clean == 0), value, clean)
    if node.op == "Mod" and second is not None and clean.dtype.kind == "f":
        turn = np.abs(second)
        return np.where(np.abs(value - clean) > turn / 2, value - np.copysign(turn, value - clean), value)
    return clean


def admissible(
    node: Node,
    operands: Sequence[Array],
    errors: Sequence[float],
    expected: Array,
    found: Array,
    own: float = 0.0,
) -> Array:
    """Where `found` may stand for `expected`: the elements whose operands, each within its error, could have given it.

    Operands are the oracle's; all arrays are of logical shape, and errors absolute. `own` is that of the result where
    it does not jump.
    """
    x, error = operands[0], errors[0]
    if node.op in PLACES:
        return _at_other_places(node, operands, errors, found, max(own, error))
    if not any(errors):
        return np.zeros(found.shape, bool)
    with np.errstate(all="ignore"):
        if node.op in COMPARISONS:
            return np.asarray(np.broadcast_to(np.abs(x - operands[1]) <= sum(errors), found.shape))
        if node.op == "Cast" and node["to"] == "bool":
            return np.abs(x) <= error
        if node.op in (*ROUNDINGS, "Cast"):
            step = ROUNDINGS.get(node.op, np.trunc)
            low, high = step(x - error), step(x + error)
            ends = (found == _wrapped(low, found.dtype)) | (found == _wrapped(high, found.dtype))
            return np.asarray(((low <= found) & (found <= high) | ends) & (low != high))
        if node.op == "QuantizeLinear":
            return _between_quotients(operands, errors, found)
        if node.op == "DynamicZeroPoint":
            return _zero_of_range(x, error, found)
        if node.op == "IsInf":
            return np.asarray(np.abs(x) + error >= np.finfo(np.float32).max)
        if node.op in ("ArgMax", "ArgMin"):
            return _as_large(node, x, error, expected, found)
        if node.op == "TopK":
            return _in_order(node, x, error, expected, found)
        if node.op == "MaxPoolIndices":
            return _in_window(node, x, error, expected, found)
        if node.op == "ThresholdedRelu":
            near = np.abs(x - node["alpha"]) <= error
            return np.asarray(near & ((found == 0) | (np.abs(found - x) <= error)))
        if node.op == "Shrink":
            moved = x - np.copysign(node["bias"], x)
            near = np.abs(np.abs(x) - node["lambd"]) <= error
            return np.asarray(near & ((found == 0) | (np.abs(found - moved) <= error)))
        if node.op == "Mod":
            return _beside_multiple(x, operands[1], errors, found)
    return np.zeros(found.shape, bool)


def of_stored(node: Node, operands: Sequence[Array], dtypes: Sequence[str], shape: Shape) -> Array | None:
    """What a step answers, in that shape, to the oracle's operands as their types store them; None where that is not
    computed here.

    Tanh(10) is 1 in float32, and its Floor 1: no chance is in that, and nothing to be excused. Nor in which of several
    ones ArgMax finds first.
    """
    with np.errstate(all="ignore"):
        given = [operand.astype(dtype) for operand, dtype in zip(operands, dtypes, strict=True)]
        if node.op in COMPARISONS:
            return COMPARISONS[node.op](*given)
        if node.op in ROUNDINGS:
            return ROUNDINGS[node.op](given[0])
        if node.op == "Cast":
            return np.asarray(given[0] != 0) if node["to"] == "bool" else _wrapped(given[0], np.dtype(node["to"]))
        if node.op in PLACES:
            return PLACES[node.op](*given, **node.attributes)
        if node.op == "QuantizeLinear":
            return _quantised(given[0] / given[1], given[2])
        return ANSWERS[node.op](node, shape, *given) if node.op in ANSWERS else None


def _first_largest(node: Node, shape: Shape, x: Array) -> Array:
    """ArgMax and ArgMin: of equal ones the first, or the last."""
    (axis,), find = node["axes"], np.argmax if node.op == "ArgMax" else np.argmin
    place = np.asarray(find(np.flip(x, axis), axis) if node["last"] else find(x, axis))
    return np.reshape(x.shape[axis] - 1 - place if node["last"] else place, shape)


def _largest_in_order(node: Node, shape: Shape, x: Array) -> Array:
    """TopK: of equal ones the first."""
    axis = node["along"][0]
    order = np.argsort(-x if node["largest"] else x, axis, kind="stable")
    return np.take(order, range(shape[axis]), axis)


def _first_in_window(node: Node, shape: Shape, x: Array) -> Array | None:
    """MaxPool's places, if its windows are as many as the pads alone make them."""
    names = ("kernel_shape", "strides", "pads", "dilations", "storage_order")
    _, places = max_pool(x, **{name: node[name] for name in names})
    return places if places.shape == shape else None


def _infinite(node: Node, shape: Shape, x: Array) -> Array:
    return np.asarray(np.isinf(x) & (((x > 0) & node["positive"]) | ((x < 0) & node["negative"])))


def _above(node: Node, shape: Shape, x: Array) -> Array:
    return np.where(x > x.dtype.type(node["alpha"]), x, 0)


def _shrunk(node: Node, shape: Shape, x: Array) -> Array:
    lambd, bias = (x.dtype.type(node[name]) for name in ("lambd", "bias"))
    return np.where(x > lambd, x - bias, np.where(x < -lambd, x + bias, 0))


def _remainder(node: Node, shape: Shape, x: Array, y: Array) -> Array:
    made: Array = (np.fmod if node["fmod"] else np.mod)(x, y)
    return made


ANSWERS: dict[str, Callable[..., Array | None]] = {
    "ArgMax": _first_largest,
    "ArgMin": _first_largest,
    "TopK": _largest_in_order,
    "MaxPoolIndices": _first_in_window,
    "IsInf": _infinite,
    "ThresholdedRelu": _above,
    "Shrink": _shrunk,
    "Mod": _remainder,
}


def _wrapped(values: Array, dtype: np.dtype[Any]) -> Array:
    """Floats as an integer type has them, without their fraction: −1 is 255 in uint8. Floats stay as they are."""
    if dtype.kind not in "iu" or values.dtype.kind != "f":
        return values
    return np.trunc(values).astype(np.int64 if dtype.itemsize < 8 else dtype).astype(dtype)


def _quantised(quotient: Array, zero: Array) -> Array:
    """What QuantizeLinear makes of a quotient."""
    limits = np.iinfo(zero.dtype)
    moved = np.where(np.isnan(quotient), -np.inf, np.rint(quotient)) + zero.astype(np.float64)
    return np.asarray(np.clip(moved, limits.min, limits.max).astype(zero.dtype))


def _between_quotients(operands: Sequence[Array], errors: Sequence[float], found: Array) -> Array:
    """Where an integer lies between those of the quotients that x and its scale, each within its error, have."""
    x, scale, zero = operands
    ends = [_quantised((x + a) / (scale + b), zero) for a in (-errors[0], errors[0]) for b in (-errors[1], errors[1])]
    low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
    return np.asarray((low <= found) & (found <= high) & (low != high))


def _zero_of_range(x: Array, error: float, found: Array) -> Array:
    """Where a zero point is that of the range of x, either end of it within the error."""
    least, most = min(0.0, float(x.min(initial=0))), max(0.0, float(x.max(initial=0)))
    lows, highs = (min(0.0, least - error), min(0.0, least + error)), (max(0.0, most - error), most + error)
    ends = [np.rint(-255 * low / max(high - low, 1e-300)) for low in lows for high in highs]
    return np.asarray((min(ends) <= found) & (found <= max(ends)) & (min(ends) != max(ends)))


def _as_large(node: Node, x: Array, error: float, expected: Array, found: Array) -> Array:
    """Where an index names an element that is as large (as small) as the right one, within both errors."""
    (axis,), kept = node["axes"], found.ndim == x.ndim
    inside = (found >= 0) & (found < x.shape[axis])

    def at(index: Array) -> Array:
        wide = np.clip(index, 0, x.shape[axis] - 1)
        wide = wide if kept else np.expand_dims(wide, axis)
        taken = np.take_along_axis(x, wide, axis)
        return taken if kept else np.squeeze(taken, axis)

    return np.asarray(inside & (np.abs(at(found) - at(expected)) <= 2 * error))


def _in_order(node: Node, x: Array, error: float, expected: Array, found: Array) -> Array:
    """Where an index of a TopK names an element as large as the right one, within both errors, and is there once."""
    axis = node["along"][0]
    length = x.shape[axis]
    inside = (found >= 0) & (found < length)
    sizes, wanted = (np.take_along_axis(x, np.clip(index, 0, length - 1), axis) for index in (found, expected))
    ordered = np.moveaxis(np.sort(found, axis), axis, 0)
    once = np.all(ordered[1:] != ordered[:-1], axis=0)
    return np.asarray(inside & np.expand_dims(once, axis) & (np.abs(sizes - wanted) <= 2 * error))


def _in_window(node: Node, x: Array, error: float, expected: Array, found: Array) -> Array:
    """Where a flat index names an element of the same window that is as large as the right one, within both errors."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])  # storage_order 1 runs through the rows of a map first

    def place(index: Array) -> tuple[Array, ...]:
        first, rest = np.divmod(index, math.prod(shape[1:]))
        return (first, *np.unravel_index(rest, shape[1:], "F" if node["storage_order"] else "C"))

    inside = (found >= 0) & (found < x.size)
    ours, theirs = place(np.where(inside, found, 0)), place(expected)
    maps = x.reshape(shape)
    same = inside & (ours[0] == theirs[0]) & (np.abs(maps[ours] - maps[theirs]) <= 2 * error)
    windows = zip(ours[1:], theirs[1:], node["kernel_shape"], node["dilations"], strict=True)
    for one, other, size, dilation in windows:
        same &= np.abs(one - other) <= (size - 1) * dilation
    return np.asarray(same)


def _at_other_places(node: Node, operands: Sequence[Array], errors: Sequence[float], found: Array, own: float) -> Array:
    """Where the answer, within `own`, is that to places moved by their error and what computing with them rounds.

    Every coordinate of a place is moved either way, each with each: near a corner of pixels any of four may be right.
    """
    x, places, *others = operands
    wide = places.astype(np.float64)
    if node.op == "GridSample":
        size = np.abs(wide) + 1  # of what is rounded, of which an error is half the image's extent in pixels
        moves = np.full(wide.shape[-1], True)
    else:
        size = np.abs(wide) + 2 * max(x.shape[2:]) / max(abs(node["spatial_scale"]), 1e-30)
        moves = np.arange(wide.shape[-1]) >= wide.shape[-1] - 4  # MaxRoiPool's first is the image
    apart = (errors[1] + PLACE_ROUNDING * size) * moves
    if node.op == "RoiAlign":  # what the move changes between jumps, which an image does by twice its size a pixel
        own += 4 * float(np.abs(x).max(initial=0) * np.abs(node["spatial_scale"]) * apart.max(initial=0))
    near = np.zeros(found.shape, bool)
    with np.errstate(all="ignore"):
        for signs in itertools.product((-1, 1), repeat=int(moves.sum())):
            sign = np.zeros(wide.shape[-1])
            sign[moves] = signs
            answer = PLACES[node.op](x, wide + sign * apart, *others, **node.attributes)
            near |= answer == found
            if found.dtype.kind == "f":
                near |= np.abs(answer - found) <= own + 2.0**-23 * np.abs(answer)
    return near


def _beside_multiple(x: Array, y: Array, errors: Sequence[float], found: Array) -> Array:
    """Where x is a multiple of y within both errors: the remainder may be near 0 or near y."""
    count = np.rint(x / y)
    error = errors[0] + np.abs(count) * errors[1]
    near = np.abs(x - count * y) <= error
    return np.asarray(near & ((np.abs(found) <= error) | (np.abs(np.abs(found) - np.abs(y)) <= error)))
