"""LSTM, GRU and RNN: a step in register tiles of rows of the batch by columns of all gates, then what it stores.

A term of the sums loads the tile's columns of R and broadcasts one element of the state a row. At batch 1 a step reads
R once, at the rate of the cache that it stays in.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import RecurrentConfig
from tvmcnn.schedule.steps import Block, Loop, extent, initialise, unroll

STORED = ("y", "y_h", "y_c", "next_h", "next_c")  # in the order that they are computed


def recurrent(sch: Schedule, config: RecurrentConfig, lanes: int) -> None:
    """Blocks: "start_h" and "start_c" (d, tb, i, j), "sum" (d, tb, tj, i, g, j | k), "cell" (d, tb, tj, i, j), "out"
    (d, tb, tj, i, s, j), for a GRU also "reset_sum", "reset" and "candidate", and those of STORED, like "cell".
    """
    blocks = {sch.get(block).name_hint: block for block in sch.get_child_blocks(sch.get_sblock("root"))}

    # Phase 1: the tiles, with what they are made of in registers.
    _, tiles, tile, row, *_ = sch.get_loops(blocks["out"])
    sch.unroll(row)
    _in_vectors(sch, blocks["out"], lanes)
    if "cell" in blocks:
        sch.set_scope(blocks["cell"], 0, "local")
        sch.compute_at(blocks["cell"], tile, preserve_unit_loops=True)
        _in_vectors(sch, blocks["cell"], lanes)
    for name in ("candidate", "sum"):
        if name in blocks:
            _sums(sch, blocks[name], tile, lanes)
    if "reset" in blocks:  # all of it before the sums over it
        sch.compute_at(blocks["reset"], tiles, preserve_unit_loops=True)
        _in_vectors(sch, blocks["reset"], lanes)
        _sums(sch, blocks["reset_sum"], sch.get_loops(blocks["reset"])[2], lanes)

    # Phase 2: what is stored, behind all tiles of a step, and the states before the first one.
    for name in STORED:
        if name in blocks:
            sch.reverse_compute_at(blocks[name], tiles, preserve_unit_loops=True)
            _in_vectors(sch, blocks[name], lanes)
    for name in ("start_c", "start_h"):
        if name in blocks:
            sch.compute_at(blocks[name], tiles, preserve_unit_loops=True)


def _in_vectors(sch: Schedule, block: Block, lanes: int) -> None:
    """The last two axes of a block unrolled, the last one as vectors."""
    row, column = sch.get_loops(block)[-2:]
    vector, lane = _vectors(sch, column, lanes)
    unroll(sch, (row, vector))
    sch.vectorize(lane)


def _vectors(sch: Schedule, column: Loop, lanes: int) -> tuple[Loop, Loop]:
    """The columns of a tile as vectors; those that are no whole ones are one."""
    count = extent(sch, column)
    vector, lane = sch.split(column, [None, lanes if count % lanes == 0 else count])
    return vector, lane


def _sums(sch: Schedule, block: Block, tile: Loop, lanes: int) -> None:
    """The accumulators of one tile."""
    sch.set_scope(block, 0, "local")
    sch.compute_at(block, tile, preserve_unit_loops=True)
    row, gate, column, terms = sch.get_loops(block)[-4:]
    vector, lane = _vectors(sch, column, lanes)
    sch.reorder(terms, row, gate, vector, lane)
    unroll(sch, (row, gate, vector))
    sch.vectorize(lane)
    initialise(sch, block, terms, tile=3)
