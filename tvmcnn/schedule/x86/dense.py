"""Matrix-vector and matrix-matrix products with the output columns in the lanes.

At batch 1 the weights are read once and the rate is that of the cache they come from; the tile's accumulators only have
to cover the FMA latency. At larger batches each load of a weight serves `rows` rows.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import DenseConfig, DenseDotsConfig
from tvmcnn.schedule.steps import Block, Loop, expand, initialise, reduction_axes, unroll, vectorize_inner
from tvmcnn.schedule.x86.dots import intrinsic
from tvmcnn.schedule.x86.pairs import dot


def dense(sch: Schedule, config: DenseConfig, lanes: int) -> None:
    """Tile "out" by rows and by the packed width, compute "dense" inside the tile.

    Blocks: "flat" (m, k), inlined, "dense" (tc, tr, m, part, o | rk), "out" (tc, tr, m, o). The weights' tiles are
    outermost: one stays in cache for all rows.
    """
    sums, out = sch.get_sblock("dense"), sch.get_sblock("out")
    sch.compute_inline(sch.get_sblock("flat"))
    sch.set_scope(sums, 0, "local")

    # Phase 1: one tile is `rows` rows by one packed width of columns.
    across, down, row, columns = sch.get_loops(out)
    unroll(sch, [row])
    vectorize_inner(sch, columns, lanes)

    # Phase 2: the accumulators.
    sch.compute_at(sums, down, preserve_unit_loops=True)
    rk_o, o_i = _accumulators(sch, sums, config, lanes)
    sch.vectorize(o_i)
    initialise(sch, sums, rk_o, tile=3)
    expand(sch, sums, across, lanes)


def dense_dots(sch: Schedule, config: DenseDotsConfig, lanes: int) -> None:
    """The same of integers, by instructions that add the products `rn` of a few terms.

    Blocks: "dense" (tc, tr, m, part, o | rk, rn), "total" (tc, tr, m, o), "out" (tc, tr, m, o). An instruction has all
    lanes of a vector, of which "out" may have fewer: "total", which adds the parts, has them all.
    """
    x = str(sch.get(sch.get_sblock("dense")).reads[0].source.ty.dtype)
    _by_dots(sch, config, lanes, intrinsic(lanes, config.terms, x, narrow=config.narrow))


def dense_pairs(sch: Schedule, config: DenseConfig, lanes: int) -> None:
    """The same of bfloat16. Block "rounded" (m, k), of all rows, stands before them: each range of tasks makes it."""
    rounded = sch.get_sblock("rounded")
    _by_dots(sch, config, lanes, dot(lanes))
    vectorize_inner(sch, sch.get_loops(rounded)[-1], lanes)


def _by_dots(sch: Schedule, config: DenseConfig, lanes: int, instruction: str) -> None:
    sums, total, out = (sch.get_sblock(name) for name in ("dense", "total", "out"))
    for block in (sums, total):
        sch.set_scope(block, 0, "local")

    # Phase 1: one tile, as above.
    _, down, *inner = sch.get_loops(total)
    sch.reverse_compute_at(out, down, preserve_unit_loops=True)
    row, columns = inner
    vectors, lane = sch.split(columns, [None, lanes])
    unroll(sch, [row, vectors])
    sch.vectorize(lane)
    row, columns = sch.get_loops(out)[-2:]
    unroll(sch, [row])
    vectorize_inner(sch, columns, lanes)

    # Phase 2: the accumulators.
    sch.compute_at(sums, down, preserve_unit_loops=True)
    rk_o, o_i = _accumulators(sch, sums, config, lanes)
    initialise(sch, sums, rk_o, tile=3)
    sch.tensorize(o_i, instruction)


def _accumulators(sch: Schedule, sums: Block, config: DenseConfig, lanes: int) -> tuple[Loop, Loop]:
    """The outer loop over terms, around the unrolled accumulators of a tile, and the lanes of one."""
    depth = len(reduction_axes(sch, sums))
    m, part, o, rk, *terms = sch.get_loops(sums)[-3 - depth :]
    o_v, o_i = sch.split(o, [None, lanes])
    rk_o, rk_i = sch.split(rk, [None, config.unroll])
    sch.reorder(rk_o, rk_i, m, part, o_v, o_i, *terms)
    unroll(sch, (rk_i, m, part, o_v))
    return rk_o, o_i
