"""Winograd convolution by strips of tiles: a strip is transformed, multiplied and transformed back while it is in L2.

The products of each element of a tile are matrix products of tiles by channels with the accumulators of a register
tile; they are at the FMA peak like direct convolution, with 1/2.25 to 1/4 of its work. The strip must be long enough
that each weight, which comes from L2 or beyond, serves many tiles (a vector of weights serves one FMA a tile), and
short enough that both transformed tensors stay near.
"""

from __future__ import annotations

import math

from tvm.s_tir import Schedule

from tvmcnn.configs import StreamedConfig, WinogradConfig
from tvmcnn.schedule.steps import Block, Loop, extent, initialise, prefetch, reduction_axes, unroll

# The elements of a tile lie in the 36 planes of one block of channels, an odd number of lines apart: at strides of
# whole pages all would be in one set of L1, which holds 12 lines (14 x 14 pixels of 256 channels took 60 µs to
# transform, then 40). With the planes of all blocks outside, a tile's stores would go to 36 pages, more than a core's
# 16 entries translate for stores; the difference is small (the same convolution, filters transformed on the way: 712
# against 690 µs).
LINE_ELEMENTS = 16  # elements


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
    _in_registers(sch, (tile, lines), t, lanes)

    # Phase 3: the products, in register tiles of `vectors` vectors of maps by `tiles` tiles.
    sch.compute_at(product, strip, preserve_unit_loops=True)
    reduction, (*_, tiles) = _products(sch, product, config, lanes)
    if config.prefetch:
        prefetch(sch, reduction, (tiles,), _terms(sch, product) * config.vectors * lanes)

    for block in (data, product):
        sch.storage_align(block, 0, 3, 2 * LINE_ELEMENTS, LINE_ELEMENTS)

    # Phase 4: the input's transform, one tile of one block in registers.
    sch.compute_at(data, strip, preserve_unit_loops=True)
    i, j, t, _ = sch.get_loops(data)[-4:]
    sch.reorder(t, i, j)
    _transform(sch, rows, data, lanes)


def winograd_data(sch: Schedule, config: None, lanes: int) -> None:
    """The data's transform alone: one tile of one block of channels in registers.

    Blocks: "rows" (n, cb, t, i, s, c), "out" (n, cb, i, j, t, c).
    """
    out = sch.get_sblock("out")
    i, j, t, _ = sch.get_loops(out)[-4:]
    sch.reorder(t, i, j)
    _transform(sch, sch.get_sblock("rows"), out, lanes)


