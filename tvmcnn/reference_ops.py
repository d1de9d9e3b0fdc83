"""The operators of the NumPy reference, written to be read beside the ONNX operator page.

One function an operator, named after it, whose signature is the ONNX schema: inputs by position in schema order (None
where an optional one is left out), attributes by keyword with ONNX's defaults. A second function, with the opset in its
name, stands where an opset changed the meaning. Slowness is welcome and cleverness is not: windows are loops over the
kernel's offsets with one array slice each, and similar operators repeat themselves.

Floats arrive as float64 and are never rounded here, but in `cast`. In the docstrings N is the batch, C the channels, M
the output channels, and s... the spatial axes: one, two or three of them.

A function raises NotImplementedError for what this project leaves out (training) and ValueError for a node that
contradicts itself; the evaluator adds the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Op = Callable[..., Any]
F = TypeVar("F", bound=Op)
Ints = Sequence[int]

OPERATORS: dict[str, dict[int, Op]] = {}
"""ONNX operator name -> first opset with that meaning -> function."""

TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""ONNX's type numbers -> NumPy's names, for the types that NumPy has."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def _op(name: str, since: int = 1) -> Callable[[F], F]:
    """Register a function as the meaning of ONNX operator `name` from opset `since` on."""

    def register(function: F) -> F:
        OPERATORS.setdefault(name, {})[since] = function
        return function

    return register


def lookup(name: str, opset: int) -> Op | None:
    """The function for an operator at an opset: the newest that is not newer than the opset."""
    versions = [since for since in OPERATORS.get(name, {}) if since <= opset]
    return OPERATORS[name][max(versions)] if versions else None


# --- windows: Conv, MaxPool, AveragePool ---


def _pads_and_sizes(
    spatial: Ints, kernel: Ints, auto_pad: str, dilations: Ints, pads: Ints | None, strides: Ints, ceil_mode: int
) -> tuple[list[int], list[int], list[int]]:
    """Pads before, pads after and output size, each one number a spatial axis.

    size = floor((in + before + after - (dilation * (kernel - 1) + 1)) / stride) + 1, or ceil in ceil_mode, where a last
    window that would start past the input and its left pad is dropped. SAME_*: size = ceil(in / stride), the pads
    follow from it, and SAME_UPPER puts the odd one after.
    """
    rank = len(spatial)
    if not len(kernel) == len(dilations) == len(strides) == rank or (pads is not None and len(pads) != 2 * rank):
        raise ValueError(f"kernel {kernel}, dilations {dilations}, strides {strides} or pads {pads} are not {rank}-D")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {auto_pad!r}; ONNX has NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    before, after, sizes = [], [], []
    for axis in range(rank):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            size = -(-spatial[axis] // strides[axis])
            total = max(0, (size - 1) * strides[axis] + extent - spatial[axis])
            first = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            last = total - first
        else:
            first, last = (0, 0) if auto_pad == "VALID" or pads is None else (pads[axis], pads[axis + rank])
            room = spatial[axis] + first + last - extent
            size = room // strides[axis] + 1
            if ceil_mode and auto_pad == "NOTSET":
                size = -(-room // strides[axis]) + 1
                if (size - 1) * strides[axis] >= spatial[axis] + first:
                    size -= 1
            if room < 0 or first < 0 or last < 0:
                raise ValueError(f"a window of {extent} on {spatial[axis]} elements with pads {first} and {last}")
        before.append(first)
        after.append(last)
        sizes.append(size)
    return before, after, sizes


def _overhang(
    spatial: Ints, kernel: Ints, dilations: Ints, strides: Ints, before: Ints, after: Ints, sizes: Ints
) -> list[tuple[int, int]]:
    """How far the last window of ceil_mode reaches past the padded input: (0, elements) an axis, ready for np.pad."""
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(sizes, strides, dilations, kernel, strict=True)]
    padded = [b + n + a for b, n, a in zip(before, spatial, after, strict=True)]
    return [(0, max(0, r - p)) for r, p in zip(reach, padded, strict=True)]


def _seen_at(x: Array, offset: Ints, dilations: Ints, strides: Ints, sizes: Ints) -> Array:
    """What every window sees at one kernel offset: x[..., offset * dilation + i * stride] for i < size."""
    slices: list[Any] = [
        slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in zip(offset, dilations, strides, sizes, strict=True)
    ]
    index: tuple[Any, ...] = (..., *slices)
    return np.asarray(x[index])


@_op("Conv")
def conv(
    x: Array, w: Array, b: Array | None = None, *, auto_pad: str = "NOTSET", dilations: Ints | None = None,
    group: int = 1, kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """Conv: x (N, C, s...), w (M, C/group, k...), b (M) -> (N, M, s'...).

    y[n, m, i] = b[m] + sum over c, k of w[m, c, k] * x[n, c of m's group, i * stride + k * dilation - pad]
    """
    kernel, rank = w.shape[2:], x.ndim - 2
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise ValueError(f"kernel_shape {kernel_shape} with a weight of shape {w.shape}")
    if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ValueError(f"input of shape {x.shape}, weight of shape {w.shape} and {group} groups do not fit")
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel, auto_pad, dilations, pads, strides, 0)
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    y = np.zeros((x.shape[0], w.shape[0], *sizes))
    c, m = w.shape[1], w.shape[0] // group
    for g in range(group):
        for offset in np.ndindex(*kernel):
            seen = _seen_at(x[:, g * c : (g + 1) * c], offset, dilations, strides, sizes)
            weight = w[(slice(g * m, (g + 1) * m), slice(None), *offset)]
            y[:, g * m : (g + 1) * m] += np.moveaxis(np.tensordot(weight, seen, axes=(1, 1)), 0, 1)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@_op("MaxPool")
def max_pool(
    x: Array, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints | None = None,
    pads: Ints | None = None, storage_order: int = 0, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """MaxPool: x (N, C, s...) -> (N, C, s'...), the maximum over each window; pads never win.

    `storage_order` says how the second output, Indices, counts; that output is not made here.
    """
    rank = x.ndim - 2
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    over = _overhang(x.shape[2:], kernel_shape, dilations, strides, before, after, sizes)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=lowest)
    x = np.pad(x, [(0, 0), (0, 0), *over], constant_values=lowest)
    y = np.full((*x.shape[:2], *sizes), lowest, x.dtype)
    for offset in np.ndindex(*kernel_shape):
        y = np.maximum(y, _seen_at(x, offset, dilations, strides, sizes))
    return y


@_op("AveragePool")
def average_pool(
    x: Array, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Array:  # fmt: skip
    """AveragePool: x (N, C, s...) -> (N, C, s'...), the sum over each window by the number of elements that count.

    The input counts; the pads count if count_include_pad; what ceil_mode adds past the pads never does.
    """
    rank = x.ndim - 2
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    before, after, sizes = _pads_and_sizes(x.shape[2:], kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    over = _overhang(x.shape[2:], kernel_shape, dilations, strides, before, after, sizes)
    counts = np.ones(x.shape[2:])
    counts = np.pad(counts, list(zip(before, after, strict=True)), constant_values=1 if count_include_pad else 0)
    counts = np.pad(counts, over)
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    x = np.pad(x, [(0, 0), (0, 0), *over])
    total, count = np.zeros((*x.shape[:2], *sizes)), np.zeros(sizes)
    for offset in np.ndindex(*kernel_shape):
        total += _seen_at(x, offset, dilations, strides, sizes)
        count += _seen_at(counts, offset, dilations, strides, sizes)
    return total / count


@_op("GlobalAveragePool")
def global_average_pool(x: Array) -> Array:
    """GlobalAveragePool: x (N, C, s...) -> (N, C, 1...), the mean over the spatial axes."""
    return np.asarray(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))


@_op("GlobalMaxPool")
def global_max_pool(x: Array) -> Array:
    """GlobalMaxPool: x (N, C, s...) -> (N, C, 1...), the maximum over the spatial axes."""
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


# --- matrices ---


@_op("Gemm", 7)
def gemm(
    a: Array, b: Array, c: Array | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Array:  # fmt: skip
    """Gemm: y = alpha * A' @ B' + beta * C with A' (M, K), B' (K, N) after transposition, C broadcast to (M, N)."""
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return np.asarray(y if c is None else y + beta * np.broadcast_to(c, y.shape))


@_op("Gemm", 1)
def gemm_1(
    a: Array, b: Array, c: Array, *, alpha: float = 1.0, beta: float = 1.0, broadcast: int = 0, transA: int = 0,
    transB: int = 0,
) -> Array:  # fmt: skip
    """Gemm of opset 1 and 6: C has the shape of the product unless `broadcast` is set."""
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    if not broadcast and c.shape != y.shape:
        raise ValueError(f"C of shape {c.shape} for a product of shape {y.shape} without broadcast")
    return y


@_op("MatMul")
def matmul(a: Array, b: Array) -> Array:
    """MatMul: a (..., M, K) @ b (..., K, N) -> (..., M, N), as numpy.matmul."""
    return np.asarray(np.matmul(a, b))


# --- element by element, two inputs ---


def _broadcast_1(a: Array, b: Array, broadcast: int, axis: int | None) -> Array:
    """B as opsets 1 to 6 line it up with A: equal shapes, or from `axis` on, or with A's last axes."""
    if not broadcast:
        if a.shape != b.shape:
            raise ValueError(f"shapes {a.shape} and {b.shape} without broadcast")
        return b
    start = a.ndim - b.ndim if axis is None else axis % a.ndim
    return np.broadcast_to(b.reshape(b.shape + (1,) * (a.ndim - start - b.ndim)), a.shape)


@_op("Add", 7)
def add(a: Array, b: Array) -> Array:
    """Add: a + b, broadcast as NumPy does."""
    return np.asarray(a + b)


@_op("Add", 1)
def add_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Add of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return np.asarray(a + _broadcast_1(a, b, broadcast, axis))


@_op("Sub", 7)
def sub(a: Array, b: Array) -> Array:
    """Sub: a - b, broadcast as NumPy does."""
    return np.asarray(a - b)


@_op("Sub", 1)
def sub_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Sub of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return np.asarray(a - _broadcast_1(a, b, broadcast, axis))


@_op("Mul", 7)
def mul(a: Array, b: Array) -> Array:
    """Mul: a * b, broadcast as NumPy does."""
    return np.asarray(a * b)


@_op("Mul", 1)
def mul_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Mul of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return np.asarray(a * _broadcast_1(a, b, broadcast, axis))


@_op("Div", 7)
def div(a: Array, b: Array) -> Array:
    """Div: a / b, broadcast as NumPy does; the quotient of integers is cut towards zero, as in C."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    floor = a // b
    return np.asarray(floor + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype))


@_op("Div", 1)
def div_1(a: Array, b: Array, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Ints = ()) -> Array:
    """Div of opset 1 and 6: b is lined up with a by `broadcast` and `axis`."""
    return div(a, _broadcast_1(a, b, broadcast, axis))


@_op("Pow", 7)
def pow(x: Array, y: Array) -> Array:
    """Pow: x ** y, broadcast as NumPy does, in the type of x."""
    return np.asarray(np.power(x, y)).astype(x.dtype)


@_op("Pow", 1)
def pow_1(x: Array, y: Array, *, axis: int | None = None, broadcast: int = 0) -> Array:
    """Pow of opset 1: y is lined up with x by `broadcast` and `axis`."""
    return pow(x, _broadcast_1(x, y, broadcast, axis))


# --- element by element, one input ---


@_op("Sqrt")
def sqrt(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Sqrt: the square root, nan below zero."""
    return np.sqrt(x)


@_op("Relu")
def relu(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Relu: max(x, 0)."""
    return np.maximum(x, np.zeros((), x.dtype))


@_op("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01, consumed_inputs: Ints = ()) -> Array:
    """LeakyRelu: x where x >= 0, alpha * x below."""
    return np.where(x < 0, alpha * x, x)


@_op("Clip", 11)
def clip(input: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """Clip: at least `min`, then at most `max`, so that `max` wins where they cross."""
    y = input if min is None else np.maximum(input, min)
    return y if max is None else np.minimum(y, max)


@_op("Clip", 1)
def clip_1(input: Array, *, min: float = -FLOAT32_MAX, max: float = FLOAT32_MAX, consumed_inputs: Ints = ()) -> Array:
    """Clip of opset 1 and 6: the bounds are attributes."""
    return np.minimum(np.maximum(input, min), max)


@_op("Sigmoid")
def sigmoid(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Sigmoid: 1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


@_op("Tanh")
def tanh(input: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Tanh: the hyperbolic tangent."""
    return np.tanh(input)


@_op("Exp")
def exp(input: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Exp: e ** x."""
    return np.exp(input)


@_op("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5, consumed_inputs: Ints = ()) -> Array:
    """HardSigmoid: max(0, min(1, alpha * x + beta))."""
    return np.maximum(0.0, np.minimum(1.0, alpha * x + beta))


@_op("HardSwish", 14)
def hard_swish(x: Array) -> Array:
    """HardSwish: x * max(0, min(1, x / 6 + 1 / 2))."""
    return np.asarray(x * np.maximum(0.0, np.minimum(1.0, x / 6 + 0.5)))


@_op("Softmax", 13)
def softmax(input: Array, *, axis: int = -1) -> Array:
    """Softmax: exp(x) / sum of exp(x) along `axis`; the maximum is taken off first, which changes nothing."""
    e = np.exp(input - input.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


@_op("Softmax", 1)
def softmax_1(input: Array, *, axis: int = 1) -> Array:
    """Softmax of opset 1 and 11: over all the axes from `axis` on, taken as one."""
    return softmax(flatten(input, axis=axis), axis=1).reshape(input.shape)


# --- normalization ---


@_op("BatchNormalization", 9)
def batch_normalization(
    x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:  # fmt: skip
    """BatchNormalization: x (N, C, s...), the rest (C); y = (x - mean) / sqrt(var + epsilon) * scale + b by channel."""
    if training_mode:
        raise NotImplementedError("training_mode 1; only inference is evaluated")
    if not scale.shape == b.shape == mean.shape == var.shape == (x.shape[1],):
        raise ValueError(f"scale {scale.shape}, b {b.shape}, mean {mean.shape}, var {var.shape} for input {x.shape}")
    shape = (-1, *[1] * (x.ndim - 2))
    normal = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + epsilon)
    return np.asarray(normal * scale.reshape(shape) + b.reshape(shape))


@_op("BatchNormalization", 7)
def batch_normalization_7(
    x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, momentum: float = 0.9,
    spatial: int = 1,
) -> Array:  # fmt: skip
    """BatchNormalization of opset 7: `spatial` 0, statistics by element, is left out."""
    if not spatial:
        raise NotImplementedError("spatial 0; only statistics by channel are evaluated")
    return batch_normalization(x, scale, b, mean, var, epsilon=epsilon)


@_op("BatchNormalization", 1)
def batch_normalization_1(
    x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, is_test: int = 0,
    momentum: float = 0.9, spatial: int = 1, consumed_inputs: Ints = (),
) -> Array:  # fmt: skip
    """BatchNormalization of opset 1 and 6: `is_test` 0, the default, means training."""
    if not is_test:
        raise NotImplementedError("is_test 0; only inference is evaluated")
    return batch_normalization_7(x, scale, b, mean, var, epsilon=epsilon, spatial=spatial)


@_op("LRN")
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


# --- shapes and places ---


@_op("Identity")
def identity(input: Array) -> Array:
    """Identity: the input."""
    return input


@_op("Concat", 4)
def concat(*inputs: Array, axis: int) -> Array:
    """Concat: the inputs one after another along `axis`."""
    return np.concatenate(inputs, axis=axis)


@_op("Concat", 1)
def concat_1(*inputs: Array, axis: int = 1) -> Array:
    """Concat of opset 1: `axis` may be left out."""
    return np.concatenate(inputs, axis=axis)


@_op("Pad", 11)
def pad(
    data: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """Pad: pads (2 * axes), all the begins and then all the ends; a negative one cuts. Modes as numpy.pad."""
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ValueError(f"mode {mode!r}; ONNX has constant, reflect, edge and wrap")
    chosen = list(range(data.ndim)) if axes is None else [int(axis) % data.ndim for axis in axes]
    if len(pads) != 2 * len(chosen):
        raise ValueError(f"{len(pads)} pads for {len(chosen)} axes")
    width = [(0, 0)] * data.ndim
    for place, axis in enumerate(chosen):
        width[axis] = (int(pads[place]), int(pads[place + len(chosen)]))
    cut = [slice(max(0, -first), n - max(0, -last)) for (first, last), n in zip(width, data.shape, strict=True)]
    grow = [(max(0, first), max(0, last)) for first, last in width]
    if mode == "constant":
        return np.pad(data[tuple(cut)], grow, constant_values=0 if constant_value is None else constant_value.item())
    return np.pad(data[tuple(cut)], grow, mode=mode)  # type: ignore[call-overload, no-any-return]


@_op("Pad", 2)
def pad_2(data: Array, *, pads: Ints, mode: str = "constant", value: float = 0.0) -> Array:
    """Pad of opset 2: pads and value are attributes."""
    return pad(data, np.array(pads), np.array(value), mode=mode)


@_op("Pad", 1)
def pad_1(data: Array, *, paddings: Ints, mode: str = "constant", value: float = 0.0) -> Array:
    """Pad of opset 1: `pads` was called `paddings`."""
    return pad(data, np.array(paddings), np.array(value), mode=mode)


@_op("Flatten")
def flatten(input: Array, *, axis: int = 1) -> Array:
    """Flatten: two axes, the product of those before `axis` and the product of the rest."""
    if not -input.ndim <= axis <= input.ndim:
        raise ValueError(f"axis {axis} of an input with {input.ndim} axes")
    rows = int(np.prod(input.shape[: axis if axis >= 0 else axis + input.ndim], dtype=np.int64))
    columns = int(np.prod(input.shape[axis if axis >= 0 else axis + input.ndim :], dtype=np.int64))
    return input.reshape(rows, columns)


@_op("Reshape", 5)
def reshape(data: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """Reshape: -1 is worked out from the rest; 0 keeps the input's size at that place, unless `allowzero`."""
    sizes = [int(size) for size in shape]
    if not allowzero:
        if any(size == 0 for size in sizes[data.ndim :]):
            raise ValueError(f"shape {sizes} has a 0 past the last axis of the input {data.shape}")
        sizes = [data.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return data.reshape(sizes)


@_op("Reshape", 1)
def reshape_1(data: Array, *, shape: Ints, consumed_inputs: Ints = ()) -> Array:
    """Reshape of opset 1: the shape is an attribute."""
    return reshape(data, np.array(shape, np.int64))


@_op("Transpose")
def transpose(data: Array, *, perm: Ints | None = None) -> Array:
    """Transpose: axis i of the output is axis perm[i] of the input; without perm the axes are reversed."""
    return np.transpose(data, perm)


@_op("Squeeze", 13)
def squeeze(data: Array, axes: Array | None = None) -> Array:
    """Squeeze: without the given axes, all of size 1; without any axis of size 1 if none are given."""
    return np.squeeze(data, None if axes is None else tuple(int(axis) for axis in axes))


@_op("Squeeze", 1)
def squeeze_1(data: Array, *, axes: Ints | None = None) -> Array:
    """Squeeze of opset 1 and 11: the axes are an attribute."""
    return squeeze(data, None if axes is None else np.array(axes, np.int64))


@_op("Unsqueeze", 13)
def unsqueeze(data: Array, axes: Array) -> Array:
    """Unsqueeze: with axes of size 1 at the given places of the output."""
    return np.expand_dims(data, tuple(int(axis) for axis in axes))


@_op("Unsqueeze", 1)
def unsqueeze_1(data: Array, *, axes: Ints) -> Array:
    """Unsqueeze of opset 1 and 11: the axes are an attribute."""
    return unsqueeze(data, np.array(axes, np.int64))


@_op("Gather")
def gather(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Gather: data at `indices` along `axis`; the axes of indices take that axis's place."""
    return np.take(data, indices, axis=axis)


@_op("Slice", 10)
def slice_(data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Slice: data[start:end:step] along each of the axes, with Python's meaning of negative and far numbers."""
    chosen = range(len(starts)) if axes is None else [int(axis) % data.ndim for axis in axes]
    slices = [slice(None)] * data.ndim
    for place, axis in enumerate(chosen):
        step = 1 if steps is None else int(steps[place])
        slices[axis] = slice(int(starts[place]), int(ends[place]), step)
    return data[tuple(slices)]


@_op("Slice", 1)
def slice_1(data: Array, *, starts: Ints, ends: Ints, axes: Ints | None = None) -> Array:
    """Slice of opset 1: starts, ends and axes are attributes, and the step is 1."""
    return slice_(data, np.array(starts), np.array(ends), None if axes is None else np.array(axes))


@_op("Shape")
def shape(data: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Shape: the sizes of the axes from `start` to before `end`, as int64."""
    return np.array(data.shape[start:end], np.int64)


# --- types, constants, training left out ---


@_op("Cast")
def cast(input: Array, *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Array:
    """Cast: to another type, floats to integers towards zero. Before opset 6 `to` is a type's name.

    The one place where a float is rounded, because that is what the operator does. `saturate` and `round_mode` are
    about the 8-bit floats, which are refused.
    """
    named = {"FLOAT": "float32", "DOUBLE": "float64"}
    name = named.get(to, to.lower()) if isinstance(to, str) else TYPES.get(to, "")
    if name not in TYPES.values():
        raise NotImplementedError(f"a cast to type {to}; NumPy has no such type")
    return input.astype(name)


@_op("Constant")
def constant(
    *, value: Array | None = None, value_float: float | None = None, value_floats: Sequence[float] | None = None,
    value_int: int | None = None, value_ints: Ints | None = None, value_string: str | None = None,
    value_strings: Sequence[str] | None = None, sparse_value: object = None,
) -> Array:  # fmt: skip
    """Constant: the one attribute that is set; float32 for value_float(s), int64 for value_int(s)."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return np.array(value_float if value_floats is None else value_floats, np.float32)
    if value_int is not None or value_ints is not None:
        return np.array(value_int if value_ints is None else value_ints, np.int64)
    if value_string is not None or value_strings is not None or sparse_value is not None:
        raise NotImplementedError("a constant of strings or a sparse one")
    raise ValueError("none of the value attributes is set")


@_op("ConstantOfShape", 9)
def constant_of_shape(input: Array, *, value: Array | None = None) -> Array:
    """ConstantOfShape: the given shape filled with the one element of `value`, float32 zero by default."""
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(int(size) for size in input), fill.item(), fill.dtype)


@_op("Dropout", 12)
def dropout(
    data: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: int | None = None
) -> tuple[Array, Array]:
    """Dropout in inference: the input, and a mask that keeps everything."""
    if training_mode is not None and training_mode.item():
        raise NotImplementedError("training_mode 1; only inference is evaluated")
    return data, np.ones(data.shape, np.bool_)


@_op("Dropout", 10)
def dropout_10(data: Array, *, ratio: float = 0.5) -> tuple[Array, Array]:
    """Dropout of opset 10, which has no training."""
    return data, np.ones(data.shape, np.bool_)


@_op("Dropout", 7)
def dropout_7(data: Array, *, ratio: float = 0.5) -> tuple[Array, Array]:
    """Dropout of opset 7: the mask has the type of the data."""
    return data, np.ones_like(data)


@_op("Dropout", 1)
def dropout_1(data: Array, *, is_test: int = 0, ratio: float = 0.5, consumed_inputs: Ints = ()) -> tuple[Array, Array]:
    """Dropout of opset 1 and 6: `is_test` 0, the default, means training."""
    if not is_test:
        raise NotImplementedError("is_test 0; only inference is evaluated")
    return data, np.ones_like(data)


# --- resampling ---


def _source(size: int, length: int, scale: float, transform: str) -> npt.NDArray[np.float64]:
    """Where each of `size` output places lies on an input axis of `length`, by coordinate_transformation_mode."""
    i = np.arange(size, dtype=np.float64)
    if transform == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if transform == "half_pixel_symmetric":
        offset = length / 2 * (1 - size / (scale * length))
        return offset + (i + 0.5) / scale - 0.5
    if transform == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if size > 1 else np.zeros(1)
    if transform == "align_corners":
        return i * (length - 1) / (size - 1) if size > 1 else np.zeros(1)
    if transform == "asymmetric":
        return i / scale
    raise NotImplementedError(f"coordinate_transformation_mode {transform}")


def _nearest(place: npt.NDArray[np.float64], mode: str) -> npt.NDArray[np.float64]:
    """The whole number that nearest_mode takes for each place."""
    if mode == "round_prefer_floor":
        return np.ceil(place - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(place + 0.5)
    if mode in ("floor", "ceil"):
        return np.floor(place) if mode == "floor" else np.ceil(place)
    raise ValueError(f"nearest_mode {mode!r}")


def _resample(x: Array, sizes: Ints, scales: Sequence[float], mode: str, transform: str, nearest_mode: str) -> Array:
    """Resize every axis in turn: each output place takes its nearest element, or mixes its two neighbours."""
    if mode not in ("nearest", "linear", "bilinear"):
        raise NotImplementedError(f"mode {mode}")
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        length = x.shape[axis]
        if size == length and scale == 1:
            continue
        place = _source(size, length, scale, transform)
        if mode == "nearest":
            x = np.take(x, np.clip(_nearest(place, nearest_mode), 0, length - 1).astype(np.int64), axis)
            continue
        place = np.clip(place, 0, length - 1)
        low = np.floor(place).astype(np.int64)
        part = (place - low).reshape(-1, *[1] * (x.ndim - axis - 1))
        x = np.take(x, low, axis) * (1 - part) + np.take(x, np.minimum(low + 1, length - 1), axis) * part
    return x


def _scaled(shape: Ints, scales: Sequence[float]) -> list[int]:
    """floor(size * scale), multiplied in float32 as the scales are: 10 * 0.7 is 7."""
    return [int(np.floor(np.float32(size) * np.float32(scale))) for size, scale in zip(shape, scales, strict=True)]


@_op("Resize", 11)
def resize(
    x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, *, antialias: int = 0,
    axes: Ints | None = None, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Array:  # fmt: skip
    """Resize, nearest and linear: x (s...) by `scales`, or to `sizes`, along `axes` (all by default)."""
    if antialias:
        raise NotImplementedError("antialias 1")
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    all_sizes, all_scales = list(x.shape), [1.0] * x.ndim
    if scales is not None and scales.size:
        for axis, scale in zip(chosen, scales, strict=True):
            all_scales[axis] = float(scale)
        all_sizes = _scaled(x.shape, all_scales)
    elif sizes is not None and sizes.size:
        for axis, size in zip(chosen, sizes, strict=True):
            all_sizes[axis], all_scales[axis] = int(size), int(size) / x.shape[axis]
        if keep_aspect_ratio_policy != "stretch":
            pick = {"not_larger": min, "not_smaller": max}[keep_aspect_ratio_policy]
            one = pick(all_scales[axis] for axis in chosen)
            for axis in chosen:
                all_sizes[axis], all_scales[axis] = int(np.floor(x.shape[axis] * one + 0.5)), one
    else:
        raise ValueError("neither scales nor sizes are given")
    return _resample(x, all_sizes, all_scales, mode, coordinate_transformation_mode, nearest_mode)


@_op("Resize", 10)
@_op("Upsample", 9)
def upsample(x: Array, scales: Array, *, mode: str = "nearest") -> Array:
    """Upsample of opset 9 and Resize of opset 10: place i of the output lies at i / scale, nearest takes the floor."""
    factors = [float(scale) for scale in scales]
    return _resample(x, _scaled(x.shape, factors), factors, mode, "asymmetric", "floor")


@_op("Upsample", 7)
def upsample_7(x: Array, *, scales: Sequence[float], mode: str = "nearest") -> Array:
    """Upsample of opset 7: the scales are an attribute."""
    return upsample(x, np.array(scales), mode=mode)


@_op("Upsample", 1)
def upsample_1(x: Array, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Array:
    """Upsample of opset 1: x (N, C, H, W) by two attributes."""
    return upsample(x, np.array([1.0, 1.0, height_scale, width_scale]), mode=mode)
