"""Direct convolution with 16 output channels in the lanes: a register tile of accumulators, a broadcast and FMAs a tap.

An FMA has a latency of 4 cycles and two start in each, so 8 independent accumulators keep the units busy and more of
them save loads: a tile of v vectors by t pixels loads v weights and broadcasts t pixels for v·t FMAs. AVX-512 has 32
registers, AVX2 16; beyond them the accumulators spill and the rate halves (45 stack vectors per 84 FMAs ran at
75 to 134 of 214 GFLOP/s). Depthwise convolutions are the same loops without the reduction over channels.
"""

from __future__ import annotations

import math

from tvm.s_tir import Schedule

from tvmcnn.configs import DirectConfig, TileConfig
from tvmcnn.schedule.steps import (
    Block,
    Loop,
    expand,
    extent,
    initialise,
    prefetch,
    reduction_axes,
    unroll,
    vectorize_inner,
)
from tvmcnn.schedule.x86.dots import intrinsic

UNROLLED = 8  # rows of four taps: what rows of a tile share of the image is loaded and turned once
TERMS = "rn"  # the axis of the products that one instruction adds, of integers


def direct(sch: Schedule, config: DirectConfig, lanes: int) -> None:
    """Tile "out", compute "conv" inside the tile, keep it in registers.

    Blocks: "conv" (n, ob, ty, y, dy, tx, x, dx, o | reductions), "out" (n, ob, ty, y, tx, x, o), and "prologue" or
    "padded" where there is one.
    """
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    prologue, padded = (
        [block for block in sch.get_producers(conv) if sch.get(block).name_hint == name]
        for name in ("prologue", "padded")
    )
    sch.set_scope(conv, 0, "local")

    # Phase 1: tile the output. A tile is `vectors` vectors of channels by rows x columns of pixels.
    n, ob, y_o, y_i, x_o, x_i, o = sch.get_loops(out)
    if not config.overlap:  # the one tile has all pixels
        sch.reorder(y_o, x_o, n, ob, y_i, x_i, o)
        y_o, y_i = sch.split(y_i, [None, config.rows])
        x_o, x_i = sch.split(x_i, [None, config.columns])
    per_block = extent(sch, o) // lanes
    ob_o, ob_i = sch.split(ob, [None, max(1, config.vectors // per_block)])
    band, y_o = sch.split(y_o, [config.bands, None])
    o_o, o_v, o_i = sch.split(o, [None, min(config.vectors, per_block), lanes])
    sch.reorder(n, band, *((y_o, ob_o, o_o) if config.rows_first else (ob_o, o_o, y_o)), x_o, y_i, x_i, ob_i, o_v, o_i)
    unroll(sch, (y_i, x_i, ob_i, o_v))
    sch.vectorize(o_i)

    # Phase 2: the accumulators of one tile, inside the reduction.
    sch.compute_at(conv, x_o, preserve_unit_loops=True)
    image, across = str(sch.get(conv).reads[0].source.ty.dtype), "rc" not in _reductions(sch, conv)
    terms = [extent(sch, sch.get_loops(conv)[-1])] if TERMS in _reductions(sch, conv) else []
    dot = intrinsic(lanes, *terms, image, across=across) if terms else None
    expand(sch, conv, o_o, lanes)
    register_sums(sch, config, conv, lanes, (y_o, x_o), dot)
    for block in padded:
        # Once a row of tiles; cut at the tests for the border, the inner columns are vectors.
        sch.compute_at(block, y_o, preserve_unit_loops=True)
        sch.annotate(sch.get_loops(block)[-1], "pragma_loop_partition_hint", True)
    for block in prologue:
        # Once a tile, for all channels: a few KB that stay in L1, and one vector operation where the tile has dozens.
        # Or once a row of tiles, lest each tile of maps does it again.
        sch.compute_at(block, y_o if config.rows_first else x_o, preserve_unit_loops=True)
        vectorize_inner(sch, sch.get_loops(block)[-1], lanes)


def register_sums(
    sch: Schedule, config: TileConfig, conv: Block, lanes: int, passes: tuple[Loop, Loop], dot: str | None
) -> None:
    """Schedule the loops of the block "conv" inside of a tile: reductions around unrolled accumulators, which start
    at zero. `passes` are the loops that read the same weights again; `dot` is the instruction that adds the products
    of the innermost reduction, if there is one."""
    names = _reductions(sch, conv)
    cb, _, cy, dy, _, cx, dx, co, *reduced = sch.get_loops(conv)[-8 - len(names) :]
    reductions = dict(zip(names, reduced, strict=True))
    terms = [reductions[TERMS]] if TERMS in reductions else []
    co_v, co_i = sch.split(co, [None, lanes])
    order = [reductions[name] for name in config.order.split() if name in reductions]
    inner = []
    if config.unroll > 1 and "rc" in reductions:
        # Several input channels in one loop body: their weights are one run of memory.
        position = order.index(reductions["rc"])
        rc_o, rc_i = sch.split(reductions["rc"], [None, config.unroll])
        order[position : position + 1] = [rc_o, rc_i]
        inner.append(rc_i)
    if config.unroll > 1 and "rc" not in reductions and not terms:
        # The taps of a row in one loop body: neighbouring pixels of the tile share what they read, in registers.
        inner.append(order.pop(order.index(reductions["rw"])))
        order.append(inner[0])
    sch.reorder(*order, cy, dy, cx, dx, cb, co_v, co_i, *terms)
    unroll(sch, (*inner, cy, dy, cx, dx, cb, co_v))
    if not terms:
        sch.vectorize(co_i)
    if config.prefetch:
        taken = math.prod(extent(sch, loop) for loop in (*order, *terms))
        prefetch(sch, order[0], passes, taken * config.vectors * lanes)
    initialise(sch, conv, order[0], tile=6)
    if terms and "rc" not in names and math.prod(extent(sch, loop) for loop in order) <= UNROLLED:
        unroll(sch, order)
    if dot is not None:
        sch.tensorize(co_i, dot)


def _reductions(sch: Schedule, block: object) -> list[str]:
    """The names of the block's reduction axes, as the tensor expression gave them (without TIR's v_ prefix)."""
    return [axis.var.name.removeprefix("v_") for axis in reduction_axes(sch, block)]
