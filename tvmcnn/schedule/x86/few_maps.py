"""Convolution to few maps with channels in the lanes: a tile's sums are vectors, whose lanes are added at its end."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import FewMapsConfig
from tvmcnn.schedule.steps import initialise, unroll


def few_maps(sch: Schedule, config: FewMapsConfig, lanes: int) -> None:
    """Tile "out" by columns for all maps; what "total" is made of is in registers.

    Blocks: "total_lanes" (n, y, tx, x, m, l | rb, rh, rw), "total_quarters" (…, m, j | rq), "total" (…, m | rj), "out"
    (n, m, y, tx, x).
    """
    sums, out = sch.get_sblock("total_lanes"), sch.get_sblock("out")
    n, m, y, tx, x = sch.get_loops(out)
    sch.reorder(n, y, tx, m, x)
    sch.unroll(m)
    sch.vectorize(x)

    for name in ("total", "total_quarters"):
        block = sch.get_sblock(name)
        sch.set_scope(block, 0, "local")
        sch.compute_at(block, tx, preserve_unit_loops=True)
        *tile, terms = sch.get_loops(block)[-3 if name == "total" else -4 :]
        sch.reorder(terms, *tile)
        unroll(sch, (terms, *tile[:2]))
        if name != "total":
            sch.vectorize(tile[-1])
        sch.decompose_reduction(block, terms)

    sch.set_scope(sums, 0, "local")
    sch.compute_at(sums, tx, preserve_unit_loops=True)
    x, m, lane, rb, rh, rw = sch.get_loops(sums)[-6:]
    lane_v, lane_i = sch.split(lane, [None, lanes])
    sch.reorder(rb, rh, rw, lane_v, m, x, lane_i)
    unroll(sch, (lane_v, m, x))
    sch.vectorize(lane_i)
    initialise(sch, sums, rb, tile=3)
