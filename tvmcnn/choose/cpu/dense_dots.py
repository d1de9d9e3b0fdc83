"""Dense dots: products of rows of integers of 8 bits by a constant matrix."""

from __future__ import annotations

import math

from tvmcnn.choose.cpu.defaults import dense_config
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.configs import DenseDotsConfig
from tvmcnn.fuse.bytes_multiplied import multiplies_rows
from tvmcnn.network import FLOAT32, NO_PADS, PLAIN, Choice, Kernel, Layout, Tensor


def multiplies_bytes(state: State, kernel: Kernel) -> bool:
    """A product of integers that has a kernel with columns in the lanes."""
    return multiplies_rows(state.network, kernel.anchor)


def multiply_bytes(state: State, kernel: Kernel) -> Choice:
    """Rows are read as they lie in memory: of an image of one pixel in blocks of channels, say."""
    image = kernel.inputs[0]
    weight = state.network.constants[kernel.anchor.inputs[1]]
    rows = math.prod(kernel.output.shape[:-1])
    source, layout = state.stored[image.name]
    if not _lies_by_rows(source, layout, rows) or len(kernel.output.shape) != 2:
        source, layout = state.plain(image)
    depth = math.prod(layout.physical(source.shape)) // rows
    terms = 4 if state.target.quads and weight.dtype == "int8" else 2
    config = dots_config(state, rows, -(-depth // terms), kernel.output.shape[-1], terms)
    if terms == 4 and image.dtype == "int8":
        config = DenseDotsConfig(config.width, config.rows, config.parts, config.unroll, terms=terms, shift=128)
    return choice_of(kernel, "dense_dots", [(source, layout)], PLAIN, "dense", (config, "default"))


def _lies_by_rows(source: Tensor, layout: Layout, rows: int) -> bool:
    """Whether rows follow each other in memory, padding of channels between them perhaps, of integers that are zero
    points nowhere."""
    return source.shape[:1] == (rows,) and layout.halo == NO_PADS and layout.images == 1 and not layout.pitch


def dots_config(state: State, rows: int, groups: int, maps: int, terms: int) -> DenseDotsConfig:
    """The tile that is estimated to be fastest: a lane of int32 takes a group of terms where one of float32 takes a
    term."""
    tile = dense_config(rows, groups, maps, FLOAT32, state.target)
    return DenseDotsConfig(tile.width, tile.rows, tile.parts, tile.unroll, terms=terms)
