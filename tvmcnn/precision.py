"""What tensor cores multiply: factors rounded to TF32 or float16, their products added in float32. Never silently."""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.network import Array

PRECISIONS = ("fp32", "tf32", "fp16")
WORDS = {"fp32": "float32", "tf32": "float32, tensor cores in TF32", "fp16": "float32, tensor cores in float16"}
MANTISSA = {"tf32": 10, "fp16": 10}  # bits that are stored; of float32 23
_DROPPED = 23 - MANTISSA["tf32"]


def rounded(array: Array, precision: str) -> Array:
    """A float32 array as float16, or as TF32: float32 to the nearest of 10 bits of mantissa, ties away from zero, as
    CUDA's __float_to_tf32 (PTX: cvt.rna.tf32.f32). Beyond float16's 65504 values become infinite, which a check finds.
    """
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) + np.uint32(1 << (_DROPPED - 1))
    return (bits & np.uint32(0xFFFFFFFF << _DROPPED & 0xFFFFFFFF)).view(np.float32)


def error_growth(precision: str) -> float:
    """How much larger a product's rounding error is than of float32 alone: 2^-11 of each factor, in place of 2^-24."""
    return math.sqrt(2) * 2.0 ** (23 - MANTISSA[precision])
