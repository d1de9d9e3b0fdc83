"""Import: what a Network keeps of an ONNX file, and that the library made of it computes what the file says."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import model_of, tensor_info
from data import LENET5
from onnx import NodeProto, numpy_helper

import tvmcnn
from tvmcnn.errors import ModelError
from tvmcnn.fuse import fuse
from tvmcnn.importer import import_model
from tvmcnn.importer.convert import OPSET
from tvmcnn.importer.operators.windows import window_extent

Array = np.ndarray[Any, Any]
TEST_DATA = "TVMCNN_TEST_DATA"
TOLERANCE = 1e-5  # of the largest output, where sums have some hundred terms
NEWEST = onnx.defs.onnx_opset_version()

RIGHT_MNIST_8 = 9_891  # of the 10,000 test images, as onnxruntime finds
RIGHT_CCOLTONG = 9_913


def draw(shape: Sequence[int], seed: int) -> Array:
    return builders.draw(seed, *shape, outliers=0.05, times=10)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node named after its first output."""
    return builders.node(op, inputs, outputs, f"n_{outputs.split()[0]}", **attributes)


def model(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, Any] | None = None,
    *,
    x: Sequence[int | str | None] = (1, 3, 11, 13),
    outputs: str = "y",
    **more: Any,
) -> onnx.ModelProto:
    """A model with one input, x; the shapes of its outputs are left to the importer."""
    return model_of(nodes, {"x": x}, dict.fromkeys(outputs.split(), ("?",)), weights, name="made", **more)


def made_tensors(source: onnx.ModelProto) -> set[str]:
    """Every tensor that a node of the file gives."""
    return {name for n in source.graph.node for name in n.output if name}


def assert_close(found: Array, wanted: Array, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert np.abs(found - wanted).max() <= tolerance * max(np.abs(wanted).max(), 1e-30)


def assert_compiles_right(source: onnx.ModelProto, folder: Path, **arguments: Any) -> tvmcnn.Runner:
    """Compile, run, and compare every output and every tensor with the reference; all tensors must be accounted for."""
    tvmcnn.compile(source, output=folder / "net.so", verify=False, **arguments)
    runner = tvmcnn.load(folder / "net.so")
    x = draw(runner.inputs[0].shape, 3)
    wanted = tvmcnn.reference(source, {"x": x}, every_tensor=True)
    for info, found in zip(runner.outputs, runner.run(None, {"x": x}), strict=True):
        assert_close(found, wanted[info.name])
    shown = runner.activations(x)
    made = made_tensors(source)
    for name in made & set(shown):
        assert_close(shown[name], wanted[name])
    assert made - set(shown) == set(runner.folded)  # a conversion of the opset may add tensors of its own
    return runner


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "begin", "end", "dilation", "up", "extent"),
    [
        # W_out = ⌊(W_in + pad_begin + pad_end − dilation·(F−1) − 1) / stride⌋ + 1, by hand
        (32, 5, 1, 0, 0, 1, False, 28),  # 27/1 + 1: the first layer of LeNet-5
        (28, 2, 2, 0, 0, 1, False, 14),  # 26/2 + 1: its pool
        (28, 5, 1, 2, 2, 1, False, 28),  # 27/1 + 1
        (224, 7, 2, 3, 3, 1, False, 112),  # ⌊223/2⌋ + 1: the first layer of ResNet
        (13, 3, 2, 1, 0, 2, False, 5),  # ⌊(13 + 1 − 4 − 1)/2⌋ + 1 = ⌊9/2⌋ + 1
        (7, 7, 3, 0, 0, 1, False, 1),  # a window as large as the map
        (8, 3, 5, 0, 0, 1, False, 2),  # ⌊5/5⌋ + 1: windows that leave columns out
        (9, 3, 2, 0, 0, 1, True, 4),  # 6/2 + 1: nothing to round
        (10, 3, 2, 0, 0, 1, False, 4),  # ⌊7/2⌋ + 1
        (10, 3, 2, 0, 0, 1, True, 5),  # ⌈7/2⌉ + 1
        (5, 1, 3, 0, 2, 1, True, 2),  # ⌈6/3⌉ + 1 = 3; the last would start at column 6, in the end padding: dropped
        (4, 2, 3, 1, 1, 1, True, 2),  # ⌈4/3⌉ + 1 = 3; the last would start at 6 ≥ 4 + 1: dropped
        (6, 2, 4, 1, 1, 1, True, 3 - 1),  # ⌈6/4⌉ + 1 = 3; the last would start at 8 ≥ 6 + 1: dropped
        (7, 3, 4, 0, 1, 1, True, 3 - 1),  # ⌈5/4⌉ + 1 = 3; the last would start at 8 ≥ 7: dropped
        (9, 2, 4, 0, 1, 1, True, 3),  # 8/4 + 1 = 3; the last starts at 8 < 9: it stays
    ],
)
def test_output_extent_by_hand(
    size: int, kernel: int, stride: int, begin: int, end: int, dilation: int, up: bool, extent: int
) -> None:
    assert window_extent("W", size, kernel, stride, begin, end, dilation, up) == extent


