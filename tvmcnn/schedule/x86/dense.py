"""Matrix-vector and matrix-matrix products with the output columns in the lanes.

At batch 1 the weights are read once and the rate is that of the cache they come from; the tile's accumulators only have
to cover the FMA latency. At larger batches each load of a weight serves `rows` rows.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import DenseConfig
from tvmcnn.schedule.steps import extent, initialise, unroll, vectorize_inner


def dense(sch: Schedule, config: DenseConfig, lanes: int) -> None:
    """Tile "out" by rows and by the packed width, compute "dense" inside the tile.

    Blocks: "flat" (m, k), inlined, "dense" (m, tile, part, o | rk), "out" (m, o), an image's unit axes behind.
    """
    sums, out = sch.get_sblock("dense"), sch.get_sblock("out")
    sch.compute_inline(sch.get_sblock("flat"))
    sch.set_scope(sums, 0, "local")

    # Phase 1: one tile is `rows` rows by one packed width of columns.
    rows, columns = sch.get_loops(out)[:2]
    count = extent(sch, columns)
    at = rows_o = rows
    inner = []
    if config.rows > 1:
        rows_o, rows_i = sch.split(rows, [None, config.rows])
        at, inner = rows_o, [rows_i]
    if config.tiles_across(count) > 1:
        at, columns = sch.split(columns, [None, config.width])
        sch.reorder(at, rows_o, *inner, columns)  # weights outside: a tile of them stays in cache for all rows
        at = rows_o
    elif inner:
        sch.reorder(rows_o, *inner, columns)
    unroll(sch, inner)
    vectorize_inner(sch, columns, lanes)

    # Phase 2: the accumulators.
    sch.compute_at(sums, at, preserve_unit_loops=True)
    m, tile, part, o, rk = sch.get_loops(sums)[-5:]
    o_v, o_i = sch.split(o, [None, lanes])
    rk_o, rk_i = sch.split(rk, [None, config.unroll])
    sch.reorder(tile, rk_o, rk_i, m, part, o_v, o_i)
    unroll(sch, (rk_i, m, part, o_v))
    sch.vectorize(o_i)
    initialise(sch, sums, rk_o, tile=4)
