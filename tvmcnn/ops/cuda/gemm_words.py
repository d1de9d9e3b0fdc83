"""Convolutions and matrix products of integers of 8 bits on GPUs, exactly, by words of four bytes.

    sum[n, g, o, p] = Σ_q dp4a(weight[g, q, o], gathered[n, g, q, p])    q = (i, j, four channels), p = a pixel

A word of "gathered" has one pixel of four channels, of images that are plain in memory. Channels are the innermost
part of q: all words of a step of the sum are then mostly of one tap, whose place in the image and its tests are
computed once. dp4a adds the products of four signed bytes: unsigned ones are 128 less, which their highest bit turned
over says. That, and the zero point, is in what is added to a sum, b[m] - (zero - 128) · Σ w[m]; the padding holds the
zero point, and adds nothing. See docs/quantised.md for what is rounded.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.blocks import QUAD, TO_SIGNED
from tvmcnn.configs import BlockConfig, GemvConfig
from tvmcnn.network import Channel, Pixel, Step, round_up
from tvmcnn.ops.conv import source_pixel
from tvmcnn.ops.cuda.gemm import of_row
from tvmcnn.ops.dots import with_another
from tvmcnn.ops.integers import rounded, stored
from tvmcnn.ops.operands import Operands, extents

BITS = 8
SIGNS = 0x80808080 - 2**32  # of the four bytes of an int32
NOTHING = tirx.const(0, "int32")


def gemm_words_conv(step: Step, given: Operands) -> te.Tensor:
    """QLinearConv. x and y: plain; weight: (h, G, kH·kW·⌈C/G/4⌉, M/G) up to whole tiles; "out" is (N, G, M/G, H·W)."""
    kernel = step.choice.kernel
    weight = given.constants[kernel.anchor.inputs[1]]
    n, _, height, width = kernel.output.shape
    halves, groups, terms, columns = extents(weight)
    pixels = round_up(height * width, step.choice.numbers(BlockConfig).pixels)
    gathered = te.compute((n, groups, terms, pixels), _gather(step, given, terms, pixels), name="gathered")
    rq = te.reduce_axis((0, terms * halves), "rq")

    def product(i: Any, g: Any, o: Any, p: Any) -> Expr:
        return te.sum(_dot(weight, g, rq, o, lambda q: gathered[i, g, q, p]), axis=[rq])

    sums = te.compute((n, groups, columns, pixels), product, name="sum", attrs={"window": 1})
    return _image(step, given, groups, lambda *i: sums[i])


def gemm_words_partial(step: Step, given: Operands) -> te.Tensor:
    """The sums of `gemm_words_conv` in `split` parts of their terms: "out" is (part, N, G, M/G, H·W)."""
    kernel = step.choice.kernel
    weight = given.constants[kernel.anchor.inputs[1]]
    split, n, groups, _, pixels = kernel.output.shape
    halves, _, terms, columns = extents(weight)
    run, padded = terms * halves // split, round_up(pixels, step.choice.numbers(BlockConfig).pixels)
    gathered = te.compute((n, groups, terms, padded), _gather(step, given, terms, padded), name="gathered")
    rq = te.reduce_axis((0, run), "rq")

    def product(part: Any, i: Any, g: Any, o: Any, p: Any) -> Expr:
        return te.sum(_dot(weight, g, part * run + rq, o, lambda q: gathered[i, g, q, p]), axis=[rq])

    sums = te.compute((split, n, groups, columns, padded), product, name="sum", attrs={"window": 1})
    return te.compute(kernel.output.shape, lambda *i: sums[i], name="out")


def gemm_words_sum(step: Step, given: Operands) -> te.Tensor:
    """What `gemm_words_conv` makes, from the parts of its sums."""
    parts = given.inputs[step.choice.kernel.inputs[-1].name]
    split, _, groups, _, _ = extents(parts)

    def total(*i: Any) -> Expr:
        return functools.reduce(operator.add, [parts[(part, *i)] for part in range(split)])

    return _image(step, given, groups, total)


def _image(step: Step, given: Operands, groups: int, sums: Callable[..., Expr]) -> te.Tensor:
    """What `sums(n, g, o, p)` become, stored as "out" (N, G, M/G, H·W)."""
    n, maps, height, width = step.choice.kernel.output.shape

    def element(i: Any, g: Any, o: Any, p: Any) -> Expr:
        pixel = Pixel(i, Channel(g * (maps // groups) + o, 0, 1), p // width, p % width)
        return _finished(step, given, sums(i, g, o, p), pixel)

    return te.compute((n, groups, maps // groups, height * width), element, name="out")


def _gather(step: Step, given: Operands, terms: int, pixels: int) -> Callable[..., Expr]:
    """The word (n, g, q, p) of what im2col would store: the zero point in the padding; beyond the channels and the
    pixels anything, for no weight and no output is there."""
    kernel = step.choice.kernel
    node, name = kernel.anchor, kernel.inputs[0].name
    (_, channels, h, w), (kh, kw) = given.shapes[name], node["kernel_shape"]
    whole = node.attributes.get("made", (kernel.output.shape[2:], (1, 1)))  # of a part of the sum the whole's
    (height, width), depth = whole[0], channels // node["group"]
    quads = -(-depth // QUAD)
    padding, nothing = padding_word(node["zero"], kernel.dtype), tirx.const(0, kernel.dtype)

    def word_at(i: Any, g: Any, q: Any, p: Any) -> Expr:
        tap = q // quads
        row, column = source_pixel(node, p // width, tap // kw, p % width, tap % kw)

        def byte(lane: int) -> Expr:
            channel = q % quads * QUAD + lane
            value = given.read(name, Pixel(i, Channel(g * depth + channel, 0, 1), row, column))
            return tirx.if_then_else(channel < depth, value, nothing) if depth % QUAD else value

        tests = [
            *([tap < kh * kw] if terms > kh * kw * quads else []),
            *([p < height * width] if pixels > height * width else []),
            *([row >= 0, row < h, column >= 0, column < w] if any(node["pads"]) else []),
        ]
        value = word([byte(lane) for lane in range(QUAD)], kernel.dtype)
        return tirx.if_then_else(tirx.all(*tests), value, padding) if tests else value

    return word_at


def gemm_words_dense(step: Step, given: Operands) -> te.Tensor:
    """QLinearMatMul and MatMulInteger with a constant matrix. x: (M, K) as it lies; weight: (h, 1, ⌈K/4⌉, N) up to
    whole tiles."""
    kernel, config = step.choice.kernel, step.choice.numbers(BlockConfig)
    weight, shape = given.constants[kernel.anchor.inputs[1]], kernel.output.shape
    halves, _, terms, stored_columns = extents(weight)
    rows = math.prod(shape[:-1])
    pixels, row_word = round_up(rows, config.pixels), _of_row(step, given, rows, terms)

    def gather(q: Any, m: Any) -> Expr:
        value = row_word(m, q)
        return tirx.if_then_else(m < rows, value, NOTHING) if pixels > rows else value

    gathered = te.compute((terms, pixels), gather, name="gathered")
    rq = te.reduce_axis((0, terms * halves), "rq")

    def product(o: Any, m: Any) -> Expr:
        return te.sum(_dot(weight, 0, rq, o, lambda q: gathered[q, m]), axis=[rq])

    sums = te.compute((stored_columns, pixels), product, name="sum", attrs={"window": 1})
    return _rows(step, given, rows, lambda m, o: sums[o, m])


def gemv_words(step: Step, given: Operands) -> te.Tensor:
    """QLinearMatMul, MatMulInteger, and the QLinearConv that covers its whole input, for few rows; as `gemv` of floats.
    x: (M, K) as it lies; weight: (h, 1, ⌈K/4⌉, N) up to whole tiles."""
    kernel, parts = step.choice.kernel, step.choice.numbers(GemvConfig).parts
    weight, shape = given.constants[kernel.anchor.inputs[1]], kernel.output.shape
    rows = shape[0] if kernel.anchor.op == "QLinearConv" else math.prod(shape[:-1])
    halves, _, terms, stored_columns = extents(weight)
    run, row_word = terms * halves // parts, _of_row(step, given, rows, terms)
    rk = te.reduce_axis((0, run), "rk")

    def product(m: Any, part: Any, o: Any) -> Expr:
        return te.sum(_dot(weight, 0, part * run + rk, o, lambda q: row_word(m, q)), axis=[rk])

    sums = te.compute((rows, parts, stored_columns), product, name="sum")

    def total(m: Any, o: Any) -> Expr:
        return functools.reduce(operator.add, [sums[m, part, o] for part in range(parts)])

    return _rows(step, given, rows, total)


def _rows(step: Step, given: Operands, rows: int, sums: Callable[..., Expr]) -> te.Tensor:
    """What `sums(row, column)` become, stored as "out" (row, column)."""
    columns = step.choice.kernel.output.size // rows

    def element(m: Any, o: Any) -> Expr:
        return _finished(step, given, sums(m, o), Pixel(m, Channel(o, 0, 1), 0, 0))

    return te.compute((rows, columns), element, name="out")


def _of_row(step: Step, given: Operands, rows: int, terms: int) -> Callable[..., Expr]:
    """Word q of `terms` of row m as the rows lie in memory; beyond a row anything."""
    x = given.inputs[step.choice.kernel.inputs[0].name]
    depth = math.prod(extents(x)) // rows
    nothing = tirx.const(0, str(x.dtype))

    def word_at(m: Any, q: Any) -> Expr:
        values = [of_row(x, rows, m, q * QUAD + lane) for lane in range(QUAD)]
        if depth % QUAD:
            tests = [q * QUAD + lane < depth for lane in range(QUAD)]
            return word([tirx.if_then_else(*pair, nothing) for pair in zip(tests, values, strict=True)], str(x.dtype))
        whole = word(values, str(x.dtype))
        return tirx.if_then_else(q < depth // QUAD, whole, NOTHING) if terms > depth // QUAD else whole

    return word_at


def _dot(weight: te.Tensor, g: Any, q: Any, o: Any, words: Callable[[Any], Expr]) -> Expr:
    """Term q of a sum: of a word, the products with one half of its weights and then with the other, if there are
    two."""
    halves = int(weight.shape[0])
    return dp4a(weight[q % halves, g, q // halves, o], words(q // halves))


def _finished(step: Step, given: Operands, total: Expr, pixel: Pixel) -> Expr:
    """The integer of the output that a sum becomes, with the QLinearAdd or QLinearMul that follows."""
    kernel, o = step.choice.kernel, pixel.channel.block
    node, last = kernel.anchor, kernel.nodes[-1]
    others = [array for name, array in given.constants.items() if name != node.inputs[1]]  # as packing.py makes them
    if node.op == "MatMulInteger":
        zero = given.tensor(node.inputs[2])
        lowest = zero[(0,) * len(zero.shape)].astype("int32") + TO_SIGNED[kernel.dtype]
        return total - lowest * others[0][o]
    factor, offset, *_ = others
    value = (total + offset[o]).astype("float32") * factor[o]
    if last is not node:
        value = with_another(last, given, rounded(value, node), pixel)
    return stored(value, last, kernel.output.dtype)


def word(values: Sequence[Expr], dtype: str) -> Expr:
    """Four bytes as an int32, the first the lowest, each as a signed one."""
    placed = [(value.astype("int32") & 255) << (BITS * lane) for lane, value in enumerate(values)]
    whole = functools.reduce(operator.or_, placed)
    return whole ^ tirx.const(SIGNS, "int32") if TO_SIGNED[dtype] else whole


def padding_word(zero: int, dtype: str) -> Expr:
    """The word of four bytes that are the zero point."""
    (whole,) = np.full(QUAD, zero + TO_SIGNED[dtype], np.int8).view("<i4")
    return tirx.const(int(whole), "int32")


def dp4a(one: Expr, other: Expr) -> Expr:
    """The sum of the products of the signed bytes of two words; `accumulated` in schedule/cuda/loops.py has the
    instruction add to their sum too."""
    return tirx.call_pure_extern("int32", "__dp4a", one, other, NOTHING)
