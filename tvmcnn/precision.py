"""What factors are rounded to, their products added in float32: TF32 or float16 for tensor cores, bfloat16 for CPUs.

Never silently: it is asked for, printed, and in the manifest.
"""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.half_weights import narrowed
from tvmcnn.network import Array

ON_GPUS = ("fp32", "tf32", "fp16")
PRECISIONS = (*ON_GPUS, "bf16")
WORDS = {
    "fp32": "float32",
    "tf32": "float32, tensor cores in TF32",
    "fp16": "float32, tensor cores in float16",
    "bf16": "float32, factors of products and images between in bfloat16",
}
MANTISSA = {"tf32": 10, "fp16": 10, "bf16": 7}  # bits that are stored; of float32 23
_DROPPED = 23 - MANTISSA["tf32"]
# What LLVM calls the instructions of AVX512-BF16, see codegen/cpu/bfloat16.py
ROUND = "llvm.x86.avx512bf16.cvtneps2bf16.512"
DOT = "llvm.x86.avx512bf16.dpbf16ps.512"


def rounded(array: Array, precision: str) -> Array:
    """A float32 array as float16, as TF32, or as bfloat16: the first 16 bits of a float32, in uint16.

    TF32 is float32 to the nearest of 10 bits of mantissa, ties away from zero, as CUDA's __float_to_tf32 (PTX:
    cvt.rna.tf32.f32); bfloat16 to the nearest of 7, ties to even, as x86's vcvtneps2bf16, and a NaN stays one. Beyond
    the largest of either values become infinite, which a check finds.
    """
    if precision != "tf32":
        stored = narrowed(array, precision)
        return stored.view(np.uint16) if precision == "bf16" else stored
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) + np.uint32(1 << (_DROPPED - 1))
    return (bits & np.uint32(0xFFFFFFFF << _DROPPED & 0xFFFFFFFF)).view(np.float32)


def precision_of(words: str) -> str:
    """The precision that a manifest has in words; that of a library for CPUs is "fp32" or "bf16"."""
    return next(name for name, each in WORDS.items() if each == words)


def error_growth(precision: str) -> float:
    """How much larger a product's rounding error is than of float32 alone: 2^-(m+1) of each factor, of m bits of
    mantissa, in place of 2^-24."""
    return math.sqrt(2) * 2.0 ** (23 - MANTISSA[precision])
