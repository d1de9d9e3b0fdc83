"""Dense dots: products of rows of integers of 8 bits by a constant matrix."""

from __future__ import annotations

import dataclasses
import itertools
import math

from tvmcnn.choose.cpu.defaults import MAX_ROWS, fits_registers
from tvmcnn.choose.cpu.dots import shift_of, terms_of
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.configs import DenseDotsConfig
from tvmcnn.fuse.bytes_multiplied import matrix_less_zero, multiplies_rows
from tvmcnn.network import FLOAT32, NO_PADS, PLAIN, Choice, Kernel, Layout, Tensor, round_up
from tvmcnn.targets import Target

# Cycles that a line of weights from L2 costs beside instructions: 12 vectors by a row of 57 ran at 112 GOP/s, 4 by 2 at
# 150 (384 x 1536, AVX2).
LINE_FROM_L2 = 0.5


def multiplies_bytes(state: State, kernel: Kernel) -> bool:
    """A product of integers that has a kernel with columns in the lanes."""
    return multiplies_rows(state.network, kernel.anchor)


def multiply_bytes(state: State, kernel: Kernel) -> Choice:
    """Rows are read as they lie in memory: of an image of one pixel in blocks of channels, say."""
    image = kernel.inputs[0]
    weight = matrix_less_zero(state.network, kernel.anchor)
    assert weight is not None  # see multiplies_bytes
    rows = math.prod(kernel.output.shape[:-1])
    source, layout = state.stored[image.name]
    if not _lies_by_rows(source, layout, rows) or len(kernel.output.shape) != 2:
        source, layout = state.plain(image)
    depth = math.prod(layout.physical(source.shape)) // rows
    terms = terms_of(state.target, weight)
    shift = shift_of(image, terms)
    # A lone row reads each weight once, and waits for memory: 1280 x 1000 takes 25 µs with weights of 8 bits and 30 of
    # 16, and 4096 x 4096, which L3 does not hold, 337 and 730 (AVX2, AMD EPYC, beside other work).
    narrow = terms == 2 and rows == 1 and weight.dtype == "int8"
    multiplied = DenseDotsConfig(terms=terms, shift=shift, narrow=narrow)
    config = dots_config(state, rows, -(-depth // terms), kernel.output.shape[-1], multiplied)
    read = [(source, layout), *(state.plain(tensor) for tensor in kernel.inputs[1:])]  # a zero point that arrives
    return choice_of(kernel, "dense_dots", read, PLAIN, "dense_dots", (config, "default"))


def _lies_by_rows(source: Tensor, layout: Layout, rows: int) -> bool:
    """Whether all of a row is one run of memory, the padding of channels in it perhaps, and the next row follows."""
    return source.shape[:1] == (rows,) and layout.halo == NO_PADS and layout.images == 1 and not layout.pitch


def dots_config(state: State, rows: int, groups: int, maps: int, config: DenseDotsConfig) -> DenseDotsConfig:
    """The tile that is estimated to be fastest, multiplied as `config` says. Where fewer sums than instructions are
    under way, they are split into parts.
    """
    target = state.target
    lanes = target.lanes(FLOAT32)
    tiles = itertools.product(range(1, target.registers), range(1, min(rows, MAX_ROWS) + 1))
    fitting = [
        dataclasses.replace(config, width=v * lanes, rows=r)
        for v, r in tiles
        if fits_registers(v, r, target, _others(v, r, config))
    ]
    tile = min(fitting, key=lambda each: dots_cost(each, rows, maps, target))
    parts, sums = 1, tile.width // lanes * tile.rows
    while sums * parts * 2 <= target.fma_units * target.fma_latency and groups % (parts * 2) == 0:
        parts *= 2
    return dataclasses.replace(tile, parts=parts)


def _others(vectors: int, rows: int, config: DenseDotsConfig) -> int:
    """The registers beside a tile's sums: the weights, which all rows share, a group of terms in all lanes, and the
    products of two before they are added.

    The weights of a lone row are memory operands. (AVX2: tiles of 6 vectors by 2 rows, which leave 4, ran at 28 to 111
    GOP/s, of 4 by 2 at 146. AVX-512: 8 by 3 ran at 344 to 451, 4 by 6 at 410 to 447.)
    """
    return (vectors if rows > 1 else 0) + 1 + (config.terms == 2)


def dots_cost(config: DenseDotsConfig, rows: int, maps: int, target: Target) -> float:
    """Estimated cycles of a useful instruction that multiplies, as `dense_cost` has those of an FMA.

    Two terms are multiplied and added by two. Before that two others widen them, once for all vectors of a tile, as one
    shifts signed bytes: 197 x 768 x 768 runs at 179 GOP/s in tiles of 4 vectors by 6 rows and at 155 of 2 by 11
    (AVX-512 without VNNI); with VNNI on signed bytes at 446 and 399. More rows than L1 has ways would push each other
    out of it where they lie some power of two apart: 57 x 4096 x 768 ran at 85 GOP/s in tiles of 29 rows.
    """
    v, r, chains = config.width // target.lanes(FLOAT32), config.rows, target.fma_units * target.fma_latency
    computed = round_up(maps, config.width) / maps * round_up(rows, r) / rows
    prepared = 2 * r if config.terms == 2 else r if config.shift else 0
    issued = (v * r * (4 // config.terms) + prepared) / target.fma_units
    cycles = max(issued, (v + r) / target.loads) + LINE_FROM_L2 * v
    return computed * (cycles / (v * r) + max(0, chains - v * r * config.parts) / 16)
