"""Operators that put elements elsewhere: parts, wholes, borders, repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    DTYPES,
    Meaning,
    Meanings,
    Value,
    alike,
    axes_of,
    axis_of,
    derived,
    integers,
    operator,
    typed,
)
from tvmcnn.importer.operators.shape import view
from tvmcnn.network import Shape, dims

PAD_MODES = ("constant", "reflect", "edge", "wrap")


@operator
def concat(*operands: Value, axis: int) -> Meaning:
    """ONNX Concat along one axis."""
    if not operands:
        raise ModelError("it has no inputs; Concat needs at least one")
    alike(DTYPES, *operands)
    axis = axis_of(axis, len(operands[0].shape))
    shapes = [list(value.shape) for value in operands]
    rests = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
    if any(rest != rests[0] for rest in rests):
        raise ModelError(f"{', '.join(dims(v.shape) for v in operands)} do not concatenate along axis {axis}")
    shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    filled = [value for value in operands if value.shape[axis]]
    return view(filled[0], shape) if len(filled) == 1 else Meaning("Concat", operands, shape, {"axis": axis})


# ---- parts ----------------------------------------------------------------------------------------------------------


def part(
    x: Value, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int], shape: Shape | None = None
) -> Meaning:
    """The elements starts[a] + steps[a]·i, i < sizes[a], along each axis a: a view where that is all of them.

    `shape` is what they are seen as, if not `sizes`.
    """
    typed(DTYPES, x)
    extents = tuple(sizes)
    strides = tuple(step if size > 1 else 1 for step, size in zip(steps, sizes, strict=True))
    seen = extents if shape is None else shape
    if extents == x.shape and set(strides) <= {1}:
        return view(x, seen)
    return Meaning("Slice", (x,), seen, {"starts": tuple(starts), "sizes": extents, "steps": strides})


def _along(x: Value, axis: int, start: int, size: int) -> Meaning:
    """`size` neighbours along one axis, and everything along the others."""
    starts, sizes = [0] * len(x.shape), list(x.shape)
    starts[axis], sizes[axis] = start, size
    return part(x, starts, sizes, [1] * len(x.shape))


@operator
def slice_(data: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None) -> Meaning:
    """ONNX Slice with constant bounds; negative ones count from the end, those past it are clamped to it."""
    rank = len(data.shape)
    first, last = integers("starts", starts), integers("ends", ends)
    chosen = axes_of(integers("axes", axes) if axes is not None else range(len(first)), rank)
    stride = integers("steps", steps) if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(chosen) == len(stride):
        raise ModelError(f"{len(first)} starts, {len(last)} ends, {len(chosen)} axes and {len(stride)} steps")
    if 0 in stride:
        raise ModelError(f"steps {stride}: a step must not be 0")
    ranges = [range(extent) for extent in data.shape]
    for axis, bounds in zip(chosen, zip(first, last, stride, strict=True), strict=True):
        ranges[axis] = _clamped(*bounds, data.shape[axis])
    return part(data, [r.start for r in ranges], [len(r) for r in ranges], [r.step for r in ranges])


def _clamped(start: int, end: int, step: int, extent: int) -> range:
    """The elements of a slice. Unlike Python's, one that goes backwards from before the first begins at the first."""
    least, most = (0, extent) if step > 0 else (-1, extent - 1)
    start, end = (place + extent if place < 0 else place for place in (start, end))
    return range(min(max(start, 0), most), min(max(end, least), most), step)


