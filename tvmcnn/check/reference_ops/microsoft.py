"""Operators of com.microsoft: what onnxruntime's optimizer writes for float CNNs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tvmcnn.check.reference_ops import activation
from tvmcnn.check.reference_ops.matrix import gemm
from tvmcnn.check.reference_ops.registry import Array, Ints, op
from tvmcnn.check.reference_ops.windows import conv

DOMAIN = "com.microsoft"

ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "": (lambda x: x, ()),
    "Relu": (activation.relu, ()),
    "Sigmoid": (activation.sigmoid, ()),
    "Tanh": (activation.tanh, ()),
    "LeakyRelu": (activation.leaky_relu, ("alpha",)),
    "HardSigmoid": (activation.hard_sigmoid, ("alpha", "beta")),
    "Clip": (activation.clip_1, ("min", "max")),
}
"""An activation by its name in the attribute, and the names of its parameters in their order there."""


def _activated(y: Array, name: str, parameters: Sequence[float]) -> Array:
    if name not in ACTIVATIONS:
        raise NotImplementedError(f"the activation {name!r}; known are {', '.join(filter(None, ACTIVATIONS))}")
    function, names = ACTIVATIONS[name]
    if len(parameters) != len(names):
        raise ValueError(f"{len(parameters)} parameters of the activation {name!r}, which has {len(names)}")
    return function(y, **dict(zip(names, parameters, strict=True)))


@op("FusedConv", domain=DOMAIN)
def fused_conv(
    x: Array, w: Array, b: Array | None = None, z: Array | None = None, *, activation: str = "",
    activation_params: Sequence[float] = (), auto_pad: str = "NOTSET", dilations: Ints | None = None, group: int = 1,
    kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """FusedConv: a Conv, to which z is added before the activation."""
    y = conv(
        x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads,
        strides=strides,
    )  # fmt: skip
    return _activated(y if z is None else y + z, activation, activation_params)


@op("Gelu", domain=DOMAIN)
def gelu(x: Array) -> Array:
    """Gelu: x / 2 * (1 + erf(x / sqrt 2))."""
    return activation.gelu(x)


@op("BiasGelu", domain=DOMAIN)
def bias_gelu(a: Array, b: Array) -> Array:
    """BiasGelu: Gelu of a + b, with b along the last axis."""
    return activation.gelu(a + b)


@op("FastGelu", domain=DOMAIN)
def fast_gelu(x: Array, bias: Array | None = None) -> Array:
    """FastGelu: Gelu by tanh of x + bias."""
    return activation.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", domain=DOMAIN)
def quick_gelu(x: Array, *, alpha: float = 1.702) -> Array:
    """QuickGelu: x / (1 + exp(-alpha * x))."""
    return np.asarray(x / (1 + np.exp(-alpha * x)))


@op("FusedMatMul", domain=DOMAIN)
def fused_matmul(
    a: Array, b: Array, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0,
    transBatchB: int = 0,
) -> Array:  # fmt: skip
    """FusedMatMul: alpha * A' @ B'; a batch is transposed by its first axis going before the last, then a matrix is."""
    return np.asarray(alpha * np.matmul(_turned(a, transA, transBatchA), _turned(b, transB, transBatchB)))


def _turned(x: Array, matrix: int, batch: int) -> Array:
    if x.ndim < 2:
        return x
    y = np.moveaxis(x, 0, -2) if batch else x
    return np.swapaxes(y, -1, -2) if matrix else y


@op("FusedGemm", domain=DOMAIN)
def fused_gemm(
    a: Array, b: Array, c: Array | None = None, *, activation: str = "", activation_alpha: float = math.nan,
    activation_beta: float = math.nan, activation_gamma: float = math.nan, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Array:  # fmt: skip
    """FusedGemm: a Gemm and then an activation."""
    given = [value for value in (activation_alpha, activation_beta, activation_gamma) if not math.isnan(value)]
    return _activated(gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB), activation, given)
