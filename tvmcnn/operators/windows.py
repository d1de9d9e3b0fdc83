"""Operators with sliding windows: convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvmcnn.errors import ModelError
from tvmcnn.network import Shape, dims
from tvmcnn.operators.words import Meaning, Unsupported, Value, constant, floats, operator


def window_extent(axis: str, size: int, kernel: int, stride: int, begin: int, end: int, dilation: int, up: bool) -> int:
    """Output extent of a sliding window along one axis (ONNX Conv and pools).

    W_out = ⌊(W_in + pad_begin + pad_end − dilation·(F−1) − 1) / stride⌋ + 1. With ceil_mode the quotient is rounded up,
    and a last window that would start in the end padding is dropped.
    """
    span = size + begin + end - dilation * (kernel - 1) - 1
    if span < 0:
        raise ModelError(
            f"the window does not fit: {axis}_out = ⌊({size} + {begin} + {end} − {dilation}·({kernel}−1) − 1)"
            f" / {stride}⌋ + 1 has the negative numerator {span}"
        )
    extent = (math.ceil(span / stride) if up else span // stride) + 1
    if up and (extent - 1) * stride >= size + begin:
        extent -= 1
    return extent


def _window(
    x: Value,
    kernel: Sequence[int],
    auto_pad: str,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    ceil_mode: int = 0,
) -> tuple[dict[str, Any], Shape]:
    """The explicit window attributes of an image operator, and its output's height and width."""
    if len(x.shape) != 4:
        raise Unsupported(f"its input '{x.name}' is {dims(x.shape)}; only images N x C x H x W are supported")
    strides, dilations = tuple(strides or (1, 1)), tuple(dilations or (1, 1))
    begin_end = tuple(pads or (0, 0, 0, 0))
    if len(kernel) != 2 or len(strides) != 2 or len(dilations) != 2 or len(begin_end) != 4:
        raise ModelError(f"kernel_shape {list(kernel)}, strides, dilations and pads must be those of two axes")
    if min(*kernel, *strides, *dilations) < 1 or min(begin_end) < 0:
        raise ModelError("kernel_shape, strides and dilations must be at least 1 and pads at least 0")
    sizes = x.shape[2:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        begin_end = (*small, *large) if auto_pad == "SAME_UPPER" else (*large, *small)
    elif auto_pad == "VALID":
        begin_end = (0, 0, 0, 0)
    elif auto_pad != "NOTSET":
        raise ModelError(f"auto_pad is '{auto_pad}'; allowed are NOTSET, SAME_UPPER, SAME_LOWER, VALID")
    extents = tuple(
        window_extent(axis, size, k, s, begin, end, d, bool(ceil_mode))
        for axis, size, k, s, begin, end, d in zip(
            "HW", sizes, kernel, strides, begin_end[:2], begin_end[2:], dilations, strict=True
        )
    )
    attributes = {"kernel_shape": tuple(kernel), "strides": strides, "pads": begin_end, "dilations": dilations}
    return attributes, extents


@operator
def conv(
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX Conv on images: x (N, C, H, W), w (M, C/group, kH, kW), b (M,)."""
    floats(x, w, b)
    constant("weight", w)
    if b is not None:
        constant("bias", b)
    if len(w.shape) != 4:
        raise Unsupported(f"its weight is {dims(w.shape)}; only convolutions of images (two axes) are supported")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ModelError(f"kernel_shape is {list(kernel_shape)}, but the weight '{w.name}' is {dims(w.shape)}")
    attributes, extents = _window(x, w.shape[2:], auto_pad, dilations, pads, strides)
    (n, channels), (maps, depth) = x.shape[:2], w.shape[:2]
    if group < 1 or channels != depth * group or maps % group:
        raise ModelError(
            f"the input has {channels} channels and the weight is {dims(w.shape)}: with group {group} it needs"
            f" {depth}·{group} = {depth * group} channels and a multiple of {group} maps"
        )
    if b is not None and b.shape != (maps,):
        raise ModelError(f"the bias is {dims(b.shape)}; the weight makes {maps} maps")
    inputs = (x, w) if b is None else (x, w, b)
    return Meaning("Conv", inputs, (n, maps, *extents), {**attributes, "group": group})


def _pool(
    op: str, x: Value, kernel_shape: Sequence[int], ceil_mode: int, extra: dict[str, Any], **window: Any
) -> Meaning:
    floats(x)
    attributes, extents = _window(x, kernel_shape, ceil_mode=ceil_mode, **window)
    return Meaning(op, (x,), (*x.shape[:2], *extents), {**attributes, **extra})


@operator
def max_pool(
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,  # orders the Indices output, which is refused
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX MaxPool on images; padding never wins."""
    window = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    return _pool("MaxPool", x, kernel_shape, ceil_mode, {}, **window)


@operator
def average_pool(
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX AveragePool on images; with count_include_pad the padding counts in the divisor."""
    window = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    return _pool("AveragePool", x, kernel_shape, ceil_mode, {"count_include_pad": bool(count_include_pad)}, **window)


@operator
def global_average_pool(x: Value) -> Meaning:
    """ONNX GlobalAveragePool on images: (N, C, H, W) --> (N, C, 1, 1)."""
    floats(x)
    if len(x.shape) != 4:
        raise Unsupported(f"its input '{x.name}' is {dims(x.shape)}; only images N x C x H x W are supported")
    return Meaning("GlobalAveragePool", (x,), (*x.shape[:2], 1, 1))
