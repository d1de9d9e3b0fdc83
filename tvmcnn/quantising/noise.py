"""Noise: how far each quantised tensor is from the float network's, in decibels.

    20·log10(‖x‖ / ‖y − x‖), x in the float network, y in the quantised one behind its DequantizeLinear

A tensor's noise is what all layers before it made and what its own rounding adds: alone it is that of the float
network's x, behind the same QuantizeLinear and DequantizeLinear, and shows where a range was found too small or too
large.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from tvmcnn.network import Array
from tvmcnn.quantising.sessions import session

# Operators that make no noise of their own, so that their output has that of their input
MOVES = frozenset(
    """
    Reshape Flatten Squeeze Unsqueeze Transpose Split Slice Gather Pad Expand Tile DepthToSpace SpaceToDepth MaxPool
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Noise:
    """A quantised tensor: who makes it, or reads it if it is a weight; its dB beside the float network, and alone."""

    tensor: str
    node: str
    op: str
    is_weight: bool
    decibels: float
    alone: float


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear and the DequantizeLinear behind it: the float network's tensor, the one behind both, the scale
    and the zero point."""

    name: str
    after: str
    scale: Array
    zero: Array

    def rounded(self, x: Array) -> Array:
        """DequantizeLinear(QuantizeLinear(x))"""
        limits = np.iinfo(self.zero.dtype)
        integers = np.clip(np.rint(x / self.scale) + self.zero, limits.min, limits.max)
        return np.asarray((integers - self.zero) * self.scale, np.float32)


def noises(
    ready: onnx.ModelProto,
    quantised: onnx.ModelProto,
    feeds: Iterable[dict[str, Array]],
    label: str,
) -> tuple[Noise, ...]:
    """Every quantised tensor and weight, the noisiest first."""
    pairs = _pairs(ready, quantised)
    makers = {name: node for node in ready.graph.node for name in node.output}
    given = {value.name for value in ready.graph.input}
    plain = session(ready, label, {pair.name for pair in pairs} - given)
    rounded = session(quantised, f"the quantised {label}", {pair.after for pair in pairs})
    sums: dict[str, Array] = defaultdict(lambda: np.zeros(4))
    for feed in feeds:
        wanted, found = {**feed, **plain(feed)}, rounded(feed)
        for pair in pairs:
            x = wanted[pair.name]
            sums[pair.name] += (*_powers(x, found[pair.after]), *_powers(x, pair.rounded(x)))
    rows = [
        Noise(
            pair.name,
            makers[pair.name].name if pair.name in makers else "",
            makers[pair.name].op_type if pair.name in makers else "input",
            False,
            decibels(*sums[pair.name][:2]),
            decibels(*sums[pair.name][2:]),
        )
        for pair in pairs
    ]
    return tuple(sorted([*rows, *_weights(ready, quantised)], key=lambda row: row.decibels))


def _powers(x: Array, y: Array) -> tuple[float, float]:
    """The sums of squares of a tensor and of another's difference from it."""
    exact = x.astype(np.float64)
    return float(np.square(exact).sum()), float(np.square(y - exact).sum())


def decibels(signal: float, noise: float) -> float:
    """Infinite where there is no noise, and minus infinity where there is nothing else."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _pairs(ready: onnx.ModelProto, quantised: onnx.ModelProto) -> list[Pair]:
    """The pairs whose tensor the float network has too: its name is behind the pair, or before it.

    Of a Relu that the integers' range makes, the name before is its own.
    """
    known = {name for node in ready.graph.node for name in node.output} | {value.name for value in ready.graph.input}
    arrays = {tensor.name: tensor for tensor in quantised.graph.initializer}
    down = {node.input[0]: node.output[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in quantised.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in down:
            before, after = node.input[0], down[node.output[0]]
            scale, zero = (onnx.numpy_helper.to_array(arrays[name]) for name in node.input[1:3])
            name = next((each for each in (after, before) if each in known), None)
            found += [Pair(name, after, scale, zero)] if name is not None else []
    return found


def _weights(ready: onnx.ModelProto, quantised: onnx.ModelProto) -> Iterator[Noise]:
    """The weights in 8 bits; biases have 32."""
    arrays = {tensor.name: tensor for tensor in (*ready.graph.initializer, *quantised.graph.initializer)}
    readers = {name: node for node in ready.graph.node for name in node.input}
    for node in quantised.graph.node:
        name = node.input[0].removesuffix("_quantized")  # as onnxruntime names what it makes of a weight
        if node.op_type != "DequantizeLinear" or node.input[0] not in arrays or name not in readers:
            continue
        q, scale, zero = (onnx.numpy_helper.to_array(arrays[each]) for each in node.input[:3])
        if q.dtype.itemsize > 1 or name not in arrays:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        form = [-1 if place == axis % q.ndim else 1 for place in range(q.ndim)] if scale.size > 1 else []
        found = (q.astype(np.float64) - zero.reshape(form)) * scale.reshape(form)
        level = decibels(*_powers(onnx.numpy_helper.to_array(arrays[name]), found))
        yield Noise(name, readers[name].name, readers[name].op_type, True, level, level)
