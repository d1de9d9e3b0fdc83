"""The words that the networks are written in. Each adds its nodes and returns the name of the tensor that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from models.topology import Array, Shape, Size, Topology, extents

OPSET = 17


class Builder:
    """A network in the making, with the nodes that PyTorch exports in evaluation mode before anything is folded.

    `shapes` has (channels, rows, columns) of each tensor, (features,) after `flatten`.
    """

    def __init__(self, name: str, size: Size, channels: int = 3) -> None:
        self.name, self.size, self.channels = name, extents(size), channels
        self.input = "input"
        self.shapes: dict[str, Shape] = {self.input: (channels, *self.size)}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Shape] = {}
        self.constants: dict[str, Array] = {}
        self.sizes: dict[str, float] = {}

    def topology(self, output: str) -> Topology:
        """The finished network."""
        return Topology(
            self.name,
            self.channels,
            self.size,
            self.input,
            output,
            tuple(self.nodes),
            dict(self.weights),
            dict(self.constants),
            OPSET,
            dict(self.sizes),
        )

    # ---- layers with weights ----------------------------------------------------------------------------------------

    def conv(
        self,
        x: str,
        maps: int,
        kernel: int,
        stride: int = 1,
        *,
        pad: int | None = None,
        group: int = 1,
        bias: bool = False,
        size: float = 1.0,
    ) -> str:
        """A square convolution, padded by half the kernel if not told otherwise.

        Here and in `batch_norm`, weights are drawn so that the output has the root mean square `size`.
        """
        depth = self.shapes[x][0]
        pad = kernel // 2 if pad is None else pad
        shape = (maps, *self._extents(x, kernel, stride, pad))
        weights: dict[str, Shape] = {"weight": (maps, depth // group, kernel, kernel)}
        if bias:
            weights["bias"] = (maps,)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        y = self._node("Conv", [x], shape, weights, group=group, dilations=[1, 1], **window)
        self.sizes[f"{y}.weight"] = size
        return y

    def depthwise(self, x: str, kernel: int, stride: int) -> str:
        """A convolution of each channel by itself."""
        maps = self.shapes[x][0]
        return self.conv(x, maps, kernel, stride, group=maps)

    def conv_transpose(self, x: str, maps: int, scale: int) -> str:
        """A transposed convolution whose windows touch and do not overlap: `scale` times the rows and columns."""
        depth, rows, columns = self.shapes[x]
        weights = {"weight": (depth, maps, scale, scale), "bias": (maps,)}
        window = {"kernel_shape": [scale] * 2, "strides": [scale] * 2, "pads": [0] * 4}
        shape = (maps, rows * scale, columns * scale)
        return self._node("ConvTranspose", [x], shape, weights, group=1, dilations=[1, 1], **window)

    def batch_norm(self, x: str, epsilon: float = 1e-5, size: float = 1.0) -> str:
        """Batch normalisation with the statistics of training."""
        weights = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), self.shapes[x][:1])
        y = self._node("BatchNormalization", [x], self.shapes[x], weights, epsilon=epsilon, momentum=0.9)
        self.sizes[f"{y}.weight"] = size
        return y

    def dense(self, x: str, features: int) -> str:
        """A fully connected layer."""
        weights = {"weight": (features, self.shapes[x][0]), "bias": (features,)}
        return self._node("Gemm", [x], (features,), weights, alpha=1.0, beta=1.0, transB=1)

    # ---- activations ------------------------------------------------------------------------------------------------

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self._node("Relu", [x], self.shapes[x])

    def relu6(self, x: str) -> str:
        """x between 0 and 6; the bounds are inputs of Clip."""
        self.constants |= {"relu6.min": np.array(0, np.float32), "relu6.max": np.array(6, np.float32)}
        return self._node("Clip", [x, "relu6.min", "relu6.max"], self.shapes[x])

    def sigmoid(self, x: str) -> str:
        """1 / (1 + e^-x)."""
        return self._node("Sigmoid", [x], self.shapes[x])

    def swish(self, x: str) -> str:
        """x * sigmoid(x), also called SiLU: two nodes."""
        return self.mul(x, self.sigmoid(x))

    def hard_sigmoid(self, x: str) -> str:
        """x / 6 + 1/2 between 0 and 1."""
        return self._node("HardSigmoid", [x], self.shapes[x], alpha=1 / 6)

    def hard_swish(self, x: str) -> str:
        """x * hard_sigmoid(x)."""
        return self._node("HardSwish", [x], self.shapes[x])

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def add(self, a: str, b: str) -> str:
        """A sum of two tensors of one shape."""
        return self._node("Add", [a, b], self.shapes[a])

    def mul(self, a: str, b: str) -> str:
        """A product, `b` broadcast to the shape of `a`."""
        return self._node("Mul", [a, b], self.shapes[a])

    def concat(self, *parts: str) -> str:
        """The channels of all parts."""
        channels = sum(self.shapes[part][0] for part in parts)
        return self._node("Concat", list(parts), (channels, *self.shapes[parts[0]][1:]), axis=1)

    def max_pool(self, x: str, kernel: int, stride: int, pad: int = 0) -> str:
        """A maximum over square windows."""
        shape = (self.shapes[x][0], *self._extents(x, kernel, stride, pad))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self._node("MaxPool", [x], shape, {}, **window)

    def global_average_pool(self, x: str) -> str:
        """The mean of each channel, as 1 x 1 pixel."""
        return self._node("GlobalAveragePool", [x], (self.shapes[x][0], 1, 1))

    def flatten(self, x: str) -> str:
        """All but the batch in one dimension."""
        return self._node("Flatten", [x], (int(np.prod(self.shapes[x])),), axis=1)

    def _extents(self, x: str, kernel: int, stride: int, pad: int) -> tuple[int, int]:
        _, rows, columns = self.shapes[x]
        if min(rows, columns) + 2 * pad < kernel:
            raise ValueError(f"{x} is {rows} x {columns}, too small for a window of {kernel} x {kernel}")
        return (rows + 2 * pad - kernel) // stride + 1, (columns + 2 * pad - kernel) // stride + 1

    def _node(
        self, op: str, inputs: list[str], shape: Shape, weights: Mapping[str, Shape] | None = None, **attributes: Any
    ) -> str:
        name = f"{op}_{len(self.nodes)}"
        named = {f"{name}.{role}": extents for role, extents in (weights or {}).items()}
        self.weights |= named
        self.shapes[name] = shape
        self.nodes.append(helper.make_node(op, [*inputs, *named], [name], name=name, **attributes))
        return name
