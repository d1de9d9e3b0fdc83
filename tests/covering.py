"""Covering: which cases of a test to run, so that the suite takes minutes and every case still has its turn on request.

Most faults need one value of a parameter, or two together (all-pairs testing; Kuhn, Wallace and Gallo 2004). Of a test
with the parameters a, b and c those cases are kept that show each pair of values of two of them. A parameter of FREE is
in no pair: half of the cases run with one vector width, the others with another.

    op      dtype  target              op      dtype  target
    Conv    int8   v3                  Conv    int8   v3
    Conv    int8   v4                  Conv    uint8  v4
    Conv    uint8  v3          -->     Pool    int8   v4
    …       …      …  (8 cases)        Pool    uint8  v3
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

FREE = ("target",)


def covering(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """The places, in order, of cases that cover what all of them show: a greedy choice, the same on every run.

    Of cases that cover as much that one is taken which has more new pairs, those of free parameters included, then that
    whose free values were taken less often.
    """
    needed = [_shown(case, [word for word in case if word not in FREE]) for case in cases]
    shown = [_shown(case, list(case)) for case in cases]
    missing, unseen = set().union(*needed), set().union(*shown)
    kept: list[int] = []
    while missing:
        others = [place for place in range(len(cases)) if place not in kept]
        used = Counter(item for place in kept for item in cases[place].items() if item[0] in FREE)
        best = max(
            others,
            key=lambda place: (
                len(needed[place] & missing),
                len(shown[place] & unseen),
                -sum(used[item] for item in cases[place].items()),
                -place,
            ),
        )
        kept.append(best)
        missing -= needed[best]
        unseen -= shown[best]
    return sorted(kept)


def _shown(case: Mapping[str, Hashable], paired: Sequence[str]) -> set[frozenset[tuple[str, Hashable]]]:
    """Each value, and each pair of values of the `paired` parameters."""
    pairs = itertools.combinations([(word, case[word]) for word in paired], 2)
    return {frozenset([item]) for item in case.items()} | set(map(frozenset, pairs))
