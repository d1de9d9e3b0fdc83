"""Sampling between pixels: GridSample."""

from __future__ import annotations

import itertools

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


def _mirrored(place: Array, low: float, high: float) -> Array:
    """Each place reflected by the ends of an axis until it lies between them."""
    span = high - low
    if span == 0:
        return np.full(place.shape, low)
    with np.errstate(invalid="ignore"):
        turns, rest = np.divmod(place - low, span)
        odd = np.mod(turns, 2) == 1
    return np.where(odd, high - rest, low + rest)


def _weights(place: Array, pixel: Array, mode: str) -> Array:
    """What the pixels at whole places weigh: all, a triangle, or Keys' cubic of coefficient -0.75, by the distance."""
    d = np.abs(place - pixel)
    if mode == "nearest":
        return np.ones(place.shape)
    if mode == "linear":
        return np.asarray(np.maximum(0, 1 - d))
    a = -0.75
    inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
    outer = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0))


@op("GridSample", 16)
def grid_sample(
    x: Array, grid: Array, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Array:
    """GridSample: x (N, C, s...), grid (N, o..., r) -> (N, C, o...), r the number of spatial axes.

    A coordinate of -1 is the first pixel's centre (align_corners) or its outer edge, 1 the last one's; the last axis
    comes first. A place past that centre or edge is reflected (reflection); nearest rounds before that, halves to even.
    A pixel past the image is 0 (zeros), or the nearest (border) or reflected one. What is not a number lies before all
    pixels. For a cubic at the border onnx.reference moves the place itself; onnxruntime and PyTorch do as here.
    """
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if mode not in ("nearest", "linear", "cubic") or padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(f"mode {mode!r} and padding_mode {padding_mode!r}")
    sizes, rank = x.shape[2:], x.ndim - 2
    if grid.ndim != x.ndim or grid.shape[-1] != rank or grid.shape[0] != x.shape[0]:
        raise ValueError(f"input of shape {x.shape} and grid of shape {grid.shape}")
    places, borders = [], []
    for axis, size in enumerate(sizes):
        g = grid[..., rank - 1 - axis].reshape(x.shape[0], -1)  # float32 computes in float32, and decides ties so
        place = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
        low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
        if mode == "nearest":
            place = np.rint(place)
        beyond = ~((place >= low) & (place <= high))
        if padding_mode == "reflection":
            place = np.where(beyond, _mirrored(place, low, high), place)
            place = np.where(np.isnan(place), low, place)
        else:
            place = np.where(np.isnan(place), -9, np.clip(place, -9, size + 9))
        places.append(place)
        borders.append((low, high))
    reach = {"nearest": (0, 1), "linear": (0, 2), "cubic": (-1, 3)}[mode]
    dtype = x.dtype if mode == "nearest" else np.float64
    y = np.zeros((*x.shape[:2], int(np.prod(grid.shape[1:-1]))), dtype)
    for image in range(x.shape[0]):
        for offsets in np.ndindex(*[reach[1] - reach[0]] * rank):
            weight, inside, found = np.ones(y.shape[2]), np.ones(y.shape[2], bool), []
            for axis, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
                place = places[axis][image]
                pixel = np.floor(place) + offset + reach[0]
                weight = weight * _weights(place.astype(np.float64), pixel, mode)
                if padding_mode == "reflection":
                    pixel = np.floor(_mirrored(pixel, *borders[axis]))
                elif padding_mode == "zeros":
                    inside &= (pixel >= 0) & (pixel < size)
                found.append(np.clip(pixel, 0, size - 1).astype(np.int64))
            value = np.where(inside, x[image][(slice(None), *found)], np.zeros((), x.dtype))
            if mode == "nearest":  # of any type, one pixel
                y[image] = value
            else:
                y[image] += value * weight
    return y.reshape(*x.shape[:2], *grid.shape[1:-1])


@op("DeformConv", 19)
def deform_conv(
    x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None, *,
    dilations: Ints | None = None, group: int = 1, kernel_shape: Ints | None = None, offset_group: int = 1,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """DeformConv: x (N, C, s...), w (M, C/group, k...), offset (N, offset_group k r, o...), b (M), mask (N,
    offset_group k, o...) -> (N, M, o...).

    Tap k of output o reads x at o stride + k dilation - pad + offset, linearly between pixels, of which those outside
    are 0. The offsets of a tap are one for each spatial axis, in order.
    """
    kernel, rank = w.shape[2:], x.ndim - 2
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise ValueError(f"kernel_shape {kernel_shape} with a weight of shape {w.shape}")
    sizes = offset.shape[2:]
    moves = offset.reshape(len(x), offset_group, -1, rank, *sizes)
    weights = np.ones(moves.shape[:3] + sizes) if mask is None else mask.reshape(moves.shape[:3] + sizes)
    y = np.zeros((len(x), w.shape[0], *sizes))
    each, maps = x.shape[1] // group, w.shape[0] // group
    for image, (tap, position) in itertools.product(range(len(x)), enumerate(np.ndindex(*kernel))):
        for channel in range(x.shape[1]):
            og = channel // (x.shape[1] // offset_group)
            value = np.zeros(sizes)
            places = [
                np.arange(n).reshape(-1, *[1] * (rank - 1 - axis)) * strides[axis]
                + position[axis] * dilations[axis] - pads[axis] + moves[image, og, tap, axis]
                for axis, n in enumerate(sizes)
            ]  # fmt: skip
            for corner in np.ndindex(*[2] * rank):
                share, inside, found = np.ones(sizes), np.ones(sizes, bool), []
                for axis, place in enumerate(places):
                    pixel = np.floor(place) + corner[axis]
                    share = share * (1 - np.abs(place - pixel))
                    inside &= (pixel >= 0) & (pixel < x.shape[2 + axis])
                    found.append(np.clip(pixel, 0, x.shape[2 + axis] - 1).astype(np.int64))
                value += np.where(inside, x[image, channel][tuple(found)] * share, 0)
            value *= weights[image, og, tap]
            of_group = slice(channel // each * maps, (channel // each + 1) * maps)
            column = w[(of_group, channel % each, *position)]
            y[image, of_group] += column.reshape(-1, *[1] * rank) * value
    return y if b is None else y + b.reshape(-1, *[1] * rank)