@pytest.mark.parametrize(
    ("auto_pad", "kernel", "strides", "dilations", "pads", "shape"),
    [
        # 11 x 13 by hand: SAME gives ⌈11/s⌉ x ⌈13/s⌉ and pads (out − 1)·s + d·(k − 1) + 1 − in, the odd one by the name
        ("SAME_UPPER", (4, 3), (1, 1), (1, 1), (1, 1, 2, 1), (11, 13)),
        ("SAME_LOWER", (4, 3), (1, 1), (1, 1), (2, 1, 1, 1), (11, 13)),
        ("SAME_UPPER", (3, 4), (2, 3), (1, 1), (1, 1, 1, 2), (6, 5)),
        ("SAME_LOWER", (3, 4), (2, 3), (1, 1), (1, 2, 1, 1), (6, 5)),
        ("SAME_UPPER", (3, 2), (1, 2), (2, 3), (2, 1, 2, 2), (11, 7)),
        ("SAME_LOWER", (3, 2), (1, 2), (2, 3), (2, 2, 2, 1), (11, 7)),
        ("SAME_UPPER", (1, 2), (3, 5), (1, 1), (0, 0, 0, 0), (4, 3)),  # nothing is missing: (4−1)·3+1 < 11
        ("VALID", (4, 3), (1, 2), (1, 1), (0, 0, 0, 0), (8, 6)),
        ("VALID", (2, 3), (3, 1), (4, 2), (0, 0, 0, 0), (3, 9)),
    ],
)
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_auto_pad(
    op: str,
    auto_pad: str,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, ...],
    shape: tuple[int, int],
    tmp_path: Path,
) -> None:
    window = {"strides": strides, "dilations": dilations, "auto_pad": auto_pad}
    if op == "Conv":
        source = model([node("Conv", "x w", "y", **window)], {"w": draw((5, 3, *kernel), 1)})
    else:
        source = model([node(op, "x", "y", kernel_shape=kernel, **window)], opset=19)  # dilations of AveragePool
    network = import_model(source)
    assert network.nodes[0]["pads"] == pads
    assert network.nodes[0]["dilations"] == dilations
    assert network.outputs[0].shape[2:] == shape
    if op == "Conv" or auto_pad != "VALID":
        assert_compiles_right(source, tmp_path)


def test_pad_before_a_valid_convolution_is_folded(tmp_path: Path) -> None:
    weights = {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "w": draw((5, 3, 3, 2), 1)}
    source = model([node("Pad", "x p", "q"), node("Conv", "q w", "y", auto_pad="VALID", strides=[2, 1])], weights)
    network = import_model(source)
    assert [n.op for n in network.nodes] == ["Conv"]
    assert network.nodes[0]["pads"] == (1, 2, 3, 0)
    assert network.folded == {"q": "folded into the weights of the node beside it"}
    assert_compiles_right(source, tmp_path)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_depth_of_the_input(depth: int, tmp_path: Path) -> None:
    weights = {"w": draw((7, depth, 3, 2), 1), "b": draw((7,), 2)}
    nodes = [node("Conv", "x w b", "c", pads=[1, 0, 1, 1]), node("Relu", "c", "y")]
    runner = assert_compiles_right(model(nodes, weights, x=(2, depth, 9, 11)), tmp_path)
    assert runner.outputs[0].shape == (2, 7, 9, 11)