def streamed(sch: Schedule, config: StreamedConfig, lanes: int) -> None:
    """`vectors` vectors of maps after the other: their filters transformed into L2, all products, all outputs.

    for maps: for block, c: "filters"; for i, j, tiles: "product"; for block, t: "out"

    Filters of 3 x 3 come from memory, not their transform of 4 x 4 or 6 x 6: 1.8 or 4 times the bytes, which for small
    images take longer to read than to multiply (256 channels of 14 x 14 pixels, 9.4 MB: 1.1 ms of 0.35 ms of FMAs).
    """
    out, product, filters = sch.get_sblock("out"), sch.get_sblock("product"), sch.get_sblock("filters")
    filter_rows, lines, tile = sch.get_sblock("filter_rows"), sch.get_sblock("lines"), sch.get_sblock("tile")

    # Phase 1: the output by maps, images and tiles.
    n, ob, y, x, o = sch.get_loops(out)
    ob_o, ob_i = sch.split(ob, [None, max(1, config.vectors * lanes // extent(sch, o))])
    y_o, y_i = sch.split(y, [None, config.rows])
    x_o, x_i = sch.split(x, [None, config.columns])
    sch.reorder(ob_o, n, ob_i, y_o, x_o, y_i, x_i, o)
    t = sch.fuse(y_o, x_o)
    unroll(sch, (y_i, x_i))
    _vectors(sch, o, lanes)

    # Phase 2: the output's transform, one tile in registers.
    _in_registers(sch, (tile, lines), t, lanes)

    # Phase 3: the products of an image.
    sch.compute_at(product, n, preserve_unit_loops=True)
    reduction, around = _products(sch, product, config, lanes)
    if config.prefetch:
        prefetch(sch, reduction, (n, *around), _terms(sch, product) * config.kernel**2 * config.vectors * lanes)

    # Phase 4: the filters' transform, one vector of filters in registers.
    sch.compute_at(filters, ob_o, preserve_unit_loops=True)
    i, j, c, _ = sch.get_loops(filters)[-4:]
    sch.reorder(c, i, j)
    _transform(sch, filter_rows, filters, lanes)

    for block in (filters, product):
        sch.storage_align(block, 0, 3, 2 * LINE_ELEMENTS, LINE_ELEMENTS)


def _products(
    sch: Schedule, product: Block, config: WinogradConfig | StreamedConfig, lanes: int
) -> tuple[Loop, tuple[Loop, ...]]:
    """The sum over the channels in register tiles of `vectors` vectors of maps by `tiles` tiles.

    Returns its outermost loop, and the loops around: elements, maps, and tiles.
    """
    stored = sch.cache_write(product, 0, "local")
    b, i_o, j_o, t, o = sch.get_loops(stored)[-5:]
    per_block = extent(sch, o) // lanes
    b_o, b_i = sch.split(b, [None, max(1, config.vectors // per_block)])
    t_o, t_i = sch.split(t, [None, config.tiles])
    o_o, o_v, o_i = sch.split(o, [None, min(config.vectors, per_block), lanes])
    sch.reorder(i_o, j_o, b_o, o_o, t_o, t_i, b_i, o_v, o_i)
    unroll(sch, (t_i, b_i, o_v))
    sch.vectorize(o_i)
    sch.compute_at(product, t_o, preserve_unit_loops=True)
    b, i, j, t, o, rb, rc = sch.get_loops(product)[-7:]
    o_v, o_i = sch.split(o, [None, lanes])
    rc_o, rc_i = sch.split(rc, [None, config.unroll])
    sch.reorder(i, j, rb, rc_o, rc_i, t, b, o_v, o_i)
    unroll(sch, (rc_i, t, b, o_v))
    sch.vectorize(o_i)
    initialise(sch, product, rb, tile=3)
    return rb, (i_o, j_o, b_o, o_o, t_o)


def _terms(sch: Schedule, product: Block) -> int:
    """Channels of the sum."""
    return math.prod(int(axis.dom.extent) for axis in reduction_axes(sch, product))


def _transform(sch: Schedule, rows: Block, data: Block, lanes: int) -> None:
    """Data or filters (… t, i, j, c) a tile of one block at a time, with `rows` in registers."""
    t, i, j, c = sch.get_loops(data)[-4:]
    unroll(sch, (i, j))
    _vectors(sch, c, lanes)
    _in_registers(sch, (rows,), t, lanes)


def _in_registers(sch: Schedule, blocks: tuple[Block, ...], at: Loop, lanes: int) -> None:
    """The stages of a transform, each computed for the one tile at `at`."""
    for block in blocks:
        sch.set_scope(block, 0, "local")
        sch.compute_at(block, at, preserve_unit_loops=True)
        _vectors_of_tile(sch, block, 2, lanes)


def _vectors(sch: Schedule, loop: object, lanes: int) -> None:
    outer, inner = sch.split(loop, [None, lanes])
    sch.unroll(outer)
    sch.vectorize(inner)


def _vectors_of_tile(sch: Schedule, block: Block, axes: int, lanes: int) -> None:
    """Unroll the last `axes` of a tile and take its channels as vectors."""
    *loops, lane = sch.get_loops(block)[-axes - 1 :]
    unroll(sch, loops)
    _vectors(sch, lane, lanes)
