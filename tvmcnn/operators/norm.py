"""Normalisations."""

from __future__ import annotations

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.operators.words import Meaning, Unsupported, Value, axis_of, constant, derived, floats, operator


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
    spatial: int = 1,
) -> Meaning:
    """ONNX BatchNormalization at inference: y = x·s + t, s = scale/√(var+ε), t = b − mean·s, in float64 until
    stored."""
    floats(x)
    if training_mode or not spatial:
        raise Unsupported(f"training_mode={training_mode}, spatial={spatial}; only 0 and 1 are supported")
    gamma, beta, mu, sigma2 = (
        constant(name, value).astype(np.float64)
        for name, value in (("scale", scale), ("B", b), ("input_mean", mean), ("input_var", var))
    )
    channels = (x.shape[1],) if len(x.shape) > 1 else (1,)
    if any(values.shape != channels for values in (gamma, beta, mu, sigma2)):
        raise ModelError(
            f"its statistics have the shapes {gamma.shape} … {sigma2.shape}; the input has {channels[0]} channels"
        )
    factor = gamma / np.sqrt(sigma2 + epsilon)
    shape = (-1, *(1,) * (len(x.shape) - 2))
    operands = (x, derived("scale", factor.reshape(shape)), derived("shift", (beta - mu * factor).reshape(shape)))
    return Meaning("BatchNormalization", operands, x.shape)


@operator
def softmax(x: Value, *, axis: int = -1) -> Meaning:
    """ONNX Softmax along one axis (opset 13 and later; the converter rewrites older ones)."""
    floats(x)
    return Meaning("Softmax", (x,), x.shape, {"axis": axis_of(axis, len(x.shape))})
