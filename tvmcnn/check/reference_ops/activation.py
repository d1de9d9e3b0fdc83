"""Element by element, one input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tvmcnn.check.reference_ops.move import flatten
from tvmcnn.check.reference_ops.registry import FLOAT32_MAX, Array, Ints, op


@op("Sqrt")
def sqrt(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Sqrt: the square root, nan below zero."""
    return np.sqrt(x)


@op("Relu")
def relu(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Relu: max(x, 0)."""
    return np.maximum(x, np.zeros((), x.dtype))


@op("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01, consumed_inputs: Ints = ()) -> Array:
    """LeakyRelu: x where x >= 0, alpha * x below."""
    return np.where(x < 0, alpha * x, x)


@op("Clip", 11)
def clip(input: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """Clip: at least `min`, then at most `max`, so that `max` wins where they cross.

    A bound that is not a number bounds nothing and an element that is none stays, as onnxruntime has it on the CPU.
    A bound that is left out is infinite; onnxruntime's is the type's largest number, so that infinities become that.
    """
    y = input if min is None else np.where(input < min, min, input)
    return y if max is None else np.where(y > max, max, y)


@op("Clip", 1)
def clip_1(input: Array, *, min: float = -FLOAT32_MAX, max: float = FLOAT32_MAX, consumed_inputs: Ints = ()) -> Array:
    """Clip of opset 1 and 6: the bounds are attributes."""
    return clip(input, np.asarray(min, input.dtype), np.asarray(max, input.dtype))


@op("Sigmoid")
def sigmoid(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Sigmoid: 1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


@op("Tanh")
def tanh(input: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Tanh: the hyperbolic tangent."""
    return np.tanh(input)


@op("Exp")
def exp(input: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Exp: e ** x."""
    return np.exp(input)


@op("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5, consumed_inputs: Ints = ()) -> Array:
    """HardSigmoid: max(0, min(1, alpha * x + beta))."""
    return np.maximum(0.0, np.minimum(1.0, alpha * x + beta))


@op("HardSwish", 14)
def hard_swish(x: Array) -> Array:
    """HardSwish: x * max(0, min(1, x / 6 + 1 / 2))."""
    return np.asarray(x * np.maximum(0.0, np.minimum(1.0, x / 6 + 0.5)))


@op("Softmax", 13)
def softmax(input: Array, *, axis: int = -1) -> Array:
    """Softmax: exp(x) / sum of exp(x) along `axis`; the maximum is taken off first, which changes nothing."""
    e = np.exp(input - input.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


@op("Softmax", 1)
def softmax_1(input: Array, *, axis: int = 1) -> Array:
    """Softmax of opset 1 and 11: over all the axes from `axis` on, taken as one."""
    return softmax(flatten(input, axis=axis), axis=1).reshape(input.shape)


@op("Elu")
def elu(x: Array, *, alpha: float = 1.0, consumed_inputs: Ints = ()) -> Array:
    """Elu: x where x >= 0, alpha * (exp(x) - 1) below."""
    return np.where(x < 0, alpha * np.expm1(x), x)


@op("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return np.asarray(np.maximum(0, x) + np.minimum(0, alpha * np.expm1(x / alpha)))


@op("Selu")
def selu(
    x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875,
    consumed_inputs: Ints = (),
) -> Array:  # fmt: skip
    """Selu: gamma * x where x > 0, gamma * alpha * (exp(x) - 1) elsewhere."""
    return np.where(x > 0, gamma * x, gamma * alpha * np.expm1(x))


@op("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """ThresholdedRelu: x where x > alpha, 0 elsewhere."""
    return np.where(x > alpha, x, 0.0)


@op("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """Swish: x / (1 + exp(-alpha * x))."""
    return np.asarray(x / (1 + np.exp(-alpha * x)))


@op("Softplus")
def softplus(x: Array) -> Array:
    """Softplus: log(1 + exp(x))."""
    return np.asarray(np.logaddexp(0, x))


@op("Softsign")
def softsign(input: Array) -> Array:
    """Softsign: x / (1 + |x|)."""
    return np.asarray(input / (1 + np.abs(input)))


@op("Mish")
def mish(x: Array) -> Array:
    """Mish: x * tanh(log(1 + exp(x)))."""
    return np.asarray(x * np.tanh(np.logaddexp(0, x)))


@op("Erf")
def erf(input: Array) -> Array:
    """Erf: 2 / sqrt(pi) * the integral of exp(-t^2) from 0 to x."""
    return np.reshape([math.erf(value) for value in input.reshape(-1)], input.shape)


@op("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """Gelu: x / 2 * (1 + erf(x / sqrt 2)), or x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))."""
    if approximate == "tanh":
        return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x / 2 * (1 + erf(x / math.sqrt(2))))


@op("Log")
def log(input: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Log: the natural logarithm, nan below zero."""
    return np.log(input)


@op("Reciprocal")
def reciprocal(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Reciprocal: 1 / x."""
    return np.asarray(1 / x)


@op("Abs")
def abs(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Abs: |x|."""
    return np.abs(x)


@op("Neg")
def neg(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Neg: -x."""
    return np.negative(x)


@op("Sign")
def sign(input: Array) -> Array:
    """Sign: -1, 0 or 1."""
    return np.sign(input)


@op("Floor")
def floor(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Floor: the greatest integer that is not greater."""
    return np.floor(x)


@op("Ceil")
def ceil(x: Array, *, consumed_inputs: Ints = ()) -> Array:
    """Ceil: the least integer that is not less."""
    return np.ceil(x)


@op("Round")
def round(x: Array) -> Array:
    """Round: the nearest integer, halves to the even one."""
    return np.rint(x)


def _named(name: str, function: Callable[[Array], Array]) -> None:
    """An operator whose name says which function of NumPy it is."""

    def apply(input: Array) -> Array:
        return function(input)

    apply.__doc__ = f"{name}: numpy.{getattr(function, '__name__', name)}."
    op(name)(apply)


for _name, _function in {
    **{"Sin": np.sin, "Cos": np.cos, "Tan": np.tan, "Asin": np.arcsin, "Acos": np.arccos, "Atan": np.arctan},
    **{"Sinh": np.sinh, "Cosh": np.cosh, "Asinh": np.arcsinh, "Acosh": np.arccosh, "Atanh": np.arctanh},
}.items():
    _named(_name, _function)


@op("LogSoftmax", 13)
def log_softmax(input: Array, *, axis: int = -1) -> Array:
    """LogSoftmax: x - log(sum of exp(x)) along `axis`; the maximum is taken off first, which changes nothing."""
    rest = input - input.max(axis=axis, keepdims=True)
    return np.asarray(rest - np.log(np.exp(rest).sum(axis=axis, keepdims=True)))


@op("LogSoftmax", 1)
def log_softmax_1(input: Array, *, axis: int = 1) -> Array:
    """LogSoftmax of opset 1 and 11: over all the axes from `axis` on, taken as one."""
    return log_softmax(flatten(input, axis=axis), axis=1).reshape(input.shape)


@op("Hardmax", 13)
def hardmax(input: Array, *, axis: int = -1) -> Array:
    """Hardmax: 1 at the first of the greatest elements along `axis`, 0 elsewhere."""
    first = np.expand_dims(np.argmax(input, axis), axis)
    y = np.zeros_like(input)
    np.put_along_axis(y, first, 1, axis)
    return y


@op("Hardmax", 1)
def hardmax_1(input: Array, *, axis: int = 1) -> Array:
    """Hardmax of opset 1 and 11: over all the axes from `axis` on, taken as one."""
    return hardmax(flatten(input, axis=axis), axis=1).reshape(input.shape)