# ---- constants ------------------------------------------------------------------------------------------------------


def test_add_as_bias_joins_the_convolution(tmp_path: Path) -> None:
    """As mnist-8 has it: the bias is a constant of 5x1x1 that an Add node adds."""
    weights = {"w": draw((5, 3, 3, 2), 1), "b": draw((5, 1, 1), 2)}
    source = model([node("Conv", "x w", "c"), node("Add", "c b", "a"), node("Relu", "a", "y")], weights)
    assert [kernel.ops for kernel in fuse(import_model(source))] == ["Conv+Add+Relu"]
    runner = assert_compiles_right(source, tmp_path)
    assert runner.manifest["kernels"][0]["ops"] == ["Conv", "Add", "Relu"]
    turned = model([node("Conv", "x w", "c"), node("Add", "b c", "a"), node("Relu", "a", "y")], weights)
    assert_compiles_right(turned, tmp_path)


@pytest.mark.parametrize("rank", [2, 3])
def test_matmul_with_a_constant(rank: int, tmp_path: Path) -> None:
    shape = (3, 2, 7)[3 - rank :]
    weights = {"w": draw((7, 5), 1), "b": draw((5,), 2)}
    source = model([node("MatMul", "x w", "m"), node("Add", "m b", "y")], weights, x=shape)
    network = import_model(source)
    assert network.nodes[0].op == "Gemm"
    assert network.outputs[0].shape == (*shape[:-1], 5)
    assert_compiles_right(source, tmp_path)


@pytest.mark.parametrize(("trans_b", "alpha", "beta"), [(0, 1.0, 1.0), (1, 0.5, 1.0), (1, 2.0, -3.0), (0, 1.0, 0.0)])
def test_gemm_is_normalised(trans_b: int, alpha: float, beta: float, tmp_path: Path) -> None:
    weights = {"w": draw((5, 7) if trans_b else (7, 5), 1), "b": draw((5,), 2)}
    source = model([node("Gemm", "x w b", "y", transB=trans_b, alpha=alpha, beta=beta)], weights, x=(3, 7))
    network = import_model(source)
    assert network.constants[network.nodes[0].inputs[1]].shape == (7, 5)
    assert_compiles_right(source, tmp_path)


def test_reshape_of_a_weight_is_folded(tmp_path: Path) -> None:
    """As mnist-8 has it: the matrix is stored with four axes and reshaped in the graph."""
    weights = {"w": draw((11, 13, 3, 5), 1), "to": np.array([429, 5]), "flat": np.array([1, 429])}
    nodes = [node("Reshape", "w to", "matrix"), node("Reshape", "x flat", "row"), node("MatMul", "row matrix", "y")]
    source = model(nodes, weights)
    network = import_model(source)
    assert [n.op for n in network.nodes] == ["Reshape", "Gemm"]
    assert network.folded == {"matrix": "constant: computed at compile time"}
    assert_compiles_right(source, tmp_path)


def shape_chain(opset: int = 17) -> list[NodeProto]:
    """What PyTorch writes for x.view(x.size(0), -1): Shape, Gather, Unsqueeze, Concat, Reshape."""
    axes = node("Unsqueeze", "n zero", "n1") if opset >= 13 else node("Unsqueeze", "n", "n1", axes=[0])
    return [
        node("Conv", "x w", "c"),
        node("Shape", "c", "s"),
        node("Gather", "s first", "n", axis=0),
        axes,
        node("Concat", "n1 rest", "to", axis=0),
        node("Reshape", "c to", "y"),
    ]


CHAIN = {"w": draw((5, 3, 3, 2), 1), "first": np.array(0), "zero": np.array([0]), "rest": np.array([-1])}


