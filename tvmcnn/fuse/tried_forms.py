"""Tried forms: sums and products of two quantised operands in fewer operations, where all 65,536 pairs come out alike.

    y = rint(fl(fl(fl((a - za) · sa) + fl((b - zb) · sb)) / sy)) + zy      the contract, docs/quantised.md
      -->
    y = rint(a · A + (b · B + C)) + zy      with A = sa / sy, B = sb / sy, C = - za · A - zb · B:    "linear"
    y = rint(fl(…) · (1 / sy)) + zy         "reciprocal"
    y = as it is written                    "division"

On AVX-512 a division of a vector takes 10 cycles and more; a product and a sum are one FMA of half a cycle. LLVM and
nvcc may join a product and a sum into an FMA or not: the linear form is tried with every way that they may choose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tvmcnn.fuse.dequantised import Integers
from tvmcnn.network import Array

REACH = 2.0**30  # what may be rounded to int32
NEAR = 1e-3  # quotients so near to a half that forms may round them differently

Numbers = tuple[np.float32, ...]


class TriedForm(NamedTuple):
    """A form by its name, and the three numbers in float32 that it is computed with."""

    name: str
    numbers: Numbers


def tried_form(op: str, a: Integers, b: Integers, to: Integers) -> TriedForm:
    """The form of an Add or Mul of integers that takes the fewest operations of those that give the same integers."""
    raw_a, raw_b = (np.arange(256) + np.iinfo(each.dtype).min for each in (a, b))
    left = (raw_a - a.shift).astype(np.float32)[:, None] * a.step
    right = (raw_b - b.shift).astype(np.float32) * b.step
    with np.errstate(all="ignore"):  # scales may be as small or large as a float32 can be
        value = left * right if op == "Mul" else left + right
        wanted = _stored(value / to.step, to)
        if op == "Add":
            first, second = np.broadcast_arrays(raw_a.astype(np.float32)[:, None], raw_b.astype(np.float32))
            near = np.abs(np.abs(value / to.step % 1) - 0.5) < NEAR
            for numbers in _linear(a, b, to):
                if all(
                    _alike(ours, wanted[some], to)
                    for some in (near, ...)  # the few that may differ first
                    for ours in _linear_values(first[some], second[some], *numbers)
                ):
                    return TriedForm("linear", numbers)
        reciprocal = np.float32(1) / to.step
        if _alike(value * reciprocal, wanted, to):
            return TriedForm("reciprocal", (a.step, b.step, reciprocal))
    return TriedForm("division", (a.step, b.step, to.step))


def _linear(a: Integers, b: Integers, to: Integers) -> Iterator[Numbers]:
    """A, B and C, then their neighbours: one of those meets all halves where these do not."""
    first, second = (np.float32(np.float64(each.step) / np.float64(to.step)) for each in (a, b))
    third = np.float32(-a.shift * np.float64(first) - b.shift * np.float64(second))
    least = min(abs(first), abs(second))
    normal = np.isfinite(third) and np.finfo(np.float32).tiny <= least
    if normal and (first + second) * 512 < REACH:
        for steps in sorted(
            itertools.product((0, 1, -1), (0, 1, -1), (0, 1, -1, 2, -2)), key=lambda s: sum(map(abs, s))
        ):
            pairs = zip((first, second, third), steps, strict=True)
            yield tuple(np.float32(number + step * np.spacing(number)) for number, step in pairs)


def _linear_values(a: Array, b: Array, first: np.float32, second: np.float32, third: np.float32) -> list[Array]:
    """a · A + (b · B + C) by FMAs, by products and sums, and by one of each."""
    made = []
    for inner, outer in itertools.product((_fused, _apart), repeat=2):
        made.append(outer(a, first, inner(b, second, third)))
    return made


def _apart(x: Array, factor: np.float32, term: Array | np.float32) -> Array:
    return x * factor + term


def _fused(x: Array, factor: np.float32, term: Array | np.float32) -> Array:
    """x · factor + term, rounded once: NaN where a float64 cannot tell how.

    The product of an integer of 9 bits and a float32 is exact in float64. Its sum with the term is rounded there first,
    which matters only where that ends half way between two of float32.
    """
    product, other = x.astype(np.float64) * np.float64(factor), np.asarray(term, np.float64)
    total = product + other
    back = total - product  # the sum's error, exactly (Knuth's TwoSum)
    error = (product - (total - back)) + (other - back)
    near = total.astype(np.float32)
    apart = total - near.astype(np.float64)
    half = np.abs(apart) == np.spacing(np.abs(near)).astype(np.float64) / 2
    half |= np.abs(apart) == np.spacing(np.nextafter(np.abs(near), np.float32(0))).astype(np.float64) / 2
    result: Array = np.where(half & (error != 0), np.float32(np.nan), near)
    return result


def _alike(ours: Array, wanted: Array, to: Integers) -> bool:
    return bool(np.isfinite(ours).all() and (np.abs(ours) < REACH).all() and (_stored(ours, to) == wanted).all())


def _stored(quotient: Array, to: Integers) -> Array:
    """Quotients as the integers of the type, less the zero point."""
    limits = np.iinfo(to.dtype)
    kept: Array = np.rint(np.clip(quotient, limits.min - to.shift, limits.max - to.shift))
    return kept
