"""Resize: which elements of the input each element of the output is made of, and with what weights.

Every axis is by itself, so that both are small tables, computed here in float64: output position by tap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    DTYPES,
    FLOATS,
    Meaning,
    Value,
    axes_of,
    constant,
    derived,
    operator,
    typed,
)
from tvmcnn.importer.operators.shape import view
from tvmcnn.network import INDEX_LIMIT, Array, Shape, dims

MODES = ("nearest", "linear", "cubic")
POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True)
class _Axis:
    """One resized axis: extents before and after, the scale if that was given, and the part [begin, end] of it that
    tf_crop_and_resize takes.

    A coordinate halfway between two pixels decides for one of them: so where the nearest is taken, or a crop ends,
    coordinates are rounded as onnxruntime rounds them, to float32. Where pixels are mixed they are exact.
    """

    extent: int
    size: int
    scale: float | None
    nearest: bool
    begin: float = 0.0
    end: float = 1.0

    @property
    def length(self) -> float:
        """The size before it was cut to a whole number."""
        return self.size if self.scale is None else self.scale * self.extent

    def back(self, x: Array) -> Array:
        """x / scale"""
        if self.scale is None:
            return x * self.extent / max(self.size, 1)
        return np.asarray(self._number(x) / self._number(self.scale), np.float64)

    def crop(self, x: Array) -> Array:
        """The coordinate of position x in the part, in float32 always."""
        begin, end, reach = np.float32(self.begin), np.float32(self.end), np.float32(self.extent - 1)
        if self.size > 1:
            found = begin * reach + x.astype(np.float32) * (end - begin) * reach / np.float32(self.size - 1)
        else:
            found = np.float32(0.5) * (begin + end) * reach + 0 * x.astype(np.float32)
        return np.asarray(found, np.float64)

    def centred(self, x: Array) -> Array:
        """The coordinate of position x where what the cut took is taken from both ends."""
        extent = self._number(self.extent)
        length = self._number(self.size) if self.scale is None else self._number(self.scale) * extent
        shift = extent / 2 * (1 - self._number(self.size) / length)
        return np.asarray(shift + self._number(self.back(x + 0.5)) - self._number(0.5), np.float64)

    def _number(self, x: Any) -> Any:
        return (np.float32 if self.nearest else np.float64)(x)


# Coordinate in the input of output position x
COORDINATES: dict[str, Callable[[_Axis, Array], Array]] = {
    "half_pixel": lambda a, x: a.back(x + 0.5) - 0.5,
    "half_pixel_symmetric": _Axis.centred,
    "pytorch_half_pixel": lambda a, x: a.back(x + 0.5) - 0.5 if a.size > 1 else 0 * x,
    "align_corners": lambda a, x: x * (a.extent - 1) / (a.size - 1) if a.size > 1 else 0 * x,
    "asymmetric": lambda a, x: a.back(x),
    "tf_half_pixel_for_nn": lambda a, x: a.back(x + 0.5),
    "tf_crop_and_resize": _Axis.crop,
}
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@operator
def resize(
    x: Value,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Meaning:
    """ONNX Resize (and Upsample) with constant scales or sizes: nearest of every dtype, linear and cubic of floats."""
    typed(DTYPES if mode == "nearest" else FLOATS, x)
    for name, given, allowed in (
        ("mode", mode, MODES),
        ("coordinate_transformation_mode", coordinate_transformation_mode, COORDINATES),
        ("nearest_mode", nearest_mode, ROUNDINGS),
        ("keep_aspect_ratio_policy", keep_aspect_ratio_policy, POLICIES),
    ):
        if given not in allowed:
            raise ModelError(f"{name} is '{given}'; allowed are {', '.join(allowed)}")
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    chosen = axes_of(axes if axes is not None else range(len(x.shape)), len(x.shape))
    nearest = mode == "nearest"
    resized = _resized(x, chosen, roi if crops else None, scales, sizes, keep_aspect_ratio_policy, nearest=nearest)
    shape: Shape = tuple(resized[a].size if a in resized else extent for a, extent in enumerate(x.shape))
    if 0 in x.shape and 0 not in shape:
        raise ModelError(f"{dims(x.shape)} has no elements to make {dims(shape)} of")
    if math.prod(shape) > INDEX_LIMIT:
        raise ModelError(f"its output would be {dims(shape)}, more than {INDEX_LIMIT:,} elements")
    tables: dict[int, _Table] = {}
    for axis in sorted(resized):
        if resized[axis].length == resized[axis].extent and not crops:
            continue  # also where half a pixel would be added and rounded up
        at = COORDINATES[coordinate_transformation_mode](resized[axis], np.arange(resized[axis].size, dtype=np.float64))
        if mode == "nearest":
            indices = ROUNDINGS[nearest_mode](at)[:, None]
            weights = np.ones_like(indices)
        else:
            kernel = _linear if mode == "linear" else lambda t: _cubic(t, cubic_coeff_a)
            scale = min(resized[axis].length / x.shape[axis], 1.0) if antialias else 1.0
            indices, weights = _taps(at, kernel, 1 if mode == "linear" else 2, scale)
            if exclude_outside:
                weights = np.where((indices < 0) | (indices >= x.shape[axis]), 0, weights)
            total = weights.sum(axis=1, keepdims=True)
            weights = weights / np.where(total == 0, 1, total)  # 0 where every tap is outside, as of a crop
        inside = (at >= 0) & (at <= x.shape[axis] - 1) if crops else np.ones(len(at), bool)
        indices = np.clip(indices, 0, max(x.shape[axis] - 1, 0)).astype(np.int32)
        tables[axis] = _Table(indices, weights, inside)
    return _meaning(x, shape, mode, tables, extrapolation_value)


@dataclass(frozen=True)
class _Table:
    """One axis: the taps of each output position and their weights, (positions, taps), and which positions are
    inside the input, (positions,).
    """

    indices: Array
    weights: Array
    inside: Array

    def is_identity(self, extent: int) -> bool:
        """True if every output is the input at its own position."""
        if len(self.indices) != extent:
            return False
        others = np.where(self.indices == np.arange(extent)[:, None], 0, self.weights)
        return not others.any() and bool(self.inside.all())

    def factor(self, extent: int) -> int:
        """How often each input is repeated, if each is equally often, in order; else 0."""
        factor, rest = divmod(len(self.indices), extent)
        repeats = np.array_equal(self.indices[:, 0], np.arange(len(self.indices)) // max(factor, 1))
        return factor if rest == 0 and repeats and self.inside.all() else 0


def _meaning(x: Value, shape: Shape, mode: str, tables: dict[int, _Table], extrapolation: float) -> Meaning:
    """The least that the tables need: a view, whole repetitions, a gather, or weighted sums."""
    tables = {axis: table for axis, table in tables.items() if not table.is_identity(x.shape[axis])}
    if not tables:
        return view(x, shape)
    if 0 in shape:
        return Meaning("ConstantOfShape", (), shape, {"value": 0}, x.dtype)
    factors = {axis: table.factor(x.shape[axis]) for axis, table in tables.items()}
    if mode == "nearest" and all(factors.values()):
        whole = tuple(factors.get(axis, 1) for axis in range(len(shape)))
        return Meaning("Resize", (x,), shape, {"mode": "nearest", "factors": whole})
    outside = not all(table.inside.all() for table in tables.values())
    operands, taps = [x], 1
    for axis, table in tables.items():
        kept = table.weights.any(axis=0)  # a tap that never weighs is none
        taps *= int(kept.sum())
        operands.append(derived(f"indices{axis}", table.indices[:, kept], "int32"))
        if mode != "nearest":
            operands.append(derived(f"weights{axis}", table.weights[:, kept], x.dtype))
        if outside:
            operands.append(derived(f"inside{axis}", table.inside, "uint8"))
    extrapolated = extrapolation if outside else None
    attributes = {"mode": mode, "axes": tuple(tables), "extrapolation": extrapolated, "taps": taps}
    return Meaning("Resize", tuple(operands), shape, attributes)


def _resized(
    x: Value,
    axes: Sequence[int],
    roi: Value | None,
    scales: Value | None,
    sizes: Value | None,
    policy: str,
    *,
    nearest: bool,
) -> dict[int, _Axis]:
    """The axes that are named, with their sizes: ⌊extent·scale⌋, or as given."""
    given = [value for value in (scales, sizes) if value is not None and value.shape != (0,)]
    if len(given) != 1:
        raise ModelError("its scales and sizes are both given or both left out; it must have one of them")
    numbers = constant("scales" if given[0] is scales else "sizes", given[0]).reshape(-1).tolist()
    part = constant("roi", roi).reshape(-1).tolist() if roi is not None else []
    if len(numbers) != len(axes) or len(part) not in (0, 2 * len(axes)) or not all(map(math.isfinite, numbers)):
        raise ModelError(
            f"{len(numbers)} scales or sizes and {len(part)} bounds of roi for {len(axes)} axes: {numbers}"
        )
    if min(numbers, default=1) < 0 or (given[0] is scales and 0 in numbers):
        raise ModelError(f"its {'scales' if given[0] is scales else 'sizes'} are {numbers}; they must be above 0")
    bounds = list(zip(part[: len(axes)], part[len(axes) :], strict=True)) or [(0.0, 1.0)] * len(axes)
    extents = [x.shape[axis] for axis in axes]
    factors: list[float | None] = [None] * len(axes)
    if given[0] is scales:
        parts = [end - begin for begin, end in bounds]
        found = [math.floor(e * part * s) for e, part, s in zip(extents, parts, numbers, strict=True)]
        factors = numbers
    else:
        found = [int(number) for number in numbers]
        ratios = [size / max(extent, 1) for size, extent in zip(found, extents, strict=True)]
        if policy != "stretch" and ratios:
            factors = [min(ratios) if policy == "not_larger" else max(ratios)] * len(axes)
            found = [math.floor(f * extent + 0.5) for f, extent in zip(factors, extents, strict=True) if f is not None]
    rows = zip(axes, extents, found, factors, bounds, strict=True)
    return {axis: _Axis(extent, max(size, 0), factor, nearest, *part) for axis, extent, size, factor, part in rows}


def _taps(at: Array, kernel: Callable[[Array], Array], reach: int, scale: float) -> tuple[Array, Array]:
    """The taps around each coordinate and their weights, (positions, taps).

    A kernel reaches `reach` pixels to each side; against aliasing, `scale` below 1 stretches it over more.
    """
    left = np.ceil(at) - 1  # the pixel at or before the coordinate that is not the coordinate itself
    first = math.floor(-reach / scale) + 1
    taps = np.arange(first, 2 - first)
    return left[:, None] + taps, kernel(np.abs(taps - (at - left)[:, None]) * scale)


def _linear(t: Array) -> Array:
    weights: Array = np.clip(1 - t, 0, 1)
    return weights


def _cubic(t: Array, a: float) -> Array:
    """Keys' kernel (Cubic Convolution Interpolation for Digital Image Processing, 1981)."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    weights: Array = np.where(t <= 1, near, np.where(t < 2, far, 0))
    return weights
