"""Regions of interest: RoiAlign and MaxRoiPool."""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


def _samples(start: Array, length: Array, bins: int, ratio: int, half_pixel: bool) -> Array:
    """Where the samples lie along one axis, (bins, samples), in the precision of the corners."""
    number = start.dtype.type
    if not half_pixel:
        length = np.maximum(length, number(1))
    size = length / number(bins)
    count = ratio if ratio > 0 else max(0, math.ceil(size))
    b, i = np.arange(bins, dtype=start.dtype)[:, None], np.arange(count, dtype=start.dtype)
    return np.asarray(start + b * size + (i + number(0.5)) * size / number(max(count, 1)))


def _pixels(places: Array, extent: int) -> Array:
    """What each pixel of an axis weighs at each place, (..., extent): between two pixels both count, and farther than
    one outside none."""
    near = np.clip(places.astype(np.float64), 0, extent - 1)[..., None]
    counts = (places >= -1) & (places <= extent)
    return np.asarray(np.maximum(0, 1 - np.abs(near - np.arange(extent))) * counts[..., None])


def _check_images(images: Array, count: int) -> None:
    if images.size and not (images.min() >= 0 and images.max() < count):
        raise ValueError(f"regions of images {images.min()} to {images.max()}, of which there are {count}")


@op("RoiAlign", 10)
def roi_align_10(
    x: Array, rois: Array, batch_indices: Array, *, mode: str = "avg", output_height: int = 1, output_width: int = 1,
    sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Array:  # fmt: skip
    """RoiAlign of opset 10, where no half pixel is taken off."""
    return roi_align(
        x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode,
        output_height=output_height, output_width=output_width, sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )  # fmt: skip


@op("RoiAlign", 16)
def roi_align(
    x: Array, rois: Array, batch_indices: Array, *, coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:  # fmt: skip
    """RoiAlign: x (N, C, H, W), rois (R, 4) as x1, y1, x2, y2, batch_indices (R,) -> (R, C, h, w).

    The mean over the samples of a bin. The maximum is that of pixels times their weights, not of interpolated values:
    so are ONNX's own cases and onnxruntime.
    """
    if mode not in ("avg", "max") or coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise ValueError(f"mode {mode!r} and coordinate_transformation_mode {coordinate_transformation_mode!r}")
    _check_images(batch_indices, len(x))
    half = coordinate_transformation_mode == "half_pixel"
    number = rois.dtype.type
    y = np.zeros((len(rois), x.shape[1], output_height, output_width))
    for region, corners in enumerate(rois):
        left, top, right, bottom = corners * number(spatial_scale) - number(0.5 if half else 0)
        rows = _pixels(_samples(top, bottom - top, output_height, sampling_ratio, half), x.shape[2])
        columns = _pixels(_samples(left, right - left, output_width, sampling_ratio, half), x.shape[3])
        if 0 in (rows.shape[1], columns.shape[1]):
            continue  # a region without an extent
        image = x[int(batch_indices[region])].astype(np.float64)
        if mode == "avg":
            y[region] = np.einsum("bh,chw,dw->cbd", rows.mean(axis=1), image, columns.mean(axis=1), optimize=True)
            continue
        for b, d in np.ndindex(output_height, output_width):
            best = np.full(x.shape[1], -np.inf)
            for row in rows[b]:
                for column in columns[d]:
                    weights = np.outer(row, column)
                    products = image[:, weights > 0] * weights[weights > 0]
                    if products.shape[1] < 4:  # of the four pixels around it some weigh 0, or it is outside
                        products = np.concatenate([products, np.zeros((len(image), 1))], axis=1)
                    best = np.maximum(best, products.max(axis=1))
            y[region, :, b, d] = best
    return y


@op("MaxRoiPool")
def max_roi_pool(x: Array, rois: Array, *, pooled_shape: Ints, spatial_scale: float = 1.0) -> Array:
    """MaxRoiPool: x (N, C, H, W), rois (R, 5) as image, x1, y1, x2, y2 -> (R, C, h, w), the maximum of each bin.

    Corners are rounded, halves away from 0, and count. Of n pixels in k bins, bin b has those from floor(b n / k) to
    before ceil((b + 1) n / k), as far as they are in the image; 0 where none is.
    """
    _check_images(rois[:, 0], len(x))
    number = rois.dtype.type
    y = np.zeros((len(rois), x.shape[1], *pooled_shape))
    for region, (image, *corners) in enumerate(rois):
        scaled = np.array(corners, rois.dtype) * number(spatial_scale)
        left, top, right, bottom = (int(np.copysign(np.floor(np.abs(c) + 0.5), c)) for c in scaled)
        for place in np.ndindex(*pooled_shape):
            window = []
            spans = zip(place, pooled_shape, (top, left), (bottom, right), x.shape[2:], strict=True)
            for b, bins, first, last, extent in spans:
                size = max(last - first + 1, 1)
                begin, end = first + b * size // bins, first - (-(b + 1) * size // bins)
                window.append(slice(min(max(begin, 0), extent), min(max(end, 0), extent)))
            seen = x[int(image)][(slice(None), *window)]
            if seen.size:
                y[(region, slice(None), *place)] = seen.max(axis=(1, 2))
    return y