@pytest.mark.parametrize("opset", [11, 17])
def test_shape_arithmetic_folds_once_shapes_are_closed(opset: int, tmp_path: Path) -> None:
    weights = {name: array for name, array in CHAIN.items() if opset >= 13 or name != "zero"}
    source = model(shape_chain(opset), weights, x=("batch", 3, "height", 13), opset=opset)
    network = import_model(source, {"x": (2, 3, 7, 13)})
    assert [n.op for n in network.nodes] == ["Conv", "Reshape"]
    assert network.outputs[0].shape == (2, 5 * 5 * 12)
    assert network.folded == dict.fromkeys(["s", "n", "n1", "to"], "constant: computed at compile time")
    assert_compiles_right(source, tmp_path, input_shapes={"x": (2, 3, 7, 13)})


def test_constant_nodes(tmp_path: Path) -> None:
    constant = node("Constant", "", "b", value=numpy_helper.from_array(draw((3, 1, 1), 2), "v"))
    constant.input.clear()
    source = model([constant, node("Add", "x b", "y")])
    assert import_model(source).folded == {"b": "constant: computed at compile time"}
    assert_compiles_right(source, tmp_path)


def batch_norm(channels: int) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        "scale": draw((channels,), 4),
        "shift": draw((channels,), 5),
        "mean": draw((channels,), 6),
        "var": rng.uniform(0.3, 4, channels).astype(np.float32),
    }


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_folds_into_the_convolution(bias: bool, tmp_path: Path) -> None:
    weights = {"w": draw((5, 3, 3, 2), 1), **batch_norm(5), **({"b": draw((5,), 2)} if bias else {})}
    nodes = [
        node("Conv", "x w b" if bias else "x w", "c"),
        node("BatchNormalization", "c scale shift mean var", "n", epsilon=0.02),
        node("Relu", "n", "y"),
    ]
    source = model(nodes, weights)
    network = import_model(source)
    assert [n.op for n in network.nodes] == ["Conv", "Relu"]
    assert len(network.folded) == 1
    tensor, reason = next(iter(network.folded.items()))
    assert tensor == "c"
    assert reason == "folded into the weights of the node beside it"
    assert_compiles_right(source, tmp_path)


def test_batch_norm_without_a_convolution_stays(tmp_path: Path) -> None:
    """As in DenseNet, where it comes before the convolution."""
    weights = {"w": draw((5, 3, 3, 2), 1), **batch_norm(3)}
    nodes = [
        node("BatchNormalization", "x scale shift mean var", "n", epsilon=0.02),
        node("Relu", "n", "r"),
        node("Conv", "r w", "y", pads=[1, 1, 0, 0]),
    ]
    source = model(nodes, weights)
    assert [n.op for n in import_model(source).nodes] == ["BatchNormalization", "Relu", "Conv"]
    assert import_model(source).folded == {}
    assert_compiles_right(source, tmp_path)


def test_dropout_and_identity_vanish(tmp_path: Path) -> None:
    weights = {"w": draw((5, 3, 3, 2), 1), "ratio": np.array(0.5, np.float32)}
    nodes = [
        node("Identity", "x", "i"),
        node("Conv", "i w", "c"),
        node("Dropout", "c ratio", "d"),
        node("Relu", "d", "y"),
    ]
    source = model(nodes, weights)
    network = import_model(source)
    assert [n.op for n in network.nodes] == ["Conv", "Relu"]
    assert network.folded == dict.fromkeys(["i", "d"], "an identity: the same values as its input")
    assert_compiles_right(source, tmp_path)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([node("Identity", "x", "y")], "y"),
        ([node("Dropout", "x", "y")], "y"),
        ([node("Flatten", "x", "y")], "y"),
        ([node("Relu", "x", "r"), node("Identity", "r", "y")], "y"),
        ([node("Relu", "x", "r"), node("Identity", "r", "y")], "r y"),
        ([node("Relu", "x", "r"), node("Flatten", "r", "y")], "y r"),
        ([node("Relu", "x", "r"), node("Flatten", "r", "f"), node("Sigmoid", "f", "y")], "f r y"),
        ([node("Relu", "x", "y"), node("Identity", "x", "z")], "y z"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(n.op_type for n in value),
)
def test_outputs_keep_their_names_and_values(nodes: list[NodeProto], outputs: str, tmp_path: Path) -> None:
    """An output that folding would remove, or that another output also needs, is there all the same."""
    runner = assert_compiles_right(model(nodes, outputs=outputs), tmp_path)
    assert [info.name for info in runner.outputs] == outputs.split()


