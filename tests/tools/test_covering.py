"""The choice of cases that the suite runs by default."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from covering import covering


def product(**values: tuple[Hashable, ...]) -> list[dict[str, Hashable]]:
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def test_each_pair_is_shown() -> None:
    cases = product(a=(1, 2, 3), b=("x", "y"), c=(True, False))
    kept = [cases[place] for place in covering(cases)]
    assert len(kept) < len(cases) == 12
    for one, two in itertools.combinations("abc", 2):
        assert {(case[one], case[two]) for case in kept} == {(case[one], case[two]) for case in cases}


def test_targets_take_turns() -> None:
    """Half of the cases a target, whatever else they have."""
    cases = product(op=tuple("abcdefgh"), target=("v3", "v4"))
    kept = [cases[place] for place in covering(cases)]
    assert [case["op"] for case in kept] == list("abcdefgh")
    assert [case["target"] for case in kept].count("v3") == 4


def test_one_parameter_keeps_all() -> None:
    assert covering(product(shape=(1, 2, 3, 4))) == [0, 1, 2, 3]
    assert covering(product(target=("v3", "v4"))) == [0, 1]


def test_cases_with_parameters_of_their_own() -> None:
    """Cases of two parametrized fixtures, one of which a few lack."""
    cases: list[dict[str, Hashable]] = [{"a": 1}, {"a": 2, "b": 3}, {"a": 1, "b": 3}]
    assert covering(cases) == [1, 2]