@operator
def split(
    x: Value, split: Value | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs_: int
) -> tuple[Meaning, ...]:
    """ONNX Split: neighbouring parts along one axis, of the sizes `split` or all equal but the last."""
    axis = axis_of(axis, len(x.shape))
    extent = x.shape[axis]
    if split is not None:
        if num_outputs is not None:
            raise ModelError("it has both the input split and the attribute num_outputs; only one may be given")
        sizes = integers("split", split)
        if min(sizes, default=0) < 0 or sum(sizes) != extent:
            raise ModelError(f"split {sizes} does not cover the {extent} elements of axis {axis}")
    else:
        count = outputs_ if num_outputs is None else num_outputs
        if count < 1:
            raise ModelError(f"num_outputs is {count}; it must be at least 1")
        whole = -(-extent // count)
        sizes = [max(0, min(whole, extent - place * whole)) for place in range(count)]
    if len(sizes) != outputs_:
        raise ModelError(f"it splits into {len(sizes)} parts, but has {outputs_} outputs")
    return tuple(_along(x, axis, sum(sizes[:place]), size) for place, size in enumerate(sizes))


# ---- borders and repetitions ----------------------------------------------------------------------------------------


@operator
def pad(
    x: Value,
    pads: Value,
    constant_value: Value | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
) -> Meaning:
    """ONNX Pad with constant pads; negative ones crop first, then the border is filled from what is left."""
    alike(DTYPES, x, constant_value)
    if mode not in PAD_MODES:
        raise ModelError(f"mode is '{mode}'; allowed are {', '.join(PAD_MODES)}")
    rank, amounts = len(x.shape), integers("pads", pads)
    chosen = axes_of(integers("axes", axes), rank) if axes is not None else list(range(rank))
    if len(amounts) != 2 * len(chosen):
        raise ModelError(f"{len(amounts)} pads for {len(chosen)} axes of {dims(x.shape)}; there must be two an axis")
    begins, ends = [0] * rank, [0] * rank
    for position, axis in enumerate(chosen):
        begins[axis], ends[axis] = amounts[position], amounts[position + len(chosen)]
    left = [extent + min(b, 0) + min(e, 0) for b, extent, e in zip(begins, x.shape, ends, strict=True)]
    if min(left, default=0) < 0:
        raise ModelError(f"pads {amounts} crop more than {dims(x.shape)} has")
    shape = tuple(n + max(b, 0) + max(e, 0) for b, n, e in zip(begins, left, ends, strict=True))
    if mode != "constant" and any(n == 0 < extent for n, extent in zip(left, shape, strict=True)):
        raise ModelError(f"pads {amounts} of mode '{mode}' repeat elements of {dims(x.shape)}, which has none there")
    if shape == x.shape and not any(begins):
        return view(x, shape)
    attributes = {"begins": tuple(begins), "mode": mode, "value": 0}
    if mode != "constant" or constant_value is None:
        return Meaning("Pad", (x,), shape, attributes)
    if math.prod(constant_value.shape) != 1:
        raise ModelError(
            f"constant_value '{constant_value.name}' is {dims(constant_value.shape)}; it must be one value"
        )
    if constant_value.data is None:
        return Meaning("Pad", (x, constant_value), shape, attributes)
    return Meaning("Pad", (x,), shape, {**attributes, "value": constant_value.data.reshape(()).item()})


@operator
def center_crop_pad(input_data: Value, shape: Value, *, axes: Sequence[int] | None = None) -> Meanings:
    """ONNX CenterCropPad: crop, or pad by 0, to a constant shape; of an odd difference the end has one more."""
    rank, wanted = len(input_data.shape), integers("shape", shape)
    chosen = list(range(rank)) if axes is None else axes_of(axes, rank)
    if len(wanted) != len(chosen) or min(wanted, default=0) < 0:
        raise ModelError(f"shape {wanted} for {len(chosen)} axes; there must be one extent for each, at least 0")
    pads = [0] * 2 * rank
    for axis, extent in zip(chosen, wanted, strict=True):
        more = extent - input_data.shape[axis]
        pads[axis] = more // 2 if more > 0 else -(-more // 2)
        pads[axis + rank] = more - pads[axis]
    return pad(input_data, derived("pads", np.array(pads), "int64"))


@operator
def expand(x: Value, shape: Value) -> Meaning:
    """ONNX Expand: broadcast with a constant shape, as NumPy broadcasts two operands."""
    typed(DTYPES, x)
    wanted = integers("shape", shape)
    try:
        found = np.broadcast_shapes(x.shape, tuple(wanted))
    except ValueError:
        raise ModelError(f"{dims(x.shape)} does not broadcast with {wanted}") from None
    return view(x, found) if math.prod(found) == math.prod(x.shape) else Meaning("Expand", (x,), found)


@operator
def tile(x: Value, repeats: Value) -> Meaning:
    """ONNX Tile: the tensor repeats[a] times along each axis a."""
    typed(DTYPES, x)
    times = integers("repeats", repeats)
    if len(times) != len(x.shape) or min(times, default=0) < 0:
        raise ModelError(f"repeats {times} of {dims(x.shape)}; there must be one for each axis, at least 0")
    shape = tuple(count * extent for count, extent in zip(times, x.shape, strict=True))
    return view(x, shape) if shape == x.shape else Meaning("Tile", (x,), shape, {"repeats": tuple(times)})


# ---- channels and pixels --------------------------------------------------------------------------------------------


def _blocks(x: Value, blocksize: int, mode: str) -> None:
    typed(DTYPES, x)
    if mode not in ("DCR", "CRD"):
        raise ModelError(f"mode is '{mode}'; allowed are DCR and CRD")
    if len(x.shape) != 4 or blocksize < 1:
        raise ModelError(f"the input is {dims(x.shape)} and blocksize {blocksize}; they must be N x C x H x W and ≥ 1")


@operator
def depth_to_space(x: Value, *, blocksize: int, mode: str = "DCR") -> Meaning:
    """ONNX DepthToSpace: (N, C·b², H, W) --> (N, C, H·b, W·b); C comes last (DCR) or first (CRD) among the channels."""
    _blocks(x, blocksize, mode)
    n, channels, h, w = x.shape
    if channels % blocksize**2:
        raise ModelError(f"{channels} channels are no multiple of blocksize² = {blocksize**2}")
    shape = (n, channels // blocksize**2, h * blocksize, w * blocksize)
    return _rearranged("DepthToSpace", x, shape, blocksize, mode)


@operator
def space_to_depth(x: Value, *, blocksize: int, mode: str = "DCR") -> Meaning:
    """ONNX SpaceToDepth: (N, C, H·b, W·b) --> (N, C·b², H, W), the inverse of DepthToSpace."""
    _blocks(x, blocksize, mode)
    n, channels, h, w = x.shape
    if h % blocksize or w % blocksize:
        raise ModelError(f"the maps of {dims(x.shape)} do not divide into blocks of {blocksize} x {blocksize}")
    shape = (n, channels * blocksize**2, h // blocksize, w // blocksize)
    return _rearranged("SpaceToDepth", x, shape, blocksize, mode)


def _rearranged(op: str, x: Value, shape: Shape, blocksize: int, mode: str) -> Meaning:
    attributes = {"blocksize": (blocksize, blocksize), "mode": mode}  # rows, columns
    return view(x, shape) if blocksize == 1 else Meaning(op, (x,), shape, attributes)