@pytest.mark.parametrize("name", ["weight", "y.weight", "w"])
def test_weights_named_like_those_that_import_makes(name: str, tmp_path: Path) -> None:
    """Import stores a transposed copy; it must not be mistaken for the file's own weight, which a second node reads."""
    nodes = [
        builders.node("Gemm", ["x", name], "y", transB=1),
        builders.node("Gemm", ["y", name], "z", transB=0),
        builders.node("Gemm", ["z", name], "t", transB=1, alpha=0.5),
    ]
    assert_compiles_right(model(nodes, {name: draw((5, 7), 1)}, x=(3, 7), outputs="t"), tmp_path)


def test_statistics_named_like_those_that_import_makes(tmp_path: Path) -> None:
    weights = dict(zip(("scale", "shift", "y.scale", "y.shift"), batch_norm(3).values(), strict=True))
    nodes = [node("BatchNormalization", " ".join(["x", *weights]), "y"), node("Relu", "y", "z")]
    assert_compiles_right(model(nodes, weights, outputs="z"), tmp_path)


# ---- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_also_inputs(ir_version: int, tmp_path: Path) -> None:
    """Before ir_version 4 they had to be; nothing folds unless they leave the inputs first."""
    weights = {"w": draw((5, 3, 3, 2), 1), **batch_norm(5)}
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", "c scale shift mean var", "y")]
    source = model(nodes, weights, opset=8, ir_version=ir_version)
    for name, array in weights.items():
        source.graph.input.append(tensor_info(name, array))
    network = import_model(source)
    assert [tensor.name for tensor in network.inputs] == ["x"]
    assert [n.op for n in network.nodes] == ["Conv"]
    assert_compiles_right(source, tmp_path)


def test_open_batch_becomes_one_and_is_said() -> None:
    for extent, shown in (("batch", "batch"), (None, "?"), (0, "?"), (-1, "?")):
        network = import_model(model([node("Relu", "x", "y")], x=(extent, 3, 5, 7)))
        assert network.inputs[0].shape == network.outputs[0].shape == (1, 3, 5, 7)
        assert network.notes[0] == f"input 'x': its open leading dimension '{shown}' is bound to 1"


def test_open_batch_given(tmp_path: Path) -> None:
    source = model([node("Relu", "x", "y")], x=("batch", 3, 5, 7))
    for arguments in ({"input_shapes": {"x": (4, 3, 5, 7)}}, {"batch": 4}):
        network = import_model(source, **arguments)
        assert network.outputs[0].shape == (4, 3, 5, 7)
        assert not any("bound to 1" in note for note in network.notes)
    assert_compiles_right(source, tmp_path, batch=4)


def test_static_shape_is_overridden(tmp_path: Path) -> None:
    weights = {"w": draw((5, 3, 3, 2), 1)}
    source = model([node("Conv", "x w", "c"), node("Relu", "c", "y")], weights)
    # Shapes that the exporter inferred for the old size must not survive.
    source = onnx.shape_inference.infer_shapes(source)
    network = import_model(source, {"x": (2, 3, 7, 9)})
    assert network.outputs[0].shape == (2, 5, 5, 8)
    assert "input 'x': 1x3x11x13 of the file overridden by 2x3x7x9" in network.notes
    assert import_model(source, {"x": (1, 3, 11, 13)}).notes == import_model(source).notes  # no override, no note
    assert import_model(source, batch=4).outputs[0].shape == (4, 5, 9, 12)
    assert_compiles_right(source, tmp_path, input_shapes={"x": (2, 3, 7, 9)})


def test_numpy_integers_and_lists_are_shapes() -> None:
    source = model([node("Relu", "x", "y")], x=("n", 3, "h", 7))
    for shape in (np.array([2, 3, 5, 7]), [2, 3, 5, 7], (np.int64(2), 3, np.int32(5), 7)):
        network = import_model(source, {"x": shape})  # type: ignore[dict-item]
        assert network.inputs[0].shape == (2, 3, 5, 7)
        assert {type(extent) for extent in network.inputs[0].shape} == {int}


