"""Matrix-vector and matrix-matrix products with the output columns in the lanes.

At batch 1 the weights are read once and the rate is that of the cache they come from; the tile's accumulators only have
to cover the FMA latency. At larger batches each load of a weight serves `rows` rows.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import DenseConfig
from tvmcnn.schedule.steps import extent, initialise, reduction_axes, unroll, vectorize_inner
from tvmcnn.schedule.x86.dots import intrinsic


def dense(sch: Schedule, config: DenseConfig, lanes: int) -> None:
    """Tile "out" by rows and by the packed width, compute "dense" inside the tile.

    Blocks: "flat" (m, k), inlined, "dense" (tc, tr, m, part, o | rk), "out" (tc, tr, m, o). The weights' tiles are
    outermost: one stays in cache for all rows. Of integers "dense" has a second reduction, the few products that one
    instruction adds.
    """
    sums, out = sch.get_sblock("dense"), sch.get_sblock("out")
    sch.compute_inline(sch.get_sblock("flat"))
    sch.set_scope(sums, 0, "local")
    in_groups = len(reduction_axes(sch, sums)) > 1

    # Phase 1: one tile is `rows` rows by one packed width of columns.
    if in_groups:
        # The other way round, for all lanes of the accumulators: there may be fewer columns.
        sch.reverse_compute_at(out, sch.get_loops(sums)[1], preserve_unit_loops=True)
    down, row, columns = (sch.get_loops(out)[place] for place in (1, -2, -1))
    unroll(sch, [row])
    vectorize_inner(sch, columns, lanes)

    # Phase 2: the accumulators.
    if not in_groups:
        sch.compute_at(sums, down, preserve_unit_loops=True)
    m, part, o, rk, *terms = sch.get_loops(sums)[-5 if in_groups else -4 :]
    o_v, o_i = sch.split(o, [None, lanes])
    rk_o, rk_i = sch.split(rk, [None, config.unroll])
    sch.reorder(rk_o, rk_i, m, part, o_v, o_i, *terms)
    unroll(sch, (rk_i, m, part, o_v))
    if not in_groups:
        sch.vectorize(o_i)
    initialise(sch, sums, rk_o, tile=3)
    for term in terms:
        dtype = str(sch.get(sums).reads[1].source.ty.dtype)
        sch.tensorize(o_i, intrinsic(lanes, extent(sch, term), dtype))
