"""1x1 convolution in plain layout with pixels in the lanes: what groups that fill no block of channels leave.

Each channel loads the tile's vectors of pixels once and broadcasts one weight a map, so that a tile of v vectors by t
maps takes v + t loads for v·t FMAs, as direct convolution does.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import PixelsConfig
from tvmcnn.schedule.x86.vectors import extent, initialise, unroll


def pixels(sch: Schedule, config: PixelsConfig, lanes: int) -> None:
    """Tile "out" by maps and vectors of pixels, compute "conv" inside the tile.

    Blocks: "conv" (n, o, v, lane | rc), "out" (n, o, p).
    """
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    width = extent(sch, sch.get_loops(conv)[-2])
    sch.set_scope(conv, 0, "local")
    n, o, p = sch.get_loops(out)
    o_o, o_i = sch.split(o, [None, config.maps])
    p_o, p_v, p_i = sch.split(p, [None, config.vectors, width])
    p_l, p_i = sch.split(p_i, [None, lanes])
    sch.reorder(n, o_o, p_o, o_i, p_v, p_l, p_i)
    unroll(sch, (o_i, p_v, p_l))
    sch.vectorize(p_i)

    sch.compute_at(conv, p_o, preserve_unit_loops=True)
    o, v, lane, rc = sch.get_loops(conv)[-4:]
    lane_o, lane_i = sch.split(lane, [None, lanes])
    sch.reorder(rc, o, v, lane_o, lane_i)
    unroll(sch, (o, v, lane_o))
    sch.vectorize(lane_i)
    initialise(sch, conv, rc, tile=3)
