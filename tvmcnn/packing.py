"""Packing: constants as the tensor expressions read them, by functions (choice, ONNX's array) --> packed array.

The table ALGORITHMS says which function packs the weight and which the other constants of a kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from tvmcnn.blocks import BLOCK, QUAD, TO_SIGNED, groups_together
from tvmcnn.configs import (
    AmxConfig,
    DenseConfig,
    DenseDotsConfig,
    DotsConfig,
    GemmConfig,
    GemvConfig,
    MmaConfig,
    RecurrentConfig,
    WinogradConfig,
)
from tvmcnn.network import Array, Choice, Layout, row_shape
from tvmcnn.packed_band import PackedBand
from tvmcnn.precision import rounded
from tvmcnn.winograd import transformed

WARP_COLUMNS = 32  # of a matrix, which a warp of the rule gemv reads at once: one a thread


# ---- weights: the anchor's second operand ---------------------------------------------------------------------------


def direct(choice: Choice, weight: Array) -> Array:
    """(M, C/g, kH, kW) --> (⌈M/16⌉, ⌈C/g/b⌉, kH, kW, b, 16): OIHW{b}i16o, b the block of the input."""
    weight = _in_whole_groups(choice, weight)
    block = choice.reads[0].block
    lanes = Layout(BLOCK).pack(weight.transpose(1, 0, 2, 3))  # (C/g, M/16, kH, kW, 16)
    lanes = np.pad(lanes, ((0, -lanes.shape[0] % block), *((0, 0),) * 4))
    depth, blocks, kh, kw, _ = lanes.shape
    return lanes.reshape(depth // block, block, blocks, kh, kw, BLOCK).transpose(2, 0, 3, 4, 1, 5)


def pairs(choice: Choice, weight: Array) -> Array:
    """(M, C, kH, kW) --> (⌈M/16⌉, ⌈C/b⌉, kH, kW, b/2, 16, 2): OIHW{b/2}i16o2i, rounded to bfloat16."""
    packed = rounded(direct(choice, weight), "bf16")
    paired = packed.reshape(*packed.shape[:4], packed.shape[4] // 2, 2, packed.shape[5])
    return np.moveaxis(paired, -2, -1)


def amx_bf16(choice: Choice, weight: Array) -> Array:
    """(M, C, kH, kW) --> (⌈M/16⌉/t, ⌈C/32⌉, kH, kW, 16, t·16, 2), rounded to bfloat16, as `amx_int8` has them."""
    return _in_tiles(choice, rounded(weight, "bf16"))


def _in_whole_groups(choice: Choice, weight: Array) -> Array:
    """(M, C/g, kH, kW) --> (M, n·C/g, kH, kW): zeros for the channels of other groups, of which n are one."""
    group, together = choice.kernel.anchor["group"], groups_together(choice.kernel)
    maps, depth, kh, kw = weight.shape
    wide = np.zeros((maps, together, depth, kh, kw), weight.dtype)
    own = np.arange(maps) // (maps // group) % together  # which of those that are one a map belongs to
    wide[np.arange(maps), own] = weight
    return wide.reshape(maps, together * depth, kh, kw)


def winograd(choice: Choice, weight: Array) -> Array:
    """(M, C, r, r) --> (p, m+r-1, m+r-1, ⌈M/16⌉/p, ⌈C/16⌉, 16, 16): G g Gᵀ by its elements, OI16i16o, in p parts."""
    config = choice.numbers(WinogradConfig)
    moved, parts = transformed(weight, config.tile), config.parts
    moved = np.pad(moved, ((0, 0), (0, 0), (0, -moved.shape[2] % 16), (0, -moved.shape[3] % 16)))
    side, _, maps, depth = moved.shape
    split = moved.reshape(side, side, parts, maps // 16 // parts, 16, depth // 16, 16)
    return split.transpose(2, 0, 1, 3, 5, 6, 4)


def streamed(choice: Choice, weight: Array) -> Array:
    """(M, C, r, r) --> (⌈M/16⌉, ⌈C/16⌉, 16, r, r, 16): one run of memory in the order that it is transformed."""
    return direct(choice, weight).transpose(0, 1, 4, 2, 3, 5)


def depthwise(choice: Choice, weight: Array) -> Array:
    """(C, 1, kH, kW) --> (⌈C/16⌉, kH, kW, 16)"""
    packed: Array = Layout(BLOCK).pack(weight.transpose(1, 0, 2, 3))[0]
    return packed


def taps(choice: Choice, weight: Array) -> Array:
    """(M, C, kH, kW) --> (C, kH, kW, M): the M broadcast scalars of one tap side by side."""
    return weight.transpose(1, 2, 3, 0)


def channels_last(choice: Choice, weight: Array) -> Array:
    """(M, C, kH, kW) --> (M, ⌈C/16⌉, kH, kW, 16)"""
    return Layout(choice.reads[0].block).pack(weight)


def as_it_is(choice: Choice, array: Array) -> Array:
    """ONNX's own order."""
    return array


