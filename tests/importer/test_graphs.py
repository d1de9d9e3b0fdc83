"""Import: graphs that are written oddly become the network of the graph that is written plainly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import drawn, graph_of, model_of, node
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer import import_model
from tvmcnn.network import Network
from tvmcnn.onnx_file import model_digest, whole_model, with_external_data

Array = np.ndarray[Any, Any]
IMAGE = (2, 3, 7, 9)


def model(
    nodes: Sequence[NodeProto],
    weights: dict[str, Array] | None = None,
    *,
    outputs: str = "y",
    ir_version: int = 9,
    **more: Any,
) -> onnx.ModelProto:
    """A model of one image x; outputs of any four extents."""
    made = dict.fromkeys(outputs.split(), (None,) * 4)
    return model_of(nodes, {"x": IMAGE}, made, weights, ir_version=ir_version, **more)


def assert_same(odd: Network, plain: Network) -> None:
    """The same nodes under whatever names, with the same numbers, from inputs to outputs of the same names."""

    def words(network: Network) -> list[Any]:
        places: dict[str, int] = {}
        seen = []
        for n in network.nodes:
            operands = [network.constants[name].tolist() if name in network.constants else
                        places.setdefault(name, len(places)) for name in n.inputs]  # fmt: skip
            seen.append((n.op, operands, places.setdefault(n.output, len(places)), dict(n.attributes)))
        return seen

    assert words(odd) == words(plain)
    assert (odd.inputs, odd.outputs) == (plain.inputs, plain.outputs)


# ---- what ONNX's checker refuses and others take --------------------------------------------------------------------

WEIGHTS = {"w": drawn(4, 3, 3, 2)}
LAYERS = [node("Conv", "x w", "c", name="conv"), node("Relu", "c", "y", name="relu")]


def without_output_shape(odd: onnx.ModelProto) -> None:
    odd.graph.output[0].type.tensor_type.ClearField("shape")


def without_output_type(odd: onnx.ModelProto) -> None:
    odd.graph.output[0].ClearField("type")


def of_no_element_type(odd: onnx.ModelProto) -> None:
    odd.graph.output[0].type.tensor_type.elem_type = 0


def unsorted(odd: onnx.ModelProto) -> None:
    nodes = [copy.deepcopy(n) for n in odd.graph.node]
    del odd.graph.node[:]
    odd.graph.node.extend(reversed(nodes))


def of_the_other_domain(odd: onnx.ModelProto) -> None:
    odd.opset_import[0].domain = "ai.onnx"


def of_nodes_of_the_other_domain(odd: onnx.ModelProto) -> None:
    for n in odd.graph.node:
        n.domain = "ai.onnx"


def of_both_domains(odd: onnx.ModelProto) -> None:
    odd.opset_import.append(helper.make_opsetid("ai.onnx", 17))
    odd.graph.node[0].domain = "ai.onnx"


def without_a_name(odd: onnx.ModelProto) -> None:
    odd.graph.name = ""


@pytest.mark.parametrize(
    "spoil",
    [
        *(without_output_shape, without_output_type, of_no_element_type, unsorted, of_the_other_domain),
        *(of_nodes_of_the_other_domain, of_both_domains, without_a_name),
    ],
)
def test_what_onnx_refuses(spoil: Callable[[onnx.ModelProto], None]) -> None:
    plain = model(LAYERS, WEIGHTS)
    odd = copy.deepcopy(plain)
    spoil(odd)
    assert odd != plain
    before = odd.SerializeToString(deterministic=True)
    assert_same(import_model(odd), import_model(plain))
    assert odd.SerializeToString(deterministic=True) == before  # the caller's stays as it was


def test_types_of_outputs_are_inferred() -> None:
    """An output that says nothing of its type has what its node makes: an integer, a bool, float16."""
    for op, attributes, dtype in (
        ("ArgMax", {}, "int64"),
        ("IsNaN", {}, "bool"),
        ("Cast", {"to": TensorProto.FLOAT16}, "float16"),
    ):
        odd = model([node(op, "x", "y", **attributes)])
        odd.graph.output[0].ClearField("type")
        assert [tensor.dtype for tensor in import_model(odd).outputs] == [dtype]


def test_nodes_are_sorted_by_what_their_branches_read() -> None:
    """The condition and an operand of a branch come last in the file; the nodes that are in order keep it."""
    branches = {
        word: graph_of([node(op, "s", word)], {}, {word: IMAGE}, name=word)
        for word, op in (("then_branch", "Abs"), ("else_branch", "Neg"))
    }
    fork = node("If", "flag", "y", **branches)
    flag = node("Constant", "", "flag", value=numpy_helper.from_array(np.array(True)))
    odd = model([fork, flag, node("Tanh", "r", "s"), node("Relu", "x", "r")])
    plain = model([node("Relu", "x", "r"), node("Tanh", "r", "s"), node("Abs", "s", "y")])
    assert_same(import_model(odd), import_model(plain))


def test_a_cycle_names_its_nodes() -> None:
    ring = [
        node("Relu", "x", "a", name="outside"),
        node("Add", "a d", "b", name="first"),
        node("Tanh", "b", "c"),
        node("Neg", "c", "d", name="third"),
        node("Abs", "d", "y", name="behind"),
    ]
    with pytest.raises(ModelError) as caught:
        import_model(model(ring))
    words = "node 'first' (Add), node 'third' (Neg), the node that makes 'c' (Tanh)"
    assert str(caught.value) == f"the model has a cycle, which no graph may have, through {words}"


def test_an_initializer_that_is_an_output(tmp_path: Path) -> None:
    """Small and large: it is copied to the output by the library, and the check finds it there."""
    weights = {"w": drawn(4, 3, 3, 2), "v": drawn(3, 5, 7, 170)}
    assert weights["v"].nbytes > 1 << 16
    both = model(LAYERS, weights, outputs="y w v")
    tvmcnn.compile(both, output=tmp_path / "both.so")
    x = drawn(*IMAGE)
    y, w, v = tvmcnn.load(tmp_path / "both.so")(x)
    np.testing.assert_array_equal(w, weights["w"])
    np.testing.assert_array_equal(v, weights["v"])
    np.testing.assert_allclose(y, reference(both, {"x": x})["y"], atol=1e-5)


def test_an_input_without_a_shape() -> None:
    odd = model(LAYERS, WEIGHTS)
    odd.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' of the model has no shape: give it by --input-shape x:1x3x224x224"):
        import_model(odd)
    assert_same(import_model(odd, {"x": IMAGE}), import_model(model(LAYERS, WEIGHTS)))


def test_opset_imports_that_contradict_each_other() -> None:
    odd = model(LAYERS, WEIGHTS)
    odd.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    with pytest.raises(ModelError, match="imports ONNX's operators of opset 13 and 17; it must be one"):
        import_model(odd)


# ---- outputs that nobody reads --------------------------------------------------------------------------------------

STATISTICS = {name: np.abs(drawn(3, seed=i)) + 0.3 for i, name in enumerate(("scale", "shift", "mean", "var"))}


@pytest.mark.parametrize("opset", [7, 9, 13])
@pytest.mark.parametrize("extra", [["rm", "rv", "sm", "sv"], ["", "", "", ""], ["rm", "", "", ""]])
def test_unread_statistics(opset: int, extra: list[str]) -> None:
    odd = model([node("BatchNormalization", ["x", *STATISTICS], ["y", *extra])], STATISTICS, opset=opset)
    plain = model([node("BatchNormalization", ["x", *STATISTICS], "y")], STATISTICS, opset=opset)
    network = import_model(odd)
    assert_same(network, import_model(plain))
    named = [name for name in extra if name]
    assert network.folded == dict.fromkeys(named, "unread: no node takes it, and it is no output")


def test_unread_outputs_of_other_operators(tmp_path: Path) -> None:
    """The mask of a Dropout, a MaxPool's indices, a LayerNormalization's statistics; one that is read stays."""
    weights = {"ratio": np.array(0.5, np.float32), "one": np.ones(9, np.float32)}
    nodes = [
        node("Dropout", "x ratio", "d mask"),
        node("MaxPool", "d", "p places", kernel_shape=[2, 1]),
        node("LayerNormalization", "p one", "y mean deviation"),
    ]
    network = import_model(model(nodes, weights))
    assert [n.op for n in network.nodes] == ["MaxPool", "LayerNormalization"]
    assert {"mask", "places", "mean", "deviation"} <= set(network.folded)
    read = import_model(model([*nodes, node("Relu", "mean", "z")], weights, outputs="y z"))
    assert [n.op for n in read.nodes] == ["MaxPool", "LayerNormalization", "LayerNormalizationMean", "Relu"]


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "reason"),
    [
        (15, ["y"], {"training_mode": 1}, "its training_mode is 1, not 0 as for inference: export the model in eval"),
        (15, ["y", "m", "v"], {"training_mode": 1}, "its training_mode is 1"),
        (9, ["y", "m", "z", "s", "t"], {}, "its output 'z' is there in training only: export the model in eval mode"),
        (8, ["y"], {"spatial": 0}, "its spatial is 0; only one mean and variance a channel is supported"),
    ],
)
def test_training(opset: int, outputs: list[str], attributes: dict[str, int], reason: str) -> None:
    """Refused also behind a convolution, into which folding would put it as if it were inference."""
    channels = {name: np.abs(drawn(4, seed=i)) + 0.3 for i, name in enumerate(STATISTICS)}
    norm = node("BatchNormalization", ["c", *channels], outputs, name="norm", **attributes)
    made = model([LAYERS[0], norm], {**WEIGHTS, **channels}, opset=opset, outputs="y z" if "z" in outputs else "y")
    with pytest.raises(UnsupportedError) as caught:
        import_model(made)
    assert caught.value.reasons[0].startswith(f"node 'norm' (BatchNormalization): {reason}")


@pytest.mark.parametrize("source", ["initializer", "Constant"])
def test_weights_that_training_standardises(source: str, tmp_path: Path) -> None:
    """PyTorch's batch_norm of a convolution's weights, as a ResNetV2 has it: constant, so that nothing is trained."""
    kernel = drawn(1, 6, 27) + np.float32(0.5)
    weights = {"k": kernel, "g": drawn(6, seed=2), "o": drawn(6, seed=3), "z": np.zeros(6, np.float32)}
    weights["form"] = np.array([6, 3, 3, 3])
    nodes = [
        node("BatchNormalization", "k g o z z", ["n", "", ""], training_mode=1, epsilon=1e-3),
        node("Reshape", "n form", "w"),
        node("Conv", "x w", "y", pads=[1, 1, 1, 1]),
    ]
    if source == "Constant":
        nodes.insert(0, node("Constant", [], "k", value=numpy_helper.from_array(weights.pop("k"))))
    made = model(nodes, weights, opset=15)
    verdict = tvmcnn.compile(made, output=tmp_path / "standard.so").verdict
    assert verdict is not None and verdict.passed
    x = drawn(*IMAGE)
    normal = (kernel - kernel.mean(-1, keepdims=True)) / np.sqrt(kernel.var(-1, keepdims=True) + 1e-3)
    standard = (normal * weights["g"][:, None] + weights["o"][:, None]).reshape(6, 3, 3, 3)
    wanted = reference(model(nodes[-1:], {"w": standard.astype(np.float32)}, outputs="y"), {"x": x})["y"]
    np.testing.assert_allclose(tvmcnn.load(tmp_path / "standard.so")(x), wanted, atol=1e-4)


# ---- GroupNormalization of opset 18 ---------------------------------------------------------------------------------


def test_group_normalization_of_opset_18(tmp_path: Path) -> None:
    """A scale and a bias a group, not a channel; onnx's own checker refuses the node."""
    weights = {"w": drawn(6, 3, 3, 2), "s": drawn(2), "b": drawn(2, seed=2)}
    norm = node("GroupNormalization", "c s b", "y", num_groups=2, epsilon=0.01)
    made = model([LAYERS[0], norm], weights, opset=18)
    verdict = tvmcnn.compile(made, output=tmp_path / "group.so").verdict
    assert verdict is not None and verdict.passed
    x = drawn(*IMAGE)
    each = np.repeat(np.stack([weights["s"], weights["b"]]), 3, axis=1)[..., None, None]
    c = reference(model(LAYERS[:1], weights, outputs="c"), {"x": x})["c"].astype(np.float64)
    groups = c.reshape(2, 2, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 0.01)
    wanted = normal.reshape(c.shape) * each[0] + each[1]
    np.testing.assert_allclose(tvmcnn.load(tmp_path / "group.so")(x), wanted, atol=1e-4)


