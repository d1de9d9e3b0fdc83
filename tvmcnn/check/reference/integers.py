"""Integers: which nodes between DequantizeLinear and QuantizeLinear docs/quantised.md defines by one sum of integers.

The page's conditions are written here once more, from the ONNX graph alone. A QuantizeLinear that ends such nodes is
computed from the integers at their beginning; the floats between are computed too, by ONNX's text, for who asks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tvmcnn.check.reference.model import attribute_value, plain_domain
from tvmcnn.check.reference.one_byte import function_of_one_byte
from tvmcnn.check.reference.operate import operate
from tvmcnn.check.reference.order import reads
from tvmcnn.check.reference.words import Context, Held, Values
from tvmcnn.check.reference_ops import Array, quantised
from tvmcnn.check.reference_ops.quantised import MICROSOFT, Scaled, Target
from tvmcnn.check.reference_ops.windows import window_totals

BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
BIAS_SCALE = 1e-5  # how far that of a bias may be from that of the sums, relative to it
MOST = 2**31  # what a sum must stay below
STEP_OF_SUMS = 0.25  # of a step of y, the most where what is added to them is rounded

MOVES = frozenset(
    """
    Concat DepthToSpace Dropout Flatten Identity MaxPool Reshape Slice SpaceToDepth Split Squeeze Transpose Unsqueeze
    """.split()  # noqa: SIM905
)


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
        self.moved: dict[str, tuple[Scaled, onnx.NodeProto] | None] = {}
        for node in nodes:  # in order
            if self.fed & reads(node):
                self.fed.update(node.output)

    # ---- what is asked of a graph -----------------------------------------------------------------------------------

    def ends(self, last: onnx.NodeProto) -> Held | None:
        """What a QuantizeLinear makes, where it ends nodes that are defined in integers."""
        if not _is(last, "QuantizeLinear", MICROSOFT) or len(last.output) != 1:
            return None
        y = self._target(last)
        found = None if y is None else self._quantised(last, y)
        return None if found is None else Held(found, found.dtype)

    def _quantised(self, reader: onnx.NodeProto, y: Target) -> Array | None:
        """The integers that the float which a node reads first becomes, where it comes from a defined node."""
        if (bytes_ := function_of_one_byte(self, reader, y)) is not None:
            return bytes_
        node = self._alone(reader.input[0])
        if node is not None and _moves(node) and node.op_type != "Concat" and self._used(node) == 1:
            before = self._quantised(node, y)
            return None if before is None else self._moved(node, [before], reader.input[0])
        low, high = None, None
        if node is not None and _is(node, "Relu"):
            low, node = np.zeros(()), self._alone(node.input[0])
        elif node is not None and _is(node, "Clip") and (bounds := self._clip(node)) is not None:
            low, high = bounds
            node = self._alone(node.input[0])
        target: Target | None = y.bounded(low, high)
        if node is not None and _is(node, "BatchNormalization"):
            target, node = self._normalised(y.bounded(low, high), node), self._alone(node.input[0])
            if node is None or node.op_type != "Conv":
                return None
        if node is None or target is None or plain_domain(node.domain) or node.op_type not in DEFINED:
            return None
        return DEFINED[node.op_type](self, node, target, self._attributes(node))

    def _moved(self, node: onnx.NodeProto, first: Sequence[Array], name: str) -> Array:
        """What a node that moves elements makes of integers; `name` is its output that is wanted."""
        given: list[Held | None] = [Held(each, each.dtype) for each in first]
        given += [self.values[each] if each else None for each in node.input[len(first) :]]
        held = operate(node, given, self.context)[list(node.output).index(name)]
        assert held is not None
        return held.array.astype(first[0].dtype)

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        return {a.name: attribute_value(a, self.context.source, node) for a in node.attribute}

    def _normalised(self, y: Target, node: onnx.NodeProto) -> Target | None:
        """The target behind a BatchNormalization with constant statistics."""
        numbers = [self._constant(name) for name in node.input[1:5]]
        attributes = self._attributes(node)
        if len(numbers) != 4 or any(n is None for n in numbers) or attributes.get("training_mode", 0):
            return None
        gamma, beta, mean, variance = (np.asarray(n, np.float64) for n in numbers)
        slope = gamma / np.sqrt(variance + np.float32(attributes.get("epsilon", 1e-5)).astype(np.float64))
        return dataclasses.replace(y, slope=slope.astype(np.float32), rise=(beta - mean * slope).astype(np.float32))

    def _alone(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor for one reader, perhaps an Identity before it."""
        node = self.makers.get(name)
        if node is None or self.read[name] != 1 or name in self.outputs:
            return None
        return self._alone(node.input[0]) if _is(node, "Identity") else node

    def _used(self, node: onnx.NodeProto) -> int:
        """How many outputs of a node are read, or are the graph's."""
        return sum(self.read[name] > 0 or name in self.outputs for name in node.output)

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
        """The integers behind a float, with the DequantizeLinear between; they may be moved when it has been done."""
        node = self.makers.get(name)
        if node is not None and _moves(node):
            if name not in self.moved:
                self.moved[name] = self._moved_integers(node, name)
            found = self.moved[name]
            return found if found is None or found[0].integers.dtype in kinds else None
        if node is None or not _is(node, "DequantizeLinear", MICROSOFT):
            return None
        scaled, held = self._scaled(node), self.values.get(node.input[0])
        if scaled is None or held is None or held.dtype not in kinds:
            return None
        return Scaled(held.array, *scaled), node

    def _moved_integers(self, node: onnx.NodeProto, name: str) -> tuple[Scaled, onnx.NodeProto] | None:
        """Integers that a node has moved, of one scale and zero point."""
        sources = node.input if node.op_type == "Concat" else node.input[:1]
        found = [self.integers(each) for each in sources if each in self.fed]
        if len(found) < len(sources) or any(each is None for each in found):
            return None
        parts = [each for each in found if each is not None]
        first, dequantised = parts[0]
        marks = {
            (part.integers.dtype, part.scale.tobytes(), part.zero_point.tobytes(), part.scale.size) for part, _ in parts
        }
        if len(marks) > 1 or first.scale.size > 1 or first.zero_point.size > 1:
            return None
        return Scaled(
            self._moved(node, [part.integers for part, _ in parts], name), first.scale, first.zero
        ), dequantised

    def one_scale(self, name: str) -> Scaled | None:
        """The quantised operands that have one scale."""
        found = self.integers(name)
        if found is None or found[0].scale.size != 1 or found[0].zero_point.size != 1:
            return None
        return found[0]

    def computed(self, name: str) -> Scaled | None:
        """The quantised operands with one scale that are not constant."""
        found = self.one_scale(name)
        return None if found is None or name not in self.fed else found

    def weights(self, name: str, axis: int) -> tuple[Scaled, bool] | None:
        """The factors of a weight, constant or not: one scale, or one an index of `axis`, which counts from the end."""
        found = self.integers(name)
        if found is None:
            return None
        scaled, node = found
        along = next((a.i for a in node.attribute if a.name == "axis"), 1)
        several = scaled.scale.size > 1 or scaled.zero_point.size > 1
        rank = scaled.integers.ndim
        if several and along % rank - rank != axis:
            return None
        return scaled, name not in self.fed

    def bias(self, node: onnx.NodeProto, x: Scaled, w: Scaled, maps: int, y: Target) -> Array | None:
        """What is added to the sums, one integer an output channel: the bias, and what a BatchNormalization adds.

        A bias of int32 of the scale of the sums stays; others are rounded to it, where its steps are small.
        """
        step = np.float32(x.scale.reshape(-1)[0]) * w.scale.reshape(-1).astype(np.float32)
        bias: Array | None = np.zeros(maps)
        exact = len(node.input) < 3 or not node.input[2]
        if not exact:
            bias = self._whole_bias(node.input[2], step, maps)
            exact = bias is not None
            bias = self._real_bias(node.input[2], step, maps) if bias is None else bias
        if bias is None or (exact and y.slope is None):
            return bias
        with np.errstate(all="ignore"):
            slope = np.ones(1, np.float32) if y.slope is None else y.slope
            if y.slope is not None and y.rise is not None:
                bias = bias + y.rise.astype(np.float64) / (step.astype(np.float64) * slope.astype(np.float64))
            bias = np.rint(bias)
            least = np.abs((step * slope) / np.float32(y.scale.reshape(-1)[0]))
        if not (np.abs(bias) < MOST).all() or not (least <= STEP_OF_SUMS).all():
            return None
        return np.broadcast_to(bias, (maps,))

    def _whole_bias(self, name: str, step: Array, maps: int) -> Array | None:
        """Integers of int32 of the scale of the sums."""
        found = self.integers(name, [np.dtype(np.int32)])
        if found is None or name in self.fed or found[0].zero_point.any():
            return None
        own = found[0].scale.reshape(-1).astype(np.float32)
        if own.size not in (1, maps) or (np.abs(own - step) > BIAS_SCALE * step).any():
            return None
        return _each_map(found[0].integers.astype(np.float64), maps)

    def _real_bias(self, name: str, step: Array, maps: int) -> Array | None:
        """A constant bias of floats in steps of the sums."""
        held = self.values.get(name)
        if name in self.fed or held is None or held.dtype != np.float32:
            return None
        found = _each_map(held.array.astype(np.float32).astype(np.float64), maps)
        return None if found is None else found / step.astype(np.float64)


