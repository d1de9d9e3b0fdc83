"""Integers: which nodes between DequantizeLinear and QuantizeLinear docs/quantised.md defines by one sum of integers.

The page's conditions are written here once more, from the ONNX graph alone. A QuantizeLinear that ends such nodes is
computed from the integers at their beginning; the floats between are computed too, by ONNX's text, for who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tvmcnn.check.reference.model import attribute_value, plain_domain
from tvmcnn.check.reference.one_byte import function_of_one_byte
from tvmcnn.check.reference.order import reads
from tvmcnn.check.reference.words import Context, Held, Values
from tvmcnn.check.reference_ops import Array, quantised
from tvmcnn.check.reference_ops.quantised import MICROSOFT, Scaled, Target
from tvmcnn.check.reference_ops.windows import window_totals

BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
BIAS_SCALE = 1e-5  # how far that of a bias may be from that of the sums, relative to it
MOST = 2**31  # what a sum must stay below


def varying(graph: onnx.GraphProto) -> set[str]:
    """The inputs that a user feeds."""
    given = {tensor.name for tensor in graph.initializer}
    return {value.name for value in graph.input} - given


class Patterns:
    """The nodes of one graph, to be asked what each QuantizeLinear among them ends."""

    def __init__(
        self, nodes: Sequence[onnx.NodeProto], values: Values, context: Context, outputs: Collection[str], fed: set[str]
    ) -> None:
        self.values, self.context = values, context
        self.makers = {name: node for node in nodes for name in node.output if name}
        self.read = Counter(name for node in nodes for name in reads(node))
        self.outputs = set(outputs)
        self.fed = set(fed)
        for node in nodes:  # in order
            if self.fed & reads(node):
                self.fed.update(node.output)

    # ---- what is asked of a graph -----------------------------------------------------------------------------------

    def ends(self, last: onnx.NodeProto) -> Held | None:
        """What a QuantizeLinear makes, where it ends nodes that are defined in integers."""
        if not _is(last, "QuantizeLinear", MICROSOFT) or len(last.output) != 1:
            return None
        y = self._target(last)
        if y is not None and (bytes_ := function_of_one_byte(self, last, y)) is not None:
            return Held(bytes_, bytes_.dtype)
        name, low, high = last.input[0], None, None
        node = self._alone(name)
        if node is not None and _is(node, "Relu"):
            name, low = node.input[0], np.zeros(())
            node = self._alone(name)
        elif node is not None and _is(node, "Clip") and (bounds := self._clip(node)) is not None:
            low, high = bounds
            node = self._alone(node.input[0])
        if node is None or y is None or plain_domain(node.domain) or node.op_type not in DEFINED:
            return None
        attributes = {a.name: attribute_value(a, self.context.source, node) for a in node.attribute}
        found = DEFINED[node.op_type](self, node, y.bounded(low, high), attributes)
        return None if found is None else Held(found, found.dtype)

    def _alone(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor for one reader."""
        node = self.makers.get(name)
        alone = node is not None and self.read[name] == 1 and name not in self.outputs
        return node if alone else None

    def _constant(self, name: str) -> Array | None:
        held = self.values.get(name)
        return None if name in self.fed or held is None else held.array

    def _clip(self, node: onnx.NodeProto) -> tuple[Array | None, Array | None] | None:
        """The bounds of a Clip; None where one comes at run time."""
        given = {a.name: np.asarray(a.f, np.float32) for a in node.attribute}
        bounds = [given.get(word) for word in ("min", "max")]
        for place, name in enumerate(node.input[1:]):
            if name:
                bounds[place] = self._constant(name)
                if bounds[place] is None:
                    return None
        low, high = (None if b is None or np.isnan(b).all() else b for b in bounds)
        return low, high

    def _scaled(self, node: onnx.NodeProto) -> tuple[Array, Array | None] | None:
        """A constant scale and zero point."""
        scale = self._constant(node.input[1])
        zero = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        missing = len(node.input) > 2 and node.input[2] and zero is None
        return None if scale is None or missing else (scale, zero)

    def _target(self, last: onnx.NodeProto) -> Target | None:
        found = self._scaled(last)
        if found is None or found[0].size != 1:
            return None
        scale, zero = found
        if zero is None:
            code = next((a.i for a in last.attribute if a.name == "output_dtype"), 0) or onnx.TensorProto.UINT8
            return Target(onnx.helper.tensor_dtype_to_np_dtype(code), scale) if code in (2, 3) else None
        return Target(zero.dtype, scale, zero) if zero.dtype in BYTES else None

    def integers(self, name: str, kinds: Iterable[np.dtype[Any]] = BYTES) -> tuple[Scaled, onnx.NodeProto] | None:
        """The integers behind a float, with the DequantizeLinear between."""
        node = self.makers.get(name)
        if node is None or not _is(node, "DequantizeLinear", MICROSOFT):
            return None
        found, held = self._scaled(node), self.values.get(node.input[0])
        if found is None or held is None or held.dtype not in kinds:
            return None
        return Scaled(held.array, *found), node

    def one_scale(self, name: str) -> Scaled | None:
        """Those that have one scale."""
        found = self.integers(name)
        if found is None or found[0].scale.size != 1 or found[0].zero_point.size != 1:
            return None
        return found[0]

    def computed(self, name: str) -> Scaled | None:
        """Those with one scale that are not constant."""
        found = self.one_scale(name)
        return None if found is None or self.makers[name].input[0] not in self.fed else found

    def weights(self, name: str, axis: int) -> tuple[Scaled, bool] | None:
        """Those of a weight, constant or not, with one scale or one an index of `axis`, which counts from the end."""
        found = self.integers(name)
        if found is None:
            return None
        scaled, node = found
        along = next((a.i for a in node.attribute if a.name == "axis"), 1)
        several = scaled.scale.size > 1 or scaled.zero_point.size > 1
        rank = scaled.integers.ndim
        if several and along % rank - rank != axis:
            return None
        return scaled, node.input[0] not in self.fed

    def bias(self, name: str, x: Scaled, w: Scaled, maps: int) -> Array | None:
        """A bias of the scale of the sums, one value an output channel."""
        found = self.integers(name, [np.dtype(np.int32)])
        if found is None or self.makers[name].input[0] in self.fed or found[0].zero_point.any():
            return None
        bias = found[0]
        sums = np.float32(x.scale.reshape(-1)[0]) * w.scale.reshape(-1).astype(np.float32)
        own = bias.scale.reshape(-1).astype(np.float32)
        if own.size not in (1, maps) or (np.abs(own - sums) > BIAS_SCALE * sums).any():
            return None
        if bias.integers.size not in (1, maps) or bias.integers.shape[-1:] not in ((), (1,), (maps,)):
            return None
        return np.broadcast_to(bias.integers.reshape(-1), (maps,))


