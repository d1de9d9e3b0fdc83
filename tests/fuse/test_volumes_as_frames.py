"""Convolutions of volumes become those of batches of frames, and all else sees volumes as before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import Graph
from data import NVCC
from helpers import feeds, same_bits_in_any_memory, verified

import tvmcnn
from tvmcnn.artifact.manifest import described
from tvmcnn.compiler import Compiled
from tvmcnn.errors import VerifyError
from tvmcnn.fuse import passes
from tvmcnn.fuse.volumes_as_frames import volumes_as_frames
from tvmcnn.network import Network, Node

PEER_BOUND = 2e-5  # of the largest value: two float32 libraries that add in other orders
BATCHES = pytest.mark.parametrize("batch", [1, 3])


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
            assert array.flags.c_contiguous, name
    return compiled


def algorithms(compiled: Compiled, *ops: str) -> list[str]:
    """How each kernel of such an anchor is computed."""
    return [step.choice.algorithm for step in compiled.program.steps if step.choice.kernel.anchor.op in ops]


def ops(compiled: Compiled) -> list[str]:
    """The operators of the network, without those that see a tensor in another form."""
    forms = ("Reshape", "Transpose", "UnfoldFrames")
    return [node.op for node in compiled.program.network.nodes if node.op not in forms]


@BATCHES
@pytest.mark.parametrize(
    ("channels", "maps", "kernel", "attributes", "algorithm"),
    [
        (5, 3, (1, 3, 3), {"pads": [0, 1, 0, 0, 1, 2]}, "columns"),
        (18, 33, (1, 3, 2), {"strides": [2, 1, 2]}, "direct"),
        (18, 40, (3, 1, 1), {"pads": [1, 0, 0, 1, 0, 0]}, "direct"),
        (32, 48, (3, 1, 1), {"pads": [2, 0, 0, 0, 0, 0]}, "direct"),  # causal
        (18, 32, (4, 1, 1), {"strides": [2, 1, 1], "pads": [1, 0, 0, 2, 0, 0]}, "direct"),
        (16, 19, (2, 1, 1), {"dilations": [3, 1, 1], "pads": [1, 0, 0, 4, 0, 0]}, "direct"),
        (33, 64, (3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1]}, "winograd"),
        (16, 33, (3, 2, 4), {"strides": [2, 2, 1], "pads": [0, 1, 2, 1, 0, 1]}, "direct"),
        (20, 16, (2, 3, 3), {"strides": [1, 2, 1], "dilations": [1, 2, 2], "pads": [0, 2, 2, 0, 1, 2]}, "direct"),
        (3, 32, (3, 5, 5), {"strides": [1, 2, 2], "auto_pad": "SAME_UPPER"}, "direct"),
        (2, 32, (5, 3, 3), {"auto_pad": "SAME_LOWER"}, "direct"),
        (18, 19, (6, 13, 9), {}, "dense"),
        (18, 33, (1, 1, 1), {}, "direct"),
    ],
    ids=str,
)
def test_convolutions(
    channels: int,
    maps: int,
    kernel: tuple[int, ...],
    attributes: dict[str, Any],
    algorithm: str,
    batch: int,
    tmp_path: Path,
) -> None:
    """Windows along and within frames, even and odd, with strides, dilations and uneven pads; a lone volume is unfolded
    in place wherever its frames follow each other as the windows want them."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 5, 6, 13, 9), channels, (1, 2, 1), pads=[0, 1, 0, 0, 0, 0]))
    g.output(g.node("Elu", g.conv(x, maps, kernel, bias=kernel[1] % 2 == 1, **attributes)))
    compiled = agreed(g, tmp_path)
    assert algorithms(compiled, "Conv")[-1] == algorithm
    assert ops(compiled) == ["Conv", "Relu", "Conv", "Elu"]
    if batch == 1 and channels >= 16 and "dilations" not in attributes and algorithms(compiled, "UnfoldFrames"):
        assert algorithms(compiled, "UnfoldFrames") == ["view"]


