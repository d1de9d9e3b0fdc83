"""Operators that put windows back where they were taken from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.gather import check_indices
from tvmcnn.importer.operators.meaning import FLOATS, NUMBERS, Meaning, Value, integers, named, operator, typed
from tvmcnn.importer.operators.windows import window_extent
from tvmcnn.network import dims


def _each(words: str, given: Sequence[int] | None, default: int, count: int, least: int) -> list[int]:
    """The numbers of an attribute, `count` of them, at least `least` each."""
    found = [default] * count if given is None else list(given)
    if len(found) != count or min(found, default=least) < least:
        raise ModelError(f"{words} {found}; there must be {count}, at least {least} each")
    return found


@operator
def max_unpool(
    x: Value,
    indices: Value,
    output_shape: Value | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX MaxUnpool: 0, with x at the indices of a MaxPool, which count in the shape that was pooled.

    That shape follows from the attributes; a larger output_shape, which must be constant, adds zeros behind it, as
    ONNX's own case has it. (onnxruntime lets the indices count in output_shape.)
    """
    typed(FLOATS, x)
    typed(("int64",), indices)
    rank = len(x.shape) - 2
    if rank < 1 or indices.shape != x.shape:
        raise ModelError(f"x is {dims(x.shape)} and the indices {dims(indices.shape)}; they must be alike, N x C x …")
    kernel = _each("kernel_shape", kernel_shape, 1, rank, 1)
    stride = _each("strides", strides, 1, rank, 1)
    padding = _each("pads", pads, 0, 2 * rank, 0)
    spatial = [
        (n - 1) * s - before - after + k
        for n, s, k, before, after in zip(x.shape[2:], stride, kernel, padding[:rank], padding[rank:], strict=True)
    ]
    pooled = (*x.shape[:2], *spatial)
    shape = pooled if output_shape is None else tuple(integers("output_shape", output_shape))
    if min(pooled) < 0 or len(shape) != len(pooled) or any(n < least for n, least in zip(shape, pooled, strict=True)):
        raise ModelError(f"output_shape {list(shape)}: it must be {dims(pooled)}, which was pooled, or larger")
    check_indices(Value("pooled", pooled, x.dtype), indices, [math.prod(pooled)])
    return Meaning("MaxUnpool", (x, indices), shape, {"along": (0, len(shape)), "pooled": pooled})


@named("Col2Im")
def col2im(
    input: Value,  # noqa: A002 (ONNX's name)
    image_shape: Value,
    block_shape: Value,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX Col2Im with constant shapes: the images whose blocks are the columns of (N, C·block, L), overlaps added."""
    typed(NUMBERS, input)
    image, block = integers("image_shape", image_shape), integers("block_shape", block_shape)
    rank = len(image)
    block = _each("block_shape", block, 1, rank, 1)
    stride, dilation = (_each(w, g, 1, rank, 1) for w, g in (("strides", strides), ("dilations", dilations)))
    padding = _each("pads", pads, 0, 2 * rank, 0)
    sizes = zip(image, block, stride, padding[:rank], padding[rank:], dilation, strict=True)
    counts = [window_extent(f"axis {a}", n, k, s, b, e, d, False) for a, (n, k, s, b, e, d) in enumerate(sizes)]
    size, columns = math.prod(block), math.prod(counts)
    if len(input.shape) != 3 or input.shape[1] % size or input.shape[2] != columns:
        wanted = f"N x {size}·C x {columns}"
        raise ModelError(
            f"the input is {dims(input.shape)}; blocks of {dims(tuple(block))} of {dims(tuple(image))} make {wanted}"
        )
    shape = (input.shape[0], input.shape[1] // size, *image)
    attributes = {
        "along": (2, 2 + rank),
        "kernel_shape": tuple(block),
        "counts": tuple(counts),
        "strides": tuple(stride),
        "dilations": tuple(dilation),
        "pads": tuple(padding),
    }
    return Meaning("Col2Im", (input,), shape, attributes)
