"""What each ONNX operator means to tvmcnn: one function a name, whose signature is the ONNX schema.

A function takes the node's inputs as Values (None where optional and left out) and its attributes as keywords with
ONNX's defaults. It returns a Meaning: the operator, the operands that matter at run time, attributes with nothing left
implicit, and the output's shape. It raises Unsupported for what tvmcnn does not do and ModelError for what contradicts
itself. To add an operator, add its function here, then its tensor expression in ops/.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.network import Array, Shape, dims


class Unsupported(Exception):  # noqa: N818 (a reason, not an error)
    """The node is valid ONNX, but tvmcnn does not compile it; the text is the reason."""


@dataclass(frozen=True)
class Value:
    """An operand: its name, shape and dtype, and its data if it is constant."""

    name: str
    shape: Shape
    dtype: str
    data: Array | None = None


@dataclass(frozen=True)
class Meaning:
    """One node, normalised."""

    op: str
    inputs: tuple[Value, ...]
    shape: Shape
    attributes: Mapping[str, Any] = field(default_factory=dict)


OPERATORS: dict[str, Callable[..., Meaning]] = {}


def _operator(function: Callable[..., Meaning]) -> Callable[..., Meaning]:
    """Register a function under its ONNX name: `global_average_pool` --> GlobalAveragePool."""
    OPERATORS["".join(word.capitalize() for word in function.__name__.rstrip("_").split("_"))] = function
    return function


# ---- windows --------------------------------------------------------------------------------------------------------


def window_extent(axis: str, size: int, kernel: int, stride: int, begin: int, end: int, dilation: int, up: bool) -> int:
    """Output extent of a sliding window along one axis (ONNX Conv and pools).

    W_out = ⌊(W_in + pad_begin + pad_end − dilation·(F−1) − 1) / stride⌋ + 1. With ceil_mode the quotient is rounded up,
    and a last window that would start in the end padding is dropped.
    """
    span = size + begin + end - dilation * (kernel - 1) - 1
    if span < 0:
        raise ModelError(
            f"the window does not fit: {axis}_out = ⌊({size} + {begin} + {end} − {dilation}·({kernel}−1) − 1)"
            f" / {stride}⌋ + 1 has the negative numerator {span}"
        )
    extent = (math.ceil(span / stride) if up else span // stride) + 1
    if up and (extent - 1) * stride >= size + begin:
        extent -= 1
    return extent


def _window(
    x: Value,
    kernel: Sequence[int],
    auto_pad: str,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    ceil_mode: int = 0,
) -> tuple[dict[str, Any], Shape]:
    """The explicit window attributes of an image operator, and its output's height and width."""
    if len(x.shape) != 4:
        raise Unsupported(f"its input '{x.name}' is {dims(x.shape)}; only images N x C x H x W are supported")
    strides, dilations = tuple(strides or (1, 1)), tuple(dilations or (1, 1))
    begin_end = tuple(pads or (0, 0, 0, 0))
    if len(kernel) != 2 or len(strides) != 2 or len(dilations) != 2 or len(begin_end) != 4:
        raise ModelError(f"kernel_shape {list(kernel)}, strides, dilations and pads must be those of two axes")
    if min(*kernel, *strides, *dilations) < 1 or min(begin_end) < 0:
        raise ModelError("kernel_shape, strides and dilations must be at least 1 and pads at least 0")
    sizes = x.shape[2:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        begin_end = (*small, *large) if auto_pad == "SAME_UPPER" else (*large, *small)
    elif auto_pad == "VALID":
        begin_end = (0, 0, 0, 0)
    elif auto_pad != "NOTSET":
        raise ModelError(f"auto_pad is '{auto_pad}'; allowed are NOTSET, SAME_UPPER, SAME_LOWER, VALID")
    extents = tuple(
        window_extent(axis, size, k, s, begin, end, d, bool(ceil_mode))
        for axis, size, k, s, begin, end, d in zip(
            "HW", sizes, kernel, strides, begin_end[:2], begin_end[2:], dilations, strict=True
        )
    )
    attributes = {"kernel_shape": tuple(kernel), "strides": strides, "pads": begin_end, "dilations": dilations}
    return attributes, extents


@_operator
def conv(
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX Conv on images: x (N, C, H, W), w (M, C/group, kH, kW), b (M,)."""
    _floats(x, w, b)
    _constant("weight", w)
    if b is not None:
        _constant("bias", b)
    if len(w.shape) != 4:
        raise Unsupported(f"its weight is {dims(w.shape)}; only convolutions of images (two axes) are supported")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ModelError(f"kernel_shape is {list(kernel_shape)}, but the weight '{w.name}' is {dims(w.shape)}")
    attributes, extents = _window(x, w.shape[2:], auto_pad, dilations, pads, strides)
    (n, channels), (maps, depth) = x.shape[:2], w.shape[:2]
    if group < 1 or channels != depth * group or maps % group:
        raise ModelError(
            f"the input has {channels} channels and the weight is {dims(w.shape)}: with group {group} it needs"
            f" {depth}·{group} = {depth * group} channels and a multiple of {group} maps"
        )
    if b is not None and b.shape != (maps,):
        raise ModelError(f"the bias is {dims(b.shape)}; the weight makes {maps} maps")
    inputs = (x, w) if b is None else (x, w, b)
    return Meaning("Conv", inputs, (n, maps, *extents), {**attributes, "group": group})


def _pool(
    op: str, x: Value, kernel_shape: Sequence[int], ceil_mode: int, extra: dict[str, Any], **window: Any
) -> Meaning:
    _floats(x)
    attributes, extents = _window(x, kernel_shape, ceil_mode=ceil_mode, **window)
    return Meaning(op, (x,), (*x.shape[:2], *extents), {**attributes, **extra})


@_operator
def max_pool(
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,  # orders the Indices output, which is refused
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX MaxPool on images; padding never wins."""
    window = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    return _pool("MaxPool", x, kernel_shape, ceil_mode, {}, **window)


@_operator
def average_pool(
    x: Value,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Meaning:
    """ONNX AveragePool on images; with count_include_pad the padding counts in the divisor."""
    window = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    return _pool("AveragePool", x, kernel_shape, ceil_mode, {"count_include_pad": bool(count_include_pad)}, **window)


@_operator
def global_average_pool(x: Value) -> Meaning:
    """ONNX GlobalAveragePool on images: (N, C, H, W) --> (N, C, 1, 1)."""
    _floats(x)
    if len(x.shape) != 4:
        raise Unsupported(f"its input '{x.name}' is {dims(x.shape)}; only images N x C x H x W are supported")
    return Meaning("GlobalAveragePool", (x,), (*x.shape[:2], 1, 1))


# ---- dense ----------------------------------------------------------------------------------------------------------


@_operator
def gemm(
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (the attribute's ONNX name)
    transB: int = 0,  # noqa: N803
) -> Meaning:
    """ONNX Gemm with constant B and C: alpha folds into the weight, stored (K, N), and beta into the bias (N,)."""
    _floats(a, b, c)
    weight = _constant("B", b)
    if transA:
        raise Unsupported("attribute transA=1; only transA=0 is supported")
    if len(a.shape) != 2 or weight.ndim != 2:
        raise ModelError(f"A is {dims(a.shape)} and B is {dims(b.shape)}; both must be matrices")
    weight = (weight.T if transB else weight) * np.float32(alpha)
    if a.shape[1] != weight.shape[0]:
        raise ModelError(
            f"A is {dims(a.shape)} and B is {dims(weight.shape)} (K x N): {a.shape[1]} ≠ {weight.shape[0]}"
        )
    inputs: tuple[Value, ...] = (a, _derived("weight", weight))
    if c is not None:
        bias = _constant("C", c) * np.float32(beta)
        if bias.size != 1 and bias.shape not in ((weight.shape[1],), (1, weight.shape[1])):
            raise Unsupported(f"input C is {dims(c.shape)}; only a bias of {weight.shape[1]} values is supported")
        inputs += (_derived("bias", np.broadcast_to(bias.reshape(-1), (weight.shape[1],))),)
    return Meaning("Gemm", inputs, (a.shape[0], weight.shape[1]))


@_operator
def mat_mul(a: Value, b: Value) -> Meaning:
    """ONNX MatMul with a constant matrix: (..., K) by (K, N) --> (..., N)."""
    _floats(a, b)
    if b.data is None or len(b.shape) != 2 or not a.shape:
        raise Unsupported(
            f"operands {dims(a.shape)} and {dims(b.shape)}; only a constant matrix at the right is supported"
        )
    if a.shape[-1] != b.shape[0]:
        raise ModelError(f"A is {dims(a.shape)} and B is {dims(b.shape)}: {a.shape[-1]} ≠ {b.shape[0]}")
    return Meaning("Gemm", (a, _derived("weight", b.data)), (*a.shape[:-1], b.shape[1]))


# ---- element-wise ---------------------------------------------------------------------------------------------------


def _binary(op: str) -> None:
    def function(a: Value, b: Value) -> Meaning:
        _floats(a, b)
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ModelError(f"{dims(a.shape)} and {dims(b.shape)} do not broadcast") from None
        return Meaning(op, (a, b), tuple(shape))

    function.__doc__ = f"ONNX {op} with NumPy broadcasting."
    OPERATORS[op] = function


def _unary(op: str, formula: str) -> None:
    def function(x: Value) -> Meaning:
        _floats(x)
        return Meaning(op, (x,), x.shape)

    function.__doc__ = f"ONNX {op}: y = {formula}."
    OPERATORS[op] = function


for _name in ("Add", "Sub", "Mul", "Div"):
    _binary(_name)
for _name, _formula in (("Relu", "max(0, x)"), ("Sigmoid", "1 / (1 + e^-x)"), ("Tanh", "tanh x")):
    _unary(_name, _formula)


@_operator
def clip(x: Value, min: Value | None = None, max: Value | None = None) -> Meaning:  # noqa: A002 (ONNX's names)
    """ONNX Clip with constant bounds; a bound left out is infinite."""
    _floats(x)
    low = _scalar("min", min) if min is not None else -math.inf
    high = _scalar("max", max) if max is not None else math.inf
    return Meaning("Clip", (x,), x.shape, {"min": low, "max": high})


@_operator
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
    _floats(x)
    if training_mode or not spatial:
        raise Unsupported(f"training_mode={training_mode}, spatial={spatial}; only 0 and 1 are supported")
    gamma, beta, mu, sigma2 = (
        _constant(name, value).astype(np.float64)
        for name, value in (("scale", scale), ("B", b), ("input_mean", mean), ("input_var", var))
    )
    channels = (x.shape[1],) if len(x.shape) > 1 else (1,)
    if any(values.shape != channels for values in (gamma, beta, mu, sigma2)):
        raise ModelError(
            f"its statistics have the shapes {gamma.shape} … {sigma2.shape}; the input has {channels[0]} channels"
        )
    factor = gamma / np.sqrt(sigma2 + epsilon)
    shape = (-1, *(1,) * (len(x.shape) - 2))
    operands = (x, _derived("scale", factor.reshape(shape)), _derived("shift", (beta - mu * factor).reshape(shape)))
    return Meaning("BatchNormalization", operands, x.shape)


@_operator
def softmax(x: Value, *, axis: int = -1) -> Meaning:
    """ONNX Softmax along one axis (opset 13 and later; the converter rewrites older ones)."""
    _floats(x)
    return Meaning("Softmax", (x,), x.shape, {"axis": _axis(axis, len(x.shape))})


# ---- shape ----------------------------------------------------------------------------------------------------------


@_operator
def concat(*operands: Value, axis: int) -> Meaning:
    """ONNX Concat along one axis."""
    _floats(*operands)
    axis = _axis(axis, len(operands[0].shape))
    shapes = [list(value.shape) for value in operands]
    rests = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
    if any(rest != rests[0] for rest in rests):
        raise ModelError(f"{', '.join(dims(v.shape) for v in operands)} do not concatenate along axis {axis}")
    shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    return Meaning("Concat", operands, shape, {"axis": axis})


@_operator
def pad(
    x: Value,
    pads: Value,
    constant_value: Value | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
) -> Meaning:
    """ONNX Pad with constant pads and value; negative pads crop."""
    _floats(x)
    if mode != "constant":
        raise Unsupported(f"attribute mode='{mode}'; only 'constant' is supported")
    amounts = [int(v) for v in _constant("pads", pads).reshape(-1)]
    rank = len(x.shape)
    chosen = range(rank) if axes is None else [_axis(int(a), rank) for a in _constant("axes", axes).reshape(-1)]
    if len(amounts) != 2 * len(chosen):
        raise ModelError(f"{len(amounts)} pads for {len(chosen)} axes of {dims(x.shape)}; there must be two an axis")
    begins, ends = [0] * rank, [0] * rank
    for position, axis in enumerate(chosen):
        begins[axis], ends[axis] = amounts[position], amounts[position + len(chosen)]
    shape = tuple(b + s + e for b, s, e in zip(begins, x.shape, ends, strict=True))
    if min(shape, default=1) < 1:
        raise ModelError(f"pads {amounts} crop {dims(x.shape)} to nothing")
    value = _scalar("constant_value", constant_value) if constant_value is not None else 0.0
    return Meaning("Pad", (x,), shape, {"begins": tuple(begins), "value": value})


@_operator
def reshape(x: Value, shape: Value, *, allowzero: int = 0) -> Meaning:
    """ONNX Reshape to a constant shape; 0 keeps an extent (unless allowzero), one −1 takes what is left."""
    _floats(x)
    wanted = [int(v) for v in _constant("shape", shape).reshape(-1)]
    text = f"{dims(x.shape)} ({math.prod(x.shape)} elements) does not reshape to {wanted}"
    if not allowzero:
        if any(extent == 0 and axis >= len(x.shape) for axis, extent in enumerate(wanted)):
            raise ModelError(text)
        wanted = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = math.prod(x.shape) // rest if rest else 0
    if math.prod(wanted) != math.prod(x.shape) or min(wanted, default=0) < 0:
        raise ModelError(text)
    return Meaning("Reshape", (x,), tuple(wanted))


@_operator
def flatten(x: Value, *, axis: int = 1) -> Meaning:
    """ONNX Flatten: a matrix whose rows are the axes before `axis`."""
    _floats(x)
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        raise ModelError(f"axis {axis} is outside {dims(x.shape)}")
    axis += rank if axis < 0 else 0
    return Meaning("Reshape", (x,), (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@_operator
def transpose(x: Value, *, perm: Sequence[int] | None = None) -> Meaning:
    """ONNX Transpose; without perm the axes are reversed."""
    _floats(x)
    order = tuple(perm) if perm is not None else tuple(reversed(range(len(x.shape))))
    if sorted(order) != list(range(len(x.shape))):
        raise ModelError(f"perm {list(order)} is no permutation of the {len(x.shape)} axes of {dims(x.shape)}")
    return Meaning("Transpose", (x,), tuple(x.shape[axis] for axis in order), {"perm": order})


@_operator
def identity(x: Value) -> Meaning:
    """ONNX Identity, where it could not be removed: a copy."""
    _floats(x)
    return Meaning("Reshape", (x,), x.shape)


# ---- checks ---------------------------------------------------------------------------------------------------------


def _floats(*values: Value | None) -> None:
    for value in values:
        if value is not None and value.dtype != "float32":
            raise Unsupported(f"input '{value.name}' is {value.dtype}; only float32 is supported")


def _constant(role: str, value: Value) -> Array:
    if value.data is None:
        raise Unsupported(f"its {role} '{value.name}' is computed at run time; only a constant is supported")
    return value.data


def _scalar(role: str, value: Value) -> float:
    data = _constant(role, value)
    if data.size != 1:
        raise ModelError(f"its {role} '{value.name}' is {dims(value.shape)}; it must be one value")
    return float(data.reshape(()))


def _derived(name: str, data: Array) -> Value:
    stored = np.ascontiguousarray(data, dtype=np.float32)
    return Value(name, cast(Shape, stored.shape), "float32", stored)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ModelError(f"axis {axis} is outside the {rank} axes of its input")
    return axis % rank


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """A supported operator for `tvmcnn ops`: its ONNX name, inputs and attributes with their defaults, and what it
    does."""

    name: str
    attributes: str
    summary: str


def schema(name: str) -> Schema:
    """The row of the operator `name`, from the signature and docstring of its function."""
    function = OPERATORS[name]
    words = []
    for parameter in inspect.signature(function).parameters.values():
        default = "" if parameter.default in (inspect.Parameter.empty, None) else f"={parameter.default}"
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            words.append(f"{parameter.name}…")
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            words.append(f"[{parameter.name}]" if parameter.default is None else parameter.name)
        else:
            words.append(f"{parameter.name}{default}")
    summary = (function.__doc__ or "").splitlines()[0]
    return Schema(name, " ".join(words), summary.removeprefix(f"ONNX {name}").strip(" .,:"))
