"""Weights drawn at random so that activations keep their size through any depth.

He et al., Delving Deep into Rectifiers, 2015: normal weights whose variance lets a layer keep E[x²]. They derive it for
a ReLU; here it is measured, layer by layer, on one random image, so that gates, residual sums, smooth activations and
image borders count too: each layer is scaled so that its output has E[y²] = 1 (Mishkin and Matas, All You Need is a
Good Init, 2015), and a batch normalisation gets statistics near those of its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from models.topology import Array, Shape, Topology
from tvmcnn.check.reference_ops import lookup

LAYERS = ("Conv", "ConvTranspose", "Gemm")
SMALL = 0.1  # the size of what is added, of what it is added to


def fill(topology: Topology, seed: int) -> onnx.ModelProto:
    """The model of a topology, every weight drawn from `seed`."""
    filler = Filler(topology, seed)
    for node in topology.nodes:
        filler.visit(node)
    return topology.model(filler.drawn)


class Filler:
    """Visits the nodes in order: draws their weights, and evaluates them on an image, in float64.

    `values` has the tensors so far. Figures that go from them into weights are rounded, so that the last bits of
    another machine's sums do not reach the weights.
    """

    def __init__(self, topology: Topology, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.topology = topology
        self.stored = {name: name for name in topology.weights}  # also by the names of what only reshapes them
        self.reshapes: dict[str, onnx.NodeProto] = {}
        self.drawn: dict[str, Array] = {}
        self.values: dict[str, Array] = {name: np.asarray(array) for name, array in topology.constants.items()}
        self.values[topology.input] = self.rng.standard_normal((1, topology.channels, *topology.size))

    def visit(self, node: onnx.NodeProto) -> None:
        """Draw what the node reads, and evaluate it."""
        x, result = node.input[0], node.output[0]
        if x in self.stored:  # a weight in another shape: it is drawn when a layer reads it
            self.stored[result] = self.stored[x]
            self.reshapes[result] = node
        elif node.op_type in LAYERS:
            self.values[result] = self._layer(node)
        else:
            if node.op_type == "BatchNormalization":
                self._draw_statistics(node)
            elif weights := [name for name in node.input if name in self.stored]:
                draw = self._around_one if node.op_type == "Mul" else self._normal(SMALL * _size(self.values[x]))
                self._draw(weights[0], draw)
            self.values[result] = self._evaluate(node, *(self._value(name) for name in node.input))

    def _layer(self, node: onnx.NodeProto) -> Array:
        """A layer whose weights give its output its size, and a small bias."""
        weight = self._draw(node.input[1], self._normal(1.0))
        y = self._evaluate(node, self.values[node.input[0]], self._value(node.input[1]))
        size = self._wanted(node)
        scale = _rounded(size / _size(y))
        weight *= np.float32(scale)
        y *= scale
        if len(node.input) > 2:
            y += self._draw(node.input[2], self._normal(SMALL * size)).reshape(-1, *(1,) * (y.ndim - 2))
        return y

    def _draw_statistics(self, node: onnx.NodeProto) -> None:
        """Scale, shift, mean and variance, so that the output has about its size."""
        wanted = self._wanted(node)
        size = _rounded(_size(self.values[node.input[0]]))
        scale, shift, mean, variance = node.input[1:]
        self._draw(scale, lambda shape: wanted * self._around_one(shape))
        self._draw(shift, self._normal(SMALL * wanted))
        self._draw(mean, self._normal(SMALL * size))
        self._draw(variance, lambda shape: size**2 * self._around_one(shape))

    def _wanted(self, node: onnx.NodeProto) -> float:
        """The size that the output of a layer or normalisation shall have."""
        return self.topology.sizes.get(node.input[1], 1.0)

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def _draw(self, name: str, draw: Callable[[Shape], Array]) -> Array:
        """The values of a weight, drawn when it is first read."""
        weight = self.stored[name]
        if weight not in self.drawn:
            self.drawn[weight] = draw(self.topology.weights[weight]).astype(np.float32, copy=False)
        return self.drawn[weight]

    def _normal(self, size: float) -> Callable[[Shape], Array]:
        def draw(shape: Shape) -> Array:
            return self.rng.standard_normal(shape, np.float32) * np.float32(_rounded(size))

        return draw

    def _around_one(self, shape: Shape) -> Array:
        return self.rng.uniform(0.8, 1.2, shape)

    # ---- evaluating -------------------------------------------------------------------------------------------------

    def _value(self, name: str) -> Array:
        """A tensor that has been made or drawn."""
        if name in self.reshapes:
            return self._evaluate(self.reshapes[name], *(self._value(source) for source in self.reshapes[name].input))
        value = self.drawn[name] if name in self.drawn else self.values[name]
        return value.astype(np.float64) if value.dtype.kind == "f" else value

    def _evaluate(self, node: onnx.NodeProto, *inputs: Array) -> Array:
        """The node's first output."""
        attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        function = lookup(node.op_type, self.topology.opset)
        assert function is not None, f"the reference has no {node.op_type}"
        result = function(*inputs, **attributes)
        return np.asarray(result[0] if isinstance(result, tuple) else result)


def _size(x: Array) -> float:
    """The root of E[x²]."""
    return math.sqrt(float(np.mean(np.square(x, dtype=np.float64))))


def _rounded(value: float) -> float:
    """The value to three digits."""
    return float(f"{value:.2e}")