def _each_map(array: Array, maps: int) -> Array | None:
    fits = array.size in (1, maps) and array.shape[-1:] in ((), (1,), (maps,))
    return np.broadcast_to(array.reshape(-1), (maps,)) if fits else None


def _moves(node: onnx.NodeProto) -> bool:
    """True for what makes no new elements of those of its first input, or of its parts."""
    return not plain_domain(node.domain) and node.op_type in MOVES


def _is(node: onnx.NodeProto, op: str, *domains: str) -> bool:
    return node.op_type == op and plain_domain(node.domain) in ("", *domains)


def _reach(x: Scaled) -> float:
    """How far an integer of the type may be from the zero point."""
    limits = np.iinfo(x.integers.dtype)
    return float(max(limits.max - x.zero_point.min(), x.zero_point.max() - limits.min))


def _extreme(w: Scaled) -> Array:
    """Weights of the shape and type of those that arrive, as large as any."""
    return np.full(w.integers.shape, _reach(w))


def _fits(x: Scaled, weights: Array, axes: tuple[int, ...], bias: Array | float = 0.0) -> bool:
    """Whether no sum of products with these weights can leave int32."""
    sums = np.abs(weights).sum(axis=axes) * _reach(x) + np.abs(bias)
    return bool((sums < MOST).all())


# ---- what is defined ------------------------------------------------------------------------------------------------


def _conv(graph: Patterns, node: onnx.NodeProto, y: Target, attributes: Mapping[str, Any]) -> Array | None:
    x = graph.computed(node.input[0])
    found = graph.integers(node.input[1])
    rank = found[0].integers.ndim if found is not None else 0
    weights = graph.weights(node.input[1], -rank)
    if x is None or weights is None:
        return None
    w, constant = weights
    bias = graph.bias(node, x, w, w.integers.shape[0], y)
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
        if not _fits(a, b.above_zero(-1), (-2 % b.integers.ndim,)):
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
    b = weights[0]
    bias = graph.bias(node, a, b, b.integers.shape[axis], y)
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
