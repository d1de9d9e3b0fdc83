"""Convolutions and matrix products as products of matrices, the images' one gathered on the way: for GPUs.

    sum[n, g, o, p] = Σ_q weight[g, q, o] · gathered[n, g, q, p]    q = (c, i, j), p = (pixel behind the pool, place in
                                                                    its window)

"gathered" is what im2col would store; a schedule keeps a tile of it in shared memory. Both matrices are as large as
whole tiles, with zeros where there is no term, map or pixel: no product needs a test.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import BlockConfig, GemvConfig, MmaConfig
from tvmcnn.fuse import pool_first, pool_of, window_size
from tvmcnn.network import Channel, Pixel, Step, round_up
from tvmcnn.ops.conv import source_pixel
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.operands import Operands, extents, float32, unravel


def gemm_conv(step: Step, given: Operands) -> te.Tensor:
    """ONNX Conv. x and y: plain; weight: (G, C/G·kH·kW, M/G) up to whole tiles; "out" is (N, G, M/G, H·W)."""
    kernel = step.choice.kernel
    weight = given.constants[kernel.anchor.inputs[1]]
    n, _, height, width = kernel.output.shape
    groups, terms, columns = _sizes(step, weight)
    a, b = window_size(kernel)
    pixels = round_up(height * width * a * b, step.choice.numbers(BlockConfig).pixels)
    gather = _gather(step, given, terms, pixels)
    gathered = te.compute((n, groups, terms, pixels), gather, name="gathered")
    left, right = _factors(step, weight, gathered)
    rq = te.reduce_axis((0, terms), "rq")

    def product(i: Any, g: Any, o: Any, p: Any) -> Expr:
        return te.sum(left(g, rq, o) * right(i, g, rq, p), axis=[rq])

    sums = te.compute((n, groups, columns, pixels), product, name="sum", attrs={"window": a * b})
    return _finish(step, given, groups, lambda i, g, o, p: sums[i, g, o, p])


def gemm_partial(step: Step, given: Operands) -> te.Tensor:
    """The sums of `gemm_conv` in `split` parts of their terms: "out" is (part, N, G, M/G, H·W·window)."""
    kernel = step.choice.kernel
    weight = given.constants[kernel.anchor.inputs[1]]
    split, n, groups, _, pixels = kernel.output.shape
    _, terms, columns = _sizes(step, weight)
    run, padded = terms // split, round_up(pixels, step.choice.numbers(BlockConfig).pixels)
    gather = _gather(step, given, terms, padded)
    gathered = te.compute((n, groups, terms, padded), gather, name="gathered")
    left, right = _factors(step, weight, gathered)
    rq = te.reduce_axis((0, run), "rq")

    def product(part: Any, i: Any, g: Any, o: Any, p: Any) -> Expr:
        return te.sum(left(g, part * run + rq, o) * right(i, g, part * run + rq, p), axis=[rq])

    sums = te.compute((split, n, groups, columns, padded), product, name="sum", attrs={"window": 1})
    return te.compute(kernel.output.shape, lambda *i: sums[i], name="out")


def gemm_sum(step: Step, given: Operands) -> te.Tensor:
    """What `gemm_conv` makes, from the parts of its sums, which are added in their order."""
    kernel = step.choice.kernel
    parts = given.inputs[kernel.inputs[-1].name]
    split, _, groups, _, _ = extents(parts)

    def total(i: Any, g: Any, o: Any, p: Any) -> Expr:
        return functools.reduce(operator.add, [parts[part, i, g, o, p] for part in range(split)])

    return _finish(step, given, groups, total)


def grouped_conv(step: Step, given: Operands) -> te.Tensor:
    """ONNX Conv with too few channels or maps in a group for a tile. x and y: plain; weight: as ONNX has it."""
    kernel = step.choice.kernel
    node = kernel.anchor
    weight = given.constants[node.inputs[1]]
    n, maps, height, width = kernel.output.shape
    _, depth, kh, kw = extents(weight)
    (a, b), per_group = window_size(kernel), maps // node["group"]
    gather = _gather(step, given, depth * kh * kw, height * width * a * b)
    rc, rh, rw = te.reduce_axis((0, depth), "rc"), te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")

    def product(i: Any, o: Any, p: Any) -> Expr:
        value = gather(i, o // per_group, (rc * kh + rh) * kw + rw, p)
        return te.sum(weight[o, rc, rh, rw] * value, axis=[rc, rh, rw])

    sums = te.compute((n, maps, height * width * a * b), product, name="sum")
    return _finish(step, given, 1, lambda i, g, o, p: sums[i, o, p])


def _gather(step: Step, given: Operands, terms: int, pixels: int) -> Callable[..., Expr]:
    """The element (n, g, q, p) of what im2col would store: 0 in the padding, and beyond the terms and the pixels."""
    kernel = step.choice.kernel
    node, name = kernel.anchor, kernel.inputs[0].name
    (_, channels, h, w), (kh, kw) = given.shapes[name], node["kernel_shape"]
    own = kernel.output.shape[2:], window_size(kernel)
    (height, width), (a, b) = node.attributes.get("made", own)  # of a part of the sum the whole's
    group = channels // node["group"]

    def element(i: Any, g: Any, q: Any, p: Any) -> Expr:
        place, dy, dz = p // (a * b), p % (a * b) // b, p % b
        y, z = place // width * a + dy, place % width * b + dz
        row, column = source_pixel(node, y, q // kw % kh, z, q % kw)
        pixel = Pixel(i, Channel(g * group + q // (kh * kw), 0, 1), row, column)
        value = apply(kernel.prologue, given.read(name, pixel), given, pixel)
        tests = [
            *([q < group * kh * kw] if terms > group * kh * kw else []),
            *([place < height * width] if pixels > height * width * a * b else []),
            *([row >= 0, row < h, column >= 0, column < w] if any(node["pads"]) else []),
        ]
        return _rounded(step, tirx.if_then_else(tirx.all(*tests), value, float32(0.0)) if tests else value)

    return element


def _sizes(step: Step, weight: te.Tensor) -> tuple[int, int, int]:
    """(groups, terms, maps) of a weight: for tensor cores its terms lie side by side."""
    groups, terms, maps = extents(weight)
    return (groups, maps, terms) if isinstance(step.choice.config, MmaConfig) else (groups, terms, maps)


def _rounded(step: Step, value: Expr) -> Expr:
    """A factor as tensor cores take it: the rounding to TF32 is CUDA's."""
    config = step.choice.config
    if not isinstance(config, MmaConfig):
        return value
    if config.precision == "fp16":
        return value.astype("float16")
    return tirx.call_pure_extern("float32", "nvcuda::wmma::__float_to_tf32", value)


