"""Reductions of a row whose elements lie side by side: partial results in the lanes of a vector, then one of those.

    total[i] = Σ_k x[i, k]    -->    lanes[i, l] = Σ_v x[i, 16·v + l], quarters[i, j] = Σ_q lanes[i, 4·q + j],
                                     total[i] = Σ_j quarters[i, j]

LLVM adds floats in the order that is written, one every 4 cycles; the lanes are 16 sums that do not wait for each
other (3136 rows of 1000: 2990 µs, so 430: what the memory takes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

LANES = 16  # one vector of AVX-512, two of AVX2
PARTS = 4

Indices = tuple[Any, ...]
Value = Callable[[Indices, Any, Any], Expr]  # of the row at some indices, in a vector, in a lane


@dataclass(frozen=True)
class Row:
    """At least 16 elements, in vectors of 16 of which the last is moved back until it ends with the row."""

    count: int

    @property
    def vectors(self) -> int:
        """How many."""
        return -(-self.count // LANES)

    @property
    def spare(self) -> int:
        """Elements of the last vector that the one before has too."""
        return self.vectors * LANES - self.count

    def element(self, v: Any, lane: Any) -> Expr:
        """The element in a lane of a vector."""
        return tirx.min(v * LANES, self.count - LANES) + lane

    def place(self, element: Any) -> tuple[Any, Any]:
        """The vector and the lane of an element; of two the second."""
        v = element // LANES
        return v, element % LANES + (tirx.Select(v == self.vectors - 1, self.spare, 0) if self.spare else 0)


def reduced(rows: tuple[int, ...], row: Row, value: Value, reducer: Any, neutral: Expr, name: str) -> te.Tensor:
    """The stages `name`_lanes (*rows, 16), `name`_quarters (*rows, 4) and `name` (*rows) of a reduction by `reducer`,
    to which `neutral` adds nothing.
    """
    rv = te.reduce_axis((0, row.vectors), "rv")

    def once(i: Indices, lane: Any) -> Expr:
        found = value(i, rv, lane)
        again = tirx.all(rv == row.vectors - 1, lane < row.spare)
        return tirx.Select(again, neutral, found) if row.spare else found

    lanes = te.compute((*rows, LANES), lambda *i: reducer(once(i[:-1], i[-1]), axis=[rv]), name=f"{name}_lanes")
    return joined(rows, lanes, reducer, name)


def joined(rows: tuple[int, ...], lanes: te.Tensor, reducer: Any, name: str) -> te.Tensor:
    """The stages `name`_quarters (*rows, 4) and `name` (*rows) of what is in the lanes, (*rows, 16)."""
    rq, rj = te.reduce_axis((0, LANES // PARTS), "rq"), te.reduce_axis((0, PARTS), "rj")
    quarters = te.compute(
        (*rows, PARTS), lambda *i: reducer(lanes[(*i[:-1], rq * PARTS + i[-1])], axis=[rq]), name=f"{name}_quarters"
    )
    return te.compute(rows, lambda *i: reducer(quarters[(*i, rj)], axis=[rj]), name=name)
