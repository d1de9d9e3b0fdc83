"""A float32 network and images to quantise it by, and what of the result tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from builders import model_of, node
from onnx import numpy_helper
from PIL import Image

from tvmcnn.quantising import quantize
from tvmcnn.quantising.result import Quantised

Array = np.ndarray[Any, Any]
CLASSES = ("bird", "cat", "dog", "fish", "goat")
PIXELS = {"mean": "0.4,0.3,0.1", "std": "0.2,0.3,0.5"}


def old_network(batch: int | str = "N", opset: int = 7) -> onnx.ModelProto:
    """A residual network as files of 2017 have it: weights among the inputs, BatchNormalization, no names of nodes.

    Its first filters read red most, green less and blue hardly, so that channels in the wrong order show.
    """
    rng, head = np.random.default_rng(5), np.random.default_rng(79)  # which tells the shades of draw_images apart
    first = np.abs(rng.standard_normal((16, 3, 3, 3))) * np.array([1, 0.1, 0.01]).reshape(1, 3, 1, 1) / 5
    weights = {
        "w": first,
        "scale": rng.uniform(0.5, 2, 16),
        "shift": rng.standard_normal(16),
        "centre": rng.standard_normal(16),
        "spread": rng.uniform(0.5, 2, 16),
        "v": rng.standard_normal((16, 16, 3, 3)) / 12,
        "dense": head.standard_normal((16, 5)),
        "bias": 3 * head.standard_normal((1, 5)),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c scale shift centre spread", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r v", "d", pads=[1, 1, 1, 1]),
        node("Sum", "d r", "a"),
        node("Relu", "a", "s"),
        node("MaxPool", "s", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "m", "g"),
        node("Flatten", "g", "f"),
        node("MatMul", "f dense", "t"),
        node("Add", "t bias", "y"),
        node("Softmax", "y", "p"),
    ]
    given = {"x": (batch, 3, 17, 13), **weights}
    model = model_of(nodes, given, {"p": (batch, 5)}, weights, opset=opset, ir_version=3)
    for key, value in PIXELS.items():
        model.metadata_props.add(key=key, value=value)
    return model


def draw_images(folder: Path, count: int = 6) -> None:
    """Reddish noise, another shade for each class, in a folder for each."""
    rng = np.random.default_rng(7)
    for place, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colour = np.array([120 + 20 * place, 90 - 9 * place, 30])
            pixels = np.clip(colour + rng.normal(0, 25, (19, 14, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def made(shelf: Path, folder: Path, **options: Any) -> tuple[Quantised, onnx.ModelProto]:
    result = quantize(shelf / "old.onnx", shelf / "images", folder / "q.onnx", **options)
    return result, onnx.load(folder / "q.onnx")


def images(shelf: Path, metadata: dict[str, str] = PIXELS) -> list[Array]:
    """All images as the network takes them, by formulas of their own."""
    mean, std = (np.array([float(word) for word in metadata[key].split(",")]) for key in ("mean", "std"))
    found = []
    for path in sorted((shelf / "images").rglob("*.png")):
        pixels = np.asarray(Image.open(path).resize((13, 17), Image.Resampling.BILINEAR), np.float64)
        found.append(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))
    return found


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def zeros(model: onnx.ModelProto) -> dict[str, list[Array]]:
    """The zero points of activations and of weights in 8 bits."""
    known, found = constants(model), {"activations": [], "weights": []}
    for each in model.graph.node:
        if each.op_type == "QuantizeLinear":
            found["activations"].append(known[each.input[2]])
        if each.op_type == "DequantizeLinear" and each.input[0] in known and known[each.input[0]].dtype == np.int8:
            found["weights"].append(known[each.input[2]])
    return found