def test_path_bytes_and_proto_are_the_same_and_stay_as_they_were(tmp_path: Path) -> None:
    proto = onnx.load(LENET5)
    data = LENET5.read_bytes()
    before = proto.SerializeToString(deterministic=True)
    libraries = []
    for source in (LENET5, str(LENET5), data, proto):
        tvmcnn.compile(source, output=tmp_path / "lenet5.so", verify=False, activations=False)
        libraries.append((tmp_path / "lenet5.so").read_bytes())
    assert libraries[0] == libraries[1] == libraries[2] == libraries[3]
    assert proto.SerializeToString(deterministic=True) == before
    assert LENET5.read_bytes() == data
    import_model(proto, {"input": (3, 1, 32, 32)})
    assert proto.SerializeToString(deterministic=True) == before


def test_names() -> None:
    source = model([node("Relu", "x", "y")])
    assert import_model(source).name == "made"  # the graph's
    assert import_model(source, name="squeezenet-1.1").name == "squeezenet_1_1"
    assert import_model(source, name="3d").name == "model_3d"
    assert import_model(LENET5).name == "lenet5"  # the file's


def test_network_prints_itself() -> None:
    text = str(import_model(LENET5))
    assert text.splitlines()[0] == "lenet5: input 1x1x32x32 -> scores 1x10"
    assert "pool1 = MaxPool(relu1) kernel_shape=(2, 2) strides=(2, 2)" in text


# ---- opsets ---------------------------------------------------------------------------------------------------------


def small_cnn(opset: int) -> onnx.ModelProto:
    """One CNN in the words of each opset: what was an attribute once became an input."""
    weights: dict[str, Any] = {
        "w": draw((5, 3, 3, 2), 1),
        **batch_norm(5),
        "to": np.array([0, -1]),
        "m": draw((5 * 3 * 10, 7), 8) / 90,
        "b": draw((7,), 9),
    }
    nodes = []
    if opset >= 11:
        nodes.append(node("Pad", "x p", "q", mode="constant"))
        weights["p"] = np.array([0, 0, 1, 0, 0, 0, 0, 2])
    else:
        nodes.append(node("Pad", "x", "q", mode="constant", pads=[0, 0, 1, 0, 0, 0, 0, 2]))
    nodes += [node("Conv", "q w", "c"), node("BatchNormalization", "c scale shift mean var", "n")]
    if opset >= 11:
        nodes.append(node("Clip", "n low high", "k"))
        weights |= {"low": np.array(-0.5, np.float32), "high": np.array(6, np.float32)}
    else:
        nodes.append(node("Clip", "n", "k", min=-0.5, max=6.0))
    ceil = {"ceil_mode": 0} if opset >= 10 else {}
    nodes += [
        node("MaxPool", "k", "l", kernel_shape=[2, 3], strides=[2, 1], **ceil),
        node("AveragePool", "l", "a", kernel_shape=[1, 3], strides=[2, 1]),
        node("Dropout", "a", "d"),
        node("Reshape", "d to", "r"),
        node("Gemm", "r m b", "g"),
        node("Softmax", "g", "y", axis=1),
    ]
    return model(nodes, weights, x=("batch", 3, 11, 13), opset=opset)


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    source = small_cnn(opset)
    network = import_model(source)
    assert ("opset" in " ".join(network.notes)) == (opset < OPSET)
    assert [n.op for n in network.nodes if n.op not in ("Reshape", "Pad")] == [
        *["Conv", "Clip", "MaxPool", "AveragePool", "Gemm", "Softmax"],
    ]
    tvmcnn.compile(source, output=tmp_path / "net.so", verify=False, activations=False)
    runner = tvmcnn.load(tmp_path / "net.so")
    x = draw((1, 3, 11, 13), 3)
    wanted = tvmcnn.reference(source, {"x": x})["y"]
    assert wanted.max() < 0.999  # a saturated softmax would agree whatever went in
    assert_close(runner(x), wanted)


