"""Forms of sums and products of two bytes: the cheapest that makes the same of all pairs."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from tvmcnn.fuse.dequantised import Integers
from tvmcnn.fuse.tried_forms import _fused, tried_form


def integers(scale: float, zero: int, dtype: str = "uint8") -> Integers:
    return Integers("x", dtype, np.float32(scale), np.int64(zero))


def contract(op: str, a: Integers, b: Integers, to: Integers) -> np.ndarray:
    """All 65,536, as docs/quantised.md has them."""
    left, right = (
        (np.arange(256, dtype=np.float32) + np.float32(np.iinfo(x.dtype).min - x.shift)) * x.step for x in (a, b)
    )
    value = np.multiply.outer(left, right) if op == "Mul" else np.add.outer(left, right)
    limits = np.iinfo(to.dtype)
    return np.clip(np.rint(value / to.step) + to.shift, limits.min, limits.max)


def nearest(exact: Fraction) -> np.float32:
    """A fraction rounded to float32 once, halves to even."""
    guess = np.float32(float(exact))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.int32)) & 1))


def test_an_fma_is_rounded_once() -> None:
    """Against exact fractions; where a float64 is too short to tell it is NaN, never another number."""
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 256, 4000).astype(np.float32)
    factor = rng.uniform(0.01, 3, 4000).astype(np.float32)
    term = (rng.uniform(-300, 300, 4000) * 2.0 ** rng.integers(-30, 3, 4000)).astype(np.float32)
    term[:1000] = -x[:1000] * factor[:1000]  # all but cancelled
    found = np.array([_fused(x[i : i + 1], factor[i], term[i : i + 1])[0] for i in range(4000)])
    wanted = [
        nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))
        for a, b, c in zip(x, factor, term, strict=True)
    ]
    told = ~np.isnan(found)
    assert told.mean() > 0.99
    np.testing.assert_array_equal(found[told], np.array(wanted)[told])


def test_a_half_that_a_float64_cannot_see() -> None:
    """1 + 2^-24 + 2^-60 is above the half between two floats; a float64 has that half."""
    one, factor, term = np.ones(1, np.float32), np.float32(1 + 2**-23), np.float32(-(2**-24) + 2**-60)
    found = _fused(one, factor, np.array([term]))[0]
    assert np.isnan(found) or found == nearest(Fraction(float(factor)) + Fraction(float(term)))


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_every_form_makes_the_same(op: str) -> None:
    """A kernel's numbers give the contract's integers, with products and sums rounded apart."""
    rng, seen = np.random.default_rng(2), Counter[str]()
    for _ in range(40):
        a, b = (integers(rng.uniform(0.01, 0.1), rng.integers(0, 256)) for _ in range(2))
        scale = (
            float(a.step) * float(b.step) * 99 if op == "Mul" else (float(a.step) + float(b.step)) * rng.uniform(0.5, 1)
        )
        to = integers(scale, int(rng.integers(-128, 128)), "int8")
        name, (first, second, third) = tried_form(op, a, b, to)
        seen[name] += 1
        if name == "linear":
            raw = np.arange(256, dtype=np.float32)
            value = np.add.outer(raw * first, raw * second + third)
            made = np.clip(np.rint(value) + to.shift, -128, 127)
            np.testing.assert_array_equal(made, contract(op, a, b, to))
    assert seen["linear"] > 30 if op == "Add" else seen["reciprocal"] > 30


def test_scales_that_no_float_divides_by() -> None:
    """The reciprocal of a subnormal scale is infinite: the quotient is taken as it is written."""
    assert tried_form("Mul", integers(1e-20, 0), integers(1e-23, 0), integers(1e-43, 0)).name == "division"