@BATCHES
@pytest.mark.parametrize(
    ("channels", "maps", "group", "kernel", "attributes"),
    [
        (33, 33, 33, (3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1]}),
        (24, 24, 24, (5, 1, 1), {"pads": [3, 0, 0, 1, 0, 0], "strides": [2, 1, 1]}),
        (32, 48, 2, (3, 3, 2), {"dilations": [2, 1, 1], "pads": [2, 1, 0, 2, 0, 1]}),
        (18, 12, 6, (2, 3, 3), {}),
        (20, 40, 20, (1, 3, 3), {"strides": [2, 2, 1]}),
    ],
    ids=str,
)
def test_groups(
    channels: int,
    maps: int,
    group: int,
    kernel: tuple[int, ...],
    attributes: dict[str, Any],
    batch: int,
    tmp_path: Path,
) -> None:
    """One convolution for each frame of a window, each the residual of the next."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 5, 6, 13, 9), channels, (1, 1, 1)))
    g.output(g.node("Relu", g.conv(x, maps, kernel, group=group, **attributes)))
    compiled = agreed(g, tmp_path)
    assert ops(compiled).count("Conv") == 1 + kernel[0]
    if group == channels == maps:
        assert algorithms(compiled, "Conv") == ["direct", *["depthwise"] * kernel[0]]


@BATCHES
@pytest.mark.parametrize("layers", [((3, 1, 1), (1, 3, 3)), ((3, 3, 3),), ((1, 3, 3), (3, 1, 1), (2, 2, 2))], ids=str)
def test_every_vector_width(layers: tuple[tuple[int, ...], ...], batch: int, target: str, tmp_path: Path) -> None:
    """Residual blocks, whose volumes several read: with zeros around them, as they are, and every other frame."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 2, 7, 17, 12), 32, (3, 3, 3), pads=[1] * 6, strides=[1, 2, 1]))
    y = x
    for kernel in layers:
        y = g.node("Relu", g.conv(y, 32, kernel, auto_pad="SAME_UPPER"))
    x = g.node("Relu", g.node("Add", y, x))
    y = g.conv(x, 48, (3, 3, 3), pads=[1] * 6, strides=[2, 2, 2])
    x = g.node("Relu", g.node("Add", y, g.conv(x, 48, (1, 1, 1), strides=[2, 2, 2])))
    g.output(g.node("Flatten", g.node("GlobalAveragePool", x)))
    compiled = agreed(g, tmp_path, target)
    assert ops(compiled).count("Conv") == 3 + len(layers)
    assert "Conv+Add+Relu" in [step.choice.kernel.ops for step in compiled.program.steps]
    if batch == 1:
        assert {*algorithms(compiled, "UnfoldFrames")[1:]} == {"view"}


@BATCHES
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [1, 3, 3], "strides": [1, 2, 2], "pads": [0, 1, 0, 0, 1, 2]}),
        ("MaxPool", {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1]}),
        ("MaxPool", {"kernel_shape": [3, 2, 2], "dilations": [2, 1, 2], "ceil_mode": 1, "strides": [1, 3, 2]}),
        ("MaxPool", {"kernel_shape": [2, 1, 1], "strides": [2, 1, 1]}),
        ("MaxPool", {"kernel_shape": [1, 1, 2], "strides": [3, 1, 1]}),
        ("AveragePool", {"kernel_shape": [2, 3, 3], "pads": [1, 2, 1, 0, 0, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [3, 3, 2], "pads": [2, 1, 0, 1, 2, 1], "strides": [2, 1, 2]}),
        ("AveragePool", {"kernel_shape": [4, 3, 5], "auto_pad": "SAME_LOWER", "strides": [3, 2, 2]}),
        ("AveragePool", {"kernel_shape": [6, 7, 11]}),
        ("LpPool", {"kernel_shape": [2, 2, 3], "p": 1}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
        ("GlobalLpPool", {"p": 2}),
    ],
    ids=str,
)
def test_pools(op: str, attributes: dict[str, Any], batch: int, tmp_path: Path) -> None:
    """Within frames and along them, in blocks of channels and of few; all of a volume."""
    g = Graph()
    for maps in (33, 3):
        x = g.conv(g.input(batch, 5, 6, 8, 12), maps, (1, 2, 2))
        g.output(g.node("Neg", g.node(op, x, **attributes)))
    compiled = agreed(g, tmp_path)
    if op in ("MaxPool", "AveragePool"):
        assert set(algorithms(compiled, op)) == {"pool"}


