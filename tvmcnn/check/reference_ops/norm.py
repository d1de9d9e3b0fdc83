"""Normalizations."""

from __future__ import annotations

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


@op("BatchNormalization", 9)
def batch_normalization(
    x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:  # fmt: skip
    """BatchNormalization: x (N, C, s...), the rest (C); y = (x - mean) / sqrt(var + epsilon) * scale + b by channel.

    In training mode mean and var are those of x.
    """
    if training_mode:
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axis=axes), x.var(axis=axes)
    if not scale.shape == b.shape == mean.shape == var.shape == (x.shape[1],):
        raise ValueError(f"scale {scale.shape}, b {b.shape}, mean {mean.shape}, var {var.shape} for input {x.shape}")
    shape = (-1, *[1] * (x.ndim - 2))
    normal = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + epsilon)
    return np.asarray(normal * scale.reshape(shape) + b.reshape(shape))


@op("BatchNormalization", 7)
def batch_normalization_7(
    x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, momentum: float = 0.9,
    spatial: int = 1,
) -> Array:  # fmt: skip
    """BatchNormalization of opset 7: `spatial` 0, statistics by element, is left out."""
    if not spatial:
        raise NotImplementedError("spatial 0; only statistics by channel are evaluated")
    return batch_normalization(x, scale, b, mean, var, epsilon=epsilon)


@op("BatchNormalization", 1)
def batch_normalization_1(
    x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, is_test: int = 0,
    momentum: float = 0.9, spatial: int = 1, consumed_inputs: Ints = (),
) -> Array:  # fmt: skip
    """BatchNormalization of opset 1 and 6: `is_test` 0, the default, means training."""
    if not is_test:
        raise NotImplementedError("is_test 0; only inference is evaluated")
    return batch_normalization_7(x, scale, b, mean, var, epsilon=epsilon, spatial=spatial)


@op("LRN")
def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Array:
    """LRN: x (N, C, s...); y[c] = x[c] / (bias + alpha / size * sum of x[i]^2) ** beta.

    i runs over the channels from c - floor((size - 1) / 2) to c + ceil((size - 1) / 2) that exist.
    """
    channels = x.shape[1]
    y = np.empty_like(x)
    for c in range(channels):
        first, last = max(0, c - (size - 1) // 2), min(channels - 1, c + size // 2)
        squares = (x[:, first : last + 1] ** 2).sum(axis=1)
        y[:, c] = x[:, c] / (bias + alpha / size * squares) ** beta
    return y


def _standard(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """x with mean 0 and variance 1 along the axes, that mean, and 1 / sqrt(variance + epsilon)."""
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + epsilon)
    return np.asarray((x - mean) * inverse), mean, inverse


@op("InstanceNormalization")
def instance_normalization(
    input: Array, scale: Array, b: Array, *, epsilon: float = 1e-5, consumed_inputs: Ints = ()
) -> Array:
    """InstanceNormalization: x (N, C, s...), scale and b (C); each map to mean 0 and variance 1, then scale, then b."""
    shape = (-1, *[1] * (input.ndim - 2))
    normal, _, _ = _standard(input, tuple(range(2, input.ndim)), epsilon)
    return np.asarray(normal * scale.reshape(shape) + b.reshape(shape))


@op("GroupNormalization", 21)
def group_normalization(
    x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """GroupNormalization: x (N, C, s...), scale and bias (C); each group of maps to mean 0 and variance 1."""
    shape = (-1, *[1] * (x.ndim - 2))
    grouped, _, _ = _standard(x.reshape(x.shape[0], num_groups, -1), (2,), epsilon)
    return np.asarray(grouped.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape))


@op("GroupNormalization", 18)
def group_normalization_18(x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5) -> Array:
    """GroupNormalization of opset 18: scale and bias have one value a group."""
    each = x.shape[1] // num_groups
    return group_normalization(x, np.repeat(scale, each), np.repeat(bias, each), num_groups=num_groups, epsilon=epsilon)


@op("LayerNormalization", 17)
def layer_normalization(
    x: Array, scale: Array, b: Array | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Array, Array, Array]:
    """LayerNormalization: y, mean and 1 / sqrt(variance + epsilon) over the axes from `axis` on."""
    normal, mean, inverse = _standard(x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    y = normal * scale
    return np.asarray(y if b is None else y + b), mean, inverse


@op("MeanVarianceNormalization", 9)
def mean_variance_normalization(x: Array, *, axes: Ints = (0, 2, 3)) -> Array:
    """MeanVarianceNormalization: (x - mean) / sqrt(variance) along `axes`; 1e-9 is added to the root, as ONNX does."""
    mean = x.mean(axis=tuple(axes), keepdims=True)
    spread = np.sqrt(((x - mean) ** 2).mean(axis=tuple(axes), keepdims=True))
    return np.asarray((x - mean) / (spread + 1e-9))


@op("LpNormalization")
def lp_normalization(input: Array, *, axis: int = -1, p: int = 2) -> Array:
    """LpNormalization: x by its p-norm along `axis`, p being 1 or 2; zeros stay."""
    if p not in (1, 2):
        raise ValueError(f"p {p}; ONNX has 1 and 2")
    length = (np.abs(input) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
    return np.where(length == 0, 0.0, input / length)
