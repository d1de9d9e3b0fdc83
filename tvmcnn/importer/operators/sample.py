"""Operators that read between the pixels of an image, at places that may arrive at run time."""

from __future__ import annotations

import math

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import DTYPES, FLOATS, Meaning, Value, operator, typed
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
    if 0 in x.shape[2:] and math.prod(shape):
        raise ModelError(f"x is {dims(x.shape)}, which has nothing to sample")
    attributes = {"mode": MODES[mode], "padding_mode": padding_mode, "align_corners": bool(align_corners)}
    return Meaning("GridSample", (x, grid), shape, attributes, x.dtype)
