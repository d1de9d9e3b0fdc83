"""Weights of a library that has them in a half type: the oracle's own rounding, by the spacing of such numbers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tvmcnn.check.reference.words import Held
from tvmcnn.check.reference_ops import Array
from tvmcnn.errors import ModelError

MANTISSA = {"float16": 10, "bfloat16": 7}  # bits after the first
PART = 1 << 20  # elements at a time: a large weight in float64 would take much memory
LEAST_EXPONENT = {"float16": -14, "bfloat16": -126}  # of a normal number; smaller ones have its spacing


def to_half(array: Array, kind: str) -> Array:
    """The nearest numbers of a half type, ties to even: multiples of the spacing 2^(e − mantissa) at 2^e ≤ |x|."""
    flat, found = array.reshape(-1), np.empty(array.size, np.float32)  # which holds every number of both types
    for first in range(0, flat.size, PART):
        exact = flat[first : first + PART].astype(np.float64)
        _, exponents = np.frexp(exact)  # |x| = m·2^exponent, 1/2 ≤ m < 1
        spacing = np.ldexp(1.0, np.maximum(exponents - 1, LEAST_EXPONENT[kind]) - MANTISSA[kind])
        with np.errstate(invalid="ignore"):  # ∞ is none of its multiples
            found[first : first + PART] = np.where(np.isfinite(exact), np.rint(exact / spacing) * spacing, exact)
    return found.reshape(array.shape)


def in_half(held: Held, kind: str) -> Held:
    """A tensor with its elements rounded, of the ONNX type that it had."""
    return Held(to_half(held.array, kind), held.dtype)


def check_names(weights: Collection[str], known: Collection[str], label: str) -> None:
    """Raise ModelError for rounded weights that are no tensors of the model."""
    if missing := sorted({*weights} - {*known}):
        raise ModelError(f"{label} has no tensor '{missing[0]}', which is a rounded weight of the library")
