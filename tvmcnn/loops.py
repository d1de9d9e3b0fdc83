"""Loops: the extents of the loops around a kernel's tiles, outermost first, as its schedule makes them.

Threads share them, see choose/cpu/tasks.py; not those inside of that which expands a weight for several tiles. One
function a rule: (choice, the output's extents in memory, lanes of a vector) --> extents; () where none is shared. The
table ALGORITHMS names them, and a schedule whose loops are others is refused when they are shared out.
"""

from __future__ import annotations

import math

from tvmcnn.blocks import BLOCK, strip
from tvmcnn.configs import (
    AmxConfig,
    DenseConfig,
    DirectConfig,
    FewMapsConfig,
    ImagesConfig,
    InOrderConfig,
    MatmulConfig,
    NormalizeConfig,
    PairsConfig,
    PixelsConfig,
    RecurrentConfig,
    RowsConfig,
    SoftmaxConfig,
    StreamedConfig,
    WinogradConfig,
)
from tvmcnn.network import Choice, Shape, unmoved


def none(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """No loop that threads could share."""
    return ()


def rows(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """All axes but the last two, and tiles of rows."""
    config = choice.numbers(RowsConfig)
    return (*shape[:-2], math.ceil(shape[-2] / config.rows)) if len(shape) > 1 else ()


def direct(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, bands of rows, tiles of whole blocks of maps, vectors of a block, rows of tiles; or rows before maps."""
    config, (n, blocks, height) = choice.numbers(DirectConfig), shape[:3]
    blocks, vectors = blocks * shape[4] // BLOCK, BLOCK // lanes  # in a block of sums, whatever the image has
    tiles = math.ceil(blocks / max(1, config.vectors // vectors))
    rows = math.ceil(height / config.rows) // config.bands
    if config.rows_first:
        return (n, config.bands, rows)
    maps = (n, config.bands, tiles, vectors // min(config.vectors, vectors))
    return maps if choice.expanded else (*maps, rows)


def few_maps(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, rows, tiles of columns."""
    return (shape[0], shape[2], math.ceil(shape[3] / choice.numbers(FewMapsConfig).columns))


def amx(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, bands of rows, parts of the maps."""
    config = choice.numbers(AmxConfig)
    return (shape[0], math.ceil(shape[2] / config.rows), config.parts)


def pairs(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, bands of rows, parts of the maps."""
    config = choice.numbers(PairsConfig)
    return (shape[0], config.bands, config.parts)


def winograd(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, parts of the maps, strips of tiles."""
    config = choice.numbers(WinogradConfig)
    tiles = math.ceil(shape[2] / config.rows) * math.ceil(shape[3] / config.columns)
    return (shape[0], config.parts, tiles // config.strip)


def streamed(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Blocks of maps, as many at a time as the filters that are transformed together."""
    return (shape[1] // max(1, choice.numbers(StreamedConfig).vectors * lanes // shape[4]),)


def pixels(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, groups, runs of pixels, tiles of maps."""
    config = choice.numbers(PixelsConfig)
    runs = math.prod(shape[2:]) // config.pixels
    outer = (shape[0], config.groups, runs)
    return outer if choice.expanded else (*outer, shape[1] // config.groups // config.maps)


def conv_images(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Vectors of images, rows, tiles of maps."""
    rows = (shape[0], shape[2])
    return rows if choice.expanded else (*rows, shape[1] // choice.numbers(ImagesConfig).maps)


def dense_images(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Tiles of vectors of images, tiles of maps."""
    config = choice.numbers(ImagesConfig)
    images = shape[0] // config.columns
    return (images,) if choice.expanded else (images, shape[1] // config.maps)


def images(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images alone."""
    return shape[:1]


def dense(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Tiles of columns, and tiles of rows."""
    config = choice.numbers(DenseConfig)
    rows, columns = shape[:2] if choice.kernel.anchor.op == "Conv" else (math.prod(shape[:-1]), shape[-1])
    across = math.ceil(columns / config.width)
    return (across,) if choice.expanded else (across, math.ceil(rows / config.rows))


def matmul(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Matrices, tiles of columns, and tiles of rows where no columns are packed for all of them."""
    config = choice.numbers(MatmulConfig)
    across, down = math.ceil(shape[-1] / config.width), math.ceil(shape[-2] / config.rows)
    return (*shape[:-2], across) if config.packed else (*shape[:-2], across, down)


def recurrent(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Directions, and tiles of rows of the batch."""
    return (shape[-3], math.ceil(shape[-2] / choice.numbers(RecurrentConfig).rows))


def image_rows(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, maps or blocks of them, rows."""
    return shape[:3]


def image_maps(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, and maps or blocks of them."""
    return shape[:2]


def elements(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """All: each element of the output is a reduction of its own."""
    return shape


def softmax(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """All axes but the one that is normalised, and the last where other rows are in the lanes."""
    config = choice.numbers(SoftmaxConfig)
    rows = (*shape[: config.axis], *shape[config.axis + 1 :])
    return rows if config.in_lanes else rows[:-1]


def normalized_rows(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """The rows of a normalisation."""
    return (choice.numbers(NormalizeConfig).rows,)


def all_but_two(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """All axes but the last two, which are one run of memory."""
    return shape[:-2]


def reordered(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """All axes but the last two; channels by those that a strip out of blocks has."""
    channels, rows = strip(shape)
    strips = choice.makes.plain and choice.reads[0].block > 1 and rows
    return (shape[0], shape[1] // channels) if strips else shape[:-2]


def sampled(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """Images, maps or blocks of them, and all axes of positions but the last."""
    return shape[:-1] if choice.makes.block == 1 else shape[:3]


def moved(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """The axes of a Transpose that are neither of a run that is copied whole, nor of the tile that is turned."""
    if choice.kernel.anchor.op != "Transpose":
        return ()
    perm = choice.kernel.anchor["perm"]
    if unmoved(perm):
        return shape[: -unmoved(perm)]
    return tuple(extent for axis, extent in zip(perm[:-1], shape[:-1], strict=True) if axis != len(perm) - 1)


def in_order(choice: Choice, shape: Shape, lanes: int) -> Shape:
    """The axes before those along which steps are in order, parts of these, and tiles of the axes behind them."""
    config, (first, last) = choice.numbers(InOrderConfig), choice.kernel.anchor["along"]
    return (math.prod(shape[:first]), config.parts, math.ceil(math.prod(shape[last:]) / config.width))
