"""Products of two computed matrices, in register tiles of rows by whole vectors of columns.

A term loads the tile's vectors of columns and broadcasts one element a row, as in `dense`, whose columns the compiler
has packed.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import MatmulConfig
from tvmcnn.schedule.steps import initialise, unroll, vectorize_inner


def matmul(sch: Schedule, config: MatmulConfig, lanes: int) -> None:
    """Compute "sum" inside each tile of "out", "packed" once for all tiles of the same columns.

    Blocks: "packed" (…, tc, k, c) where there is one, "sum" (…, tc, tr, r, c | rk), "out" (…, tc, tr, r, c).
    """
    sums, out = sch.get_sblock("sum"), sch.get_sblock("out")
    sch.set_scope(sums, 0, "local")
    across, down, row, column = sch.get_loops(out)[-4:]
    column_o, column_i = sch.split(column, [None, lanes])
    unroll(sch, (row, column_o))
    sch.vectorize(column_i)

    sch.compute_at(sums, down, preserve_unit_loops=True)
    row, column, terms = sch.get_loops(sums)[-3:]
    column_o, column_i = sch.split(column, [None, lanes])
    sch.reorder(terms, row, column_o, column_i)
    unroll(sch, (row, column_o))
    sch.vectorize(column_i)
    initialise(sch, sums, terms, tile=2)
    if config.packed:
        packed = sch.get_sblock("packed")
        sch.compute_at(packed, across, preserve_unit_loops=True)
        vectorize_inner(sch, sch.get_loops(packed)[-1], lanes)
