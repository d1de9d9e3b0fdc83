"""Operators that read between the pixels of an image, at places that may arrive at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import DTYPES, FLOATS, Meaning, Value, floats, operator, typed
from tvmcnn.importer.operators.windows import conv
from tvmcnn.network import dims

# The words of opset 16 for images, and of opset 20 for any number of axes
MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}
PADDINGS = ("zeros", "border", "reflection")


@operator
def grid_sample(
    x: Value, grid: Value, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Meaning:
    """ONNX GridSample: x (N, C, …) at the places grid (N, …, r): nearest of every dtype, linear and cubic of floats.

    The r coordinates of a place are −1 to 1 along an axis, that of the last axis first.
    """
    if mode not in MODES:
        raise ModelError(f"mode is '{mode}'; allowed are {', '.join(MODES)}")
    if padding_mode not in PADDINGS:
        raise ModelError(f"padding_mode is '{padding_mode}'; allowed are {', '.join(PADDINGS)}")
    typed(DTYPES if MODES[mode] == "nearest" else FLOATS, x)
    typed(FLOATS, grid)
    axes = len(x.shape) - 2
    if axes < 1 or len(grid.shape) != axes + 2 or grid.shape[0] != x.shape[0] or grid.shape[-1] != axes:
        raise ModelError(
            f"x is {dims(x.shape)} and grid {dims(grid.shape)};"
            " they must be N, C, … and N, …, r with as many coordinates r as x has axes after its channels"
        )
    shape = (*x.shape[:2], *grid.shape[1:-1])
    if 0 in x.shape[2:] and 0 not in shape:
        raise ModelError(f"x is {dims(x.shape)}, which has nothing to sample")
    attributes = {"mode": MODES[mode], "padding_mode": padding_mode, "align_corners": bool(align_corners)}
    return Meaning("GridSample", (x, grid), shape, attributes, x.dtype)


@operator
def deform_conv(
    x: Value,
    w: Value,
    offset: Value,
    b: Value | None = None,
    mask: Value | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX DeformConv: a Conv whose taps are moved by offset (N, offset_group·k·r, …) and weighed by mask.

    The r offsets of a tap are those of the spatial axes in order; a tap outside the image is 0.
    """
    floats(x, w, offset, b, mask)
    words = {"dilations": dilations, "group": group, "kernel_shape": kernel_shape, "pads": pads, "strides": strides}
    meaning = conv(x, w, b, **words)
    assert isinstance(meaning, Meaning)
    rank, taps = len(x.shape) - 2, math.prod(w.shape[2:])
    if offset_group < 1 or x.shape[1] % offset_group:
        raise ModelError(f"offset_group is {offset_group}; it must divide the {x.shape[1]} channels of its input")
    for role, value, each in (("offset", offset, rank), ("mask", mask, 1)):
        wanted = (x.shape[0], offset_group * taps * each, *meaning.shape[2:])
        if value is not None and value.shape != wanted:
            raise ModelError(f"its {role} is {dims(value.shape)}; it must be {dims(wanted)}")
    given = {"biased": b is not None, "masked": mask is not None, "offset_group": offset_group}
    operands = tuple(value for value in (x, w, offset, b, mask) if value is not None)
    return Meaning("DeformConv", operands, meaning.shape, {**meaning.attributes, **given})