def test_reference_agrees_with_onnxruntime_on_the_opsets() -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing to compare with")
    x = draw((1, 3, 11, 13), 3)
    compared = 0
    for opset in range(7, NEWEST + 1):
        source = small_cnn(opset)
        try:
            session = ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
        except ort.capi.onnxruntime_pybind11_state.Fail:
            assert opset > 20  # onnxruntime knows the newest opsets later than onnx
            continue
        assert_close(tvmcnn.reference(source, {"x": x})["y"], session.run(None, {"x": x})[0])
        compared += 1
    assert compared >= 14


def test_softmax_of_old_opsets_is_over_all_axes_behind(tmp_path: Path) -> None:
    """Before opset 13 it flattened its input at `axis`; a converter that only relabels gets this wrong."""
    source = model([node("Softmax", "x", "y", axis=1)], opset=11, x=(2, 3, 5, 7))
    runner = assert_compiles_right(source, tmp_path)
    assert np.allclose(runner(draw((2, 3, 5, 7), 3)).reshape(2, -1).sum(axis=1), 1, atol=1e-5)
    new = model([node("Softmax", "x", "y", axis=1)], opset=13, x=(2, 3, 5, 7))
    runner = assert_compiles_right(new, tmp_path)
    assert np.allclose(runner(draw((2, 3, 5, 7), 3)).sum(axis=1), 1, atol=1e-5)


def test_average_pool_counts_padding_where_it_is_told(tmp_path: Path) -> None:
    for include in (0, 1):
        window = {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1], "strides": [2, 3]}
        assert_compiles_right(model([node("AveragePool", "x", "y", count_include_pad=include, **window)]), tmp_path)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_ceil_mode(op: str, tmp_path: Path) -> None:
    # 11 and 13 with windows of 2 and 3 and strides of 3 and 4: ⌈9/3⌉ + 1 = 4 and ⌈10/4⌉ + 1 = 4, its last at 12 < 13
    source = model([node(op, "x", "y", kernel_shape=[2, 3], strides=[3, 4], ceil_mode=1)])
    runner = assert_compiles_right(source, tmp_path)
    assert runner.outputs[0].shape == (1, 3, 4, 4)
    assert import_model(model([node(op, "x", "y", kernel_shape=[2, 3], strides=[3, 4])])).outputs[0].shape[2:] == (4, 3)


# ---- trained models of others ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Path:
    if TEST_DATA not in os.environ:
        pytest.skip(f"{TEST_DATA} is not set: it must name a folder that holds data/mnist and models")
    return Path(os.environ[TEST_DATA])


