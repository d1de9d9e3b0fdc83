"""Reductions of rows that lie side by side in memory: a block of threads a row, partial results combined by shuffles.

total[i] = Σ_k x[i, k]    -->    for i, by blocks: for k in 128, by threads: part += x[i, k];  total[i] = Σ part
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import ThreadsConfig
from tvmcnn.schedule.steps import reduction_axes


def rows(sch: Schedule, config: ThreadsConfig) -> None:
    """Blocks: one reduction and "out", an element a row; or Softmax's "maximum", "exponentials", "total" and "out", the
    last axis a row."""
    out = sch.get_sblock("out")
    reductions = [block for block in sch.get_child_blocks(sch.get_sblock("root")) if reduction_axes(sch, block)]
    loops = sch.get_loops(out)
    if len(reductions) > 1:
        sch.compute_inline(sch.get_sblock("exponentials"))
        columns = loops.pop()
    else:
        columns = sch.add_unit_loop(out)
    row = sch.fuse(*loops) if len(loops) > 1 else loops[0] if loops else sch.add_unit_loop(columns)
    sch.bind(row, "blockIdx.x")
    _, thread = sch.split(columns, [None, config.threads])
    sch.bind(thread, "threadIdx.x")
    for block in reversed(reductions):
        sch.set_scope(block, 0, "shared")
        sch.compute_at(block, row, preserve_unit_loops=True)
        terms = sch.get_loops(block)[-len(reduction_axes(sch, block)) :]
        _, thread = sch.split(sch.fuse(*terms) if len(terms) > 1 else terms[0], [None, config.threads])
        sch.bind(thread, "threadIdx.x")
