"""Operators with sliding windows, along any number of spatial axes: convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import FLOATS, Meaning, Meanings, Value, alike, floats, operator
from tvmcnn.network import Shape, dims

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


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


@dataclass(frozen=True)
class _Window:
    """The attributes of a window, one number a spatial axis; `pads` has the begins, then the ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def spans(self) -> list[int]:
        """Elements from the first tap to the last, both counted."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def attributes(self, begins: Sequence[int], ends: Sequence[int]) -> dict[str, Any]:
        """The explicit attributes of a node with these pads."""
        words = {"kernel_shape": self.kernel, "strides": self.strides, "pads": (*begins, *ends)}
        return words | {"dilations": self.dilations}


def _window(
    x: Value,
    kernel: Sequence[int],
    auto_pad: str,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> _Window:
    """The window with its defaults filled in; raises ModelError where an attribute does not fit x (N, C, …)."""
    rank = _spatial(x)
    window = _Window(
        tuple(kernel),
        tuple(strides or (1,) * rank),
        tuple(dilations or (1,) * rank),
        tuple(pads or (0,) * 2 * rank) if auto_pad == "NOTSET" else (0,) * 2 * rank,
    )
    counts = (len(window.kernel), len(window.strides), len(window.dilations), len(window.pads))
    if counts != (rank, rank, rank, 2 * rank):
        axes = f"{rank} axes, as the input {dims(x.shape)} has"
        raise ModelError(f"kernel_shape {list(kernel)}, strides, dilations and pads must be those of {axes}")
    if min(*window.kernel, *window.strides, *window.dilations) < 1 or min(window.pads) < 0:
        raise ModelError("kernel_shape, strides and dilations must be at least 1 and pads at least 0")
    if auto_pad not in AUTO_PADS:
        raise ModelError(f"auto_pad is '{auto_pad}'; allowed are {', '.join(AUTO_PADS)}")
    return window


def _spatial(x: Value) -> int:
    """The number of spatial axes of x (N, C, …)."""
    if len(x.shape) < 3:
        raise ModelError(f"its input '{x.name}' is {dims(x.shape)}; it must be N x C and at least one more axis")
    return len(x.shape) - 2


def _shared(total: int, auto_pad: str) -> tuple[int, int]:
    """Pads before and after: SAME_UPPER puts the odd one after."""
    return (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)


def _slide(x: Value, window: _Window, auto_pad: str, ceil_mode: int = 0) -> tuple[dict[str, Any], Shape]:
    """The explicit attributes of an operator whose windows slide over x, and the spatial extents of its output."""
    rank, sizes = _spatial(x), x.shape[2:]
    begins, ends = window.pads[:rank], window.pads[rank:]
    if auto_pad.startswith("SAME"):
        totals = [
            max((-(-size // stride) - 1) * stride + span - size, 0)
            for size, stride, span in zip(sizes, window.strides, window.spans, strict=True)
        ]
        begins, ends = zip(*(_shared(total, auto_pad) for total in totals), strict=True)
    up = bool(ceil_mode) and auto_pad == "NOTSET"  # with auto_pad ONNX gives the extents without it
    names = "DHW"[-rank:] if rank <= 3 else [f"axis{axis}" for axis in range(rank)]
    along = zip(names, sizes, window.kernel, window.strides, begins, ends, window.dilations, strict=True)
    extents = tuple(window_extent(name, i, k, s, b, e, d, up) for name, i, k, s, b, e, d in along)
    return window.attributes(begins, ends), extents


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
    """ONNX Conv: x (N, C, …), w (M, C/group, k…), b (M,)."""
    floats(x, w, b)
    window = _window(x, _kernel(x, w, kernel_shape), auto_pad, dilations, pads, strides)
    attributes, extents = _slide(x, window, auto_pad)
    (n, channels), (maps, depth) = x.shape[:2], w.shape[:2]
    if group < 1 or channels != depth * group or maps % group:
        raise ModelError(
            f"the input has {channels} channels and the weight is {dims(w.shape)}: with group {group} it needs"
            f" {depth}·{group} = {depth * group} channels and a multiple of {group} maps"
        )
    return Meaning("Conv", _with_bias(x, w, b, maps), (n, maps, *extents), {**attributes, "group": group})


def _kernel(x: Value, w: Value, kernel_shape: Sequence[int] | None) -> Sequence[int]:
    if len(w.shape) != len(x.shape):
        raise ModelError(f"the weight is {dims(w.shape)} and the input {dims(x.shape)}; both must have as many axes")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ModelError(f"kernel_shape is {list(kernel_shape)}, but the weight '{w.name}' is {dims(w.shape)}")
    return w.shape[2:]


def _with_bias(x: Value, w: Value, b: Value | None, maps: int) -> tuple[Value, ...]:
    if b is not None and b.shape != (maps,):
        raise ModelError(f"the bias is {dims(b.shape)}; the weight makes {maps} maps")
    return (x, w) if b is None else (x, w, b)


@operator
def conv_transpose(
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX ConvTranspose: x (N, C, …), w (C, M/group, k…), b (M,).

    size_out = stride·(size_in − 1) + output_padding + dilation·(k − 1) + 1 − pad_begin − pad_end. An output_shape (with
    or without N and M) is kept: then the pads follow from it, at least 0. So they do from size_in·stride with SAME_*;
    where there is less already, with a kernel shorter than the stride, that is the size, as onnxruntime has it.
    """
    floats(x, w, b)
    window = _window(x, _kernel(x, w, kernel_shape), auto_pad, dilations, pads, strides)
    rank, (n, channels) = _spatial(x), x.shape[:2]
    maps = w.shape[1] * group
    if group < 1 or channels != w.shape[0] or channels % group:
        raise ModelError(
            f"the input has {channels} channels and the weight is {dims(w.shape)}: with group {group} it needs"
            f" {w.shape[0]}, a multiple of {group}"
        )
    extra = tuple(output_padding or (0,) * rank)
    if len(extra) != rank or min(extra) < 0:
        raise ModelError(f"output_padding is {list(extra)}; it must be {rank} numbers, none below 0")
    full = [
        stride * (size - 1) + more + span
        for size, stride, more, span in zip(x.shape[2:], window.strides, extra, window.spans, strict=True)
    ]
    begins, ends, extents = window.pads[:rank], window.pads[rank:], tuple(output_shape or ())[-rank:]
    if len(extents) not in (0, rank):
        raise ModelError(f"output_shape is {list(extents)}; it must be {rank} numbers")
    if extents or auto_pad.startswith("SAME"):
        wanted = extents or [size * stride for size, stride in zip(x.shape[2:], window.strides, strict=True)]
        shared = [_shared(max(size - out, 0), auto_pad) for size, out in zip(full, wanted, strict=True)]
        begins, ends = zip(*shared, strict=True)
    extents = extents or tuple(size - begin - end for size, begin, end in zip(full, begins, ends, strict=True))
    if min(extents) < 0:
        raise ModelError(f"pads {[*begins, *ends]} take more than the {dims(tuple(full))} that there is")
    attributes = {**window.attributes(begins, ends), "group": group}
    return Meaning("ConvTranspose", _with_bias(x, w, b, maps), (n, maps, *extents), attributes)


