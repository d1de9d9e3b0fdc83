"""Pools with channels in the lanes: one pixel at a time in a register, bound by loads."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.schedule.steps import extent, initialise, unroll


def pool(sch: Schedule, config: None, lanes: int) -> None:
    """Blocks: "pool" (n, cb, y, x, c | rh, rw), "out" (n, cb, y, x, c), both in NCHW16c; of volumes … | rd, rh, rw."""
    window, out = sch.get_sblock("pool"), sch.get_sblock("out")
    sch.set_scope(window, 0, "local")
    x, c = sch.get_loops(out)[-2:]
    c_v, c_i = sch.split(c, [None, lanes])
    sch.unroll(c_v)
    sch.vectorize(c_i)

    sch.compute_at(window, x, preserve_unit_loops=True)
    c, *taps = sch.get_loops(window)[2 * len("nbyx") :]  # behind those of "out", and its own, of one turn each
    c_v, c_i = sch.split(c, [None, lanes])
    sch.reorder(*taps, c_v, c_i)
    unroll(sch, (c_v, *(taps[-1:] if extent(sch, taps[-1]) <= 3 else ())))
    sch.vectorize(c_i)
    initialise(sch, window, taps[0], tile=1)