def test_a_pool_of_minus_infinity(tmp_path: Path) -> None:
    """A window of nothing else has that as its maximum, also in front of the first frame and behind the last."""
    g = Graph()
    x = g.node("Log", g.node("Relu", g.conv(g.input(1, 3, 4, 5, 6), 18, (1, 1, 1))))
    g.output(g.node("MaxPool", x, kernel_shape=[2, 2, 2], pads=[1, 1, 1, 1, 1, 1]))
    net = tvmcnn.load(verified(g.model(), tmp_path).path)
    assert np.isneginf(net(np.zeros((1, 3, 4, 5, 6), np.float32) - 9)).any()


@BATCHES
def test_gates(batch: int, tmp_path: Path) -> None:
    """Squeeze and excite: a value a map, of the volume or of each frame, and one of each pixel."""
    g = Graph()
    x = g.conv(g.input(batch, 7, 4, 5, 9), 32, (2, 2, 3))
    pooled = g.node("GlobalAveragePool", x)
    gate = g.node("Sigmoid", g.conv(g.node("Relu", g.conv(pooled, 8, (1, 1, 1))), 32, (1, 1, 1)))
    x = g.node("Mul", x, gate)
    x = g.node("Mul", g.node("ReduceMean", x, axes=[3, 4], keepdims=1), x)
    x = g.node("Add", x, g.node("ReduceMax", x, axes=[1, 2], keepdims=1))
    g.output(g.conv(x, 20, (1, 1, 1)), g.node("Sub", x, g.node("ReduceMean", x, axes=[0, 1, 2], keepdims=0)))
    compiled = agreed(g, tmp_path)
    assert {*algorithms(compiled, "Conv")} <= {"direct", "columns", "dense"}


