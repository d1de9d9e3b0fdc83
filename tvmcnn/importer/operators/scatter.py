"""Operators that write where indices say, which may arrive at run time.

An index may count from the end: −1 is the last. One outside its axis is refused where it is constant; at run time it is
clamped, to the first element below and to the last above, so that no kernel writes outside its tensors. Of several
updates of one element the last stands.
"""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.gather import check_indices
from tvmcnn.importer.operators.meaning import DTYPES, Meaning, Value, alike, axis_of, derived, named, operator
from tvmcnn.importer.operators.shape import view
from tvmcnn.network import Array, Shape, dims

REDUCTIONS = ("none", "add", "mul", "max", "min")


@operator
def scatter_elements(data: Value, indices: Value, updates: Value, *, axis: int = 0, reduction: str = "none") -> Meaning:
    """ONNX ScatterElements: y = data, then y[i with its coordinate along one axis indices[i]] = updates[i]."""
    shape, given = data.shape, indices.shape
    axis = axis_of(axis, len(shape))
    _check(data, updates, reduction)
    others = [a for a in range(len(shape)) if a != axis]
    if len(given) != len(shape) or updates.shape != given or any(given[a] > shape[a] for a in others):
        raise ModelError(
            f"data {dims(shape)}, indices {dims(given)}, updates {dims(updates.shape)}: the last two must be alike,"
            f" and not exceed the first along any axis but {axis}"
        )
    check_indices(data, indices, [shape[axis]])
    if not math.prod(given):
        return view(data, shape)
    if indices.data is None or reduction != "none":
        return Meaning("ScatterElements", (data, indices, updates), shape, _in_order(axis, axis + 1, reduction))
    places, lead = indices.data % shape[axis], len(shape)
    while lead > axis + 1 and given[lead - 1] == shape[lead - 1] and bool(np.all(places == places[..., :1])):
        places, lead = places[..., 0], lead - 1  # whole slices are written
    found = np.indices(places.shape)
    found[axis] = places
    return _written(data, updates, found.reshape(lead, -1))


@named("ScatterND")
def scatter_nd(data: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Meaning:
    """ONNX ScatterND: y = data, then y[t] = a slice of `updates` for each tuple t in the last axis of `indices`."""
    shape = data.shape
    depth = indices.shape[-1] if indices.shape else 0
    _check(data, updates, reduction)
    if not 1 <= depth <= len(shape):
        raise ModelError(f"index tuples of {depth} into the {len(shape)} axes of {dims(shape)}")
    wanted = (*indices.shape[:-1], *shape[depth:])
    if updates.shape != wanted:
        raise ModelError(f"updates are {dims(updates.shape)}; these indices into {dims(shape)} take {dims(wanted)}")
    check_indices(data, indices, list(shape[:depth]))
    if not math.prod(wanted):
        return view(data, shape)
    if indices.data is None or reduction != "none":
        return Meaning("ScatterND", (data, indices, updates), shape, _in_order(0, depth, reduction))
    places = indices.data.reshape(-1, depth) % np.array(shape[:depth])
    return _written(data, updates, places.T)


def _check(data: Value, updates: Value, reduction: str) -> None:
    alike(DTYPES, data, updates)
    if reduction not in REDUCTIONS:
        raise ModelError(f"reduction is '{reduction}'; allowed are {', '.join(REDUCTIONS)}")


def _in_order(first: int, last: int, reduction: str) -> dict[str, object]:
    return {"along": (first, last), "reduction": reduction}


def _written(data: Value, updates: Value, places: Array) -> Meaning:
    """The Meaning of slices written at known places, (axes, updates): a box where they are one, in its order."""
    lead: Shape = data.shape[: len(places)]
    begins = places.min(axis=1)
    sizes = places.max(axis=1) + 1 - begins
    flat = np.ravel_multi_index(tuple(places), lead)
    if math.prod(sizes.tolist()) == flat.size:
        box = np.indices(sizes).reshape(len(lead), -1) + begins[:, None]
        if np.array_equal(np.ravel_multi_index(tuple(box), lead), flat):
            tail = data.shape[len(lead) :]
            extents = (*sizes.tolist(), *tail)
            if extents == data.shape:
                return view(updates, data.shape)
            attributes = {"begins": (*begins.tolist(), *(0 for _ in tail)), "sizes": extents}
            return Meaning("ScatterBox", (data, updates), data.shape, attributes)
    sources = np.full(math.prod(lead), -1, np.int32)
    sources[flat] = np.arange(flat.size)  # NumPy lets the last of several stand
    return Meaning("ScatterPlaces", (data, updates, derived("sources", sources.reshape(lead), "int32")), data.shape)
