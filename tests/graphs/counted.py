"""Operators that find as many as there are. What reads them is drawn here, for few operators may."""

from __future__ import annotations

import math

import numpy as np

from graphs.draft import Draft, Held, Skip
from graphs.growers import filled, grows

WIDEST = 3000  # elements of a mask


def made(d: Draft, op: str, *operands: Held, **attributes: int) -> Held:
    """What a node makes, which no other grower shall find."""
    (held,) = d.node(op, operands, **attributes)
    d.closed.add(held.name)
    return held


def read(d: Draft, held: Held) -> None:
    """What keeps its axes whole, or nothing."""
    op = d.choice(("", "Transpose", "Neg", "Cast"))
    if op == "Transpose":
        made(d, op, held)
    elif op == "Cast" or (op == "Neg" and held.is_float):
        made(d, op, held, **({"to": 1} if op == "Cast" else {}))


@grows("NonZero", when=lambda held: held.rank >= 1 and not held.is_float and 0 < held.size <= WIDEST)
def non_zero(d: Draft, op: str, x: Held) -> None:
    """The places of a mask; of a float that a rounding makes 0 they would be a matter of chance."""
    places = made(d, op, x)
    if d.chance(1, 3):
        there = made(d, "Transpose", places)
        read(d, made(d, "GatherND", x, there))
    else:
        read(d, places)


@grows("Compress", when=lambda held: held.rank >= 1 and filled(held))
def compress(d: Draft, op: str, x: Held) -> None:
    axis = None if d.chance(1, 3) else d.axis(x)
    extent = x.size if axis is None else x.shape[axis]
    if extent > WIDEST:
        raise Skip("a long condition")
    condition = d.input(d.numbers((d.integer(max(1, extent - 2), extent),), "bool"))
    read(d, made(d, op, x, condition, **({} if axis is None else {"axis": axis})))


@grows("NonMaxSuppression", when=lambda held: held.dtype == "float32" and filled(held) and held.size > 7)
def non_max_suppression(d: Draft, op: str, x: Held) -> None:
    """Boxes of its own: what computed scores lead to is decided by their rounding."""
    images, classes, count = d.integer(1, 2), d.integer(1, 3), d.integer(2, 40)
    rng = np.random.default_rng(d.integer(0, 999))
    boxes = d.input(rng.random((images, count, 4)).astype(np.float32))
    scores = d.input(np.round(rng.random((images, classes, count)) * 32).astype(np.float32) / 32)
    limits = [d.whole([d.integer(1, count)]), d.constant([d.choice((0.5, 0.0, 0.25, 1.0))], "float32")]
    limits += [d.constant([d.choice((0.25, 0.0, 2.0))], "float32")] if d.chance(1, 2) else []
    rows = made(d, op, boxes, scores, *limits, center_point_box=d.integer(0, 1))
    if math.prod(rows.shape):
        read(d, rows)
