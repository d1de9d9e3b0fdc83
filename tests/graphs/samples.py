"""Operators that read at computed places: between pixels, in regions, and in frames of a signal."""

from __future__ import annotations

import math

import numpy as np

from graphs.draft import MOST, Array, Draft, Held, Skip
from graphs.growers import filled, grows
from graphs.moves import combined


def float_image(held: Held) -> bool:
    return held.rank == 4 and held.is_float and filled(held) and held.size <= 4000


def given(d: Draft, value: Array) -> Held:
    """An input, or a constant."""
    return d.input(value) if d.chance(1, 2) else d.constant(value)


@grows("GridSample", when=lambda held: 3 <= held.rank <= 5 and filled(held) and held.size <= 4000)
def grid_sample(d: Draft, op: str, x: Held) -> None:
    """Draw a grid whose places are halfway between pixels, or anywhere, some of them outside."""
    old = d.since(op) < 20
    rank = x.rank - 2 if not old else 2
    words = {"linear": "bilinear", "cubic": "bicubic"} if old else {}
    mode = d.choice(("linear", "nearest", "cubic") if x.is_float and rank < 3 else ("nearest",))
    grid = d.numbers((x.shape[0], *(d.integer(1, 7) for _ in range(rank)), rank), "float32", d.choice((0, 2)))
    attributes = {"mode": words.get(mode, mode), "padding_mode": d.choice(("zeros", "border", "reflection"))}
    d.node(op, [x, given(d, grid)], align_corners=d.integer(0, 1), **attributes)


def regions(d: Draft, x: Held, scale: float) -> Array:
    """Corners of whole, half or any pixels, in order or not."""
    count, (height, width) = d.integer(1, 4), x.shape[2:]
    rng = np.random.default_rng(d.integer(0, 999))
    corners = rng.uniform(-0.2, 1.2, (count, 2, 2)) * (width, height) / scale
    corners = corners if d.chance(1, 4) else np.sort(corners, axis=1)
    corners = np.round(2 * corners) / 2 if d.chance(1, 2) else corners
    return np.asarray(corners.reshape(count, 4), x.dtype)


@grows("RoiAlign", when=float_image)
def roi_align(d: Draft, op: str, x: Held) -> None:
    scale = d.choice((1.0, 0.5, 0.1))
    rois = regions(d, x, scale)
    images = np.random.default_rng(d.integer(0, 99)).integers(0, x.shape[0], len(rois))
    words = {"output_height": d.integer(1, 3), "output_width": d.integer(1, 5), "mode": d.choice(("avg", "max"))}
    if d.opset >= 16 and d.chance(1, 2):
        words["coordinate_transformation_mode"] = "output_half_pixel"
    operands = [x, given(d, rois), given(d, images)]
    d.node(op, operands, sampling_ratio=d.integer(0, 2), spatial_scale=scale, **words)


@grows("MaxRoiPool", when=float_image)
def max_roi_pool(d: Draft, op: str, x: Held) -> None:
    scale = d.choice((1.0, 0.5, 0.1))
    rois = regions(d, x, scale)
    images = np.random.default_rng(d.integer(0, 99)).integers(0, x.shape[0], (len(rois), 1))
    rois = np.concatenate([images.astype(rois.dtype), rois], axis=1)
    d.node(op, [x, given(d, rois)], pooled_shape=[d.integer(1, 3), d.integer(1, 5)], spatial_scale=scale)


@grows("DeformConv", when=float_image)
def deform_conv(d: Draft, op: str, x: Held) -> None:
    n, channels, height, width = x.shape
    kernel = [d.integer(1, min(3, height)), d.integer(1, min(3, width))]
    group = d.choice([g for g in (1, 2) if channels % g == 0])
    moved = d.choice([g for g in (1, 2, 3) if channels % g == 0])
    strides = [d.integer(1, 2), 1]
    sizes = [(size - k) // s + 1 for size, k, s in zip((height, width), kernel, strides, strict=True)]
    taps = moved * math.prod(kernel)
    maps = group * d.choice((1, 3, 8))
    w = d.weight((maps, channels // group, *kernel), x.dtype, channels // group * math.prod(kernel))
    offset = given(d, d.numbers((n, 2 * taps, *sizes), x.dtype))
    b = d.drawn((maps,), x.dtype) if d.chance(1, 2) else None
    mask = given(d, d.numbers((n, taps, *sizes), x.dtype)) if d.chance(1, 2) else None
    d.node(op, [x, w, offset, b, mask], group=group, offset_group=moved, strides=strides)


@grows("DFT", when=lambda held: 1 <= held.rank <= 3 and held.is_float and filled(held) and held.size <= 2000)
def dft(d: Draft, op: str, x: Held) -> None:
    """Forward, or back from what is taken for half a spectrum."""
    parts = [d.node("Unsqueeze", [x, d.whole([x.rank])])[0]] * d.choice((1, 2))
    signal = parts[0] if len(parts) == 1 else d.node("Concat", parts, axis=-1)[0]
    axis = d.integer(0, x.rank - 1)
    words = {"inverse": d.integer(0, 1)}
    if (len(parts) == 2) == bool(words["inverse"]) and x.shape[axis] > 1:
        words["onesided"] = d.integer(0, 1)
    length = d.constant(np.int64(d.integer(1, 2 * x.shape[axis]))) if d.chance(1, 2) else None
    if d.since(op) < 20:
        d.node(op, [signal, length], axis=axis, **words)
    else:
        d.node(op, [signal, length, d.constant(np.int64(axis))], **words)


@grows("STFT", when=lambda held: held.is_float and filled(held) and 2 <= held.size <= 600)
def stft(d: Draft, op: str, x: Held) -> None:
    signal = d.node("Reshape", [x, d.whole([1, -1, 1])])[0]
    length, step = d.integer(1, min(x.size, 24)), d.integer(1, 9)
    if (x.size - length) // step * length > MOST:
        step = x.size
    window = given(d, d.numbers((length,), x.dtype)) if d.chance(1, 2) else None
    d.node(op, [signal, d.whole(step), window, d.whole(length)], onesided=d.integer(0, 1))


@grows("HannWindow", "HammingWindow", "BlackmanWindow")
def window(d: Draft, op: str, length: Held) -> None:
    """As long as the rows of some tensor: the operand, a number, is a constant."""
    x = d.pick(lambda held: held.dtype == "float32" and held.rank >= 1 and filled(held))
    if x is None:
        raise Skip(f"{op}: no rows")
    combined(d, x, d.node(op, [d.whole(x.shape[-1])], periodic=d.integer(0, 1))[0])


@grows("MelWeightMatrix")
def bands(d: Draft, op: str, count: Held) -> None:
    """The bands of spectra that the rows of some tensor stand for."""
    x = d.pick(lambda held: held.dtype == "float32" and held.rank >= 1 and filled(held) and held.shape[-1] > 1)
    if x is None:
        raise Skip(f"{op}: no spectra")
    edges = [d.constant(np.float32(hertz)) for hertz in d.choice(((0, 8000), (20, 4000), (125, 7600)))]
    given = [d.whole(number) for number in (d.integer(1, 9), 2 * x.shape[-1] - 2, 16000)]
    d.node("MatMul", [x, d.node(op, [*given, *edges])[0]])