def test_group_normalization_of_a_wrong_opset() -> None:
    weights = {"s": drawn(3), "b": drawn(3)}
    norm = node("GroupNormalization", "x s b", "y", name="norm", num_groups=1)
    with pytest.raises(UnsupportedError) as caught:
        import_model(model([norm], weights, opset=18))
    assert "norm' (GroupNormalization): 's' is 3; opset 18 has one value a group, 1, and opset 21" in str(caught.value)
    assert [n.op for n in import_model(model([norm], weights, opset=21)).nodes] == ["GroupNormalization"]


# ---- functions ------------------------------------------------------------------------------------------------------


def function(name: str, inputs: str, outputs: str, nodes: Sequence[NodeProto], **more: Any) -> FunctionProto:
    imports = [helper.make_opsetid("", more.pop("opset", 17)), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, inputs.split(), outputs.split(), nodes, imports, **more)


def called(name: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return node(name, inputs, outputs, domain="own", **attributes)


SILU = function("silu", "a", "r", [node("Mul", "a s", "r"), node("Sigmoid", "a", "s")])  # unsorted too


def test_functions_within_functions() -> None:
    leaky = node("LeakyRelu", "b", "r")
    leaky.attribute.append(helper.make_attribute_ref("alpha", onnx.AttributeProto.FLOAT))
    block = function(
        "block", "a w", "r", [node("Conv", "a w", "c"), called("silu", "c", "b"), leaky], attributes=["alpha"]
    )
    weights = {"w": drawn(3, 3, 1, 2), "v": drawn(5, 3, 2, 1)}
    odd = model(
        [called("block", "x w", "s", alpha=0.25), called("block", "s v", "y", alpha=0.5)],
        weights,
        functions=[block, SILU],
    )
    plain = model(
        [
            part
            for x, w, y, alpha in (("x", "w", "s", 0.25), ("s", "v", "y", 0.5))
            for part in (
                node("Conv", f"{x} {w}", f"{y}c"),
                node("Sigmoid", f"{y}c", f"{y}s"),
                node("Mul", f"{y}c {y}s", f"{y}b"),
                node("LeakyRelu", f"{y}b", y, alpha=alpha),
            )
        ],
        weights,
    )
    network = import_model(odd)
    assert_same(network, import_model(plain))
    assert "s" in network.tensors  # as the file names it, though the function has an s of its own


def test_the_default_of_a_function_s_attribute() -> None:
    """Where the call does not give it, of a function inside another too: the inliner of onnx forgets it."""
    leaky = node("LeakyRelu", "a", "r")
    leaky.attribute.append(helper.make_attribute_ref("alpha", onnx.AttributeProto.FLOAT))
    own = function("leaky", "a", "r", [leaky], attribute_protos=[helper.make_attribute("alpha", 0.3)])
    block = function("block", "a", "r", [called("leaky", "a", "b"), called("leaky", "b", "r", alpha=0.5)])
    odd = model([called("block", "x", "s"), called("leaky", "s", "y")], functions=[own, block])
    slopes = zip("xab", "aby", (0.3, 0.5, 0.3), strict=True)
    plain = model([node("LeakyRelu", x, y, alpha=alpha) for x, y, alpha in slopes])
    assert_same(import_model(odd), import_model(plain))


def test_functions_that_multiply() -> None:
    """Forty functions of two calls each are 2^39 nodes: counted, not made."""
    tower = [function("f0", "a", "r", [node("Relu", "a", "r")])]
    for level in range(1, 40):
        below = f"f{level - 1}"
        tower.append(function(f"f{level}", "a", "r", [called(below, "a", "b"), called(below, "b", "r")]))
    with pytest.raises(ModelError, match="has 549,755,813,888 nodes; allowed are 100,000"):
        import_model(model([called("f39", "x", "y")], functions=tower))
    loop = [function("f", "a", "r", [called("g", "a", "r")]), function("g", "a", "r", [called("f", "a", "r")])]
    with pytest.raises(ModelError, match="Cycle detected in model-local function references"):
        import_model(model([called("f", "x", "y")], functions=loop))


# ---- branches -------------------------------------------------------------------------------------------------------


def forked(condition: Sequence[NodeProto], weights: dict[str, Array]) -> onnx.ModelProto:
    """x if a condition holds, its maps summed otherwise, which has an axis fewer."""
    squeezed = [node("ReduceSum", "x axes", "t", keepdims=0)]
    then = graph_of(squeezed, {}, {"t": (None,) * 3}, {"axes": np.array([1])}, "then")
    other = graph_of([node("Identity", "x", "e")], {}, {"e": IMAGE}, name="else")
    fork = node("If", "flag", "q", name="fork", then_branch=then, else_branch=other)
    made = model([*condition, fork, node("Relu", "q", "y")], weights)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


@pytest.mark.parametrize("maps", [3, 4])
def test_a_branch_that_shapes_decide(maps: int) -> None:
    """As PyTorch writes squeeze: the condition asks for an extent."""
    condition = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "extent", axis=0),
        node("Equal", "extent maps", "flag"),
    ]
    network = import_model(forked(condition, {"one": np.array(1), "maps": np.array(maps)}))
    assert [n.op for n in network.nodes] == (["ReduceSum", "Relu"] if maps == 3 else ["Relu"])
    assert network.outputs[0].shape == ((2, 7, 9) if maps == 3 else IMAGE)