@BATCHES
@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div", "PRelu"])
def test_constants_broadcast(op: str, batch: int, tmp_path: Path) -> None:
    """Per map, frame, pixel, element and one for all."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 5, 4, 6, 7), 18, (1, 1, 1)))
    shapes = ((18, 1, 1, 1), (1, 18, 1, 1, 1), (4, 1, 1), (1, 4, 6, 7), (6, 7), (7,), (18, 4, 6, 7), (1, 1, 1, 1, 7))
    for shape in (*shapes, (), (1,), (1, 1, 1), (1, 1, 1, 1, 1), (batch, 18, 1, 1, 1), (batch, 18, 4, 6, 7)):
        g.output(g.node(op, x, g.constant(2.5 + np.abs(g.rng.standard_normal(shape)))))
    agreed(g, tmp_path)


def test_batch_normalization_folds(tmp_path: Path) -> None:
    g = Graph()
    y = g.conv(g.input(3, 5, 4, 6, 7), 18, (3, 1, 2))
    statistics = [g.draw(18), g.draw(18), g.draw(18), g.constant(0.5 + g.rng.random(18))]
    z = g.node("BatchNormalization", y, *statistics)
    g.output(g.node("BatchNormalization", g.node("MaxPool", z, kernel_shape=[2, 2, 2]), *statistics))
    compiled = agreed(g, tmp_path)
    assert list(compiled.program.network.folded) == [y]
    assert ops(compiled) == ["Conv", "MaxPool", "BatchNormalization"]


READERS: dict[str, Callable[[Graph, str], str]] = {
    "Transpose": lambda g, x: g.node("Transpose", x, perm=[0, 2, 3, 4, 1]),
    "MatMul": lambda g, x: g.node("MatMul", x, g.draw(9, 11)),
    "Reshape": lambda g, x: g.node("Reshape", x, g.constant([-1, 9])),
    "Flatten": lambda g, x: g.node("Flatten", x),
    "Softmax": lambda g, x: g.node("Softmax", x, axis=2),
    "Slice": lambda g, x: g.node("Slice", x, g.constant([1]), g.constant([4]), g.constant([2])),
    "mean of frames": lambda g, x: g.node("ReduceMean", x, axes=[2], keepdims=0),
    "Concat of frames": lambda g, x: g.node("Concat", x, x, axis=2),
    "Concat of volumes": lambda g, x: g.node("Concat", x, x, axis=0),
    "six axes": lambda g, x: g.node("Add", x, g.draw(2, 1, 18, 1, 1, 1)),
    "a computed window": lambda g, x: g.node("Conv", x, g.node("Exp", g.input(6, 18, 2, 1, 3))),
    "ConvTranspose": lambda g, x: g.node("ConvTranspose", x, g.draw(18, 7, 2, 2, 2), dilations=[1, 2, 1]),
    "GlobalLpPool": lambda g, x: g.node("GlobalLpPool", x, p=2),
}


@BATCHES
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers_of_volumes(reader: Callable[[Graph, str], str], batch: int, tmp_path: Path) -> None:
    g = Graph()
    g.output(reader(g, g.node("Tanh", g.conv(g.input(batch, 5, 6, 7, 10), 18, (3, 3, 3), pads=[1, 1, 1, 0, 1, 0]))))
    assert "tanh1.volume" in agreed(g, tmp_path).program.network.makers


def test_readers_of_an_output(tmp_path: Path) -> None:
    """All of them at once, of an output whose frames a convolution reads."""
    g = Graph()
    x = g.node("Tanh", g.conv(g.input(3, 5, 6, 7, 10), 18, (3, 3, 3), pads=[1, 1, 1, 0, 1, 0]))
    g.output(x, g.conv(x, 16, (2, 1, 2)), *(reader(g, x) for reader in READERS.values()))
    compiled = agreed(g, tmp_path)
    assert {name for name in compiled.program.network.makers if name.startswith("tanh1")} == {
        *("tanh1", "tanh1.frames", "tanh1.rows", "tanh1.unfolded")
    }


def test_forms_are_made_once(tmp_path: Path) -> None:
    """A volume that is none of a convolution joins one that is."""
    g = Graph()
    x = g.input(2, 18, 4, 5, 7)
    y = g.node("Exp", g.node("Neg", g.node("Abs", x)))
    z = g.node("Add", g.conv(x, 18, (1, 1, 1)), g.conv(y, 18, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0]))
    z = g.node("Mul", g.node("Mul", z, y), g.conv(y, 18, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0]))
    g.output(g.node("Softmax", z, axis=1), g.node("Softmax", z, axis=2), g.node("Sub", x, z))
    made = [name for name in agreed(g, tmp_path).program.network.makers if "." in name]
    assert sorted(made) == sorted(
        [
            *("x0.rows", "x0.frames", f"{y}.rows", f"{y}.frames", f"{y}.unfolded"),
            *(f"{z}.rows", f"{z}.volume", "sub11.frames", "sub11.rows"),
        ]
    )


@BATCHES
@pytest.mark.parametrize("axis", [1, 3, 4])
def test_concatenations(axis: int, batch: int, tmp_path: Path) -> None:
    """In blocks of channels, read by windows along the frames, and by others."""
    g = Graph()
    x = g.input(batch, 5, 4, 6, 7)
    parts = [g.conv(x, 32, (1, 1, 1)), g.conv(x, 32, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0])]
    z = g.node("Concat", *parts, axis=axis)
    g.output(g.conv(z, 20, (2, 3, 2)), g.node("MaxPool", z, kernel_shape=[2, 1, 2]), g.conv(parts[0], 16, (2, 1, 1)))
    agreed(g, tmp_path)


def test_parts_of_one_frame(tmp_path: Path) -> None:
    """Parts of a concatenation are written into the whole, and are all of the frames that a stride leaves."""
    g = Graph()
    x = g.input(1, 5, 2, 6, 7)
    parts = [g.conv(x, maps, (2, 1, 1)) for maps in (32, 16, 48)]
    z = g.node("Concat", *parts, axis=1)
    g.output(g.conv(z, 20, (1, 3, 2), strides=[2, 1, 1]), g.conv(parts[1], 24, (1, 1, 1), strides=[3, 1, 1]))
    g.output(
        g.conv(z, 17, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0]), g.conv(parts[2], 18, (2, 1, 1), pads=[0, 0, 0, 1, 0, 0])
    )
    agreed(g, tmp_path)


def test_one_frame_and_one_channel(tmp_path: Path) -> None:
    """Volumes that are frames in the same memory."""
    g = Graph()
    x = g.conv(g.input(3, 1, 5, 6, 7), 18, (5, 2, 2))
    g.output(x, g.node("Flatten", g.conv(x, 1, (1, 1, 1))), g.node("GlobalMaxPool", x))
    assert "Transpose" not in [node.op for node in agreed(g, tmp_path).program.network.nodes]


def test_steps_are_followed(tmp_path: Path) -> None:
    """Rounding puts a Floor, a Mod, a comparison and an ArgMax on either side: a check knows their operands."""
    g = Graph()
    x = g.conv(g.input(3, 17, 4, 11, 13), 18, (3, 1, 1))
    y = g.node("Mul", x, g.constant(50.0))
    mod = g.node("Mod", y, g.constant(np.full((18, 1, 1, 1), 3.0)), fmod=1)
    above = g.node("Where", g.node("Greater", y, g.constant(np.full((18, 1, 1, 1), 0.5))), x, y)
    inner = g.node("Neg", g.node("Ceil", y))
    floor = g.node("Floor", y)
    g.output(floor, mod, above, inner, g.node("Cast", g.node("ArgMax", y, axis=2), to=1))
    compiled = verified(g.model(), tmp_path)
    original = compiled.program.network.original(y)
    assert original.tensor.shape == (3, 18, 2, 11, 13)
    assert original.order == (0, 2, 1, 3, 4)
    assert compiled.verdict is not None
    assert {floor, mod, inner} <= {each.name for each in (*compiled.verdict.tensors, *compiled.verdict.outputs)}


def test_integers_and_float64_stay(tmp_path: Path) -> None:
    g = Graph()
    x = g.node("Cast", g.input(3, 5, 4, 6, 7), to=11)
    weight = g.node("Cast", g.draw(7, 5, 3, 1, 2), to=11)
    g.output(g.node("Cast", g.node("Conv", x, weight), to=1))
    compiled = verified(g.model(), tmp_path)
    assert not compiled.program.network.originals
    assert algorithms(compiled, "Conv") == ["plain"]


def test_nothing_changes_without_volumes() -> None:
    from tvmcnn.importer import import_model

    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(3, 5, 23, 29), 18, (1, 3))))
    network = import_model(g.model())
    assert volumes_as_frames(network) is network


def test_the_manifest_has_volumes(tmp_path: Path) -> None:
    """What `inspect`, `activations` and the header tell are ONNX's names and shapes."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 4, 6, 7), 18, (3, 1, 1)))
    g.output(x, g.conv(x, 32, (2, 2, 2)))
    compiled = verified(g.model(), tmp_path)
    net = tvmcnn.load(compiled.path)
    assert [entry["shape"] for entry in net.manifest["outputs"]] == [[3, 18, 2, 6, 7], [3, 32, 1, 5, 6]]
    assert "outputs: relu1 float32 3x18x2x6x7, conv2 float32 3x32x1x5x6" in "\n".join(described(net.manifest))
    told = [t for kernel in net.manifest["kernels"] for t in (*kernel["hidden"], *kernel["stores"])]
    assert {t["name"]: t["shape"] for t in told if t["name"] in ("conv0", "relu1", "conv2")} == {
        "conv0": [3, 18, 2, 6, 7],
        "relu1": [3, 18, 2, 6, 7],
        "conv2": [3, 32, 1, 5, 6],
    }


