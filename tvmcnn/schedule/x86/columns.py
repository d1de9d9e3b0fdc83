"""Convolution with output columns in the lanes, for networks with few maps: LeNet-5's first layer fills 14 of 16 lanes
this way where channels would fill 6.

The pool's window lies in different accumulators, so that pooling is a maximum of registers. Each tap broadcasts one
weight a map and loads one vector a pixel of the window.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import ColumnsConfig
from tvmcnn.schedule.steps import expand, initialise, unroll


def columns(sch: Schedule, config: ColumnsConfig, lanes: int) -> None:
    """Tile "out" by maps and vectors of columns, compute "conv" inside the tile, "deinterleave" once an image.

    Blocks: "deinterleave" (n, c, row, f, j), "conv" (n, y, o, dy, dx, j | rc, rh, rw), "out" (n, o, y, j).
    """
    copy, conv, out = sch.get_sblock("deinterleave"), sch.get_sblock("conv"), sch.get_sblock("out")
    sch.set_scope(conv, 0, "local")

    # Phase 1: tile the output rows by maps and vectors.
    n, o, y, j = sch.get_loops(out)
    o_o, o_i = sch.split(o, [None, config.maps])
    j_o, j_v, j_i = sch.split(j, [None, config.vectors, lanes])
    sch.reorder(n, y, o_o, j_o, o_i, j_v, j_i)
    unroll(sch, (o_i, j_v))
    sch.vectorize(j_i)

    # Phase 2: the accumulators of one tile. The taps of one kernel row are unrolled, the rows are not: unrolling both
    # makes LLVM keep every broadcast alive, and the accumulators spill (measured on AVX-512: 1.4 against 2.9 µs).
    sch.compute_at(conv, j_o, preserve_unit_loops=True)
    c_o, dy, dx, c_j, rc, rh, rw = sch.get_loops(conv)[-7:]
    c_v, c_i = sch.split(c_j, [None, lanes])
    sch.reorder(rc, rh, rw, c_o, dy, dx, c_v, c_i)
    unroll(sch, (rw, c_o, dy, dx, c_v))
    sch.vectorize(c_i)
    initialise(sch, conv, rc, tile=4)

    # Phase 3: the even and odd columns side by side, once an image; it is 1 % of the work and stays in L1.
    sch.compute_at(copy, n, preserve_unit_loops=True)
    c, row, f, column = sch.get_loops(copy)[-4:]
    sch.reorder(c, row, column, f)
    sch.unroll(f)
    # The test for the image's border leaves the inner columns; LLVM then turns them into vector loads and shuffles.
    sch.annotate(column, "pragma_loop_partition_hint", True)
    expand(sch, conv, n, lanes)