def dense(choice: Choice, weight: Array) -> Array:
    """(M, C, H, W) or (K, N) --> (⌈N/t⌉, K', t): t columns of a tile side by side, rows as the input lies in memory.

    K' counts the input's padding too; the weights there are zero, as are those of the columns that no output has.
    """
    source, layout, config = choice.sources[0], choice.reads[0], choice.numbers(DenseConfig)
    rows = weight.reshape(weight.shape[0], -1) if choice.kernel.anchor.op == "Conv" else weight.T
    stored = layout.pack(rows.reshape(-1, *row_shape(source.shape, rows.shape[1]))).reshape(rows.shape[0], -1)
    columns = choice.makes.physical(choice.kernel.output.shape)[1 if choice.kernel.anchor.op == "Conv" else -1]
    stored = np.pad(stored, ((0, max(columns, config.width) - stored.shape[0]), (0, 0)))
    return np.stack([stored[first : first + config.width].T for first in config.first_columns(columns)])


def dense_pairs(choice: Choice, weight: Array) -> Array:
    """(K, N) --> (⌈N/t⌉, ⌈K'/2⌉, t, 2): as `dense`, the terms in pairs, rounded to bfloat16."""
    tiles = rounded(dense(choice, weight), "bf16")
    even = np.pad(tiles, ((0, 0), (0, tiles.shape[1] % 2), (0, 0)))
    return np.moveaxis(even.reshape(even.shape[0], -1, 2, even.shape[2]), 2, 3)


def terms(choice: Choice, weight: Array) -> Array:
    """(M, C, H, W) or (K, N) --> (K, N): the broadcast scalars of one term side by side."""
    return weight.reshape(weight.shape[0], -1).T if choice.kernel.anchor.op == "Conv" else weight


