"""Convolutions of sequences become those of images of one row, and all else sees sequences as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from builders import Graph
from data import NVCC
from helpers import feeds, verified

import tvmcnn
from tvmcnn.artifact.manifest import described
from tvmcnn.compiler import Compiled
from tvmcnn.errors import VerifyError
from tvmcnn.fuse import passes
from tvmcnn.fuse.rows_as_images import rows_as_images
from tvmcnn.network import Network

PEER_BOUND = 2e-5  # of the largest value: two float32 libraries that add in other orders


def agreed(g: Graph, folder: Path, target: str = "native") -> Compiled:
    """Compile, which compares every tensor with the reference, and compare the outputs with onnxruntime's."""
    model = g.model()
    compiled = verified(model, folder, target)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    net, given = tvmcnn.load(compiled.path), feeds(model)
    for info, ours, theirs in zip(net.outputs, net.run(None, given), session.run(None, given), strict=True):
        assert ours.shape == theirs.shape == info.shape == g.shape(info.name)
        assert np.abs(ours - theirs).max() <= PEER_BOUND * np.abs(theirs).max(), info.name
    for name, array in net.activations(*given.values()).items():
        if name in g.shapes or any(name in each.output for each in g.nodes):
            assert array.shape == g.shape(name), name
    return compiled


def algorithms(compiled: Compiled, *ops: str) -> list[str]:
    """How each kernel of such an anchor is computed."""
    return [step.choice.algorithm for step in compiled.program.steps if step.choice.kernel.anchor.op in ops]


def reshapes(compiled: Compiled) -> list[str]:
    """What sees a tensor in another rank."""
    return [node.output for node in compiled.program.network.nodes if node.op == "Reshape"]


@pytest.mark.parametrize(
    ("channels", "maps", "kernel", "attributes", "algorithm"),
    [
        (6, 19, 3, {"pads": [1, 1]}, "columns"),
        (17, 40, 5, {"pads": [4, 0]}, "columns"),  # causal
        (32, 48, 3, {"pads": [2, 1], "dilations": [3]}, "direct"),
        (33, 16, 4, {"strides": [3]}, "direct"),
        (1, 32, 20, {"strides": [7], "pads": [2, 5]}, "direct"),
        (24, 24, 9, {"group": 24, "dilations": [2], "pads": [9, 7]}, "depthwise"),
        (48, 16, 2, {"auto_pad": "SAME_LOWER", "strides": [2]}, "direct"),
        (32, 64, 4, {"group": 2, "auto_pad": "SAME_UPPER"}, "direct"),
        (12, 18, 3, {"group": 6, "pads": [0, 2]}, "grouped"),
        (48, 24, 1, {"group": 3}, "pixels"),
        (11, 21, 131, {}, "dense"),
    ],
    ids=str,
)
def test_convolutions(
    channels: int, maps: int, kernel: int, attributes: dict[str, Any], algorithm: str, tmp_path: Path
) -> None:
    """A batch of 3 sequences of a length that fills no vectors, in the lanes where maps fill those worse."""
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(3, channels, 131), maps, (kernel,), bias=kernel % 2 == 1, **attributes)))
    compiled = agreed(g, tmp_path)
    assert algorithms(compiled, "Conv") == [algorithm]
    assert [node.op for node in compiled.program.network.nodes] == ["Reshape", "Conv", "Relu"]


