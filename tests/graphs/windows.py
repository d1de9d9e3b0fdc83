"""Convolutions and pools, of all forms that a layout or an algorithm is made for, and normalisations of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphs.draft import Draft, Held, Skip
from graphs.growers import filled, grows, image

MAPS = (16, 17, 3, 32, 5, 8, 48, 15, 31, 1, 24)


def conv(d: Draft, x: Held, maps: int | None = None, kernel: int | None = None, *, keep: bool = False) -> Held:
    """A convolution behind x; with `keep` its image is as large as x."""
    channels, spatial = x.shape[1], x.shape[2:]
    group = 1
    if kernel is None and d.chance(1, 4):
        group = d.choice([g for g in (channels, 2, 3, 4, channels // 16) if g and channels % g == 0])
    if maps is None:
        maps = d.choice(MAPS)
    maps = channels if group == channels and d.chance(3, 4) else -(-maps // group) * group
    kernels = [kernel or d.choice((3, 1, 2, 5, 4)) for _ in spatial]
    if kernel is None and not keep and max(spatial) <= 8 and d.chance(1, 8):
        kernels = list(spatial)  # it covers its input: a matrix product
    words = placed(d, spatial, kernels, keep)
    if channels // group * maps * int(np.prod(kernels)) * int(np.prod(spatial)) > 1 << 23:
        raise Skip("Conv: too much work")
    weight = d.weight((maps, channels // group, *kernels), x.dtype, channels // group * int(np.prod(kernels)))
    bias = d.drawn((maps,), x.dtype) if d.chance(2, 3) else None
    return d.node("Conv", [x, weight, bias], **words, **({"group": group} if group > 1 else {}))[0]


def placed(d: Draft, spatial: tuple[int, ...], kernels: list[int], keep: bool = False) -> dict[str, object]:
    """Strides, dilations and pads with which the window fits."""
    rank = len(spatial)
    words: dict[str, object] = {"kernel_shape": kernels}
    dilations = [1] * rank
    if not keep and d.chance(1, 8):
        dilations = [d.choice((1, 2)) for _ in spatial]
    spans = [s * (k - 1) + 1 for s, k in zip(dilations, kernels, strict=True)]
    strides = [d.choice((1, 2, 3)) for _ in spatial] if not keep and d.chance(1, 3) else [1] * rank
    if keep or d.chance(1, 2):
        pads = [(n - 1) // 2 for n in spans] + [n // 2 for n in spans]
    elif d.chance(1, 6):
        words["auto_pad"] = d.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
        pads = None if words["auto_pad"] != "VALID" else [0] * 2 * rank
    else:
        pads = [d.integer(0, min(2, n - 1)) for n in (*spans, *spans)]
    if pads is not None:
        short = [n - e - pads[i] - pads[rank + i] for i, (n, e) in enumerate(zip(spans, spatial, strict=True))]
        if max(short) > 0:
            raise Skip("the window does not fit")
        if "auto_pad" not in words:
            words["pads"] = pads
    return {**words, "strides": strides, "dilations": dilations}


@grows("Conv", when=image)
def convolution(d: Draft, op: str, x: Held) -> None:
    conv(d, x, keep=d.chance(1, 2))


@grows("ConvTranspose", when=image)
def conv_transpose(d: Draft, op: str, x: Held) -> None:
    channels, spatial = x.shape[1], x.shape[2:]
    group = d.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    maps = d.choice((3, 16, 5, 8, 21)) // group or 1
    kernel, stride = d.choice((2, 3, 4, 1, 5)), d.choice((2, 1, 3))
    words: dict[str, object] = {}
    if d.chance(1, 4):
        words["auto_pad"] = d.choice(("SAME_UPPER", "SAME_LOWER"))
    else:
        words["pads"] = [d.integer(0, kernel - 1) // 2 for _ in range(2 * len(spatial))]
        words["output_padding"] = [d.integer(0, stride - 1) for _ in spatial]
    if min(spatial) < 2:
        raise Skip("ConvTranspose: a small image")
    if channels * maps * (kernel * stride) ** len(spatial) * int(np.prod(spatial)) > 1 << 23:
        raise Skip("ConvTranspose: too much work")
    kernels, strides = [kernel] * len(spatial), [stride] * len(spatial)
    weight = d.weight((channels, maps, *kernels), x.dtype, channels // group)
    bias = d.drawn((maps * group,), x.dtype) if d.chance(1, 2) else None
    d.node(op, [x, weight, bias], strides=strides, group=group, kernel_shape=kernels, **words)


def starts_behind(spatial: Sequence[int], words: Mapping[str, Any]) -> bool:
    """True where rounding the extent up adds a window that starts behind the image and its first padding."""
    for axis, extent in enumerate(spatial):
        kernel, stride = words["kernel_shape"][axis], words["strides"][axis]
        pads, dilations = words.get("pads", [0] * 2 * len(spatial)), words.get("dilations", [1] * len(spatial))
        begin, end = pads[axis], pads[axis + len(spatial)]
        last = -((dilations[axis] * (kernel - 1) + 1 - extent - begin - end) // stride)
        if last * stride >= extent + begin:
            return True
    return False


@grows("MaxPool", "AveragePool", "LpPool", when=image)
def pool(d: Draft, op: str, x: Held) -> None:
    spatial = x.shape[2:]
    kernels = [d.choice((2, 3, 1, 6)) for _ in spatial]
    since = d.since(op)
    words = placed(d, spatial, kernels)
    if (op == "AveragePool" and since < 19) or (op == "LpPool" and since < 18):
        if any(n > 1 for n in words["dilations"]):  # type: ignore[attr-defined]
            raise Skip(f"{op}: dilated")
        del words["dilations"]
    if d.chance(1, 2):  # as a layer does: windows side by side
        words = {"kernel_shape": kernels, "strides": kernels}
        if any(k > n for k, n in zip(kernels, spatial, strict=True)):
            raise Skip("the window does not fit")
    up = d.chance(1, 6) and "auto_pad" not in words and (op != "LpPool" or since >= 18)
    # Before opset 22 ONNX's inference counts a last window that starts behind the image; its text drops it.
    if up and (d.opset >= 22 or not starts_behind(spatial, words)):
        words["ceil_mode"] = 1
    if op == "AveragePool":
        words["count_include_pad"] = d.integer(0, 1)
    if op == "LpPool":
        words["p"] = d.choice((2, 1, 3))
    both = op == "MaxPool" and d.chance(1, 8)
    d.node(op, [x], outputs=2 if both else 1, **words, **({"storage_order": d.integer(0, 1)} if both else {}))


@grows("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", when=image)
def global_pool(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], **({"p": d.choice((2, 1, 3))} if op == "GlobalLpPool" else {}))


# ---- normalisations -------------------------------------------------------------------------------------------------


def spread(x: Held, axes: tuple[int, ...]) -> bool:
    """True if nothing that is normalised is nearly constant: rounding errors would be all that is left."""
    return bool((x.value.astype(np.float64).std(axis=axes) > 0.05).all())


@grows("BatchNormalization", when=lambda held: held.rank >= 2 and filled(held))
def batch_normalization(d: Draft, op: str, x: Held) -> None:
    channels = x.shape[1]
    variance = np.abs(d.numbers((channels,), "float64", 0)) + 0.5
    given = [d.drawn((channels,), x.dtype, 0) for _ in range(3)]
    d.node(op, [x, *given, d.constant(variance, x.dtype)], **({"epsilon": 0.01} if d.chance(1, 2) else {}))


@grows("InstanceNormalization", "GroupNormalization", when=lambda held: image(held) and held.rank == 4)
def group_normalization(d: Draft, op: str, x: Held) -> None:
    n, channels = x.shape[:2]
    groups = channels if op.startswith("Instance") else d.choice([g for g in (1, 2, 4, channels) if channels % g == 0])
    if not spread(Held("", x.value.reshape(n, groups, -1)), (2,)):
        raise Skip(f"{op}: nearly constant")
    extent = groups if d.since(op) == 18 else channels
    given = [d.drawn((extent,), x.dtype, 0) for _ in range(2)]
    d.node(
        op, [x, *given], epsilon=d.choice((1e-5, 0.01)), **({"num_groups": groups} if groups and op[0] == "G" else {})
    )


@grows("LayerNormalization", when=lambda held: held.rank >= 2 and filled(held))
def layer_normalization(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(1, x.rank - 1) - x.rank
    if not spread(x, tuple(range(x.rank + axis, x.rank))):
        raise Skip(f"{op}: nearly constant")
    scale = d.drawn(x.shape[axis:], x.dtype, 0)
    bias = d.drawn(x.shape[axis:], x.dtype, 0) if d.chance(1, 2) else None
    d.node(op, [x, scale, bias], outputs=3 if d.chance(1, 8) else 1, axis=axis)


@grows("LRN", when=lambda held: held.rank >= 3 and filled(held))
def lrn(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], size=d.choice((3, 5, 2)), alpha=d.choice((0.0001, 0.1)))


@grows("Softmax", "LogSoftmax", when=lambda held: held.rank >= 1 and filled(held))
def softmax(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], axis=d.axis(x) if d.chance(1, 2) else -1)
