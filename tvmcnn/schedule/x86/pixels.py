"""1x1 convolution in plain layout with pixels in the lanes: what groups that fill no block of channels leave.

Each channel loads the tile's vectors of pixels once and broadcasts one weight a map, so that a tile of v vectors by t
maps takes v + t loads for v·t FMAs, as direct convolution does.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import PixelsConfig
from tvmcnn.schedule.steps import expand, extent, initialise, rows_of_vectors, unroll


def pixels(sch: Schedule, config: PixelsConfig, lanes: int) -> None:
    """Tile "out" by maps and runs of pixels, compute "conv" inside the tile.

    Blocks: "conv" (n, o, run, v, lane | rc), "out" (n, o, p).
    """
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    width = extent(sch, sch.get_loops(conv)[-2])
    sch.set_scope(conv, 0, "local")
    n, o, p = sch.get_loops(out)
    group, o_o, o_i = sch.split(o, [config.groups, None, config.maps])
    run, p = sch.split(p, [None, config.pixels])
    p_v, p_l, p_i = rows_of_vectors(sch, p, width, lanes)
    sch.reorder(n, group, run, o_o, o_i, p_v, p_l, p_i)  # all maps of a group while its pixels are in L1
    unroll(sch, (o_i, p_v))

    sch.compute_at(conv, o_o, preserve_unit_loops=True)
    o, r, v, lane, rc = sch.get_loops(conv)[-5:]
    lane_o, lane_i = sch.split(lane, [None, lanes])
    # The maps innermost: their few weights stay in registers, and each vector of pixels is needed for a moment only.
    sch.reorder(rc, r, v, lane_o, o, lane_i)
    unroll(sch, (v, lane_o, o))
    sch.vectorize(lane_i)
    initialise(sch, conv, rc, tile=4)
    expand(sch, conv, run, lanes)