@pytest.fixture(scope="module")
def mnist(data: Path) -> tuple[Array, Array]:
    """The 10,000 test images, 28x28 grey levels, and their labels."""
    images = gzip.decompress((data / "data" / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())
    # The header takes 16 bytes in the file of images and 8 bytes in that of labels.
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    assert len(pixels) == 10_000
    return pixels, np.frombuffer(labels, np.uint8, offset=8)


def tensor(path: Path) -> Array:
    return numpy_helper.to_array(onnx.load_tensor(path))


def right_answers(runner: tvmcnn.Runner, pixels: Array, labels: Array) -> int:
    """How many images the library classifies right, given a whole number of batches at a time."""
    batch = runner.inputs[0].shape[0]
    scores = [runner(pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
    return int((np.concatenate(scores).argmax(axis=1) == labels).sum())


@pytest.fixture(scope="module")
def mnist_8(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tvmcnn.Runner:
    path = tmp_path_factory.mktemp("mnist8") / "mnist8.so"
    tvmcnn.compile(data / "models" / "mnist-8" / "model.onnx", output=path)
    return tvmcnn.load(path)


@pytest.mark.parametrize("pair", [0, 1, 2])
def test_mnist_8_gives_its_outputs(pair: int, data: Path, mnist_8: tvmcnn.Runner) -> None:
    folder = data / "models" / "mnist-8" / f"test_data_set_{pair}"
    found, wanted = mnist_8(tensor(folder / "input_0.pb")), tensor(folder / "output_0.pb")
    assert_close(found, wanted, 1e-3)


def test_mnist_8_counts(data: Path, mnist_8: tvmcnn.Runner, mnist: tuple[Array, Array]) -> None:
    pixels, labels = mnist
    assert right_answers(mnist_8, pixels[:, None].astype(np.float32), labels) == RIGHT_MNIST_8


def test_mnist_8_accounts_for_every_tensor(data: Path, mnist_8: tvmcnn.Runner) -> None:
    shown = mnist_8.activations(draw((1, 1, 28, 28), 3))
    source = onnx.load(data / "models" / "mnist-8" / "model.onnx")
    assert set(shown) | set(mnist_8.folded) == made_tensors(source)
    assert list(mnist_8.folded.values()) == ["constant: computed at compile time"]  # its one reshaped weight


def test_lenet5_of_others_counts(data: Path, mnist: tuple[Array, Array], tmp_path: Path) -> None:
    pixels, labels = mnist
    tvmcnn.compile(data / "models" / "lenet5-ccoltong" / "model.onnx", output=tmp_path / "other.so")
    runner = tvmcnn.load(tmp_path / "other.so")
    assert runner.inputs[0].shape == (10, 1, 28, 28)
    normal = (pixels[:, None].astype(np.float32) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
    assert right_answers(runner, normal, labels) == RIGHT_CCOLTONG


@pytest.mark.parametrize("batch", [1, 100])
def test_shipped_lenet5_counts_what_its_metadata_says(batch: int, mnist: tuple[Array, Array], tmp_path: Path) -> None:
    pixels, labels = mnist
    facts = {entry.key: entry.value for entry in onnx.load(LENET5).metadata_props}
    tvmcnn.compile(LENET5, output=tmp_path / "lenet5.so", batch=batch, verify=False, activations=False)
    framed = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32)  # background first, then normalised
    normal = (framed * np.float32(facts["scale"]) - np.float32(facts["mean"])) / np.float32(facts["std"])
    right = right_answers(tvmcnn.load(tmp_path / "lenet5.so"), normal, labels)
    assert right == round(float(facts["mnist_accuracy"]) * int(facts["mnist_images"]))


def test_super_resolution_gives_its_output(data: Path, tmp_path: Path) -> None:
    """An open batch, and a Reshape and Transpose of six axes."""
    folder = data / "models" / "super-resolution-10"
    compiled = tvmcnn.compile(folder / "model.onnx", output=tmp_path / "up.so", verify=False, activations=False)
    assert any("stays open" in note for note in compiled.program.network.notes)
    found = tvmcnn.load(compiled.path)(tensor(folder / "test_data_set_0" / "input_0.pb"))
    assert_close(found, tensor(folder / "test_data_set_0" / "output_0.pb"), 1e-3)


def test_squeezenet_agrees_with_onnxruntime(data: Path, tmp_path: Path) -> None:
    """Opset 7, initializers listed as inputs, 26 convolutions, 8 Concats."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the reference would take too long")
    path = data / "models" / "squeezenet-fp32-cast" / "model.onnx"
    compiled = tvmcnn.compile(path, output=tmp_path / "squeezenet.so", verify=False, activations=False)
    runner = tvmcnn.load(compiled.path)
    assert sum("Conv" in kernel["ops"] for kernel in runner.manifest["kernels"]) == 26
    x = 30 * draw(runner.inputs[0].shape, 3)
    wanted = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {runner.inputs[0].name: x})[0]
    assert wanted.max() > 2 * wanted.mean()  # not all classes alike
    assert_close(runner(x), wanted, 1e-4)


def test_detector_is_imported_or_refused_in_one_sentence(data: Path) -> None:
    """It resizes: the one model here that need not compile."""
    path = data / "models" / "yunet-n-320" / "model.onnx"
    try:
        network = import_model(path)
    except ModelError as error:
        listed = str(error).splitlines()
        network = None
    if network is None:
        assert all("Resize" in line or "Upsample" in line for line in listed[1:]), listed
        assert len(listed) > 1
    else:
        assert len(network.outputs) == 12
