"""What the oracle makes of a file around its operators: order, branches, loops, functions, weights elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from builders import Kind, graph_of, model_of, node
from one_node import Array, session
from onnx import TensorProto, helper

from tvmcnn.check.reference import control, reference
from tvmcnn.errors import InputError, ModelError, TvmcnnError, UnsupportedError

R = np.random.default_rng(51)
X = R.standard_normal((2, 3, 6, 5)).astype(np.float32)
W = R.standard_normal((7, 3, 2, 3)).astype(np.float32)
FLOAT, FLAG = TensorProto.FLOAT, (TensorProto.BOOL, ())
TURN = {"turn": (TensorProto.INT64, ()), "before": FLAG}  # what a loop hands to its body


def build(
    nodes: list[onnx.NodeProto],
    outputs: str | Mapping[str, Kind] = "y",
    constants: dict[str, Any] | None = None,
    opset: int = 17,
    inputs: Mapping[str, Kind] | None = None,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    """A model that reads x (2, 3, 6, 5) and whatever else is given; outputs that are words are float32 of any shape."""
    made = dict.fromkeys(outputs.split(), FLOAT) if isinstance(outputs, str) else outputs
    return model_of(nodes, inputs or {"x": X}, made, constants, opset=opset, functions=functions, ir_version=10)


def assert_as_onnxruntime(model: onnx.ModelProto, *arrays: Array, oracle: onnx.ModelProto | None = None) -> None:
    """All outputs, in order, shape, type and value."""
    feeds = {value.name: array for value, array in zip(model.graph.input, arrays or (X,), strict=True)}
    ours = list(reference(oracle or model, feeds).values())
    for mine, theirs in zip(ours, session(model).run(None, feeds), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(initial=0))


CONV_RELU = [node("Conv", "x w", "c"), node("Relu", "c", "y")]
PLAIN = build(CONV_RELU, "y", {"w": W})

# --- order and names ---


def test_nodes_in_any_order() -> None:
    """Also where what comes first is only read inside a branch, and every tensor is shown in the order it is made."""
    model = build(CONV_RELU[::-1], "y", {"w": W})
    assert_as_onnxruntime(PLAIN, oracle=model)
    assert list(reference(model, X, every_tensor=True)) == ["x", "c", "y"]
    reading = graph_of([node("Neg", "late", "t")], {}, {"t": FLOAT}, name="reads")
    handing_on = graph_of([], {}, {"late": FLOAT}, name="hands on")
    for branch, wanted in ((reading, -abs(X)), (handing_on, abs(X))):
        nodes = [node("If", "yes", "y", then_branch=branch, else_branch=branch), node("Abs", "x", "late")]
        model = build(nodes, "y", {"yes": np.array(True)})
        np.testing.assert_array_equal(reference(model, X)["y"], wanted)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            [node("Add", "x b", "a"), node("Neg", "a", "b"), node("Neg", "b", "y")],
            "wait for one another",
        ),
        ([node("Neg", "x", "y"), node("Abs", "x", "y")], "makes 'y' twice"),
        ([node("Add", "x nowhere", "y", name="the_node")], "the_node.*'nowhere'.*nothing makes"),
        ([node("Neg", "x", "z")], r"outputs \['y'\]"),
    ],
)
def test_names_that_do_not_fit(nodes: list[onnx.NodeProto], words: str) -> None:
    """Circles, two makers, no maker."""
    with pytest.raises(ModelError, match=words):
        reference(build(nodes, "y"), X)


def test_the_two_names_of_onnx_own_domain() -> None:
    """In the import, in the nodes, in both; two versions are too many."""
    model = build(CONV_RELU, "y", {"w": W})
    model.opset_import[0].domain = "ai.onnx"
    assert_as_onnxruntime(PLAIN, oracle=model)
    for each in model.graph.node:
        each.domain = "ai.onnx"
    assert_as_onnxruntime(PLAIN, oracle=model)
    model.opset_import.append(helper.make_opsetid("", 17))
    assert_as_onnxruntime(PLAIN, oracle=model)
    model.opset_import[1].version = 13
    with pytest.raises(ModelError, match=r"'ai\.onnx' twice"):
        reference(model, X)


def test_every_kind_of_output() -> None:
    """An initializer, an input, one without a shape, one without a type, one that another node reads."""
    model, bare = (build(CONV_RELU, "w x y c", {"w": W, "unread": W}) for _ in range(2))
    bare.graph.output[2].type.tensor_type.ClearField("shape")
    bare.graph.output[3].ClearField("type")
    assert_as_onnxruntime(model, oracle=bare)
    every = reference(bare, X, every_tensor=True)
    assert list(every) == ["w", "x", "c", "y"]
    np.testing.assert_array_equal(every["w"], W)


def test_optional_outputs_that_nobody_reads() -> None:
    """BatchNormalization before opset 14 names five, and a MaxPool may name what it cannot make."""
    numbers = [abs(R.standard_normal(3)).astype(np.float32) for _ in range(4)]
    constants = dict(zip("sbmv", numbers, strict=True))
    five = [node("BatchNormalization", ["x", *"sbmv"], "y m1 v1 m2 v2", name="norm")]
    one = build([node("BatchNormalization", ["x", *"sbmv"], "y")], "y", constants, 9)
    assert_as_onnxruntime(one, oracle=build(five, "y", constants, 9))
    for reader in ([node("Neg", "m1", "z")], []):
        model = build([*five, *reader], "y z" if reader else "y v2", constants, 9)
        with pytest.raises(UnsupportedError, match=r"norm.*optional output"):
            reference(model, X)


# --- branches and loops ---


def branches() -> dict[str, onnx.GraphProto]:
    """Two branches that read x, with tensors of their own; the second cannot be evaluated."""
    nodes = [node("Mul", "x k", "inside"), node("Neg", "inside", "t")]
    then = graph_of(nodes, {}, {"t": FLOAT}, {"k": np.float32(3)}, "then")
    other = graph_of([node("Bernoulli", "x", "e")], {}, {"e": FLOAT}, name="else")
    return {"then_branch": then, "else_branch": other}


def test_only_the_branch_that_is_taken() -> None:
    """A constant decides, or a condition that shapes give; its tensors are shown. The other is not looked at."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "d"),
        node("Equal", "d three", "is_three"),
        node("If", "is_three", "y", **branches()),
    ]
    model = build(nodes, "y", {"one": np.array(1), "three": np.array(3)}, 16)
    every = reference(model, X, every_tensor=True)
    np.testing.assert_array_equal(every["y"], -3 * X)
    np.testing.assert_array_equal(every["inside"], 3 * X)
    assert list(every) == ["x", "s", "d", "is_three", "y", "inside", "t"]
    with pytest.raises(UnsupportedError, match="Bernoulli"):
        reference(build(nodes, "y", {"one": np.array(1), "three": np.array(4)}, 16), X)


