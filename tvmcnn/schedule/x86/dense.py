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

    Blocks: "flat" (m, k), inlined, "dense" (t, m, tile, part, o | rk), "out" (t, m, o).
    """
    sums, out = sch.get_sblock("dense"), sch.get_sblock("out")
    sch.compute_inline(sch.get_sblock("flat"))
    sch.set_scope(sums, 0, "local")

    # Phase 1: one tile is `rows` rows by one packed width of columns.
    at, row, columns = sch.get_loops(out)
    if config.tiles_across(extent(sch, columns)) > 1:
        across, columns = sch.split(columns, [None, config.width])
        sch.reorder(across, at, row, columns)  # weights outside: a tile of them stays in cache for all rows
    unroll(sch, [row])
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