def _is(node: onnx.NodeProto, op: str, *domains: str) -> bool:
    return node.op_type == op and plain_domain(node.domain) in ("", *domains)


def _reach(x: Scaled) -> float:
    """How far an integer of the type may be from the zero point."""
    limits = np.iinfo(x.integers.dtype)
    return float(max(limits.max - x.zero_point.min(), x.zero_point.max() - limits.min))


def _extreme(w: Scaled) -> Array:
    """Weights of the shape and type of those that arrive, as large as any."""
    return np.full(w.integers.shape, _reach(w))


def _fits(x: Scaled, weights: Array, axes: tuple[int, ...], bias: Array | None) -> bool:
    """Whether no sum of products with these weights can leave int32."""
    sums = np.abs(weights).sum(axis=axes) * _reach(x) + (0 if bias is None else np.abs(bias.astype(np.float64)))
    return bool((sums < MOST).all())


# ---- what is defined ------------------------------------------------------------------------------------------------


def _conv(graph: Patterns, node: onnx.NodeProto, y: Target, attributes: Mapping[str, Any]) -> Array | None:
    x = graph.computed(node.input[0])
    found = graph.integers(node.input[1])
    rank = found[0].integers.ndim if found is not None else 0
    weights = graph.weights(node.input[1], -rank)
    if x is None or weights is None:
        return None
    (w, constant), bias = weights, None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.bias(node.input[2], x, w, w.integers.shape[0])
        if bias is None:
            return None
    if not constant and (w.scale.size > 1 or w.zero_point.size > 1):
        return None
    if not _fits(x, w.above_zero() if constant else _extreme(w), tuple(range(1, rank)), bias):
        return None
    return quantised.convolved(x, w, bias, y, **attributes)


def _matmul(graph: Patterns, node: onnx.NodeProto, y: Target, attributes: Mapping[str, Any]) -> Array | None:
    a, weights = graph.computed(node.input[0]), graph.weights(node.input[1], -1)
    if a is None or weights is None:
        return None
    b, constant = weights
    several = b.scale.size > 1 or b.zero_point.size > 1
    if constant:
        if several and b.integers.ndim != 2:
            return None
        if not _fits(a, b.above_zero(-1), (-2 % b.integers.ndim,), None):
            return None
    elif several or a.integers.shape[-1] * _reach(a) * _reach(b) >= MOST:
        return None
    return quantised.multiplied(a, b, None, y)


def _gemm(graph: Patterns, node: onnx.NodeProto, y: Target, attributes: Mapping[str, Any]) -> Array | None:
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        return None
    axis = -2 if attributes.get("transB", 0) else -1
    a, weights = graph.computed(node.input[0]), graph.weights(node.input[1], axis)
    if a is None or weights is None or not weights[1]:
        return None
    b, bias = weights[0], None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.bias(node.input[2], a, b, b.integers.shape[axis])
        if bias is None:
            return None
    if not _fits(a, b.above_zero(axis), (-3 - axis,), bias):
        return None
    return quantised.multiplied(a, b, bias, y, b_axis=axis)


def _both(combine: Callable[[Scaled, Scaled, Target], Array]) -> Callable[..., Array | None]:
    def combined(graph: Patterns, node: onnx.NodeProto, y: Target, attributes: Mapping[str, Any]) -> Array | None:
        if len(node.input) != 2:
            return None
        a, b = (graph.one_scale(name) for name in node.input)
        return None if a is None or b is None else combine(a, b, y)

    return combined


def _average(graph: Patterns, node: onnx.NodeProto, y: Target, attributes: Mapping[str, Any]) -> Array | None:
    x = graph.one_scale(node.input[0])
    if x is None:
        return None
    window = dict(attributes) if node.op_type == "AveragePool" else {"kernel_shape": x.integers.shape[2:]}
    count = window_totals(x.above_zero(), **window)[1]
    if not count.all() or np.prod(window["kernel_shape"]) * _reach(x) >= MOST:
        return None
    return quantised.averaged(x, y, **window)


DEFINED: Mapping[str, Callable[[Patterns, onnx.NodeProto, Target, Mapping[str, Any]], Array | None]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _both(quantised.added),
    "Sum": _both(quantised.added),
    "Mul": _both(quantised.times),
    "AveragePool": _average,
    "GlobalAveragePool": _average,
}