def recurrent(choice: Choice, weight: Array) -> Array:
    """(D, H, G·H) --> (D, ⌈H/w⌉, H, G, w): the w columns of a tile side by side, gate after gate."""
    directions, hidden, columns = weight.shape
    width = choice.numbers(RecurrentConfig).width
    gates = weight.reshape(directions, hidden, columns // hidden, hidden)
    firsts = (min(first, hidden - width) for first in range(0, hidden, width))
    return np.stack([gates[..., first : first + width] for first in firsts], axis=1)


def gemm(choice: Choice, weight: Array) -> Array:
    """(M, C/g, kH, kW) or (K, N) --> (g, K', N'): terms by maps of each group, with zeros up to whole tiles.

    For tensor cores (g, N', K'), rounded once.
    """
    config = choice.config
    if isinstance(config, MmaConfig):
        stored = _whole_tiles(choice, _by_maps(weight), config.depth * config.split, config.maps)
        return rounded(stored.transpose(0, 2, 1), config.precision)
    config = choice.numbers(GemmConfig)
    return _whole_tiles(choice, _by_maps(weight), config.depth * config.split, config.maps)


def gemv(choice: Choice, weight: Array) -> Array:
    """As `gemm`, in tiles of the parts that the sum is cut into by the columns of a warp."""
    return _whole_tiles(choice, _by_maps(weight), choice.numbers(GemvConfig).parts, WARP_COLUMNS)


def _by_maps(weight: Array) -> Array:
    """(M, C, kH, kW) or (K, M) --> (M, K)"""
    return weight.reshape(len(weight), -1) if weight.ndim == 4 else weight.T


def _whole_tiles(choice: Choice, weight: Array, deep: int, wide: int) -> Array:
    """(M, K) --> (g, K', M/g'), up to whole tiles of deep by wide."""
    groups = choice.kernel.anchor.attributes.get("group", 1)
    stored = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    _, depth, maps = stored.shape
    return np.pad(stored, ((0, 0), (0, -depth % deep), (0, -maps % wide)))


def planes(choice: Choice, weight: Array) -> Array:
    """(M, C, 3, 3) --> ((m+2)², C', M'): G g Gᵀ by its elements, terms by maps, with zeros up to whole tiles."""
    config = choice.numbers(GemmConfig)
    moved = transformed(weight, config.winograd)
    stored = moved.reshape(-1, *moved.shape[2:]).transpose(0, 2, 1)
    return np.pad(stored, ((0, 0), (0, -stored.shape[1] % config.depth), (0, -stored.shape[2] % config.maps)))


# ---- other constants: biases, the operands of the prologue and the epilogue -----------------------------------------


def channels(array: Array, count: int, block: int) -> Array:
    """One value a channel, in blocks: (C,) or (1,) --> (⌈C/16⌉, 16), padded with zeros.

    One value for all channels is repeated for each: padded with zeros it would be that of the first alone.
    """
    values = np.broadcast_to(array.reshape(-1), count)
    return values if block == 1 else np.pad(values, (0, -values.size % block)).reshape(-1, block)


def by_channel(choice: Choice, array: Array) -> Array:
    """One value for each of the output's channels, in its blocks."""
    return channels(array, _channels_of(choice), choice.writes.block)


def several_by_channel(choice: Choice, array: Array) -> Array:
    """`by_channel` of an operand of several values; scales, zero points and tables as they are."""
    return by_channel(choice, array) if array.ndim > 1 and array.size > 1 else array.reshape(-1)


def by_column(choice: Choice, array: Array) -> Array:
    """One value for each column of a matrix product, up to whole tiles."""
    values = np.broadcast_to(array.reshape(-1), _channels_of(choice))
    return np.pad(values, (0, -values.size % choice.numbers(DenseConfig).width))


def aligned(choice: Choice, array: Array) -> Array:
    """`by_channel` in blocks; in plain layout with ones in front, up to the output's rank."""
    if not choice.writes.plain:
        return by_channel(choice, array)
    return array.reshape((1,) * (len(choice.kernel.output.shape) - array.ndim) + array.shape)


def _channels_of(choice: Choice) -> int:
    shape = choice.kernel.output.shape
    return shape[1] if len(shape) == 4 and choice.kernel.anchor.op != "Gemm" else shape[-1]


# ---- all constants of a kernel, where one is made of several ---------------------------------------------------------


def dots(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The weight of a convolution of integers, its factors and its offsets: one of each for every map.

    (M, C/g, kH, kW) --> (⌈M/16⌉, ⌈C/g/b⌉, kH, kW, b/n, 16, n), n the products that an instruction adds; of one channel
    a group (C/16, kH, ⌈kW/4⌉, 16, 4) or (C/16, kH, kW, 16). The offset of a map, b[m] - zero · Σ w[m], has what would
    be subtracted from every byte, so that the kernel multiplies the bytes themselves.
    """
    config = choice.numbers(DotsConfig)
    weight = constants[choice.kernel.anchor.inputs[1]]
    yield choice.kernel.anchor.inputs[1], _in_quads(choice, weight, config.terms)
    yield from _factors_and_offsets(choice, constants, config.shift)


def _factors_and_offsets(choice: Choice, constants: Mapping[str, Array], shift: int) -> Iterator[tuple[str, Array]]:
    """What a sum of bytes is multiplied by and what is added to it, by channel; and all that an epilogue reads."""
    node = choice.kernel.anchor
    weight, factor, *bias = (constants[name] for name in node.inputs[1:])
    sums = weight.astype(np.int64).sum(axis=(1, 2, 3) if weight.ndim == 4 else 0)
    maps, offset = sums.size, (bias[0].astype(np.int64) if bias else 0) - (node["zero"] + shift) * sums
    yield node.inputs[2], channels(factor, maps, choice.writes.block)
    yield f"{choice.kernel.output.name}.offset", channels(offset.astype(np.int32), maps, choice.writes.block)
    for name in choice.kernel.constants:
        if name not in node.inputs:  # scales of the epilogue
            yield name, constants[name]


def _in_quads(choice: Choice, weight: Array, terms: int) -> Array:
    if terms == 1:
        return depthwise(choice, weight).astype(np.int32)
    if weight.shape[:2] == (choice.kernel.anchor["group"], 1):  # one filter a channel
        wide = np.pad(depthwise(choice, weight), ((0, 0), (0, 0), (0, -weight.shape[3] % terms), (0, 0)))
        blocks, height, width, lanes = wide.shape
        return np.moveaxis(wide.reshape(blocks, height, width // terms, terms, lanes), -1, -2).astype(np.int8)
    packed = direct(choice, weight)
    grouped = packed.reshape(*packed.shape[:4], packed.shape[4] // terms, terms, packed.shape[5])
    return np.moveaxis(grouped, -1, -2).astype(np.int8 if terms == 4 else np.int16)


def amx_int8(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Weights, factors and offsets as `dots` has them, the weights in the tiles that are multiplied at once:

    (M, C, kH, kW) --> (⌈M/16⌉/t, ⌈C/64⌉, kH, kW, 16, t·16, 4): 16 rows of t tiles side by side, of which one has
    four channels of every map.
    """
    weight = choice.kernel.anchor.inputs[1]
    yield weight, _in_tiles(choice, constants[weight].astype(np.int8))
    yield from _factors_and_offsets(choice, constants, 0)


def _in_tiles(choice: Choice, weight: Array) -> Array:
    """(M, C, kH, kW) --> (⌈M/16⌉/t, ⌈C/k⌉, kH, kW, rows, t·16, terms), or (⌈M/16⌉/t, 1, kH, parts, rows, t·16, terms)
    where the taps of a row are together, see packed_band.py."""
    config = choice.numbers(AmxConfig)
    band = PackedBand.of(choice.kernel, config)
    if band.together:
        wide = np.pad(weight, ((0, 0), (0, band.together - weight.shape[1]), (0, 0), (0, 0)))
        rows = wide.transpose(0, 2, 3, 1).reshape(len(wide), wide.shape[2], band.steps(1), band.run)
        weight = rows.transpose(0, 3, 1, 2)
    padding = (-weight.shape[0] % BLOCK, -weight.shape[1] % band.run)
    weight = np.pad(weight, (*((0, more) for more in padding), (0, 0), (0, 0)))
    maps, depth, kh, kw = weight.shape
    columns = BLOCK * config.maps
    extents = (maps // columns, columns, depth // band.run, band.run // band.terms, band.terms, kh, kw)
    return weight.reshape(extents).transpose(0, 2, 5, 6, 3, 1, 4)


def dense_dots(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The weight of a product of integers, its factors and its offsets, as `dots` has them: one of each for a column.

    (K, N) --> (⌈N/t⌉, ⌈K'/n⌉, t, n): t columns of a tile side by side, each with the n terms that an instruction adds;
    K' counts the input's padding too, where weights are zero. Of MatMulInteger, whose zero point of x may arrive at run
    time, there are only the sums of columns, by which it is multiplied then.
    """
    node, config = choice.kernel.anchor, choice.numbers(DenseDotsConfig)
    yield node.inputs[1], _in_columns(choice, _less_zero(choice, constants), config)
    yield from _of_columns(choice, constants, config.shift)


def _less_zero(choice: Choice, constants: Mapping[str, Array]) -> Array:
    """The weight of a product or convolution of integers less its zero points, which only MatMulInteger still has."""
    node = choice.kernel.anchor
    weight = constants[node.inputs[1]]
    if node.op != "MatMulInteger":
        return weight
    zero = constants[node.inputs[3]].astype(np.int16)
    return weight.astype(np.int16) - (zero if zero.size > 1 else zero.reshape(()))


def _of_columns(choice: Choice, constants: Mapping[str, Array], shift: int) -> Iterator[tuple[str, Array]]:
    """What a product of integers reads beside its weight: factors and offsets, or of MatMulInteger sums of columns."""
    node = choice.kernel.anchor
    if node.op != "MatMulInteger":
        yield from _factors_and_offsets(choice, constants, shift)
        return
    sums = _less_zero(choice, constants).astype(np.int64).sum(axis=0)
    yield f"{choice.kernel.output.name}.offset", sums.astype(np.int32)
    if node.inputs[2] in constants:
        yield node.inputs[2], constants[node.inputs[2]]


def _in_columns(choice: Choice, weight: Array, config: DenseDotsConfig) -> Array:
    """The last group of terms ends with the row, and has zeros for those that the one before has too."""
    source, layout, terms = choice.sources[0], choice.reads[0], config.terms
    rows = dataclasses.replace(layout, fill=0).pack(weight.T.reshape(-1, *row_shape(source.shape, weight.shape[0])))
    rows = rows.reshape(weight.shape[1], -1).astype(np.int8 if terms == 4 or config.narrow else np.int16)
    rows = np.pad(rows, ((0, max(0, config.width - rows.shape[0])), (0, 0)))
    first = np.arange(0, rows.shape[1], terms)
    moved = np.minimum(first, rows.shape[1] - terms)
    place = moved[:, None] + np.arange(terms)
    grouped = np.where(place >= first[:, None], rows[:, place], 0)  # (N, K'/n, n)
    tiles = config.first_columns(weight.shape[1])
    return np.stack([grouped[column : column + config.width].transpose(1, 0, 2) for column in tiles])


def gemm_words(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Weights as `gemm` has them, an int32 the bytes of four channels, or of four terms of a matrix; factors and
    offsets as `dots` has them.

    (M, C/g, kH, kW) or (K, N) --> (1, g, kH·kW·⌈C/g/4⌉, M/g) or (1, 1, ⌈K/4⌉, N), with zeros up to whole tiles; the
    first axis is 2 where a zero point has moved some beyond a byte: the weights are the sums of both halves.
    """
    yield choice.kernel.anchor.inputs[1], gemm_words_weight(choice, _less_zero(choice, constants))
    yield from of_sums(choice, constants)


def gemm_words_weight(choice: Choice, weight: Array) -> Array:
    """The weights of `gemm_words` alone."""
    config, maps = choice.numbers(GemmConfig), weight if weight.ndim == 4 else weight.T
    words = [np.moveaxis(_as_words(half), 1, -1).reshape(len(half), -1) for half in _halves(maps)]
    return np.stack([_whole_tiles(choice, each, config.depth * config.split, config.maps) for each in words])


def of_sums(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """What is read beside weights in words: factors and offsets."""
    yield from _of_columns(choice, constants, TO_SIGNED[choice.kernel.dtype])


def gemv_words(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """As `gemm_words`, a word four terms of a row as they lie in memory: (1, 1, ⌈K/4⌉, N)."""
    parts = choice.numbers(GemvConfig).parts
    words = [_as_words(half) for half in _halves(_by_maps(_less_zero(choice, constants)))]
    tiles = [_whole_tiles(choice, each, parts, WARP_COLUMNS) for each in words]
    yield choice.kernel.anchor.inputs[1], np.stack(tiles)
    yield from of_sums(choice, constants)


def _halves(weight: Array) -> list[Array]:
    """Integers as int8, or as two of int8 whose sums they are."""
    low = np.clip(weight, -128, 127)
    rest = weight - low
    return [half.astype(np.int8) for half in ([low, rest] if rest.any() else [low])]


def _as_words(weight: Array) -> Array:
    """(M, C, …) --> (M, ⌈C/4⌉, …): int8 in fours, the first in the lowest byte of an int32."""
    maps, depth, *window = weight.shape
    whole = np.pad(weight, ((0, 0), (0, -depth % QUAD), *((0, 0) for _ in window)))
    quads = np.moveaxis(whole.reshape(maps, -1, QUAD, *window), 2, -1)
    return np.ascontiguousarray(quads).view("<i4")[..., 0]


# ---- constants that the model does not have -------------------------------------------------------------------------


def nothing(choice: Choice) -> Iterator[tuple[str, Array]]:
    """No constant but the model's."""
    yield from ()


def divisors(choice: Choice) -> Iterator[tuple[str, Array]]:
    """The divisors of an AveragePool."""
    if choice.kernel.anchor.op == "AveragePool":
        yield f"{choice.kernel.output.name}.divisor", window_sizes(choice)


def window_sizes(choice: Choice) -> Array:
    """The divisors of an AveragePool, (H_out, W_out): pixels in each window, with the padding if ONNX counts it.

    Of the frames of a volume (D_out, H_out, W_out).
    """
    node, read, made = choice.kernel.anchor, choice.sources[0].shape[2:], choice.kernel.output.shape[2:]
    frames = node.attributes.get("frames")
    read, made = ((frames[0], *read), (frames[1], *made)) if frames else (read, made)
    found = np.ones((1,) * len(read))
    for axis, (size, extent) in enumerate(zip(read, made, strict=True)):
        begin, end = node["pads"][axis], node["pads"][len(read) + axis]
        low, high = (-begin, size + end) if node["count_include_pad"] else (0, size)
        steps = np.arange(node["kernel_shape"][axis]) * node["dilations"][axis]
        first = np.arange(extent) * node["strides"][axis] - begin
        positions = first[:, None] + steps[None, :]
        count = ((positions >= low) & (positions < high)).sum(axis=1)
        found = found * count.reshape([-1 if a == axis else 1 for a in range(len(read))])
    return found.astype(np.float32)
