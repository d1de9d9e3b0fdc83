"""Convolutions and matrix products with images in the lanes: a broadcast for each map of a tile and a load for each
pixel, or vector of images, for as many FMAs as it has accumulators.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import ImagesConfig
from tvmcnn.schedule.x86.vectors import Loop, initialise, unroll


def images(sch: Schedule, config: ImagesConfig, lanes: int) -> None:
    """Tile "out" by maps and columns, or by maps and vectors of images, compute "conv" inside the tile.

    Blocks: "conv" (g, o, y, dy, x, dx, i | rc, rh, rw) or (g, o, i | rk), "out" (g, o, y, x, i) or (g, o, …, i).
    """
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    sch.set_scope(conv, 0, "local")
    loops = sch.get_loops(out)
    is_conv = len(sch.get_loops(conv)) == 10
    g, o, i = loops[0], loops[1], loops[-1]
    o_o, o_i = sch.split(o, [None, config.maps])
    i_v, i_i = sch.split(i, [None, lanes])
    c_o, c_i = sch.split(loops[3] if is_conv else g, [None, config.columns])
    if is_conv:
        sch.reorder(g, loops[2], o_o, c_o, o_i, c_i, i_v, i_i)
        at = c_o
    else:
        sch.reorder(c_o, o_o, *loops[2:-1], c_i, o_i, i_v, i_i)
        at = o_o
    unroll(sch, (o_i, c_i, i_v))
    sch.vectorize(i_i)

    sch.compute_at(conv, at, preserve_unit_loops=True)
    outer: tuple[Loop, ...]
    tile: tuple[Loop, ...]
    if is_conv:
        o, y, dy, x, dx, i, rc, rh, rw = sch.get_loops(conv)[-9:]
        outer, tile = (rc, rh, rw), (y, dy, x, dx)
    else:
        g, o, i, rk = sch.get_loops(conv)[-4:]
        outer, tile = (rk,), (g,)
    i_v, i_i = sch.split(i, [None, lanes])
    sch.reorder(*outer, *tile, o, i_v, i_i)
    unroll(sch, (*tile, o, i_v))
    if is_conv:
        sch.unroll(outer[-1])
    sch.vectorize(i_i)
    initialise(sch, conv, outer[0], tile=len(tile) + 2)