# ---- pools ----------------------------------------------------------------------------------------------------------


@operator
def max_pool(
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs_: int = 1,
) -> Meanings:
    """ONNX MaxPool; padding never wins. Indices count the elements of all of x, the last axis fastest.

    With storage_order 1 the first spatial axis is the fastest within a map.
    """
    alike((*FLOATS, "int8", "uint8"), x)
    attributes, extents = _slide(x, _window(x, kernel_shape, auto_pad, dilations, pads, strides), auto_pad, ceil_mode)
    shape = (*x.shape[:2], *extents)
    largest = Meaning("MaxPool", (x,), shape, attributes)
    if outputs_ == 1:
        return largest
    if storage_order not in (0, 1):
        raise ModelError(f"storage_order is {storage_order}; allowed are 0 and 1")
    order = {"storage_order": storage_order}
    return largest, Meaning("MaxPoolIndices", (x,), shape, {**attributes, **order}, "int64")


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
    """ONNX AveragePool; with count_include_pad the padding counts in the divisor."""
    floats(x)
    attributes, extents = _slide(x, _window(x, kernel_shape, auto_pad, dilations, pads, strides), auto_pad, ceil_mode)
    attributes["count_include_pad"] = bool(count_include_pad)
    return Meaning("AveragePool", (x,), (*x.shape[:2], *extents), attributes)


@operator
def lp_pool(
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX LpPool: the p-norm of each window; padding adds nothing."""
    floats(x)
    attributes, extents = _slide(x, _window(x, kernel_shape, auto_pad, dilations, pads, strides), auto_pad, ceil_mode)
    attributes["p"] = _norm(p)
    return Meaning("LpPool", (x,), (*x.shape[:2], *extents), attributes)


def _norm(p: int) -> int:
    if p < 1:
        raise ModelError(f"p is {p}; a norm needs at least 1")
    return p


@operator
def global_average_pool(x: Value) -> Meaning:
    """ONNX GlobalAveragePool: the mean of each map, (N, C, …) --> (N, C, 1…)."""
    return _global("GlobalAveragePool", x)


@operator
def global_max_pool(x: Value) -> Meaning:
    """ONNX GlobalMaxPool: the maximum of each map, (N, C, …) --> (N, C, 1…)."""
    return _global("GlobalMaxPool", x)


@operator
def global_lp_pool(x: Value, *, p: int = 2) -> Meaning:
    """ONNX GlobalLpPool: the p-norm of each map, (N, C, …) --> (N, C, 1…)."""
    return _global("GlobalLpPool", x, p=_norm(p))


def _global(op: str, x: Value, **attributes: int) -> Meaning:
    floats(x)
    return Meaning(op, (x,), (*x.shape[:2], *(1,) * _spatial(x)), attributes)