def test_a_name_in_two_branches_is_not_shown() -> None:
    """It would be one tensor or the other."""
    nodes = [node("If", "yes", name, **branches()) for name in ("a", "b")]
    model = build([*nodes, node("Add", "a b", "y")], "y", {"yes": np.array(True)})
    every = reference(model, X, every_tensor=True)
    assert list(every) == ["x", "a", "b", "y"]
    np.testing.assert_array_equal(every["y"], -6 * X)
    nodes = [
        nodes[0],
        node("Neg", "x", "inside"),
        node("Add", "a inside", "b"),
        node("Add", "b t", "y"),
    ]
    model, seen = build(nodes, "y", {"yes": np.array(True), "t": X}), {}
    np.testing.assert_array_equal(reference(model, X, follow=lambda name, x: seen.setdefault(name, x))["y"], -3 * X)
    assert list(seen) == ["a", "inside", "b", "y"]  # those of the graph itself, which has its own t too
    every = reference(model, X, every_tensor=True)
    np.testing.assert_array_equal(every["inside"], -X)
    assert "t" not in every


def body(last: str) -> onnx.GraphProto:
    """One turn of a Loop: total += x * turn, and what is stacked."""
    nodes = [
        node("Cast", "turn", "as_float", to=TensorProto.FLOAT),
        node("Mul", "x as_float", "part"),
        node("Add", "total part", "more"),
        node("Less", "turn two", "goes_on"),
    ]
    return graph_of(nodes, TURN | {"total": X.shape}, {last: FLAG, "more": X.shape, "part": X.shape}, name="body")


