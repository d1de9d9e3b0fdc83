"""The nine `light` models of the onnx wheel: published networks whose large weights were replaced by one constant."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.topology import Size, Topology, extents

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
PUBLISHED_SIZE = (224, 224)
FILES = {
    "alexnet": "light_bvlc_alexnet",
    "vgg19": "light_vgg19",
    "inception_v1": "light_inception_v1",
    "inception_v2": "light_inception_v2",
    "resnet50": "light_resnet50",
    "densenet121": "light_densenet121",
    "squeezenet": "light_squeezenet",
    "shufflenet": "light_shufflenet",
    "zfnet512": "light_zfnet512",
}


def light(name: str, size: Size) -> Topology:
    """A light model without its weights, its batch opened and its input of `size`.

    Its nodes are as published but for three things: the ConstantOfShapes that stood for weights are gone, a Reshape
    copies the batch and has the rows and columns of its input, and a pool that covered its whole input still does.
    """
    return _resized(_read(name), extents(size))


NETWORKS: dict[str, Callable[[Size], Topology]] = {name: functools.partial(light, name) for name in FILES}


def _read(name: str) -> Topology:
    """The topology of a file: every float initializer and every ConstantOfShape is a weight to be drawn."""
    graph = onnx.load(str(FOLDER / f"{FILES[name]}.onnx")).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    filled = {node.output[0]: stored[node.input[0]] for node in graph.node if node.op_type == "ConstantOfShape"}
    read = {tensor for node in nodes for tensor in node.input}
    weights = {tensor: tuple(map(int, shape)) for tensor, shape in filled.items()}
    weights |= {tensor: array.shape for tensor, array in stored.items() if tensor in read and array.dtype.kind == "f"}
    constants = {tensor: array for tensor, array in stored.items() if tensor in read and array.dtype.kind == "i"}
    (source,) = (value.name for value in graph.input if value.name not in stored)
    return Topology(name, 3, PUBLISHED_SIZE, source, graph.output[0].name, nodes, weights, constants, 9)


def _resized(published: Topology, size: tuple[int, int]) -> Topology:
    """The same network for another input: what depends on the size of an image follows, node by node."""
    covers = {name for name, shape in published.shapes().items() if shape[2:] == (1, 1)}
    weights, constants = dict(published.weights), dict(published.constants)
    resized = dataclasses.replace(published, size=size, nodes=(), weights=weights, constants=constants)
    for original in published.nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        source = node.input[0]
        if node.op_type == "Reshape" and source not in weights:
            shape, target = resized.shapes()[source], constants[node.input[1]]
            kept = [math.prod(shape[1:])] if len(target) == 2 else [*target[1:-2], *shape[-2:]]
            constants[node.input[1]] = np.array([0, *kept])  # 0: the batch is copied
        elif node.op_type == "AveragePool" and node.output[0] in covers:
            _cover(node, resized.shapes()[source][2:])
        elif node.op_type == "Gemm" and node.input[1] in weights:
            weights[node.input[1]] = (weights[node.input[1]][0], resized.shapes()[source][1])
        resized = dataclasses.replace(resized, nodes=(*resized.nodes, node), output=node.output[0])
    return dataclasses.replace(resized, output=published.output)


def _cover(pool: onnx.NodeProto, extents: tuple[int, ...]) -> None:
    """Give a pool the window that covers an image of `extents` pixels and the pool's own padding."""
    attributes = {attribute.name: attribute for attribute in pool.attribute}
    pads = attributes["pads"].ints if "pads" in attributes else [0, 0, 0, 0]
    window = [extent + pads[i] + pads[i + 2] for i, extent in enumerate(extents)]
    attributes["kernel_shape"].CopyFrom(helper.make_attribute("kernel_shape", window))