def test_new_weights(tmp_path: Path) -> None:
    """They are laid out as frames, tap by tap and by groups too, as those that the library was compiled with."""

    def model(seed: int) -> onnx.ModelProto:
        g = Graph(seed)
        x = g.conv(g.input(1, 5, 6, 13, 9), 18, (3, 1, 2))
        x = g.node("Mul", x, g.constant(g.rng.random((18, 1, 1, 1)) + 1))
        g.output(g.conv(g.node("Relu", x), 18, (2, 3, 1), group=18))
        return g.model()

    first, second = model(1), model(2)
    (verdict,) = tvmcnn.reweight(verified(first, tmp_path).path, second, tmp_path / "y.so")
    assert verdict.passed
    given = feeds(second)
    ours, fresh = (tvmcnn.load(path).run(None, given) for path in (tmp_path / "y.so", verified(second, tmp_path).path))
    assert all(np.array_equal(one, other) for one, other in zip(ours, fresh, strict=True))


def test_same_bits_on_threads(tmp_path: Path) -> None:
    """Whoever runs the first task and the last zeroes the frames of padding, whatever was in the arena."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 3, 8, 29, 31), 48, (3, 3, 3), pads=[1] * 6))
    x = g.node("Relu", g.conv(x, 33, (3, 1, 1), pads=[2, 0, 0, 1, 0, 0]))
    x = g.node("MaxPool", g.conv(x, 32, (3, 3, 3), pads=[1] * 6), kernel_shape=[3, 3, 3], pads=[1] * 6)
    g.output(g.conv(x, 17, (4, 1, 1), pads=[1, 0, 0, 2, 0, 0]))
    compiled = verified(g.model(), tmp_path)
    unfolded = [step.choice for step in compiled.program.steps if step.choice.kernel.anchor.op == "UnfoldFrames"]
    assert [choice.algorithm for choice in unfolded[1:]] == ["view"] * 3
    assert sum(choice.ends != (0, 0) and choice.tasks > 1 for choice in (s.choice for s in compiled.program.steps)) >= 2
    nets = [tvmcnn.load(compiled.path, threads=threads) for threads in (1, 2, 3)]
    same_bits_in_any_memory(feeds(g.model())["x0"], nets)


def edited(monkeypatch: pytest.MonkeyPatch, edit: Callable[[Node], Node]) -> None:
    """Plant a bug in the nodes that the pass makes."""

    def wrong(network: Network) -> Network:
        found = volumes_as_frames(network)
        return dataclasses.replace(found, nodes=tuple(map(edit, found.nodes)))

    wrongly = tuple(wrong if each is volumes_as_frames else each for each in passes.PASSES)
    monkeypatch.setattr(passes, "PASSES", wrongly)


@pytest.mark.parametrize("word", ["begin", "stride"])
def test_wrong_frames_are_caught_and_named(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the frames of a window begin one too early, or follow each other by one too few."""

    def edit(node: Node) -> Node:
        if node.op != "UnfoldFrames":
            return node
        moved = {word: node[word] + (1 if word == "begin" else -1)}
        return dataclasses.replace(node, attributes={**node.attributes, **moved})

    edited(monkeypatch, edit)
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 5, 8, 9, 7), 18, (1, 3, 3)))
    g.output(g.node("Relu", g.conv(x, 32, (3, 1, 1), strides=[2, 1, 1], pads=[1, 0, 0, 1, 0, 0])))
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is conv2"):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")


