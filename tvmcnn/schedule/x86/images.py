"""Convolutions and matrix products with images in the lanes: a broadcast for each map of a tile and a load for each
pixel, or vector of images, for as many FMAs as it has accumulators.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import ImagesConfig
from tvmcnn.schedule.steps import Loop, expand, initialise, unroll

Pair = tuple[Loop, Loop]


def images(sch: Schedule, config: ImagesConfig, lanes: int) -> None:
    """Compute "conv" for one tile of "out" at a time, in registers.

    Blocks: "conv" (g, o, y, dy, x, dx, i | rc, rh, rw) or (g, o, i | rk), "out" (g, o, y, x, i) or (g, o, …, i).
    """
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    reduced = [axis.iter_type == axis.CommReduce for axis in sch.get(conv).iter_vars]
    sch.set_scope(conv, 0, "local")

    # Phase 1: the tile.
    *loops, i = sch.get_loops(out)
    i_v, i_i = sch.split(i, [None, lanes])
    at, row = (_convolution if sum(reduced) > 1 else _product)(sch, loops, config, (i_v, i_i))
    sch.unroll(i_v)
    sch.vectorize(i_i)

    # Phase 2: its accumulators. The maps innermost: their weights stay in registers, see pixels.py.
    sch.compute_at(conv, at, preserve_unit_loops=True)
    inner = sch.get_loops(conv)[-len(reduced) :]
    g, o, *pixels, i = (loop for loop, is_term in zip(inner, reduced, strict=True) if not is_term)
    terms = [loop for loop, is_term in zip(inner, reduced, strict=True) if is_term]
    i_v, i_i = sch.split(i, [None, lanes])
    sch.reorder(*terms, g, *pixels, o, i_v, i_i)
    unroll(sch, (g, *pixels, o, i_v))
    if len(terms) > 1:
        sch.unroll(terms[-1])
    sch.vectorize(i_i)
    initialise(sch, conv, terms[0], tile=len(pixels) + 3)
    expand(sch, conv, row, lanes)


def _convolution(sch: Schedule, loops: list[Loop], config: ImagesConfig, vectors: Pair) -> Pair:
    """Cut (g, o, y, x) into maps by columns; returns the loop around a tile, and that around a row of them."""
    g, o, y, x = loops
    o_o, o_i = sch.split(o, [None, config.maps])
    x_o, x_i = sch.split(x, [None, config.columns])
    sch.reorder(g, y, o_o, x_o, o_i, x_i, *vectors)
    unroll(sch, (o_i, x_i))
    return x_o, y


def _product(sch: Schedule, loops: list[Loop], config: ImagesConfig, vectors: Pair) -> Pair:
    """Cut (g, o, …) into maps by vectors of images; returns the loop around a tile, and that around all maps."""
    g, o, *unit = loops
    g_o, g_i = sch.split(g, [None, config.columns])
    o_o, o_i = sch.split(o, [None, config.maps])
    sch.reorder(g_o, o_o, *unit, g_i, o_i, *vectors)
    unroll(sch, (g_i, o_i))
    return o_o, g_o