def test_a_branch_that_values_decide() -> None:
    condition = [node("ReduceMax", "x", "top", keepdims=0), node("Greater", "top zero", "flag")]
    with pytest.raises(UnsupportedError) as caught:
        import_model(forked(condition, {"zero": np.float32(0)}))
    assert caught.value.reasons[0] == (
        "node 'fork' (If): its condition 'flag' is computed at run time;"
        " its output 'q' must then have one shape and type, not float32 2x7x9 and float32 2x3x7x9"
    )


# ---- data behind links ----------------------------------------------------------------------------------------------


def hub(folder: Path) -> Path:
    """A model as a hub's cache keeps it: links by name to files by hash."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    made = model([*LAYERS[:1], node("Add", "c large", "y")], {**WEIGHTS, "large": drawn(2, 4, 5, 8)})
    made.graph.initializer[1].CopyFrom(numpy_helper.from_array(drawn(103, 4, 5, 8), "large"))
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 103
    assert made.graph.initializer[1].ByteSize() > 1 << 16
    onnx.save(made, blobs / "c6ed", save_as_external_data=True, location="d878", size_threshold=0)
    proto = onnx.load(blobs / "c6ed", load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "model.onnx_data"
    (blobs / "c6ed").write_bytes(proto.SerializeToString())
    (snapshot / "model.onnx").symlink_to(Path("../../../blobs/c6ed"))
    (snapshot / "model.onnx_data").symlink_to(Path("../../../blobs/d878"))
    return snapshot / "model.onnx"


def test_data_behind_the_links_of_a_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with what to do about it; with it compiled, checked, compared again, inspected, given new weights."""
    from tvmcnn.cli import main

    path, library = hub(tmp_path), tmp_path / "net.so"
    compiling = ["compile", str(path), "-o", str(library), "--batch", "103"]
    assert main(compiling) == 1
    said = capsys.readouterr().err
    assert f"the place 'model.onnx_data' is {tmp_path / 'blobs' / 'd878'}, outside the model's folder" in said
    assert "allow it by --external-data DIR" in said
    allowed = ["--external-data", str(tmp_path / "blobs")]
    assert main([*compiling, *allowed]) == 0
    assert "verified against NumPy" in capsys.readouterr().out
    assert main(["verify", str(library), "--model", str(path), *allowed]) == 0
    assert main(["verify", str(library), "--model", str(path)]) == 1
    assert main(["ops", "--check", str(path), "--input-shape", "x:103x3x7x9", *allowed]) == 0
    again = [str(library), str(path), "-o", str(tmp_path / "again.so"), "--no-verify"]
    assert main(["reweight", *again, *allowed]) == 0
    assert (tmp_path / "again.so").read_bytes()[:64] == library.read_bytes()[:64]
    code = ["inspect", str(library), "--model", str(path), "--code", "k0_conv:expression"]
    assert main([*code, *allowed]) == 0
    capsys.readouterr()
    assert main(code) == 1


