"""Normalisations."""

from __future__ import annotations

from typing import cast

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    EXPORT,
    Meaning,
    Unsupported,
    Value,
    axis_of,
    derived,
    floats,
    named,
    operator,
)
from tvmcnn.network import Array, Shape, dims


@operator
def batch_normalization(
    x: Value,
    scale: Value,
    b: Value,
    mean: Value,
    var: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # of training only
    training_mode: int = 0,
    spatial: int = 1,  # import has refused other values, before anything folds
) -> Meaning:
    """ONNX BatchNormalization at inference: y = x·s + t, s = scale/√(var+ε), t = b − mean·s, one of each a channel.

    Constant statistics become s and t, in float64 until stored; others are normalised with as they arrive.
    """
    if training_mode:  # of a constant that was too large to fold
        raise Unsupported(f"training_mode is 1, not 0 as for inference: {EXPORT}")
    statistics = (scale, b, mean, var)
    floats(x, *statistics)
    channels = (x.shape[1],) if len(x.shape) > 1 else (1,)
    if any(value.shape != channels for value in statistics):
        shapes = " … ".join(dims(value.shape) for value in (scale, var))
        raise ModelError(f"its statistics have the shapes {shapes}; the input has {channels[0]} channels")
    if any(value.data is None for value in statistics):
        return Meaning("BatchNormalizationAtRunTime", (x, *statistics), x.shape, {"epsilon": epsilon})
    gamma, beta, mu, sigma2 = (cast(Array, value.data).astype(np.float64) for value in statistics)
    factor = gamma / np.sqrt(sigma2 + epsilon)
    shape = (-1, *(1,) * (len(x.shape) - 2))
    folded = (("scale", factor), ("shift", beta - mu * factor))
    operands = (derived(name, values.reshape(shape), x.dtype) for name, values in folded)
    return Meaning("BatchNormalization", (x, *operands), x.shape)


@operator
def instance_normalization(input: Value, scale: Value, b: Value, *, epsilon: float = 1e-5) -> Meaning:  # noqa: A002
    """ONNX InstanceNormalization: each map of x (N, C, …) to mean 0 and variance 1, then scaled and shifted by (C,)."""
    _per_channel(input, scale, b)
    return Meaning("InstanceNormalization", (input, scale, b), input.shape, {"epsilon": epsilon})


@operator
def group_normalization(
    x: Value,
    scale: Value,
    bias: Value,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # the dtype of the statistics, float32 or that of x
) -> Meaning:
    """ONNX GroupNormalization: each group of channels to mean 0 and variance 1, then scaled and shifted by (C,)."""
    _per_channel(x, scale, bias)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ModelError(
            f"num_groups is {num_groups}, which does not divide the {x.shape[1]} channels of {dims(x.shape)}"
        )
    attributes = {"epsilon": epsilon, "num_groups": num_groups}
    return Meaning("GroupNormalization", (x, scale, bias), x.shape, attributes)


def _per_channel(x: Value, *parameters: Value) -> None:
    floats(x, *parameters)
    if len(x.shape) < 2 or any(value.shape != x.shape[1:2] for value in parameters):
        shapes = ", ".join(dims(value.shape) for value in parameters)
        raise ModelError(
            f"the input is {dims(x.shape)}, scale and bias are {shapes}; they must have one value a channel"
        )


@operator
def layer_normalization(
    x: Value,
    scale: Value,
    b: Value | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # the dtype of the statistics, float32 or that of x
) -> tuple[Meaning, ...]:
    """ONNX LayerNormalization: y = (x − mean)·s·scale + b over the axes from `axis` on; mean and s = 1/√(var+ε)."""
    floats(x, scale, b)
    axis = axis_of(axis, len(x.shape))
    for value in (scale, b):
        if value is not None and not _fits(value.shape, x.shape):
            raise ModelError(f"'{value.name}' is {dims(value.shape)}, which does not broadcast to {dims(x.shape)}")
    rows = (*x.shape[:axis], *(1,) * (len(x.shape) - axis))
    attributes = {"axis": axis, "epsilon": epsilon}
    operands = (x, scale) if b is None else (x, scale, b)
    return (
        Meaning("LayerNormalization", operands, x.shape, attributes),
        Meaning("LayerNormalizationMean", (x,), rows, attributes, "float32"),
        Meaning("LayerNormalizationInvStdDev", (x,), rows, attributes, "float32"),
    )


def _fits(shape: Shape, target: Shape) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


@named("LRN")
def lrn(x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Meaning:
    """ONNX LRN: y = x / (bias + alpha/size · Σ x²)^beta, the sum over up to `size` channels around each."""
    floats(x)
    if len(x.shape) < 2 or size < 1:
        raise ModelError(f"the input is {dims(x.shape)} and size {size}; they must be N x C and at least 1")
    return Meaning("LRN", (x,), x.shape, {"size": size, "alpha": alpha, "beta": beta, "bias": bias})


@operator
def softmax(x: Value, *, axis: int = -1) -> Meaning:
    """ONNX Softmax: e^x / Σ e^x along one axis (opset 13 and later; the converter rewrites older ones)."""
    return _softmax("Softmax", x, axis)


@operator
def log_softmax(x: Value, *, axis: int = -1) -> Meaning:
    """ONNX LogSoftmax: x − ln Σ e^x along one axis (opset 13 and later; the converter rewrites older ones)."""
    return _softmax("LogSoftmax", x, axis)


def _softmax(op: str, x: Value, axis: int) -> Meaning:
    floats(x)
    return Meaning(op, (x,), x.shape, {"axis": axis_of(axis, len(x.shape))})
