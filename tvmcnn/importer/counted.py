"""Counted axes: which axes of a result are as long as the data says, where an operand has such an axis.

    y = NonZero(x)          int64 (2, n), n counted, at most 40
    z = Transpose(y)        int64 (n, 2), by the same count
    w = GatherND(x, z)      float32 (n)

All is computed of the most that there can be, fillers among it, and cut when it is returned. So an operator may take
such an operand only if no element that counts is computed from a filler: what sums, or joins, along a counted axis is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tvmcnn.importer.operators import OPERATORS, Meaning, Unsupported, Value
from tvmcnn.importer.operators import elementwise as elementwise_operators
from tvmcnn.network import Shape, dims

Counts = dict[int, str]  # the tensor that counts, by axis


def counts_of(op: str, operands: Sequence[Value | None], meaning: Meaning) -> Counts:
    """The counted axes of what an ONNX operator makes of `operands`, one of which has some.

    Raises Unsupported for an operator that may not take it.
    """
    given = [value for value in operands if value is not None]
    rule = RULES.get(op) or (_broadcast if op in ELEMENTWISE else None)
    found = rule(given, meaning) if rule is not None else None
    if found is None:
        value = next(value for value in given if value.counts)
        raise Unsupported(
            f"its input '{value.name}' is as long as the data says along axis {', '.join(map(str, value.counts))};"
            f" supported are element-wise operators and {', '.join(sorted(RULES.keys() - REDUCTIONS))} that keep the"
            f" axis whole, and reductions along others"
        )
    return found


def _broadcast(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """Axes that broadcast: another operand has 1 there, or the same count."""
    found: Counts = {}
    rank, names = len(meaning.shape), {value.name for value in meaning.inputs}
    given = [value for value in given if value.name in names]  # without what gives a type alone
    for value in given:
        found |= {axis + rank - len(value.shape): count for axis, count in value.counts.items()}
    for value in given:
        lead = rank - len(value.shape)
        for axis, count in found.items():
            if axis >= lead and value.shape[axis - lead] != 1 and value.counts.get(axis - lead) != count:
                return None
    return found


def _transposed(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """Transpose: an axis for each of its operand's, as `perm` says, or the same ones where it is a view."""
    if meaning.op == "Transpose":
        perm = meaning.attributes["perm"]
        return {perm.index(axis): count for axis, count in given[0].counts.items()}
    return _seen(given, meaning)


def _seen(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """A view: the axis that has as many elements, with as many before it."""
    found: Counts = {}
    for axis, count in given[0].counts.items():
        place = _same_axis(given[0].shape, axis, meaning.shape)
        if place is None:
            return None
        found[place] = count
    return found


def _same_axis(shape: Shape, axis: int, other: Shape) -> int | None:
    for place, extent in enumerate(other):
        if extent == shape[axis] and math.prod(other[:place]) == math.prod(shape[:axis]):
            return place
    return None


def _kept(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """Slice, and Split: the axes that stay whole, in their order."""
    x = given[0]
    if meaning.op == "Reshape":
        return _seen(given, meaning)
    if meaning.op != "Slice":
        return None
    sizes, steps = meaning.attributes["sizes"], meaning.attributes["steps"]
    if any(sizes[axis] != x.shape[axis] or steps[axis] != 1 for axis in x.counts):
        return None
    return _seen([Value(x.name, tuple(sizes), x.dtype, counts=x.counts)], meaning)


def _gathered(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """Gather: the axes of the indices in the place of one axis of the data, whose others stay."""
    data, indices = given
    if meaning.op != "Gather":
        return _kept([data], meaning)
    axis = meaning.attributes["axis"]
    if axis in data.counts:
        return None
    wider = len(indices.shape) - 1
    found = {place + (wider if place > axis else 0): count for place, count in data.counts.items()}
    return found | {axis + place: count for place, count in indices.counts.items()}


def _gathered_nd(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """GatherND: all axes of the indices but the last."""
    data, indices = given
    if data.counts or meaning.attributes.get("batch_dims", 0) or len(indices.shape) - 1 in indices.counts:
        return None
    return dict(indices.counts)


def _concatenated(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """Concat along another axis of operands that are all as long."""
    if meaning.op != "Concat" or any(value.counts != given[0].counts for value in given):
        return None
    return dict(given[0].counts) if meaning.attributes["axis"] not in given[0].counts else None


def _reduced(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """A reduction along other axes."""
    x, gone = given[0], meaning.attributes.get("axes", ())
    if not gone or set(gone) & set(x.counts):
        return None
    kept = len(meaning.shape) == len(x.shape)
    return {axis - (0 if kept else sum(a < axis for a in gone)): count for axis, count in x.counts.items()}


def _multiplied(given: Sequence[Value], meaning: Meaning) -> Counts | None:
    """MatMul of counted rows by a matrix that is not counted."""
    a, b = given
    if b.counts or len(b.shape) != 2 or len(a.shape) - 1 in a.counts:
        return None
    return dict(a.counts)


ELEMENTWISE = frozenset(
    name for name, function in OPERATORS.items() if function.__module__ == elementwise_operators.__name__
)
REDUCTIONS = frozenset(name for name in OPERATORS if name.startswith(("Reduce", "Arg")))
RULES: Mapping[str, Callable[[Sequence[Value], Meaning], Counts | None]] = {
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"), _seen),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **{"Transpose": _transposed, "Slice": _kept, "Split": _kept, "Gather": _gathered, "GatherND": _gathered_nd},
    **{"Concat": _concatenated, "MatMul": _multiplied},
}


def sentence(name: str, shape: Shape, axes: Sequence[int]) -> str:
    """What compile says of an output with counted axes."""
    which = " and ".join(map(str, axes))
    return f"output '{name}' is as long as the data says along axis {which}: at most {dims(shape)}"
