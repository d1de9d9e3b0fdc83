"""What is chosen for layers of published networks, on each class of CPUs: a change of the estimates shows here.

A choice that is worse is as right as another, and no test of results sees it. After a change that is meant, measure the
layers that differ, then `pytest tests/choose/test_golden_choices.py --update-golden`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmcnn.choose.cpu import choose
from tvmcnn.choose.cuda import choose as choose_for_gpus
from tvmcnn.choose.records import Records
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Choice
from tvmcnn.targets import TARGETS

Shape = tuple[int, ...]
# (channels, rows, columns), (maps, rows, columns of the filter), attributes
CONVOLUTIONS: tuple[tuple[Shape, Shape, dict[str, Any]], ...] = (
    ((3, 224, 224), (64, 7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    ((3, 224, 224), (32, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((3, 227, 227), (96, 11, 11), {"strides": [4, 4]}),
    ((3, 224, 224), (96, 4, 4), {"strides": [4, 4]}),
    ((1, 28, 28), (6, 5, 5), {"pads": [2, 2, 2, 2]}),
    ((6, 14, 14), (16, 5, 5), {}),
    ((64, 56, 56), (64, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((128, 28, 28), (128, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((256, 14, 14), (256, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((256, 7, 7), (256, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((64, 57, 61), (80, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((48, 19, 23), (40, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((64, 56, 56), (128, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((128, 29, 31), (144, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((64, 56, 56), (256, 1, 1), {}),
    ((256, 56, 56), (64, 1, 1), {}),
    ((512, 14, 14), (256, 1, 1), {}),
    ((832, 7, 7), (384, 1, 1), {}),
    ((24, 56, 56), (144, 1, 1), {}),
    ((160, 7, 7), (960, 1, 1), {}),
    ((256, 56, 56), (512, 1, 1), {"strides": [2, 2]}),
    ((48, 27, 27), (64, 5, 5), {"pads": [2, 2, 2, 2]}),
    ((96, 17, 17), (112, 1, 7), {"pads": [0, 3, 0, 3]}),
    ((256, 28, 28), (128, 3, 3), {"dilations": [12, 12], "pads": [12, 12, 12, 12]}),
    ((128, 28, 28), (128, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ((128, 56, 56), (128, 3, 3), {"group": 32, "pads": [1, 1, 1, 1]}),
    ((64, 28, 28), (64, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((240, 28, 28), (120, 1, 1), {"group": 3}),
    ((96, 56, 56), (96, 3, 3), {"group": 96, "pads": [1, 1, 1, 1]}),
    ((96, 57, 61), (96, 3, 3), {"group": 96, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((96, 28, 28), (96, 7, 7), {"group": 96, "pads": [3, 3, 3, 3]}),
    ((64, 96, 96), (3, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((32, 96, 96), (3, 9, 9), {"pads": [4, 4, 4, 4]}),
    ((64, 96, 96), (1, 1, 1), {}),
    ((12, 160, 160), (16, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((512, 7, 7), (100, 7, 7), {}),
)
# Layers that are no convolution: the operator, its input, the shapes of its constants, its attributes
OTHERS: tuple[tuple[str, Shape, tuple[Shape, ...], dict[str, Any]], ...] = (
    ("GlobalAveragePool", (1, 512, 14, 14), (), {}),
    ("ReduceMean", (1, 96, 31, 17), (), {"axes": [2, 3]}),
    ("MaxPool", (1, 3, 112, 112), (), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    ("Softmax", (8, 197, 197), (), {"axis": -1}),
    ("LayerNormalization", (1, 3136, 96), ((96,), (96,)), {"axis": -1}),
    ("MatMul", (12, 197, 64), ((12, 64, 197),), {}),
    ("LSTM", (25, 1, 64), ((1, 512, 64), (1, 512, 128)), {"hidden_size": 128}),
    ("GRU", (25, 3, 64), ((2, 384, 64), (2, 384, 128)), {"hidden_size": 128, "direction": "bidirectional"}),
    ("ConvTranspose", (1, 64, 28, 30), ((64, 32, 3, 3),), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Transpose", (1, 56, 56, 64), (), {"perm": [0, 3, 1, 2]}),
)
PRODUCTS = (
    (1, 2048, 1000),
    (1, 400, 120),
    (57, 96, 384),
    (197, 768, 768),
    (7, 130, 33),
    (32, 512, 10),
    (784, 64, 256),
    (3136, 256, 1024),
    (64, 8192, 64),
)


def convolution(batch: int, image: Shape, filters: Shape, attributes: dict[str, Any]) -> onnx.ModelProto:
    maps, *window = filters
    weight = np.full((maps, image[0] // attributes.get("group", 1), *window), 0.01, np.float32)
    node = helper.make_node("Conv", ["r", "w"], ["c"], **attributes)
    return between(node, (batch, *image), weight)


def product(rows: int, depth: int, columns: int) -> onnx.ModelProto:
    return between(helper.make_node("MatMul", ["r", "w"], ["c"]), (rows, depth), np.full((depth, columns), 0.01))


def joined() -> onnx.ModelProto:
    """A residual block and branches that are concatenated: what readers want around an image is there as it is made."""
    weights = {"a": (64, 64, 1, 1), "b": (64, 64, 3, 3), "c": (32, 64, 1, 1), "d": (32, 64, 5, 5), "e": (48, 128, 3, 3)}
    pads = {"b": 1, "d": 2, "e": 1}
    nodes = []

    def conv(name: str, x: str) -> None:
        words = {"pads": [pads.get(name, 0)] * 4}
        nodes.append(helper.make_node("Conv", [x, f"w{name}"], [name], **words))

    conv("a", "x")
    conv("b", "a")
    nodes.append(helper.make_node("Add", ["b", "x"], ["r"]))
    conv("c", "r")
    conv("d", "r")
    nodes.append(helper.make_node("Concat", ["c", "r", "d"], ["j"], axis=1))
    conv("e", "j")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 64, 28, 28))
    y = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.full(shape, 0.01, np.float32), f"w{n}") for n, shape in weights.items()]
    graph = helper.make_graph(nodes, "joined", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer(op: str, image: Shape, shapes: Sequence[Shape], attributes: dict[str, Any]) -> onnx.ModelProto:
    node = helper.make_node(op, ["x", *(f"c{i}" for i in range(len(shapes)))], ["y"], **attributes)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", image), ("y", None)))
    constants = [numpy_helper.from_array(np.full(shape, 0.01, np.float32), f"c{i}") for i, shape in enumerate(shapes)]
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def between(node: onnx.NodeProto, shape: Shape, weight: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A layer between two activations."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), node, helper.make_node("Relu", ["c"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None)))
    constant = numpy_helper.from_array(weight.astype(np.float32), "w")
    graph = helper.make_graph(nodes, "layer", [x], [y], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chosen(model: onnx.ModelProto, target: str, precision: str) -> tuple[Choice, ...]:
    network = simplified(import_model(model))
    if target.startswith("cuda"):
        return choose_for_gpus(network, fuse(network), precision=precision)
    return choose(network, fuse(network), TARGETS[target], Records({}), precision)


def layers(model: onnx.ModelProto, target: str, precision: str) -> Iterator[Choice]:
    """The choices without those of the activations around."""
    return (each for each in chosen(model, target, precision) if each.kernel.anchor.op in ("Conv", "Gemm", "MatMul"))


def line(choice: Choice) -> str:
    config = " ".join(f"{key}={value}" for key, value in asdict(choice.config).items()) if choice.config else ""
    rest = f"tasks={choice.tasks} scratch={choice.scratch_bytes}{' skips' * choice.skips_padding}"
    return f"    {choice.algorithm}, {', '.join(map(str, choice.reads))} -> {choice.writes}: {config}; {rest}"


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        *(("x86-64-v3", "fp32"), ("x86-64-v4", "fp32"), ("x86-64-v4-bf16", "bf16"), ("x86-64-v4-amx", "bf16")),
        *(("cuda", "fp32"), ("cuda", "tf32")),
    ],
)
def test_layers(target: str, precision: str, golden: Callable[[str], None]) -> None:
    lines = []
    for image, filters, attributes in CONVOLUTIONS:
        for batch in (1, 16) if np.prod(image) < 10_000 else (1,):
            words = " ".join(f"{key}={value}" for key, value in attributes.items())
            lines.append(f"{batch} x {image} by {filters} {words}".rstrip())
            lines += map(line, layers(convolution(batch, image, filters, attributes), target, precision))
    for rows, depth, columns in PRODUCTS:
        lines.append(f"{rows} x {depth} by {depth} x {columns}")
        lines += map(line, layers(product(rows, depth, columns), target, precision))
    for op, image, shapes, attributes in OTHERS:
        lines.append(f"{op} of {image}, {shapes}")
        lines += map(line, chosen(layer(op, image, shapes, attributes), target, precision))
    lines += ["residual block and branches", *map(line, chosen(joined(), target, precision))]
    golden("\n".join(lines))
