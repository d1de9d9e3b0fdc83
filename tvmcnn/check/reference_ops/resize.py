"""Resampling: Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


def _source(size: int, length: int, scale: float, transform: str, roi: tuple[float, float], nearest: bool) -> Array:
    """Where each of `size` output places lies on an input axis of `length`, by coordinate_transformation_mode.

    For `nearest` in float32 as onnxruntime does: 3 / 0.6 is 5 then, and not 4.99999990, and a place halfway stays
    halfway. A crop's places are in float32 always, for they tell what is outside.
    """
    i = np.arange(size, dtype=np.float64)
    kind: Any = np.float32 if nearest else np.float64
    by = kind(scale)
    halves: Array = ((i.astype(kind) + kind(0.5)) / by).astype(np.float64)
    if scale == size / length:
        halves = (i + 0.5) * length / size
    if transform == "half_pixel" or (transform == "pytorch_half_pixel" and size > 1):
        return halves - 0.5
    if transform == "half_pixel_symmetric":
        whole = kind(size) / (by * kind(length))
        moved = kind(length) / 2 * (1 - whole) + halves.astype(kind)
        return np.asarray(moved - kind(0.5), np.float64)
    if transform == "align_corners" and size > 1:
        return i * (length - 1) / (size - 1)
    if transform in ("pytorch_half_pixel", "align_corners"):
        return np.zeros(size)
    if transform == "asymmetric":
        return np.asarray(i * length / size if scale == size / length else i.astype(kind) / by, np.float64)
    if transform == "tf_half_pixel_for_nn":
        return halves
    if transform == "tf_crop_and_resize":
        start, end, last = np.float32(roi[0]), np.float32(roi[1]), np.float32(length - 1)
        if size <= 1:
            return np.full(size, float(np.float32(0.5) * (start + end) * last))
        steps = i.astype(np.float32) * (end - start) * last / np.float32(size - 1)
        return np.asarray(start * last + steps, np.float64)
    raise ValueError(f"coordinate_transformation_mode {transform!r}")


def _nearest(place: Array, mode: str) -> Array:
    """The whole number that nearest_mode takes for each place."""
    rounded = {
        "round_prefer_floor": np.ceil(place - 0.5),
        "round_prefer_ceil": np.floor(place + 0.5),
        "floor": np.floor(place),
        "ceil": np.ceil(place),
    }
    if mode not in rounded:
        raise ValueError(f"nearest_mode {mode!r}")
    return rounded[mode]


def _weight(distance: Array, mode: str, a: float) -> Array:
    """What an element at a distance weighs: a triangle, or the cubic with the coefficient a."""
    d = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(0, 1 - d))
    inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
    outer = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0))


def _mixing(place: Array, length: int, mode: str, a: float, stretch: float, exclude: int) -> Array:
    """The matrix (places, length) that mixes an axis; past its ends the last element stands, or nothing (exclude)."""
    reach = math.ceil((1 if mode == "linear" else 2) / stretch) + 1
    matrix = np.zeros((len(place), length))
    for row, at in zip(matrix, place, strict=True):
        near = np.arange(math.floor(at) - reach, math.floor(at) + reach + 1)
        weights = _weight((near - at) * stretch, mode, a)
        if exclude:
            weights = np.where((near < 0) | (near >= length), 0, weights)
        np.add.at(row, np.clip(near, 0, length - 1), weights / weights.sum())
    return matrix


def _scaled(shape: Sequence[float], scales: Sequence[float]) -> list[int]:
    """floor(size * scale), multiplied in float32 as the scales are: 10 * 0.7 is 7."""
    return [int(np.floor(np.float32(size) * np.float32(scale))) for size, scale in zip(shape, scales, strict=True)]


@op("Resize", 11)
def resize(
    x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, *, antialias: int = 0,
    axes: Ints | None = None, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Array:  # fmt: skip
    """Resize: x (s...) by `scales`, or to `sizes`, along `axes` (all by default), one axis after the other."""
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    rois = dict.fromkeys(chosen, (0.0, 1.0))
    if crops and roi is not None:
        rois = {axis: (float(roi[k]), float(roi[k + len(chosen)])) for k, axis in enumerate(chosen)}
    factors: dict[int, float]
    if scales is not None and scales.size:
        factors = dict(zip(chosen, map(float, scales), strict=True))
        parts = [x.shape[axis] * (rois[axis][1] - rois[axis][0]) for axis in chosen]
        lengths = dict(zip(chosen, _scaled(parts, [factors[axis] for axis in chosen]), strict=True))
    elif sizes is not None and sizes.size:
        lengths = dict(zip(chosen, map(int, sizes), strict=True))
        factors = {axis: size / x.shape[axis] for axis, size in lengths.items()}
        if keep_aspect_ratio_policy != "stretch":
            one = {"not_larger": min, "not_smaller": max}[keep_aspect_ratio_policy](factors.values())
            factors = dict.fromkeys(chosen, one)
            lengths = {axis: int(np.floor(x.shape[axis] * one + 0.5)) for axis in chosen}
    else:
        raise ValueError("neither scales nor sizes are given")
    outside = np.zeros([1] * x.ndim, np.bool_)
    for axis in chosen:
        length, size, scale = x.shape[axis], lengths[axis], factors[axis]
        if size == length and scale == 1 and not crops:
            continue
        place = _source(size, length, scale, coordinate_transformation_mode, rois[axis], mode == "nearest")
        if mode == "nearest":
            x = np.take(x, np.clip(_nearest(place, nearest_mode), 0, length - 1).astype(np.int64), axis)
        elif mode in ("linear", "bilinear", "cubic"):
            stretch = min(1.0, scale) if antialias else 1.0
            kind = "cubic" if mode == "cubic" else "linear"
            matrix = _mixing(place, length, kind, cubic_coeff_a, stretch, exclude_outside)
            x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
        else:
            raise ValueError(f"mode {mode!r}; ONNX has nearest, linear and cubic")
        if crops:
            out = (place < 0) | (place > length - 1)
            outside = outside | out.reshape(-1, *[1] * (x.ndim - axis - 1))
    return np.where(outside, extrapolation_value, x) if crops else x


@op("Resize", 10)
@op("Upsample", 9)
def upsample(x: Array, scales: Array, *, mode: str = "nearest") -> Array:
    """Upsample of opset 9 and Resize of opset 10: place i of the output lies at i / scale.

    Nearest takes the floor; where the scale is below 1 the ceiling, as ONNX's cases of opset 10 show.
    """
    for axis, scale in enumerate(scales):
        by = np.array([scale], np.float32)
        rounding = "ceil" if scale < 1 else "floor"
        x = resize(
            x, None, by, axes=[axis], mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode=rounding
        )
    return x


@op("Upsample", 7)
def upsample_7(x: Array, *, scales: Sequence[float], mode: str = "nearest") -> Array:
    """Upsample of opset 7: the scales are an attribute."""
    return upsample(x, np.array(scales), mode=mode)


@op("Upsample", 1)
def upsample_1(x: Array, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Array:
    """Upsample of opset 1: x (N, C, H, W) by two attributes."""
    return upsample(x, np.array([1.0, 1.0, height_scale, width_scale]), mode=mode)
