"""Builders of small ONNX models: a list of nodes, one node, a graph node by node, and arrays of drawn numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from helpers import feeds
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tvmcnn.check.reference import reference

Array = np.ndarray[Any, Any]
Shape = Sequence[int | str | None]
Kind = Shape | tuple[int, Shape] | int | Array | None  # see tensor_info
Names = str | Sequence[str]


def _words(names: Names) -> list[str]:
    """Names separated by blanks, "x w" --> ["x", "w"]; a list stays as it is."""
    return list(names) if not isinstance(names, str) else names.split(" ") if names else []


def node(op: str, inputs: Names, outputs: Names, name: str = "", **attributes: Any) -> NodeProto:
    """A node whose tensors are words, or lists where one is left out or has a blank in its name."""
    return helper.make_node(op, _words(inputs), _words(outputs), name, **attributes)


def tensor_info(name: str, kind: Kind) -> ValueInfoProto:
    """A declared tensor: of float32 and this shape, of this (element type, shape), or of what an array has.

    An element type alone leaves the shape open, and None the type too.
    """
    if kind is None:
        return helper.make_empty_tensor_value_info(name)
    if isinstance(kind, int):
        return helper.make_tensor_value_info(name, kind, None)
    if isinstance(kind, np.ndarray | np.generic):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind.dtype), kind.shape)
    if len(kind) == 2 and isinstance(kind[1], list | tuple):
        return helper.make_tensor_value_info(name, *kind)
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, kind)


def graph_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Kind],
    outputs: Names | Mapping[str, Kind],
    weights: Mapping[str, Any] | None = None,
    name: str = "g",
) -> GraphProto:
    """A graph, or the body of a branch; of outputs that are names alone nothing else is declared."""
    made = outputs if isinstance(outputs, Mapping) else dict.fromkeys(_words(outputs))
    arrays = [numpy_helper.from_array(np.asarray(array), word) for word, array in (weights or {}).items()]
    given, results = ([tensor_info(*value) for value in values.items()] for values in (inputs, made))
    return helper.make_graph(nodes, name, given, results, arrays)


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Kind],
    outputs: Names | Mapping[str, Kind],
    weights: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    functions: Sequence[FunctionProto] = (),
    ir_version: int = 8,
    name: str = "g",
) -> ModelProto:
    """A model of one graph; it imports ONNX's operators and version 1 of every other domain of nodes and functions."""
    graph = graph_of(nodes, inputs, outputs, weights, name)
    domains = {each.domain for each in nodes} | {each.domain for each in functions}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains - {""}))]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=ir_version)


def one_node(
    op: str, opset: int, arrays: Sequence[Array | None], *, outputs: int = 1, **attributes: Any
) -> tuple[ModelProto, dict[str, Array]]:
    """A model of one node whose inputs are all graph inputs x0, x1, ..., and what to feed it."""
    given = {f"x{place}": array for place, array in enumerate(arrays) if array is not None}
    names = ["" if array is None else f"x{place}" for place, array in enumerate(arrays)]
    made = [f"y{place}" for place in range(outputs)]
    nodes = [node(op, names, made, "the_node", **attributes)]
    return model_of(nodes, given, made, opset=opset, name="one_node"), given


