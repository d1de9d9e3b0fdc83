"""Operators that write where indices say, follow an axis or put it in order, and those that put windows back."""

from __future__ import annotations

import math

import numpy as np

from graphs.draft import Array, Draft, Held, Skip
from graphs.growers import allowed, filled, grows
from graphs.moves import indices


def along(held: Held) -> bool:
    return held.rank >= 1 and filled(held)


def updates(d: Draft, x: Held, shape: tuple[int, ...]) -> Held:
    """Numbers, or a tensor that happens to be of that shape."""
    there = d.pick(lambda held: held.dtype == x.dtype and held.shape == shape)
    return there if there is not None and d.chance(1, 2) else d.drawn(shape, x.dtype)


def reduction(d: Draft, op: str, x: Held) -> dict[str, str]:
    words = ("none", "add", "mul", "max", "min") if d.opset >= 18 else ("none", "add", "mul")
    if d.opset < 16 or x.dtype == "bool" or d.chance(1, 2):
        return {}
    return {"reduction": d.choice(words)}


@grows("ScatterElements", when=along)
def scatter_elements(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(0, x.rank - 1)
    whole = d.chance(1, 2)
    shape = [extent if whole else d.integer(1, min(extent, 4)) for extent in x.shape]
    shape[axis] = d.integer(1, 5)
    if math.prod(shape) > 600:
        raise Skip("many updates")
    given = indices(d, tuple(shape), x.shape[axis], d.choice(("int64", "int32")))
    d.node(op, [x, given, updates(d, x, tuple(shape))], axis=axis, **reduction(d, op, x))


@grows("ScatterND", when=along)
def scatter_nd(d: Draft, op: str, x: Held) -> None:
    """At single tuples, or a box of them as a slice assignment has."""
    depth = d.integer(1, x.rank)
    if d.chance(1, 2):
        value = box(d, x.shape[:depth])
        if value.size > 1500:
            raise Skip("many updates")
        given = d.constant(value)
    else:
        rng = np.random.default_rng(d.integer(0, 99))
        lead = d.choice(((3,), (1,), (2, 2), ()))
        value = np.stack([rng.integers(-extent, extent, lead) for extent in x.shape[:depth]], axis=-1)
        given = d.input(value) if d.chance(1, 3) else d.constant(value)
    shape = (*value.shape[:-1], *x.shape[depth:])
    d.node(op, [x, given, updates(d, x, shape)], **reduction(d, op, x))


def box(d: Draft, extents: tuple[int, ...]) -> Array:
    """The index tuples of a box, sometimes of every second element."""
    ranges = []
    for extent in extents:
        first = d.integer(0, extent - 1)
        ranges.append(np.arange(first, d.integer(first, extent - 1) + 1, d.choice((1, 1, 1, 2))))
    return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)


@grows("TopK", when=along)
def top_k(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(0, x.rank - 1)
    words = {"largest": d.integer(0, 1)} if d.opset >= 11 else {}
    d.node(op, [x, d.whole([d.integer(1, x.shape[axis])])], outputs=2, axis=axis, **words)


@grows("CumSum", when=along)
def cum_sum(d: Draft, op: str, x: Held) -> None:
    axis = np.asarray(d.integer(-x.rank, x.rank - 1), d.choice(("int64", "int32")))
    d.node(op, [x, d.constant(axis)], exclusive=d.integer(0, 1), reverse=d.integer(0, 1))


@grows("Hardmax", when=along)
def hardmax(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], axis=d.integer(0, x.rank - 1))


@grows("LpNormalization", when=along)
def lp_normalization(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], axis=d.integer(0, x.rank - 1), p=d.integer(1, 2))


@grows("Shrink")
def shrink(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], **({"lambd": d.choice((0.25, 1.5)), "bias": d.choice((0.0, 0.75))} if d.chance(2, 3) else {}))


@grows("CenterCropPad", when=along)
def center_crop_pad(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(0, x.rank - 1)
    d.node(op, [x, d.whole([max(1, x.shape[axis] + d.integer(-3, 3))])], axes=[axis])


@grows("EyeLike", when=lambda held: held.rank == 2 and held.size > 0)
def eye_like(d: Draft, op: str, x: Held) -> None:
    made = d.node(op, [x], k=d.integer(-2, 2))[0]
    if x.dtype in allowed("Add", d.opset):
        d.node("Add", [x, made])


@grows("Col2Im", when=lambda held: held.rank == 3 and filled(held) and held.dtype != "bool")
def col2im(d: Draft, op: str, x: Held) -> None:
    """Blocks of two rows, or one, whose columns run along an image of one row of them."""
    _, depth, columns = x.shape
    block = [d.choice([k for k in (2, 3, 1) if depth % k == 0]), 1]
    step = d.choice((1, 2))
    image = [block[0], (columns - 1) * step + 1]
    d.node(op, [x, d.whole(image), d.whole(block)], strides=[1, step])


@grows("MaxUnpool", when=lambda held: 3 <= held.rank <= 5 and filled(held))
def max_unpool(d: Draft, op: str, x: Held) -> None:
    """Behind the MaxPool whose indices it reads."""
    rank = x.rank - 2
    window = {"kernel_shape": [2] * rank, "strides": [2] * rank}
    if min(x.shape[2:]) < 2 or any(extent % 2 for extent in x.shape[2:]):
        raise Skip("an odd map")
    pooled, places = d.node("MaxPool", [x], outputs=2, **window)
    d.node(op, [pooled, places], **window)
