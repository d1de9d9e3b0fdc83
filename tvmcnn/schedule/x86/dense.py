"""Matrix-vector and matrix-matrix products with the output columns in the lanes.

At batch 1 the weights are read once and the rate is that of the cache they come from; the tile's accumulators only have
to cover the FMA latency. At larger batches each load of a weight serves `rows` rows.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import DenseConfig
from tvmcnn.schedule.steps import initialise, unroll, vectorize_inner


def dense(sch: Schedule, config: DenseConfig, lanes: int) -> None:
    """Tile "out" by rows and by the packed width, compute "dense" inside the tile.

    Blocks: "flat" (m, k), inlined, "dense" (tc, tr, m, part, o | rk), "out" (tc, tr, m, o). The weights' tiles are
    outermost: one stays in cache for all rows.
    """
    sums, out = sch.get_sblock("dense"), sch.get_sblock("out")
    sch.compute_inline(sch.get_sblock("flat"))
    sch.set_scope(sums, 0, "local")

    # Phase 1: one tile is `rows` rows by one packed width of columns.
    _, down, row, columns = sch.get_loops(out)
    unroll(sch, [row])
    vectorize_inner(sch, columns, lanes)

    # Phase 2: the accumulators.
    sch.compute_at(sums, down, preserve_unit_loops=True)
    m, part, o, rk = sch.get_loops(sums)[-4:]
    o_v, o_i = sch.split(o, [None, lanes])
    rk_o, rk_i = sch.split(rk, [None, config.unroll])
    sch.reorder(rk_o, rk_i, m, part, o_v, o_i)
    unroll(sch, (rk_i, m, part, o_v))
    sch.vectorize(o_i)
    initialise(sch, sums, rk_o, tile=3)