@pytest.mark.parametrize("trip", [0, 1, 7])
@pytest.mark.parametrize("condition", ["", "yes", "no"])
def test_loop_agrees_with_onnxruntime(trip: int, condition: str) -> None:
    """It ends by the trip count, or after the turn whose condition fails, or before the first; a stack may be empty."""
    constants = {
        "zero": 0 * X,
        "trip": np.array(trip),
        "yes": np.array(True),
        "no": np.array(False),
        "two": np.array(2),
    }
    nodes = [node("Loop", ["trip", condition, "zero"], "y stack", body=body("goes_on"))]
    model = build(nodes, {"y": X.shape, "stack": (None, *X.shape)}, constants, 16)
    assert_as_onnxruntime(model)
    assert "part" not in reference(model, X, every_tensor=True)


def test_a_loop_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hang the check."""
    monkeypatch.setattr(control, "LONGEST", 50)
    endless = graph_of([node("Identity", "before", "on")], TURN, {"on": FLAG}, name="b")
    with pytest.raises(UnsupportedError, match=r"forever.*50 turns"):
        reference(
            build([node("Loop", ["", ""], "", body=endless, name="forever"), *CONV_RELU], "y", {"w": W}),
            X,
        )


def test_scan_agrees_with_onnxruntime() -> None:
    """Two inputs along different axes, one of them backwards; outputs stacked forwards and backwards."""
    nodes = [node("Add", "s a", "s1"), node("Mul", "s1 b", "p"), node("Sub", "a b", "q")]
    turn = graph_of(nodes, dict.fromkeys("sab", (3, 5)), dict.fromkeys(("s1", "p", "q"), (3, 5)), name="turn")
    scan = node(
        "Scan", "zero x z", "y ps qs", body=turn, num_scan_inputs=2, scan_input_axes=[0, 1],
        scan_input_directions=[0, 1], scan_output_axes=[0, 2], scan_output_directions=[1, 0],
    )  # fmt: skip
    inputs = {"x": (4, 3, 5), "z": (3, 4, 5)}
    model = build([scan], "y ps qs", {"zero": np.zeros((3, 5), np.float32)}, 16, inputs)
    assert_as_onnxruntime(model, *(R.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 5), (3, 4, 5))))


# --- functions ---

ONNX, PKG = helper.make_opsetid("", 17), helper.make_opsetid("pkg", 1)
PARTS = [node("Sigmoid", "a", "s"), node("Mul", "a s", "r")]
SILU, UNSORTED = (helper.make_function("pkg", "silu", ["a"], ["r"], parts, [ONNX]) for parts in (PARTS, PARTS[::-1]))


def leaky(opset: int) -> onnx.FunctionProto:
    """A function with an attribute that must be given, one with a default, and an input that may be left out."""
    nodes = [
        node("LeakyRelu", "a", "l"),
        node("HardSigmoid", "l", "h"),
        node("Clip", ["h", "", "top"], "r"),
    ]
    nodes[0].attribute.append(helper.make_attribute_ref("alpha", onnx.AttributeProto.FLOAT))
    nodes[0].attribute[0].ref_attr_name = "slope"
    nodes[1].attribute.append(helper.make_attribute_ref("alpha", onnx.AttributeProto.FLOAT))
    default = helper.make_attribute("alpha", 0.3)
    return helper.make_function(
        "pkg", "leaky", ["a", "top"], ["r"], nodes, [helper.make_opsetid("", opset)], ["slope"], [default]
    )


@pytest.mark.parametrize("opset", [17, 13])
def test_functions_with_attributes(opset: int) -> None:
    """Nested, with and without what may be left out; of another opset the inliner leaves the calls where they are."""
    inside = [
        node("Conv", "a w", "c"),
        node("silu", "c", "s", domain="pkg"),
        node("leaky", "s", "r", domain="pkg", slope=0.2, alpha=0.1),
    ]
    block = helper.make_function("local", "block", ["a", "w"], ["r"], inside, [ONNX, PKG])
    nodes = [
        node("leaky", "x top", "s", domain="pkg", slope=0.4),
        node("block", "s w", "c", domain="local"),
        node("Relu", "c", "y"),
    ]
    constants = {"w": W, "top": np.float32(0.9)}
    model = build(nodes, "y", constants, 17, None, (SILU, leaky(opset), block))
    assert_as_onnxruntime(model)
    every = reference(model, X, every_tensor=True)
    inlined = list(onnx.inliner.inline_local_functions(model).graph.node)
    assert {*every} == {"x", *(name for each in inlined for name in each.output)}
    assert {"c", "s", "y"} < {*every}  # and not what is called so inside
    backwards = build(nodes[::-1], "y", constants, 17, None, (UNSORTED, leaky(opset), block))
    found = reference(backwards, X, every_tensor=True)
    assert {*found} == {*every}
    for name, array in found.items():
        np.testing.assert_array_equal(array, every[name])
    (sigmoid,), (product,) = ([each for each in inlined if each.op_type == op] for op in ("Sigmoid", "Mul"))
    a, s, r = (every[name] for name in (sigmoid.input[0], sigmoid.output[0], product.output[0]))
    np.testing.assert_allclose(s, 1 / (1 + np.exp(-a)), rtol=1e-6)
    np.testing.assert_allclose(r, a * s, rtol=1e-6)


def test_names_inside_a_function_are_none_of_a_weight() -> None:
    """The inliner calls the t of the first call t__1, as a weight is called; of weights it sees where they are read."""
    body = [node("Neg", "a", "t"), node("Abs", "t", "r")]
    function = helper.make_function("pkg", "size", ["a"], ["r"], body, [ONNX])
    nodes = [node("size", "x", "s", domain="pkg"), node("Mul", "s t__1", "y")]
    assert_as_onnxruntime(build(nodes, "y", {"t__1": X[:1]}, 17, None, (function,)))


def test_functions_without_end_are_told() -> None:
    """One that calls itself, which ONNX forbids, and thirty of which each calls the next twice."""
    again = helper.make_function("pkg", "again", ["a"], ["r"], [node("again", "a", "r", domain="pkg")], [ONNX, PKG])
    with pytest.raises(ModelError, match="deep"):
        reference(build([node("again", "x", "y", domain="pkg")], "y", {}, 17, None, (again,)), X)
    calls = [[node(f"f{n + 1}", "a", "b", domain="pkg"), node(f"f{n + 1}", "b", "r", domain="pkg")] for n in range(30)]
    calls.append([node("Neg", "a", "r")])
    many = tuple(helper.make_function("pkg", f"f{n}", ["a"], ["r"], body, [ONNX, PKG]) for n, body in enumerate(calls))
    with pytest.raises(ModelError, match=r"1,073,741,824 nodes"):
        reference(build([node("f0", "x", "y", domain="pkg")], "y", {}, 17, None, many), X)


def test_a_function_sees_its_inputs_only() -> None:
    """Not what its caller has; and a call with more than these is told."""
    peeking = helper.make_function("pkg", "peeking", ["a"], ["r"], [node("Add", "a x", "r")], [ONNX])
    for inputs, words in ((["x"], "'x'.*nothing makes"), (["x", "x"], "1 inputs and is given 2")):
        call = node("peeking", inputs, "y", domain="pkg")
        with pytest.raises(ModelError, match=words):
            reference(build([call], "y", {}, 17, None, (peeking,)), X)


def test_what_is_followed() -> None:
    """Each tensor once, also inside functions and branches; what the caller answers is read on."""
    nodes = [
        node("silu", "x", "a", domain="pkg"),
        node("If", "yes", "b", **branches()),
        node("Loop", ["one", "", "a"], "d stack", body=body("goes_on")),
        node("Add", "a b", "y"),
    ]
    constants = {"yes": np.array(True), "one": np.array(1), "two": np.array(2)}
    model = build(nodes, "y", constants, 17, None, (SILU,))
    seen: dict[str, Array] = {}

    def follow(name: str, value: Array) -> Array:
        assert name not in seen
        seen[name] = value
        return value + 10 if name == "s__1" else value * 100 if name == "inside" else value

    y = reference(model, X, follow=follow)["y"]
    assert {*seen} == {"s__1", "a", "inside", "t", "b", "d", "stack", "y"}
    assert all(array.dtype == np.float64 for array in seen.values())
    silu = X * (10 + 1 / (1 + np.exp(-X.astype(np.float64))))
    np.testing.assert_allclose(y, silu - 300 * X, rtol=0, atol=1e-4)


# --- weights in other files ---


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A model as hubs cache it: names that are links to where the bytes lie. Returns the path of the model."""
    store, shown = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots"
    store.mkdir(parents=True)
    shown.mkdir()
    model = build(CONV_RELU, "y", {"w": W})
    onnx.save(model, store / "c6", save_as_external_data=True, location="d8", size_threshold=0)
    for name, place in (("model.onnx", "c6"), ("d8", "d8")):
        os.symlink(f"../blobs/{place}", shown / name)
    return shown / "model.onnx"