@pytest.mark.parametrize(
    ("maps", "kernel", "attributes", "ops"),
    [
        (16, 4, {"strides": [2], "pads": [1, 1]}, ["Conv", "DepthToSpace"]),
        (7, 15, {"strides": [5], "pads": [4, 2], "output_padding": [1]}, ["Conv", "DepthToSpace"]),
        (20, 6, {"strides": [3], "auto_pad": "SAME_UPPER"}, ["Conv", "DepthToSpace"]),
        (9, 3, {"pads": [0, 2]}, ["Conv"]),
        (9, 3, {"strides": [2], "pads": [1, 0]}, ["Conv", "Conv", "Concat", "DepthToSpace"]),  # of one tap and two
        (5, 4, {"strides": [2], "group": 2}, ["Conv", "Conv", "Concat", "DepthToSpace"]),
        (9, 3, {"dilations": [2]}, ["ConvTranspose"]),
    ],
    ids=str,
)
def test_transposed(maps: int, kernel: int, attributes: dict[str, Any], ops: list[str], tmp_path: Path) -> None:
    """Transposed convolutions are convolutions and a move, as those of images."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 23), 18, (1,)))
    depth = 18 // attributes.get("group", 1)
    weight = g.constant(g.rng.standard_normal((18, maps, kernel)) / np.sqrt(depth * kernel))
    g.output(g.node("Tanh", g.node("ConvTranspose", x, weight, g.draw(maps * 18 // depth), **attributes)))
    compiled = agreed(g, tmp_path)
    assert [node.op for node in compiled.program.network.nodes] == ["Reshape", "Conv", "Relu", *ops, "Tanh"]


def test_every_vector_width(target: str, tmp_path: Path) -> None:
    """A network of residual blocks, with what they have in common."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 77), 32, (7,), pads=[3, 3], strides=[2]))
    for dilation in (1, 2):
        y = g.node("Relu", g.conv(x, 48, (3,), pads=[dilation] * 2, dilations=[dilation]))
        x = g.node("Add", g.conv(g.conv(y, 48, (5,), pads=[2, 2], group=48), 32, (1,)), x)
    x = g.node("MaxPool", x, kernel_shape=[3], strides=[2], pads=[1, 0])
    g.output(g.node("AveragePool", x, kernel_shape=[4], pads=[1, 2]), g.node("GlobalAveragePool", x))
    compiled = agreed(g, tmp_path, target)
    assert reshapes(compiled) == ["x0.image"]
    assert set(algorithms(compiled, "Conv")) == {"direct", "depthwise"} | (
        {"columns"} & {*algorithms(compiled, "Conv")}
    )
    assert "Conv+Add" in [step.choice.kernel.ops for step in compiled.program.steps]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [3], "strides": [2], "dilations": [2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [4], "strides": [3], "auto_pad": "SAME_LOWER"}),
        ("AveragePool", {"kernel_shape": [3], "pads": [2, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [4], "strides": [3], "auto_pad": "SAME_UPPER"}),
        ("LpPool", {"kernel_shape": [3], "p": 1}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
        ("GlobalLpPool", {"p": 2}),
    ],
    ids=str,
)
def test_pools(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Neg", g.node(op, g.conv(g.input(3, 17, 29), 32, (2,)), **attributes)))
    compiled = agreed(g, tmp_path)
    assert reshapes(compiled) == ["x0.image"]


def test_gates(tmp_path: Path) -> None:
    """Squeeze and excite, by a ReduceMean, which is a pool."""
    g = Graph()
    x = g.conv(g.input(3, 7, 45), 32, (3,))
    pooled = g.node("ReduceMean", x, axes=[2], keepdims=1)
    gate = g.node("Sigmoid", g.conv(g.node("Relu", g.conv(pooled, 8, (1,))), 32, (1,)))
    g.output(g.conv(g.node("Mul", x, gate), 20, (1,)))
    assert reshapes(agreed(g, tmp_path)) == ["x0.image"]


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div", "PRelu"])
def test_constants_broadcast(op: str, tmp_path: Path) -> None:
    """Per map, per position, per element and one for all."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 23), 18, (1,)))
    for shape in ((18, 1), (1, 18, 1), (23,), (18, 23), (1, 1, 23), (), (1,), (1, 1, 1)):
        g.output(g.node(op, x, g.constant(2.5 + np.abs(g.rng.standard_normal(shape)))))
    assert reshapes(agreed(g, tmp_path)) == ["x0.image"]


def test_batch_normalization_folds(tmp_path: Path) -> None:
    g = Graph()
    y = g.conv(g.input(3, 5, 23), 18, (3,))
    statistics = [g.draw(18), g.draw(18), g.draw(18), g.constant(0.5 + g.rng.random(18))]
    z = g.node("BatchNormalization", y, *statistics)
    g.output(g.node("BatchNormalization", g.node("MaxPool", z, kernel_shape=[2]), *statistics))
    compiled = agreed(g, tmp_path)
    assert list(compiled.program.network.folded) == [y]
    assert [node.op for node in compiled.program.network.nodes] == ["Reshape", "Conv", "MaxPool", "BatchNormalization"]


def lstm(g: Graph, x: str) -> str:
    """A layer over the maps as times."""
    w, r = g.constant(0.1 * g.rng.standard_normal((1, 28, 23))), g.constant(0.1 * g.rng.standard_normal((1, 28, 7)))
    return g.node("LSTM", x, w, r, hidden_size=7)


READERS: dict[str, Callable[[Graph, str], str]] = {
    "Transpose": lambda g, x: g.node("Transpose", x, perm=[0, 2, 1]),
    "positions first": lambda g, x: g.node("Transpose", x, perm=[2, 0, 1]),
    "MatMul": lambda g, x: g.node("MatMul", x, g.draw(23, 9)),
    "LSTM": lstm,
    "Reshape": lambda g, x: g.node("Reshape", x, g.constant([3, -1])),
    "Flatten": lambda g, x: g.node("Flatten", x),
    "Softmax": lambda g, x: g.node("Softmax", x, axis=1),
    "Slice": lambda g, x: g.node("Slice", x, g.constant([1]), g.constant([20]), g.constant([2])),
    "mean": lambda g, x: g.node("ReduceMean", x, axes=[2], keepdims=0),
    "maximum": lambda g, x: g.node("ReduceMax", x, axes=[1], keepdims=0),
    "Concat": lambda g, x: g.node("Concat", x, g.draw(3, 4, 23), axis=1),
    "four axes": lambda g, x: g.node("Add", x, g.draw(3, 1, 18, 23)),
    "a computed window": lambda g, x: g.node("Conv", x, g.node("Exp", g.input(6, 18, 4))),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers_of_sequences(reader: Callable[[Graph, str], str], tmp_path: Path) -> None:
    """Each reads the memory of the image as a sequence."""
    g = Graph()
    g.output(reader(g, g.node("Tanh", g.conv(g.input(3, 5, 23), 18, (3,), pads=[1, 1]))))
    names = {*agreed(g, tmp_path).program.network.makers}
    assert {"tanh1.flat", "transpose2.rows"} & names


def test_readers_of_an_output(tmp_path: Path) -> None:
    """All of them at once, of an output whose image a convolution reads."""
    g = Graph()
    x = g.node("Tanh", g.conv(g.input(3, 5, 23), 18, (3,), pads=[1, 1]))
    g.output(x, g.conv(x, 16, (2,)), *(reader(g, x) for reader in READERS.values()))
    compiled = agreed(g, tmp_path)
    assert {name for name in compiled.program.network.makers if "." in name} >= {"x0.image", f"{x}.flat"}


def test_views_are_made_once(tmp_path: Path) -> None:
    """Two readers of either rank; a sequence that is none of a convolution joins one that is."""
    g = Graph()
    x = g.input(3, 18, 23)
    y = g.node("Exp", g.node("Neg", g.node("Abs", x)))
    z = g.node("Add", g.conv(x, 18, (3,), pads=[1, 1]), g.conv(y, 18, (3,), pads=[1, 1]))
    z = g.node("Mul", z, y)
    g.output(g.node("Softmax", z, axis=1), g.node("Softmax", z, axis=2), g.node("Sub", x, z))
    assert sorted(reshapes(agreed(g, tmp_path))) == sorted(["x0.image", f"{y}.image", f"{z}.flat"])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concatenations(axis: int, tmp_path: Path) -> None:
    """In blocks of channels, along any axis."""
    g = Graph()
    x = g.input(3, 5, 23)
    parts = [g.conv(x, 32, (1,)), g.conv(x, 32, (3,), pads=[1, 1])]
    g.output(g.conv(g.node("Concat", *parts, axis=axis), 20, (2,)))
    assert reshapes(agreed(g, tmp_path)) == ["x0.image"]


def test_steps_are_followed(tmp_path: Path) -> None:
    """Rounding puts a Floor, a Mod, a comparison and an ArgMax on either side: a check knows their operands."""
    g = Graph()
    x = g.conv(g.input(3, 17, 131), 18, (3,))
    y = g.node("Mul", x, g.constant(50.0))
    mod = g.node("Mod", y, g.constant(np.full((18, 1), 3.0)), fmod=1)
    above = g.node("Where", g.node("Greater", y, g.constant(np.full((18, 1), 0.5))), x, y)
    g.output(g.node("Floor", y), mod, above, g.node("Cast", g.node("ArgMax", y, axis=2), to=1))
    compiled = verified(g.model(), tmp_path)
    assert compiled.program.network.original(y).tensor.shape == (3, 18, 129)


def test_integers_and_float64_stay(tmp_path: Path) -> None:
    g = Graph()
    x = g.node("Cast", g.input(3, 5, 23), to=11)
    weight = g.node("Cast", g.draw(7, 5, 3), to=11)
    g.output(g.node("Cast", g.node("Conv", x, weight), to=1))
    compiled = verified(g.model(), tmp_path)
    assert not compiled.program.network.originals
    assert algorithms(compiled, "Conv") == ["plain"]


def test_nothing_changes_without_sequences() -> None:
    from tvmcnn.importer import import_model

    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(3, 5, 23, 29), 18, (1, 3))))
    network = import_model(g.model())
    assert rows_as_images(network) is network


def test_the_manifest_has_sequences(tmp_path: Path) -> None:
    """What `inspect`, `activations` and the header tell are ONNX's names and shapes."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 23), 18, (3,)))
    g.output(x, g.conv(x, 32, (2,)))
    compiled = verified(g.model(), tmp_path)
    net = tvmcnn.load(compiled.path)
    assert [entry["shape"] for entry in net.manifest["outputs"]] == [[3, 18, 21], [3, 32, 20]]
    assert "outputs: relu1 float32 3x18x21, conv2 float32 3x32x20" in "\n".join(described(net.manifest))
    told = [t for kernel in net.manifest["kernels"] for t in (*kernel["hidden"], *kernel["stores"])]
    assert {t["name"]: t["shape"] for t in told if t["name"] in ("conv0", "relu1", "conv2")} == {
        "conv0": [3, 18, 21],
        "relu1": [3, 18, 21],
        "conv2": [3, 32, 20],
    }


def test_wrong_pads_are_caught_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the begin of the second convolution's padding where its end belongs. Its result is hidden in a
    kernel, and it is the first tensor that differs."""
    import dataclasses

    def wrong(network: Network) -> Network:
        found = rows_as_images(network)
        convolutions = [node for node in found.nodes if node.op == "Conv"]
        top, left, bottom, right = convolutions[1]["pads"]
        swapped = dataclasses.replace(
            convolutions[1], attributes={**convolutions[1].attributes, "pads": (top, right, bottom, left)}
        )
        nodes = tuple(swapped if node is convolutions[1] else node for node in found.nodes)
        return dataclasses.replace(found, nodes=nodes)

    monkeypatch.setattr(passes, "PASSES", tuple(wrong if each is rows_as_images else each for each in passes.PASSES))
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 23), 18, (3,)))
    g.output(g.node("Relu", g.conv(x, 32, (4,), pads=[3, 0])))
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is conv2"):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")


@pytest.mark.slow
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's text, on the CPU."""
    monkeypatch.setenv("NVCC", str(NVCC))
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 77), 32, (7,), pads=[3, 3], strides=[2]))
    y = g.node("Add", g.conv(g.conv(x, 32, (5,), pads=[2, 2], group=32), 32, (1,)), x)
    y = g.node("ConvTranspose", g.node("MaxPool", y, kernel_shape=[3]), g.draw(32, 9, 4), strides=[2])
    g.output(y, g.node("Transpose", x, perm=[0, 2, 1]))
    assert "gemm_conv" in algorithms(verified(g.model(), tmp_path, "cuda:sm_80"), "Conv")
