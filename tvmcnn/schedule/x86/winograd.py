"""Winograd convolution by strips of tiles: a strip is transformed, multiplied and transformed back while it is in L2.

The (m+2)² products are matrix products of tiles by channels with the accumulators of a register tile; they are at the
FMA peak like direct convolution, with 1/2.25 or 1/4 of its work. The strip must be long enough that each weight, which
comes from L2 or beyond, serves many tiles (a vector of weights serves one FMA a tile), and short enough that both
transformed tensors stay near.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import WinogradConfig
from tvmcnn.schedule.x86.vectors import Block, extent, initialise, prefetch, unroll

# A tile is one vector of each of 36 planes. At strides of whole pages all would be in one set of L1, which holds 12:
# the planes are a line further apart (14 x 14 pixels of 256 channels took 60 µs to transform, and take 40).
PAGE, LINE = 1024, 16  # elements


def winograd(sch: Schedule, config: WinogradConfig, lanes: int) -> None:
    """Cut "out" into strips of tiles, compute everything else a strip at a time.

    for strip: for t in strip: "transformed"; for i, j, blocks, tiles: "product"; for block, t in strip: "out"
    """
    out, product = sch.get_sblock("out"), sch.get_sblock("product")
    data, rows = sch.get_sblock("transformed"), sch.get_sblock("rows")
    lines, tile = sch.get_sblock("lines"), sch.get_sblock("tile")

    # Phase 1: the output by tiles, the tiles by strips, the maps in as many parts as threads may want.
    n, ob, y, x, o = sch.get_loops(out)
    ob_o, ob_i = sch.split(ob, [config.parts, None])
    y_o, y_i = sch.split(y, [None, config.rows])
    x_o, x_i = sch.split(x, [None, config.columns])
    sch.reorder(n, ob_o, y_o, x_o, ob_i, y_i, x_i, o)
    strip, t = sch.split(sch.fuse(y_o, x_o), [None, config.strip])
    sch.reorder(n, ob_o, strip, ob_i, t, y_i, x_i, o)
    unroll(sch, (y_i, x_i))
    _vectors(sch, o, lanes)

    # Phase 2: the output's transform, one tile in registers.
    for block in (tile, lines):
        sch.set_scope(block, 0, "local")
        sch.compute_at(block, t, preserve_unit_loops=True)
        _vectors_of_tile(sch, block, 2, lanes)

    # Phase 3: the products, in register tiles of `vectors` vectors of maps by `tiles` tiles.
    sch.compute_at(product, strip, preserve_unit_loops=True)
    stored = sch.cache_write(product, 0, "local")
    i, j, b, t, o = sch.get_loops(stored)[-5:]
    per_block = extent(sch, o) // lanes
    b_o, b_i = sch.split(b, [None, max(1, config.vectors // per_block)])
    t_o, t_i = sch.split(t, [None, config.tiles])
    o_o, o_v, o_i = sch.split(o, [None, min(config.vectors, per_block), lanes])
    sch.reorder(i, j, b_o, o_o, t_o, t_i, b_i, o_v, o_i)
    unroll(sch, (t_i, b_i, o_v))
    sch.vectorize(o_i)
    sch.compute_at(product, t_o, preserve_unit_loops=True)
    i, j, b, t, o, rb, rc = sch.get_loops(product)[-7:]
    o_v, o_i = sch.split(o, [None, lanes])
    rc_o, rc_i = sch.split(rc, [None, config.unroll])
    sch.reorder(i, j, rb, rc_o, rc_i, t, b, o_v, o_i)
    unroll(sch, (rc_i, t, b, o_v))
    sch.vectorize(o_i)
    if config.prefetch:
        prefetch(sch, rb, extent(sch, t_o) * extent(sch, o_o))
    initialise(sch, product, rb, tile=3)

    for block in (data, product):
        sch.storage_align(block, 0, 2, PAGE, LINE)

    # Phase 4: the input's transform, one tile of one block in registers.
    sch.compute_at(data, strip, preserve_unit_loops=True)
    i, j, cb, t, c = sch.get_loops(data)[-5:]
    sch.reorder(cb, t, i, j, c)
    unroll(sch, (i, j))
    _vectors(sch, c, lanes)
    sch.set_scope(rows, 0, "local")
    sch.compute_at(rows, t, preserve_unit_loops=True)
    _vectors_of_tile(sch, rows, 2, lanes)


def _vectors(sch: Schedule, loop: object, lanes: int) -> None:
    outer, inner = sch.split(loop, [None, lanes])
    sch.unroll(outer)
    sch.vectorize(inner)


def _vectors_of_tile(sch: Schedule, block: Block, axes: int, lanes: int) -> None:
    """Unroll the last `axes` of a tile and take its channels as vectors."""
    *loops, lane = sch.get_loops(block)[-axes - 1 :]
    unroll(sch, loops)
    _vectors(sch, lane, lanes)
