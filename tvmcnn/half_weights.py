"""Half weights: those of large products in half the bytes. Rounded once, at import; float32 where they are multiplied.

    float32 0.1    -->    float16 0x2e66 or bfloat16 0x3dcd    -->    float32 0.0999756 or 0.10009766

The network that is computed is that of the rounded weights, which is announced. Storing them costs nothing more: what
is no number of 16 bits any more (transformed by Winograd, multiplied by alpha) is stored in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WEIGHTS = ("fp32", "fp16", "bf16")
WORDS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# NumPy and C have no bfloat16: its bits. Signed ones, for unsigned ones are factors that are multiplied as they are.
STORED = {"fp16": "float16", "bf16": "int16"}
LARGEST = {"fp16": 65504.0, "bf16": 255 * 2.0**120}
NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}  # the smallest number of a full mantissa
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # whose second operand is a weight
LEAST = 1024  # elements: smaller weights are not worth an error
PART = 1 << 20  # elements


@dataclass(frozen=True)
class HalfWeights:
    """What a network's weights were rounded to, and the ONNX tensors that were: of each its elements, the largest
    relative error of those in the normal range, and the largest error of the smaller ones."""

    kind: str = "fp32"
    tensors: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)


def rounded(array: Array, kind: str) -> Array:
    """A float32 array rounded to the nearest numbers of a half type, ties to even, in float32; NaN and inf stay."""
    return expanded(narrowed(array, kind), kind)


def narrowed(array: Array, kind: str) -> Array:
    """A float32 array as it is stored, rounded as `rounded` says."""
    if kind == "fp16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), (bits >> 16 | 0x40).astype(np.uint16), nearest).view(np.int16)


def expanded(stored: Array, kind: str) -> Array:
    """What `narrowed` has stored, in float32."""
    if kind == "fp16":
        return stored.astype(np.float32)
    return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def holds(kind: str, array: Array) -> bool:
    """Whether a weight is stored in a half type: a large one, of which every element is such a number already."""
    if kind == "fp32" or array.dtype != np.float32 or array.size < LEAST:
        return False
    return all(np.array_equal(rounded(part, kind), part, equal_nan=True) for part in _parts(array))


def errors(array: Array, kind: str) -> tuple[float, float]:
    """The largest relative error that rounding brings to elements of the normal range, and the largest to others."""
    relative = absolute = 0.0
    for part in _parts(array):
        exact = part[np.isfinite(part)]
        size, apart = np.abs(exact.astype(np.float64)), np.abs(rounded(exact, kind) - exact.astype(np.float64))
        normal = size >= NORMAL[kind]
        relative = np.max(apart[normal] / size[normal], initial=relative)
        absolute = np.max(apart[~normal], initial=absolute)
    return float(relative), float(absolute)


def _parts(array: Array) -> Iterator[Array]:
    """An array a few megabytes at a time: what is computed of a large weight would take several times its memory."""
    flat = array.reshape(-1)
    yield from (flat[first : first + PART] for first in range(0, flat.size, PART))