def test_folders_of_external_data(tmp_path: Path) -> None:
    """A folder that does not hold the data allows nothing, nor does one that is not there; bytes have no folder."""
    path = hub(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="outside the model's folder and the allowed one"):
        tvmcnn.compile(path, output=tmp_path / "n.so", external_data=tmp_path / "other")
    with pytest.raises(ModelError, match=r"the folder of external data .*nowhere is not there"):
        tvmcnn.compile(path, output=tmp_path / "n.so", external_data=tmp_path / "nowhere")
    with pytest.raises(ModelError, match="external_data is for models that are files"):
        tvmcnn.compile(path.read_bytes(), output=tmp_path / "n.so", external_data=tmp_path)
    link = tmp_path / "link.onnx"  # its data are not beside it, but in the folder that is allowed, under their name
    link.symlink_to(path)
    with pytest.raises(ModelError, match=r"No such file or directory: model.onnx_data; .*link.onnx is a link"):
        import_model(link, batch=103)
    (tmp_path / "blobs" / "model.onnx_data").symlink_to("d878")
    allowed = with_external_data(link, tmp_path / "blobs")
    assert import_model(allowed, batch=103).constants["large"].shape == (103, 4, 5, 8)
    assert model_digest(allowed) == model_digest(with_external_data(path, tmp_path / "blobs"))
    whole = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole_model(allowed).graph.initializer}
    np.testing.assert_array_equal(whole["large"], drawn(103, 4, 5, 8))
    with pytest.raises(ModelError, match="outside the model's folder"):
        whole_model(path)