def draw(
    seed: int | Sequence[int] | np.random.Generator,
    *shape: int,
    outliers: float = 0,
    times: float = 30,
    dtype: Any = np.float32,
) -> Array:
    """Normal numbers, a share of them so many times as large: near-uniform data would hide a misplaced tap."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return (np.where(rng.random(shape) < outliers, times * x, x) if outliers else x).astype(dtype)


def drawn(*shape: int, seed: int = 1, **more: Any) -> Array:
    """What `draw` draws, others for every shape."""
    return draw([seed, *shape], *shape, **more)


class Graph:
    """An ONNX model in the making: every method returns the name of the tensor that it adds."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[str] = []
        self.initializers: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def input(self, *shape: int) -> str:
        wide = [extent for extent in shape if extent > 1]
        assert len({*wide}) == len(wide), f"{shape}: two dimensions alike would hide a swap"
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.shapes[name] = shape
        return name

    def square(self, batch: int, channels: int, size: int) -> str:
        """An input of square images, as published networks have."""
        name = self.input(batch, channels, size, size + 1)
        self.inputs[-1].type.tensor_type.shape.dim[3].dim_value = size
        self.shapes[name] = (batch, channels, size, size)
        return name

    def constant(self, array: Any) -> str:
        name = f"c{len(self.initializers)}"
        data = np.asarray(array)
        data = data.astype(np.float32) if data.dtype.kind == "f" else data.astype(np.int64)
        self.initializers.append(numpy_helper.from_array(data, name))
        self.shapes[name] = data.shape
        return name

    def draw(self, *shape: int) -> str:
        """A constant of normal numbers, no two alike, so that none can stand in for another."""
        return self.constant(self.rng.standard_normal(shape))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of any tensor, by the reference."""
        if name not in self.shapes:
            model = self._model([helper.make_empty_tensor_value_info(name)])
            self.shapes |= {k: v.shape for k, v in reference(model, feeds(model), every_tensor=True).items()}
        return self.shapes[name]

    def conv(
        self, x: str, maps: int, kernel: tuple[int, ...], *, bias: bool = True, group: int = 1, **attrs: Any
    ) -> str:
        """A convolution with drawn weights, scaled so that deep graphs keep their size."""
        depth = self.shape(x)[1] // group
        weight = self.rng.standard_normal((maps, depth, *kernel)) / np.sqrt(depth * np.prod(kernel))
        operands = [x, self.constant(weight), *([self.draw(maps)] if bias else [])]
        return self.node("Conv", *operands, group=group, **attrs)

    def output(self, *names: str) -> None:
        self.outputs += names

    def model(self) -> ModelProto:
        return self._model([helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shape(n)) for n in self.outputs])

    def _model(self, outputs: list[ValueInfoProto]) -> ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def lenet(batch: int) -> ModelProto:
    """LeNet-5 with drawn weights: 1x32x32, two convolutions with pools, one that covers its input, two dense layers."""
    g = Graph(5)
    x = g.square(batch, 1, 32)
    for maps in (6, 16):
        x = g.node("MaxPool", g.node("Relu", g.conv(x, maps, (5, 5))), kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Flatten", g.node("Relu", g.conv(x, 120, (5, 5))))
    x = g.node("Relu", g.node("Gemm", x, g.draw(84, 120), g.draw(84), transB=1))
    g.output(g.node("Gemm", x, g.draw(10, 84), g.draw(10), transB=1))
    return g.model()


def mnist8(batch: int) -> ModelProto:
    """The graph of the ONNX model zoo's mnist-8 with drawn weights: the bias as an Add, a 3 x 3 pool, a MatMul."""
    g = Graph(8)
    x = g.square(batch, 1, 28)
    for maps, size in ((8, 2), (16, 3)):
        x = g.node("Add", g.conv(x, maps, (5, 5), bias=False, auto_pad="SAME_UPPER"), g.draw(maps, 1, 1))
        x = g.node("MaxPool", g.node("Relu", x), kernel_shape=[size, size], strides=[size, size])
    x = g.node("Reshape", x, g.constant(np.array([0, 256])))
    g.output(g.node("Add", g.node("MatMul", x, g.draw(256, 10)), g.draw(1, 10)))
    return g.model()


def wide() -> ModelProto:
    """Two images through kernels of every rule that threads share, each with more than one task."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(2, 3, 61, 90), 32, (3, 3), pads=[1, 1, 1, 1]))  # direct
    y = g.node("Relu", g.conv(x, 48, (3, 3), pads=[1, 1, 1, 1]))  # Winograd
    y = g.node("Relu", g.conv(y, 48, (3, 3), group=48, pads=[1, 1, 1, 1]))  # depthwise
    z = g.node("MaxPool", y, kernel_shape=[3, 2], strides=[1, 1])  # pool
    z = g.node("Add", z, g.node("Sigmoid", z))  # element-wise
    w = g.node("Relu", g.conv(z, 18, (1, 1), group=3))  # pixels
    w = g.node("Flatten", g.node("MaxPool", w, kernel_shape=[6, 7], strides=[6, 7]))
    columns = g.shape(w)[1]
    g.output(g.node("Gemm", w, g.draw(columns, 900), g.draw(900)), g.node("AveragePool", z, kernel_shape=[4, 3]))
    return g.model()
