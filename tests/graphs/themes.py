"""Themes: what a random graph begins with, each of a kind that a layout or an algorithm is made for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from graphs.draft import DTYPES, EDGES, FLOATS, Draft, Held, Skip
from graphs.elementwise import cast_to, partner
from graphs.growers import GROWERS
from graphs.integers import quantised
from graphs.sums import factor
from graphs.windows import conv, placed, spread

CHANNELS = (16, 3, 17, 32, 8, 1, 15, 5, 24, 31)


def batch(d: Draft) -> int:
    return d.choice((1, 1, 3))


def anything(d: Draft) -> None:
    """A tensor of any rank and type."""
    dtype = d.choice(DTYPES) if d.chance(2, 3) else "float32"
    shape: list[int] = []
    for _ in range(d.choice((4, 2, 3, 1, 5, 0))):
        room = 4000
        for extent in shape:
            room //= max(extent, 1)
        shape.append(min(d.extent(), max(room, 1)))
    x = d.input(d.numbers(shape, dtype))
    if d.chance(1, 3):
        d.input(d.numbers(x.shape, d.choice((dtype, "bool", "int64", "float32"))))


def picture(d: Draft, dtype: str = "float32") -> Held:
    channels = d.choice(CHANNELS)
    side = (*range(4, 15), *EDGES, 3, 1)
    height, width = d.choice(side), d.choice(side)
    while channels * height * width > 5000:
        height, width = (height + 1) // 2, (width + 2) // 2
    return d.input(d.numbers((batch(d), channels, height, width), dtype))


def blocks(d: Draft) -> None:
    """Convolutions in blocks of channels, with what fuses, then what changes the type or the shape."""
    x = picture(d, d.choice(FLOATS) if d.chance(1, 8) else "float32")
    for _ in range(d.choice((1, 1, 2, 3))):
        x = layer(d, x)


def layer(d: Draft, x: Held, maps: int | None = None) -> Held:
    """A convolution and sometimes its normalisation, a residual, an activation and a pool."""
    before = x
    if d.chance(1, 6):
        x = d.node("Relu", [x])[0]
    x = conv(d, x, maps, keep=d.chance(1, 2))
    if d.chance(1, 5):
        GROWERS["BatchNormalization"].grow(d, "BatchNormalization", x)
        x = d.pool[-1]
    if d.chance(1, 3):
        residual = before if before.shape == x.shape and before.dtype == x.dtype else partner(d, x, keep=True)
        x = d.node("Add", [x, residual])[0]
    if d.chance(1, 2):
        x = d.node(d.choice(("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish")), [x])[0]
    if d.chance(1, 5):
        x = d.node("MaxPool", [x], **placed(d, x.shape[2:], [2] * (x.rank - 2)))[0]
    return x


def winograd(d: Draft) -> None:
    """3 x 3 or 5 x 5 filters of stride 1 on whole blocks, large enough for tiles to pay."""
    channels = d.choice((16, 32, 48, 20))
    height, width = d.integer(6, 15), d.integer(6, 15)
    x = d.input(d.numbers((batch(d), channels, height, width), "float32", 0))
    if d.chance(1, 2):
        x = d.node("Relu", [x])[0]
    x = conv(d, x, d.choice((32, 48, 64, 33)), d.choice((3, 3, 5)), keep=True)
    if d.chance(1, 3):
        x = d.node("Add", [x, partner(d, x, keep=True)])[0]
    if d.chance(1, 3):
        x = d.node("Relu", [x])[0]
    if d.chance(1, 4):
        d.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])


def wide(d: Draft) -> None:
    """Layers of so many channels and pixels that they fill matrix tiles, of floats or of bytes."""
    channels, side = d.choice((64, 32, 48, 20, 100)), range(8, 15)
    height, width = d.choice(side), d.choice(side)
    while channels * height * width > 9000:
        height, width = height - 1, width - 1
    x = d.input(d.numbers((batch(d), channels, height, width), "float32", 0))
    if d.chance(1, 2):
        return quantised(d, x)
    for _ in range(d.choice((1, 2))):
        x = layer(d, x, d.choice((32, 64, 48, 33)))
    return None


def branches(d: Draft) -> None:
    """Convolutions of one tensor that are joined along the channels, as Inception and DenseNet do."""
    x = picture(d)
    if d.chance(1, 2):
        x = layer(d, x, d.choice((16, 32)))
    parts = [x] if d.chance(1, 2) else []
    for _ in range(d.choice((2, 3))):
        part = conv(d, x, d.choice((16, 32, 48, 17)), d.choice((1, 3)), keep=True)
        if d.chance(1, 2):
            part = d.node(d.choice(("Relu", "Sigmoid")), [part])[0]
        parts.append(part)
    if d.chance(1, 5):
        dtype = d.choice(("bool", "int32", "uint8", "float16", "int64", "float64"))
        parts = [cast_to(d, part, dtype) for part in parts]
    x = d.node("Concat", parts, axis=1)[0]
    if x.is_float and d.chance(1, 3):
        conv(d, x, d.choice((16, 17, 3)), d.choice((1, 3)), keep=True)


def tiny(d: Draft) -> None:
    """A batch of whole vectors of small images with few maps, which lie in the lanes."""
    n = d.choice((16, 8, 32))
    x = d.input(d.numbers((n, d.choice((1, 2, 3)), d.integer(6, 12), d.integer(6, 12)), "float32"))
    for _ in range(d.choice((1, 2))):
        x = conv(d, x, d.choice((3, 4, 6)), d.choice((3, 2, 5)))
        if d.chance(1, 2):
            x = d.node("Relu", [x])[0]
        if min(x.shape[2:]) >= 4 and d.chance(2, 3):
            x = d.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])[0]
    if d.chance(1, 2):
        x = d.node("Flatten", [x])[0]
        GROWERS["Gemm"].grow(d, "Gemm", x)


def squeezed(d: Draft) -> None:
    """A gate of one value a map, as squeeze-and-excite blocks have."""
    x = layer(d, picture(d), d.choice((16, 32, 17)))
    gate = d.node("GlobalAveragePool", [x])[0]
    gate = conv(d, gate, x.shape[1], 1)
    if gate.shape[1] != x.shape[1]:
        raise Skip("the gate has other channels")
    gate = d.node("Sigmoid", [gate])[0]
    x = d.node("Mul", [x, gate])[0]
    if d.chance(1, 2):
        conv(d, x, d.choice((16, 24)), 1)


def signals(d: Draft) -> None:
    """Convolutions of sequences, as networks for sound have them, and what reads their images flat."""
    dtype = d.choice(FLOATS) if d.chance(1, 8) else "float32"
    x = d.input(d.numbers((batch(d), d.choice(CHANNELS), d.choice((*range(6, 40), *EDGES, 150))), dtype))
    for _ in range(d.choice((1, 2, 3))):
        x = layer(d, x)
        kind = d.integer(0, 5)
        if kind == 0:
            x = d.node("Transpose", [token_layer(d, d.node("Transpose", [x], perm=[0, 2, 1])[0])], perm=[0, 2, 1])[0]
        elif kind == 1 and x.shape[2] > 1:
            GROWERS["ConvTranspose"].grow(d, "ConvTranspose", x)
            x = d.pool[-1]
        elif kind == 2:
            gate = d.node("Sigmoid", [conv(d, d.node("GlobalAveragePool", [x])[0], 1, 1)])[0]
            x = d.node("Mul", [gate, x])[0]
        elif kind == 3:
            constant = d.drawn(d.choice((x.shape[1:], (x.shape[1], 1), x.shape[2:])), x.dtype, 0)
            x = d.node(d.choice(("Add", "Mul", "Max")), [x, constant])[0]


def volumes(d: Draft) -> None:
    """Convolutions of volumes, as networks for video and scans have them, and what reads their frames as volumes."""
    dtype = d.choice(FLOATS) if d.chance(1, 8) else "float32"
    channels, extents = (
        d.choice(CHANNELS),
        [d.choice((4, 3, 5, 2, 7, 1)), d.choice(range(3, 12)), d.choice(range(2, 12))],
    )
    while channels * math.prod(extents) > 4000:
        extents = [(extent + 1) // 2 for extent in extents]
    x = d.input(d.numbers((batch(d), channels, *extents), dtype))
    for _ in range(d.choice((1, 2, 2, 3))):
        before, kernel = x, d.choice((None, 1, 3))
        x = conv(d, x, d.choice((16, 17, 32, 3)) if kernel else None, kernel, keep=d.chance(1, 2))
        if x.shape == before.shape and d.chance(1, 2):
            x = d.node("Add", [x, before])[0]
        x = d.node(d.choice(("Relu", "Tanh", "HardSwish")), [x])[0] if d.chance(1, 2) else x
        kind = d.integer(0, 5)
        if kind == 0:
            gate = d.node("Sigmoid", [conv(d, d.node("GlobalAveragePool", [x])[0], 1, 1)])[0]
            x = d.node("Mul", [gate, x])[0]
        elif kind == 1:
            shapes = (x.shape[1:], (x.shape[1], 1, 1, 1), x.shape[2:], x.shape[3:], (1, 1, *x.shape[2:]))
            x = d.node(d.choice(("Add", "Mul", "Max")), [x, d.drawn(d.choice(shapes), x.dtype, 0)])[0]
        elif kind == 2:
            GROWERS["MaxPool"].grow(d, d.choice(("MaxPool", "AveragePool")), x)
            x = d.pool[-1] if d.pool[-1].shape[:2] == x.shape[:2] and d.pool[-1].dtype == x.dtype else x
        elif kind == 3:
            x = d.node("Concat", [x, conv(d, x, d.choice((16, 5)), 1, keep=True)], axis=1)[0]
        elif kind == 4 and min(x.shape[2:]) > 1:
            GROWERS["ConvTranspose"].grow(d, "ConvTranspose", x)
            x = d.pool[-1]


def sequences(d: Draft) -> None:
    """A layer over time, of a sequence or of the columns of an image, and perhaps another."""
    if d.chance(1, 2):
        x = layer(d, picture(d), d.choice((16, 5, 17)))
        columns = d.node("Reshape", [x, d.whole((x.shape[0], -1, x.shape[3]))])[0]
        x = d.node("Transpose", [columns], perm=[2, 0, 1])[0]
    else:
        dtype = d.choice(FLOATS) if d.chance(1, 4) else "float32"
        x = d.input(d.numbers((d.integer(1, 6), d.extent(), d.extent()), dtype))
    for _ in range(d.choice((1, 1, 2))):
        op = d.choice(("LSTM", "GRU", "RNN"))
        if not GROWERS[op].fits(d, x):
            raise Skip("no layer fits")
        before = len(d.nodes)
        GROWERS[op].grow(d, op, x)
        y = next(held for held in d.pool if held.name == d.nodes[before].output[0])
        x = d.node("Reshape", [y, d.whole((*y.shape[:2], -1))])[0]


def hybrid(d: Draft) -> None:
    """An image as rows of tokens, or of heads, and back, as networks with attention have it."""
    maps, heads = d.choice(((32, 1), (48, 3), (24, 1), (16, 2), (20, 1), (17, 1)))
    image = x = layer(d, picture(d), maps)
    if min(x.shape[2:]) < 2:
        raise Skip("an image of one row")
    last = d.chance(1, 3)  # N x H x W x C, else N x H·W x C
    if last:
        x = d.node("Transpose", [x], perm=[0, 2, 3, 1])[0]
    else:
        n, c, h, w = x.shape
        split = (n, heads, c // heads, h * w) if heads > 1 else (n, c, h * w)
        perm = (0, 1, 3, 2) if heads > 1 and d.chance(1, 2) else (0, 3, 1, 2) if heads > 1 else (0, 2, 1)
        x = d.node("Transpose", [d.node("Reshape", [x, d.whole(split)])[0]], perm=perm)[0]
    for _ in range(d.integer(1, 2)):
        x = token_layer(d, x)
    if last:
        x = d.node("Transpose", [x], perm=[0, 3, 1, 2])[0]
    else:
        back = [perm.index(axis) for axis in range(x.rank)]
        x = d.node("Reshape", [d.node("Transpose", [x], perm=back)[0], d.whole(image.shape)])[0]
    if d.chance(1, 2):
        x = d.node("Add", [image, x])[0]
    if d.chance(3, 4):
        conv(d, x, d.choice((16, 32, 5)), d.choice((3, 1)), keep=True)


def token_layer(d: Draft, x: Held) -> Held:
    """Something that keeps the shape of rows of tokens."""
    kind = d.integer(0, 3)
    if kind == 0:
        return d.node(d.choice(("HardSwish", "Tanh", "Neg")), [x])[0]
    if kind == 1 and d.opset >= 17 and spread(x, (x.rank - 1,)):
        return d.node("LayerNormalization", [x, d.drawn(x.shape[-1:], x.dtype, 0)], axis=-1)[0]
    if kind == 2:
        return d.node("MatMul", [x, factor(d, (x.shape[-1],) * 2, x.dtype, x.shape[-1])])[0]
    one, half, root = (d.constant(np.asarray(number, x.dtype)) for number in (1, 0.5, 2**0.5))
    erf = d.node("Erf", [d.node("Div", [x, root])[0]])[0]
    product = d.node("Mul", [x, d.node("Add", [erf, one])[0]])[0]
    return d.node("Mul", [product, half])[0]


def bytes_(d: Draft) -> None:
    """Layers between integers of 8 bits."""
    quantised(d, picture(d))


THEMES: tuple[Callable[[Draft], None], ...] = (
    *(anything, blocks, branches, tiny, winograd, squeezed, sequences, hybrid),
    *(anything, blocks, anything, blocks, anything, anything),
    signals,
    volumes,
    bytes_,
    wide,
)
