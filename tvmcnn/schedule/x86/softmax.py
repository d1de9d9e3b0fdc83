"""Softmax: three passes over one row, which stays in L1."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import SoftmaxConfig
from tvmcnn.network import divisors
from tvmcnn.schedule.steps import Loop, extent, initialise, reduce_in_lanes, rows_of_vectors

ROW_LIMIT = 8192  # elements: more exponentials would fill the stack, and are computed twice instead


def softmax(sch: Schedule, config: SoftmaxConfig, lanes: int) -> None:
    """Blocks: "maximum", "exponentials", "total" and "out", all computed for one row along the axis at a time.

    Along the last axis the row is in the lanes, along another that many rows are which lie side by side.
    """
    out, exponentials = sch.get_sblock("out"), sch.get_sblock("exponentials")
    loops = sch.get_loops(out)
    along = loops.pop(config.axis)
    if config.in_lanes:
        _in_lanes(sch, loops, along, lanes)
        return
    rows = _together(extent(sch, loops[-1]), lanes) if loops and config.axis < len(loops) else 1
    if loops:
        last, row = sch.split(loops.pop(), [None, rows])
        loops.append(last)
        sch.reorder(*loops, along, row)
        sch.vectorize(row)
    names = ["total", "exponentials", "maximum"]
    if extent(sch, along) * rows > ROW_LIMIT:
        sch.compute_inline(exponentials)
        names.remove("exponentials")
    for name in names:
        block = sch.get_sblock(name)
        if loops:
            sch.compute_at(block, loops[-1], preserve_unit_loops=True)
        if name == "exponentials":
            if rows > 1:
                sch.vectorize(sch.get_loops(block)[-1])
            continue
        row, terms = sch.get_loops(block)[-2:]
        if rows > 1:
            sch.reorder(terms, row)
            sch.vectorize(row)
            initialise(sch, block, terms, tile=0)
        else:
            sch.decompose_reduction(block, terms)


def _together(count: int, lanes: int) -> int:
    """How many of `count` rows that lie side by side are computed at once: a vector, or one of another length.

    LLVM makes 32 + 8 lanes of 40. (CoaT's 19 channels of a head, over 785 tokens: 4 GB/s one by one, 27 as one vector.)
    """
    if count % lanes == 0:
        return lanes
    return count if count <= 4 * lanes else max(divisor for divisor in divisors(count) if divisor <= 4 * lanes)


def _in_lanes(sch: Schedule, loops: list[Loop], along: Loop, lanes: int) -> None:
    exponentials = sch.get_sblock("exponentials")
    width, stays = extent(sch, sch.get_loops(exponentials)[-1]), extent(sch, along) <= ROW_LIMIT
    if not stays:
        sch.compute_inline(exponentials)
    sch.compute_at(sch.get_sblock("whole"), loops[-1], preserve_unit_loops=True)
    reduce_in_lanes(sch, "total", loops[-1], lanes)
    if stays:
        sch.compute_at(exponentials, loops[-1], preserve_unit_loops=True)
        inner, lane = sch.split(sch.get_loops(exponentials)[-1], [None, lanes])
        sch.unroll(inner)
        sch.vectorize(lane)
    reduce_in_lanes(sch, "maximum", loops[-1], lanes)
    rows_of_vectors(sch, along, width, lanes)