def test_a_wrong_pool_is_caught_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the windows along the frames begin one too early."""

    def edit(node: Node) -> Node:
        if "frames" not in node.attributes or "pads" not in node.attributes:
            return node
        front, *rest = node["pads"]
        return dataclasses.replace(node, attributes={**node.attributes, "pads": (front + 1, *rest)})

    edited(monkeypatch, edit)
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 5, 8, 9, 7), 18, (1, 3, 3)))
    g.output(g.node("MaxPool", x, kernel_shape=[3, 2, 2]))
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is maxpool2"):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")


def test_frames_that_are_not_zeroed_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: nobody zeroes the frames of padding, which the arena's last user left as they are."""
    from tvmcnn.codegen.cpu import call

    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 5, 8, 9, 7), 18, (1, 3, 3)))
    g.output(g.node("Relu", g.conv(x, 32, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0])))
    monkeypatch.setattr(call, "_ends", lambda step: "")
    with pytest.raises(VerifyError, match="conv2"):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")


@pytest.mark.slow
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's text, on the CPU."""
    monkeypatch.setenv("NVCC", str(NVCC))
    g = Graph()
    x = g.node("Relu", g.conv(g.input(2, 3, 5, 12, 9), 17, (3, 3, 3), pads=[1] * 6, strides=[1, 2, 1]))
    y = g.node("Add", g.conv(g.conv(x, 17, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0], group=17), 17, (1, 1, 1)), x)
    y = g.node("AveragePool", g.node("MaxPool", y, kernel_shape=[3, 2, 2]), kernel_shape=[2, 2, 1], pads=[1] * 6)
    g.output(y, g.node("Flatten", g.node("GlobalAveragePool", x)))
    assert "gemm_conv" in algorithms(verified(g.model(), tmp_path, "cuda:sm_80"), "Conv")
