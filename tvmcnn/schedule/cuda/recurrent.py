"""LSTM, GRU and RNN: a block of threads has one row of the batch in one direction, for all times.

A thread makes a column of the hidden state: the sums of all its gates, of which 32 neighbouring threads read 32
neighbouring columns of R. The states are in shared memory, where all threads of the block wait for each other.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import RecurrentConfig
from tvmcnn.network import round_up
from tvmcnn.schedule.steps import Block, Loop

WARP, THREADS = 32, 1024  # of a block at most
STATES = ("start_h", "start_c")
STORED = ("y", "y_h", "y_c", "next_h", "next_c")


def recurrent(sch: Schedule, config: RecurrentConfig) -> None:
    """Blocks: as in schedule/x86/recurrent.py, of one tile of columns and of tiles of one row."""
    blocks = {sch.get(block).name_hint: block for block in sch.get_child_blocks(sch.get_sblock("root"))}
    threads = min(round_up(config.width, WARP), THREADS)

    # Phase 1: the rows, and the columns of each.
    direction, rows, tile, row, state, column = sch.get_loops(blocks["out"])
    at = sch.fuse(direction, rows)
    sch.bind(at, "blockIdx.x")
    outer, thread = sch.split(column, [None, threads])
    sch.reorder(tile, row, outer, thread, state)
    sch.bind(thread, "threadIdx.x")
    sch.unroll(state)
    sch.set_scope(blocks["out"], 0, "shared")
    if "cell" in blocks:
        sch.set_scope(blocks["cell"], 0, "local")
        sch.compute_at(blocks["cell"], thread, preserve_unit_loops=True)
    for name in ("candidate", "sum"):
        if name in blocks:
            _sums(sch, blocks[name], thread)
    if "reset" in blocks:  # all of it before the sums over it
        sch.set_scope(blocks["reset"], 0, "shared")
        _sums(sch, blocks["reset_sum"], _by_threads(sch, blocks["reset"], at, threads))

    # Phase 2: what is stored, and the states before the first step.
    for name in STORED:
        if name in blocks:
            sch.reverse_compute_at(blocks[name], at, preserve_unit_loops=True)
            _bound(sch, blocks[name], threads)
    for name in STATES:
        if name in blocks:
            sch.set_scope(blocks[name], 0, "shared")
            _by_threads(sch, blocks[name], at, threads)


def _by_threads(sch: Schedule, block: Block, at: Loop, threads: int) -> Loop:
    """A block before others that read all of it; returns the loop over threads."""
    sch.compute_at(block, at, preserve_unit_loops=True)
    return _bound(sch, block, threads)


def _bound(sch: Schedule, block: Block, threads: int) -> Loop:
    """The last axis of a block shared out to threads."""
    _, thread = sch.split(sch.get_loops(block)[-1], [None, threads])
    sch.bind(thread, "threadIdx.x")
    return thread


def _sums(sch: Schedule, block: Block, thread: Loop) -> None:
    """The sums of one column's gates, which do not wait for each other."""
    sch.set_scope(block, 0, "local")
    sch.compute_at(block, thread, preserve_unit_loops=True)
    row, gate, column, terms = sch.get_loops(block)[-4:]
    sch.reorder(terms, row, gate, column)
    sch.unroll(gate)
    sch.decompose_reduction(block, terms)
