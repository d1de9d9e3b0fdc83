"""The LeNet-5 model that comes with the package: its shape, its metadata and what it gets right."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from data import SHIPPED
from numpy.typing import NDArray

TEST_DATA = "TVMCNN_TEST_DATA"
SAMPLE_RIGHT = 40  # of the 40 demonstration digits


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(SHIPPED / "lenet5.onnx")


@pytest.fixture(scope="module")
def facts(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Return the shape of every input, output and intermediate tensor; open lengths are their names."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }


def predict(facts: dict[str, str], images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the digits recognised in white-on-black images of shape (count, 32, 32), normalised as `facts` say."""
    scaled = images[:, None].astype(np.float32) * np.float32(facts["scale"])
    pixels = (scaled - np.float32(facts["mean"])) / np.float32(facts["std"])
    session = onnxruntime.InferenceSession(SHIPPED / "lenet5.onnx", providers=["CPUExecutionProvider"])
    scores = [session.run(["scores"], {"input": part})[0] for part in np.array_split(pixels, 1 + len(pixels) // 1000)]
    return np.asarray(np.concatenate(scores).argmax(axis=1), np.int64)


def test_graph_is_plain_lenet5(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == (
        ["Conv", "Relu", "MaxPool"] * 2 + ["Conv", "Relu", "Flatten", "Gemm", "Relu", "Gemm"]
    )
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert 8 <= model.ir_version <= 10
    assert model.doc_string == "" and all(node.doc_string == "" for node in model.graph.node)


def test_tensors_have_readable_names(model: onnx.ModelProto) -> None:
    graph = model.graph
    layers = ["conv1", "conv2", "conv3", "dense1", "dense2"]
    assert sorted(weights.name for weights in graph.initializer) == sorted(
        f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")
    )
    outputs = [name for node in graph.node for name in node.output]
    assert outputs == [
        *["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3"],
        *["flatten", "dense1", "relu4", "scores"],
    ]


def test_batch_is_open(model: onnx.ModelProto, facts: dict[str, str]) -> None:
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["scores"]
    shapes = tensor_shapes(model)
    assert shapes["input"] == ["batch", 1, 32, 32]
    assert shapes["conv1"] == ["batch", 6, 28, 28]
    assert shapes["conv2"] == ["batch", 16, 10, 10]
    assert shapes["conv3"] == ["batch", 120, 1, 1]
    assert shapes["scores"] == ["batch", 10]
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32), np.uint8)
    assert len(predict(facts, images)) == 7
    assert len(predict(facts, images[:1])) == 1


def test_parameter_count(model: onnx.ModelProto) -> None:
    assert sum(int(np.prod(weights.dims)) for weights in model.graph.initializer) == 61_706


def test_multiply_accumulate_count(model: onnx.ModelProto) -> None:
    shapes = tensor_shapes(model)
    dims = {weights.name: list(weights.dims) for weights in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            # Each value of the output (per image) is the sum of as many products as its filter has weights.
            outputs = int(np.prod([int(length) for length in shapes[node.output[0]][1:]]))
            total += outputs * int(np.prod(dims[node.input[1]][1:]))
    assert total == 416_520


def test_metadata_is_complete(facts: dict[str, str]) -> None:
    assert float(facts["scale"]) == 1 / 255
    assert 0.0 < float(facts["mean"]) < 1.0 and 0.0 < float(facts["std"]) < 1.0
    assert facts["polarity"] == "white digit on black background"
    assert facts["licence"] == "Apache-2.0"
    assert int(facts["mnist_images"]) == 10_000 and float(facts["mnist_accuracy"]) >= 0.99
    assert int(facts["printed_images"]) == 8_000 and float(facts["printed_accuracy"]) >= 0.99
    assert facts["seed"].isdigit() and facts["torch_version"]
    training, held_out = (set(facts[f"{group}_fonts"].split(", ")) for group in ("training", "held_out"))
    assert len(training) >= 20 and len(held_out) == 8 and not training & held_out


def test_metadata_names_no_machine(facts: dict[str, str]) -> None:
    assert facts["command"].startswith("python tools/train_lenet5.py --data MNIST_FOLDER ")
    for value in facts.values():
        assert not re.search(r"(^|\s)[/~]\w", value), "an absolute path; a division sign has a space after it"


def test_file_size() -> None:
    assert 240_000 < (SHIPPED / "lenet5.onnx").stat().st_size < 260_000


def test_sample_digits(facts: dict[str, str]) -> None:
    with np.load(SHIPPED / "digits.npz") as sample:
        images, labels = sample["images"], sample["labels"]
        assert str(sample["font"]) and str(sample["licence"])
    assert images.shape == (40, 32, 32) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [4] * 10
    assert int((predict(facts, images) == labels).sum()) == SAMPLE_RIGHT


def test_mnist_accuracy(facts: dict[str, str]) -> None:
    if TEST_DATA not in os.environ:
        pytest.skip(f"{TEST_DATA} is not set: it must name a folder that holds data/mnist/t10k-images-idx3-ubyte.gz")
    folder = Path(os.environ[TEST_DATA]) / "data" / "mnist"
    # The header takes 16 bytes in the file of images and 8 bytes in that of labels.
    content = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    content = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(content, np.uint8, offset=8)
    assert len(images) == len(labels) == 10_000
    right = predict(facts, np.pad(images, ((0, 0), (2, 2), (2, 2)))) == labels
    assert right.mean() >= 0.99
    assert right.mean() == float(facts["mnist_accuracy"])
