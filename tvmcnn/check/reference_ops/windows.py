"""Windows that slide over spatial axes: convolutions and pools."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


def _pads_and_sizes(
    spatial: Ints, kernel: Ints, auto_pad: str, dilations: Ints, pads: Ints | None, strides: Ints, ceil_mode: int
) -> tuple[list[int], list[int], list[int]]:
    """Pads before, pads after and output size, each one number a spatial axis.

    size = floor((in + before + after - (dilation * (kernel - 1) + 1)) / stride) + 1, or ceil in ceil_mode, where a last
    window that would start past the input and its left pad is dropped. SAME_*: size = ceil(in / stride), the pads
    follow from it, and SAME_UPPER puts the odd one after.
    """
    rank = len(spatial)
    if not len(kernel) == len(dilations) == len(strides) == rank or (pads is not None and len(pads) != 2 * rank):
        raise ValueError(f"kernel {kernel}, dilations {dilations}, strides {strides} or pads {pads} are not {rank}-D")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {auto_pad!r}; ONNX has NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    before, after, sizes = [], [], []
    for axis in range(rank):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            size = -(-spatial[axis] // strides[axis])
            total = max(0, (size - 1) * strides[axis] + extent - spatial[axis])
            first = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            last = total - first
        else:
            first, last = (0, 0) if auto_pad == "VALID" or pads is None else (pads[axis], pads[axis + rank])
            room = spatial[axis] + first + last - extent
            size = room // strides[axis] + 1
            if ceil_mode and auto_pad == "NOTSET":
                size = -(-room // strides[axis]) + 1
                if (size - 1) * strides[axis] >= spatial[axis] + first:
                    size -= 1
            if room < 0 or first < 0 or last < 0:
                raise ValueError(f"a window of {extent} on {spatial[axis]} elements with pads {first} and {last}")
        before.append(first)
        after.append(last)
        sizes.append(size)
    return before, after, sizes


def _overhang(
    spatial: Ints, kernel: Ints, dilations: Ints, strides: Ints, before: Ints, after: Ints, sizes: Ints
) -> list[tuple[int, int]]:
    """How far the last window of ceil_mode reaches past the padded input: (0, elements) an axis, ready for np.pad."""
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(sizes, strides, dilations, kernel, strict=True)]
    padded = [b + n + a for b, n, a in zip(before, spatial, after, strict=True)]
    return [(0, max(0, r - p)) for r, p in zip(reach, padded, strict=True)]


def _seen_at(x: Array, offset: Ints, dilations: Ints, strides: Ints, sizes: Ints) -> Array:
    """What every window sees at one kernel offset: x[..., offset * dilation + i * stride] for i < size."""
    slices: list[Any] = [
        slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in zip(offset, dilations, strides, sizes, strict=True)
    ]
    index: tuple[Any, ...] = (..., *slices)
    return np.asarray(x[index])


COLUMNS = 1 << 22  # elements of what the windows of a convolution see, at a time


@op("Conv")
def conv(
    x: Array, w: Array, b: Array | None = None, *, auto_pad: str = "NOTSET", dilations: Ints | None = None,
    group: int = 1, kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """Conv: x (N, C, s...), w (M, C/group, k...), b (M) -> (N, M, s'...).

    y[n, m, i] = b[m] + sum over c, k of w[m, c, k] * x[n, c of m's group, i * stride + k * dilation - pad]
    """
    kernel, rank = w.shape[2:], x.ndim - 2
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise ValueError(f"kernel_shape {kernel_shape} with a weight of shape {w.shape}")
    if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ValueError(f"input of shape {x.shape}, weight of shape {w.shape} and {group} groups do not fit")
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel, auto_pad, dilations, pads, strides, 0)
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    y = np.zeros((x.shape[0], w.shape[0], *sizes))
    weight = w.reshape(group, w.shape[0] // group, -1)  # (g, m, c k...)
    taps = [_seen_at(x, offset, dilations, strides, sizes) for offset in np.ndindex(*kernel)]
    rows = max(1, COLUMNS // max(1, x.shape[1] * len(taps) * math.prod(sizes[1:])))
    for image, made in enumerate(y):
        for r in range(0, sizes[0], rows):
            columns = np.stack([tap[image, :, r : r + rows] for tap in taps], axis=1)  # (g c, k..., s'...)
            products = weight @ columns.reshape(group, weight.shape[2], -1)
            made[:, r : r + rows] = products.reshape(w.shape[0], *columns.shape[2:])
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@op("ConvTranspose")
def conv_transpose(
    x: Array, w: Array, b: Array | None = None, *, auto_pad: str = "NOTSET", dilations: Ints | None = None,
    group: int = 1, kernel_shape: Ints | None = None, output_padding: Ints | None = None,
    output_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """ConvTranspose: x (N, C, s...), w (C, M/group, k...), b (M) -> (N, M, s'...).

    Every input adds its weights to the output around i * stride + k * dilation - pad. The size is that of all that is
    reached, plus output_padding, less the pads; where the size is given, the pads follow from it. SAME_* ask for n *
    stride, and pads only take away: what is less already stays, as in ONNX's shape inference and in onnxruntime.
    """
    kernel, rank = w.shape[2:], x.ndim - 2
    if x.shape[1] != w.shape[0] or x.shape[1] % group:
        raise ValueError(f"input of shape {x.shape}, weight of shape {w.shape} and {group} groups do not fit")
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    extra = output_padding or [0] * rank
    reach = [s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, x.shape[2:], dilations, kernel, strict=True)]
    wanted = output_shape
    if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        full = [r + e for r, e in zip(reach, extra, strict=True)]
        wanted = [min(n * s, size) for n, s, size in zip(x.shape[2:], strides, full, strict=True)]
    if wanted is not None:
        sizes = list(wanted)[-rank:]
        totals = [max(0, r + e - size) for r, e, size in zip(reach, extra, sizes, strict=True)]
        before = [total // 2 if auto_pad == "SAME_UPPER" else total - total // 2 for total in totals]
    else:
        given = list(pads) if pads is not None and auto_pad == "NOTSET" else [0] * 2 * rank
        before = given[:rank]
        sizes = [r + e - p - q for r, e, p, q in zip(reach, extra, before, given[rank:], strict=True)]
    c, m = x.shape[1] // group, w.shape[1]
    room = [max(r, p + size) for r, p, size in zip(reach, before, sizes, strict=True)]
    y = np.zeros((x.shape[0], m * group, *room))
    for g in range(group):
        for offset in np.ndindex(*kernel):
            weight = w[(slice(g * c, (g + 1) * c), slice(None), *offset)]
            share = np.moveaxis(np.tensordot(weight, x[:, g * c : (g + 1) * c], axes=(0, 1)), 0, 1)
            target = _seen_at(y[:, g * m : (g + 1) * m], offset, dilations, strides, x.shape[2:])
            target += share
    y = y[(slice(None), slice(None), *(slice(p, p + size) for p, size in zip(before, sizes, strict=True)))]
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@op("MaxPool")
def max_pool(
    x: Array, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints | None = None,
    pads: Ints | None = None, storage_order: int = 0, strides: Ints | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """MaxPool: x (N, C, s...) -> (N, C, s'...), the maximum over each window, and where in x the first such is.

    Pads never win. That place counts all of x, the last axis fastest; with `storage_order` the first spatial axis.
    """
    rank = x.ndim - 2
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    over = _overhang(x.shape[2:], kernel_shape, dilations, strides, before, after, sizes)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    places = np.arange(np.prod(x.shape[2:], dtype=np.int64)).reshape(x.shape[2:], order="F" if storage_order else "C")
    around = list(zip(before, after, strict=True))
    places = np.pad(np.pad(places, around, constant_values=-1), over, constant_values=-1)
    x = np.pad(x, [(0, 0), (0, 0), *around], constant_values=lowest)
    x = np.pad(x, [(0, 0), (0, 0), *over], constant_values=lowest)
    y, where = np.full((*x.shape[:2], *sizes), lowest, x.dtype), np.full((*x.shape[:2], *sizes), -1, np.int64)
    for offset in np.ndindex(*kernel_shape):
        seen = _seen_at(x, offset, dilations, strides, sizes)
        place = np.broadcast_to(_seen_at(places, offset, dilations, strides, sizes), where.shape)
        better = (place >= 0) & ((seen > y) | (where < 0))
        where = np.where(better, place, where)
        y = np.maximum(y, seen)
    maps = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * rank)
    return y, where + maps * np.count_nonzero(places >= 0)


@op("LpPool", 2)
def lp_pool(
    x: Array, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints | None = None,
    p: int = 2, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """LpPool: x (N, C, s...) -> (N, C, s'...), the p-norm of each window."""
    rank = x.ndim - 2
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    over = _overhang(x.shape[2:], kernel_shape, dilations, strides, before, after, sizes)
    powers = np.pad(np.abs(x) ** p, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    powers = np.pad(powers, [(0, 0), (0, 0), *over])
    total = np.zeros((*x.shape[:2], *sizes))
    for offset in np.ndindex(*kernel_shape):
        total += _seen_at(powers, offset, dilations, strides, sizes)
    return np.asarray(total ** (1 / p))


@op("GlobalLpPool", 2)
def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """GlobalLpPool: x (N, C, s...) -> (N, C, 1...), the p-norm over the spatial axes."""
    return np.asarray((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p))


@op("AveragePool")
def average_pool(
    x: Array, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """AveragePool: x (N, C, s...) -> (N, C, s'...), the sum over each window by the number of elements that count.

    The input counts; the pads count if count_include_pad; what ceil_mode adds past the pads never does.
    """
    total, count = window_totals(
        x, kernel_shape=kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
        dilations=dilations, pads=pads, strides=strides,
    )  # fmt: skip
    return total / count


def window_totals(
    x: Array, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """The sum over each window of an AveragePool, and how many elements of it count."""
    rank = x.ndim - 2
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    over = _overhang(x.shape[2:], kernel_shape, dilations, strides, before, after, sizes)
    counts = np.ones(x.shape[2:])
    counts = np.pad(counts, list(zip(before, after, strict=True)), constant_values=1 if count_include_pad else 0)
    counts = np.pad(counts, over)
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    x = np.pad(x, [(0, 0), (0, 0), *over])
    total, count = np.zeros((*x.shape[:2], *sizes)), np.zeros(sizes)
    for offset in np.ndindex(*kernel_shape):
        total += _seen_at(x, offset, dilations, strides, sizes)
        count += _seen_at(counts, offset, dilations, strides, sizes)
    return total, count


@op("GlobalAveragePool")
def global_average_pool(x: Array) -> Array:
    """GlobalAveragePool: x (N, C, s...) -> (N, C, 1...), the mean over the spatial axes."""
    return np.asarray(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))


@op("GlobalMaxPool")
def global_max_pool(x: Array) -> Array:
    """GlobalMaxPool: x (N, C, s...) -> (N, C, 1...), the maximum over the spatial axes."""
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


@op("MaxUnpool", 9)
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """MaxUnpool: x at flat places of the zeros that a MaxPool with these attributes would have made it from.

    They stand first along each axis of output_shape, as in ONNX's case; onnxruntime counts the places in that.
    """
    rank = len(kernel_shape)
    steps, edges = strides or [1] * rank, pads or [0] * 2 * rank
    inner = [
        (count - 1) * steps[axis] + kernel_shape[axis] - edges[axis] - edges[axis + rank]
        for axis, count in enumerate(x.shape[2:])
    ]
    made = np.zeros((*x.shape[:2], *inner), x.dtype)
    made.reshape(-1)[indices.reshape(-1)] = x.reshape(-1)
    wanted = made.shape if output_shape is None else tuple(int(extent) for extent in output_shape)
    return np.pad(made, [(0, large - small) for large, small in zip(wanted, made.shape, strict=True)])
