"""Steps that several rules share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tvm.s_tir import Schedule

EXPANDED = "expanded"  # the stage that makes a weight of a half type float32
Loop = Any
Block = Any


def extent(sch: Schedule, loop: Loop) -> int:
    """The trip count of a loop."""
    return int(sch.get(loop).extent)


def reduction_axes(sch: Schedule, block: Block) -> list[Any]:
    """The axes of a block that it sums over, or reduces otherwise."""
    return [axis for axis in sch.get(block).iter_vars if axis.iter_type == axis.CommReduce]


def unroll(sch: Schedule, loops: Iterable[Loop]) -> None:
    """Unroll every loop of `loops`."""
    for loop in loops:
        sch.unroll(loop)


def initialise(sch: Schedule, block: Block, before: Loop, tile: int) -> None:
    """Zero the accumulators once, ahead of the reduction, in `tile` unrolled loops and a vector.

    for r: for t, v: (if r == 0: c = 0), c += …    -->    for t, v: c = 0;  for r: for t, v: c += …
    """
    init = sch.decompose_reduction(block, before)
    *outer, lane = sch.get_loops(init)[-tile - 1 :]
    unroll(sch, outer)
    sch.vectorize(lane)


def expand(sch: Schedule, reader: Block, at: Loop, lanes: int) -> None:
    """Expand the weight that `reader` reads, if there is one of a half type, once an iteration of `at`."""
    for block in sch.get_producers(reader):
        if sch.get(block).name_hint == EXPANDED:
            sch.compute_at(block, at, preserve_unit_loops=True)
            vectorize_inner(sch, sch.get_loops(block)[-1], lanes)


def prefetch(sch: Schedule, reduction: Loop, passes: Iterable[Loop], elements: int) -> None:
    """Have the next tile's weights fetched while `reduction`, the outermost, runs over this one's `elements`.

    It runs as often as the loops `passes` do. See codegen/cpu/prefetch.py.
    """
    sch.annotate(reduction, "tvmcnn.passes", math.prod(extent(sch, loop) for loop in passes))
    sch.annotate(reduction, "tvmcnn.tile", elements)


def reduce_in_lanes(sch: Schedule, name: str, at: Loop, lanes: int) -> None:
    """The stages of a reduction by ops/lanes.py, for one row at the loop `at`, in registers."""
    for stage in (name, f"{name}_quarters", f"{name}_lanes"):
        block = sch.get_sblock(stage)
        sch.set_scope(block, 0, "local")
        sch.compute_at(block, at, preserve_unit_loops=True)
        if stage == name:
            terms = sch.get_loops(block)[-1]
            sch.unroll(terms)
            sch.decompose_reduction(block, terms)
            continue
        lane, terms = sch.get_loops(block)[-2:]
        outer, lane = sch.split(lane, [None, min(lanes, extent(sch, lane))])
        sch.reorder(terms, outer, lane)
        sch.unroll(outer)
        sch.vectorize(lane)
        initialise(sch, block, terms, tile=1)


def rows_of_vectors(sch: Schedule, loop: Loop, width: int, lanes: int) -> tuple[Loop, Loop, Loop]:
    """Walk along a row by vectors of `width` elements, the last of which may be cut short.

    Returns the loops over vectors, over the parts of one, and over the lanes.
    """
    vector, inner, lane = sch.split(loop, [None, width // lanes, lanes])
    sch.unroll(inner)
    sch.vectorize(lane)
    # The last apart from the others, for else all are cut into their elements (a 1x1 convolution of 14 x 14 pixels with
    # a residual: 94 against 68 µs).
    sch.annotate(vector, "pragma_loop_partition_hint", True)
    return vector, inner, lane


def vectorize_inner(sch: Schedule, loop: Loop, lanes: int) -> None:
    """Vectorise a loop whose elements lie side by side: whole vectors if they fit, one odd vector if it is short.

    LLVM cuts a vector of 10 into one of 8 and one of 2; a loop too long for that stays scalar code with a vector body.
    """
    count = extent(sch, loop)
    if count % lanes == 0:
        _, inner = sch.split(loop, [None, lanes])
        sch.vectorize(inner)
    elif count <= 4 * lanes:
        sch.vectorize(loop)
