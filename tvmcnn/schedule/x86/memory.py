"""Kernels that move or map elements one by one: bound by memory, so that a contiguous vector store is all they need."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.network import divisors
from tvmcnn.schedule.steps import Loop, extent, vectorize_inner

SQUARE = 32  # elements a side


def memory(sch: Schedule, config: None, lanes: int) -> None:
    """Vectorise the innermost axis of the one block, "out"; one that only moves elements says so by its "run".

    That is how many of its last axes are neighbours on both sides: they become one loop, of which LLVM makes a memcpy
    or vectors. Where there is no such axis, a border, a seam or a stride crosses the last one: it is cut at its tests.
    "vector" says how many elements of the last axis are alike to every test, where that is fewer than a vector.
    """
    block = sch.get_sblock("out")
    loops, notes = sch.get_loops(block), sch.get(block).annotations
    run = notes.get("run")
    if not loops:
        return  # a scalar
    if "rows" in notes:
        _in_strips(sch, loops, int(notes["channels"]), int(notes["rows"]))
    elif "lookups" in notes:
        _in_lookups(sch, loops[-int(run) :], lanes)
    elif run is None:
        vectorize_inner(sch, loops[-1], min(lanes, int(notes.get("vector", lanes))))
    elif "across" in notes:
        _in_squares(sch, loops, int(notes["across"]))
    elif int(run) > 1:
        sch.fuse(*loops[-int(run) :])
    elif int(run) == 0:
        sch.annotate(loops[-1], "pragma_loop_partition_hint", True)


def _in_lookups(sch: Schedule, loops: list[Loop], lanes: int) -> None:
    """Elements of a table of 256 bytes: by AVX-512 a vector at once (codegen/cpu/lookups.py), else one by one.

    One by one makes 3 to 4.5 elements a nanosecond; by AVX2's 16 vpshufb, of which each has 16 entries, 1.8 to 3.3.
    """
    loop = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    count = extent(sch, loop)
    if lanes < 16 or count < 16:
        return
    outer, inner = sch.split(loop, [None, 32 if count % 32 == 0 or count % 16 else 16])
    sch.vectorize(inner)
    sch.annotate(outer, "pragma_loop_partition_hint", True)


def _in_squares(sch: Schedule, loops: list[Loop], across: int) -> None:
    """A transpose by squares of its two axes, of which 32 lines are read and 32 are written: all stay in L1.

    Along the last axis alone each element has a line of its own, which is gone when the next of it is wanted (220 x 224
    pixels of 64 channels to the front: 20.4 ms, in squares 1.9).
    """
    outer = [loop for axis, loop in enumerate(loops[:-1]) if axis != across]
    tiles, inner = zip(
        *(sch.split(loop, [None, _side(extent(sch, loop))]) for loop in (loops[across], loops[-1])), strict=True
    )
    sch.reorder(*outer, *tiles, *inner)


def _in_strips(sch: Schedule, loops: list[Loop], channels: int, rows: int) -> None:
    """Maps out of blocks of channels by strips that stay in L1 while one channel of the block after the other is read.

    A channel is a sixteenth of each line. Whole maps of 56 x 57 pixels, 200 KB of a block, are read from L2 again for
    each of 16 channels: 64 of them took 95 µs, and in strips 42.
    """
    n, c, h, w = loops
    c_o, c_i = sch.split(c, [None, channels])
    h_o, h_i = sch.split(h, [None, rows])
    sch.reorder(n, c_o, h_o, c_i, h_i, w)


def _side(count: int) -> int:
    """Side of the transpose tile: the largest divisor of the axis up to 32, or 32 if that divisor is under half."""
    best = max(divisor for divisor in divisors(count) if divisor <= SQUARE)
    return best if 2 * best >= min(count, SQUARE) else SQUARE