def _factors(step: Step, weight: te.Tensor, gathered: te.Tensor) -> tuple[Callable[..., Expr], Callable[..., Expr]]:
    """(left(g, q, o), right(…, q, p)). For tensor cores both are stages of their own, which become fragments: "left" is
    (G, M', K'), and so is the weight."""
    if not isinstance(step.choice.config, MmaConfig):
        return (lambda g, q, o: weight[g, q, o]), (lambda *i: gathered[i])
    left = te.compute(weight.shape, lambda *i: weight[i].astype("float16"), name="left")
    right = te.compute(gathered.shape, lambda *i: gathered[i].astype("float16"), name="right")
    return (lambda g, q, o: left[g, o, q].astype("float32")), (lambda *i: right[i].astype("float32"))


def _finish(step: Step, given: Operands, groups: int, conv: Callable[..., Expr]) -> te.Tensor:
    """Bias, epilogue and pool over `conv(n, g, o, p)`, stored as "out" (N, G, M/G, H·W)."""
    kernel = step.choice.kernel
    node, (n, maps, height, width), (a, b) = kernel.anchor, kernel.output.shape, window_size(kernel)
    before, after = pool_first(kernel)
    pool = pool_of(kernel)
    is_max = pool is not None and pool.op == "MaxPool"

    def element(i: Any, g: Any, o: Any, p: Any) -> Expr:
        pixel = Pixel(i, Channel(g * (maps // groups) + o, 0, 1), p // width, p % width)
        bias = given.read(node.inputs[2], pixel) if len(node.inputs) > 2 else float32(0.0)
        window = [apply(before, conv(i, g, o, p * (a * b) + t) + bias, given, pixel) for t in range(a * b)]
        value = functools.reduce(tirx.max if is_max else operator.add, window)
        value = value / float32(a * b) if pool is not None and not is_max else value
        return apply(after, value, given, pixel)

    return te.compute((n, groups, maps // groups, height * width), element, name="out")


def gemm_dense(step: Step, given: Operands) -> te.Tensor:
    """ONNX Gemm and MatMul with a constant matrix. x: (M, K) as it lies; weight: (K, N) up to whole tiles."""
    kernel, config = step.choice.kernel, step.choice.numbers(BlockConfig)
    node = kernel.anchor
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    shape = kernel.output.shape
    rows, columns = math.prod(shape[:-1]), shape[-1]
    _, terms, stored = _sizes(step, weight)
    depth = math.prod(extents(x)) // rows
    pixels = round_up(rows, config.pixels)

    def gather(q: Any, m: Any) -> Expr:
        value = of_row(x, rows, m, q)
        tests = [*([q < depth] if terms > depth else []), *([m < rows] if pixels > rows else [])]
        return _rounded(step, tirx.if_then_else(tirx.all(*tests), value, float32(0.0)) if tests else value)

    gathered = te.compute((terms, pixels), gather, name="gathered")
    left, right = _factors(step, weight, gathered)
    rq = te.reduce_axis((0, terms), "rq")

    def product(o: Any, m: Any) -> Expr:
        return te.sum(left(0, rq, o) * right(rq, m), axis=[rq])

    sums = te.compute((stored, pixels), product, name="sum", attrs={"window": 1})
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    def element(m: Any, o: Any) -> Expr:
        where = (*unravel(m, shape[:-1]), o)
        value = sums[o, m] if bias is None else sums[o, m] + given.read(bias, where)
        return apply(kernel.nodes[1:], value, given, where)

    return te.compute((rows, columns), element, name="out")


def gemv(step: Step, given: Operands) -> te.Tensor:
    """ONNX Gemm, MatMul, and the Conv that covers its whole input, for few rows. x: (M, K) as it lies; weight: (K, N).

    "sum" is (M, q, N): the sum over k in q runs of neighbours, "out" adds them in a fixed order.
    """
    kernel, config = step.choice.kernel, step.choice.numbers(GemvConfig)
    node = kernel.anchor
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    shape, is_image = kernel.output.shape, node.op == "Conv"
    rows, columns = (shape[0], shape[1]) if is_image else (math.prod(shape[:-1]), shape[-1])
    _, terms, stored = extents(weight)
    depth = math.prod(extents(x)) // rows
    run = terms // config.parts
    rk = te.reduce_axis((0, run), "rk")

    def product(m: Any, part: Any, o: Any) -> Expr:
        k = part * run + rk
        value = of_row(x, rows, m, k)
        value = value if terms == depth else tirx.if_then_else(k < depth, value, float32(0.0))
        return te.sum(value * weight[0, k, o], axis=[rk])

    sums = te.compute((rows, config.parts, stored), product, name="sum")
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    def element(m: Any, o: Any) -> Expr:
        where = Pixel(m, Channel(o, 0, 1), 0, 0) if is_image else (*unravel(m, shape[:-1]), o)
        value = functools.reduce(operator.add, [sums[m, part, o] for part in range(config.parts)])
        value = value if bias is None else value + given.read(bias, where)
        return apply(kernel.nodes[1:], value, given, where)

    return te.compute((rows, columns), element, name="out")


def of_row(x: te.Tensor, rows: int, m: Any, k: Any) -> Expr:
    """Element k of row m as the rows lie in memory. Rows that are x's own first axis stay apart from what is within
    one: a schedule that has one row at hand would else take the next for needed too."""
    first, *rest = extents(x)
    depth = first * math.prod(rest) // rows
    return x[(m, *unravel(k, rest))] if first == rows else x[unravel(m * depth + k, (first, *rest))]