def test_weights_behind_links(hub: Path, tmp_path: Path) -> None:
    """In the model's folder, in a folder that is allowed, and nowhere else."""
    wanted = reference(PLAIN, X)["y"]
    store = hub.parent.parent / "blobs"
    np.testing.assert_array_equal(reference(store / "c6", X)["y"], wanted)
    with pytest.raises(ModelError, match=r"'w'.*d8.*outside"):
        reference(hub, X)
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"'w'.*d8.*outside"):
        reference(hub, X, external_data=tmp_path / "other")
    for allowed in (store, store.parent, str(store)):
        np.testing.assert_array_equal(reference(hub, X, external_data=allowed)["y"], wanted)
    (hub.parent / "d8").unlink()  # the data beside nothing, in the folder that is given
    np.testing.assert_array_equal(reference(hub, X, external_data=store)["y"], wanted)
    np.testing.assert_array_equal(reference((store / "c6").read_bytes(), X, external_data=store)["y"], wanted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"location": "../../outside"}, "outside"),
        ({"location": "absent"}, "absent"),
        ({"offset": "4"}, "bytes 4 to"),
        ({"length": "8"}, "'w' cannot be read"),
        ({"offset": "text"}, "'w' cannot be read"),
    ],
)
def test_weights_that_cannot_be_read(hub: Path, changed: dict[str, str], words: str) -> None:
    """A place outside, one that is none, a part that the file does not have."""
    store = hub.parent.parent / "blobs"
    (store.parent.parent / "outside").write_bytes(bytes(4 * W.size))
    model = onnx.load(store / "c6", load_external_data=False)
    entries = {entry.key: entry.value for entry in model.graph.initializer[0].external_data} | changed
    del model.graph.initializer[0].external_data[:]
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    onnx.save(model, store / "changed.onnx")
    with pytest.raises(ModelError, match=words):
        reference(store / "changed.onnx", X)


# --- nothing but TvmcnnError ---


def damaged(change: str) -> onnx.ModelProto:
    """A model with one thing wrong in it."""
    model = build(CONV_RELU, "y", {"w": W})
    weight = model.graph.initializer[0]
    if change == "short weights":
        weight.raw_data = weight.raw_data[:-4]
    elif change == "a type that does not exist":
        weight.data_type = 99
    elif change == "dimensions below zero":
        weight.dims[0] = -7
    elif change == "text that is none":
        model.graph.node[0].attribute.append(helper.make_attribute("auto_pad", b"\xff\xfe"))
    elif change == "an attribute of another type":
        model.graph.node[0].attribute.append(helper.make_attribute("strides", "two"))
    elif change == "a memory that is not there":
        model.graph.node[1].CopyFrom(node("Tile", "c often", "y"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1, 1, 1 << 50]), "often"))
    elif change == "an If without branches":
        model.graph.node[1].CopyFrom(node("If", "yes", "y"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    elif change == "a taken operator that fails":
        model.graph.node[1].CopyFrom(node("Det", "c", "y"))
    elif change == "an input of an unknown type":
        model.graph.input[0].type.tensor_type.elem_type = 99
    elif change == "no opset":
        del model.opset_import[:]
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("short weights", "'w'"),
        ("a type that does not exist", "'w'.* 99"),
        ("dimensions below zero", "'w'.*-7"),
        ("text that is none", "'c' .Conv"),
        ("an attribute of another type", "'c' .Conv"),
        ("a memory that is not there", "'y' .Tile"),
        ("an If without branches", "'y' .If"),
        ("a taken operator that fails", r"'y' .Det.*\(2, 7, 5, 3\)"),
        ("an input of an unknown type", "'x'"),
        ("no opset", "operator set"),
    ],
)
def test_whatever_is_wrong_is_told(change: str, words: str) -> None:
    """As a TvmcnnError that names the model, and the node or the tensor."""
    with pytest.raises(TvmcnnError, match=words) as caught:
        reference(damaged(change), X)
    assert "'g'" in str(caught.value)


def test_inputs_that_are_none() -> None:
    """Text, ragged lists and nothing at all."""
    for wrong in ("text", [[1], [2, 3]], None, {1: 2}):
        with pytest.raises(TvmcnnError):
            reference(PLAIN, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="axes"):
        reference(PLAIN, X[0])
