"""Bad input of every kind ends in one clear sentence: no traceback, no crash, no partial file."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, Kind, draw, graph_of, model_of, node
from data import LENET5
from onnx import NodeProto, TensorProto, numpy_helper

import tvmcnn
from tvmcnn.errors import ModelError, TargetError, ToolError, TvmcnnError, UnsupportedError
from tvmcnn.importer import import_model

IMAGE = (1, 3, 11, 13)
MUTATIONS = 400
MUTATION_SECONDS = 60.0  # of the CPU for one file; a few milliseconds is usual
LITTLE = 200 << 20  # bytes that a refusal may take

X = {"x": IMAGE}


def model(
    nodes: Sequence[NodeProto],
    weights: dict[str, Any] | None = None,
    *,
    inputs: Mapping[str, Kind] = X,
    outputs: str = "y",
    opset: int = 17,
) -> onnx.ModelProto:
    """A model whose outputs have four open dimensions, so that only the importer finds what is wrong with shapes."""
    made = dict.fromkeys(outputs.split(), (None,) * 4)
    return model_of(nodes, inputs, made, weights, opset=opset, name="bad")


def weight(*shape: int, dtype: type = np.float32) -> Any:
    return draw(0, *shape, dtype=dtype)


def refused(source: Any, *words: str, kind: type[TvmcnnError] = ModelError, **arguments: Any) -> str:
    """Import must raise `kind` with every one of `words` in its text, which is one sentence in one line.

    The list of unsupported nodes has a line a node and is checked by its own tests.
    """
    with pytest.raises(kind) as caught:
        import_model(source, **arguments)
    text = str(caught.value)
    assert isinstance(caught.value, UnsupportedError) or "\n" not in text
    assert 15 < len(text) < 600
    for word in words:
        assert word in text, text
    return text


# ---- files ----------------------------------------------------------------------------------------------------------


def test_file_that_is_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "cannot read", "none.onnx", "No such file or directory")


def test_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    refused(tmp_path / "folder.onnx", "cannot read", "folder.onnx", "Is a directory")


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By monkeypatch, because the tests may run as root, who may read everything.
    monkeypatch.setattr("tvmcnn.onnx_file.open", failing(errno.EACCES), raising=False)
    refused(tmp_path / "secret.onnx", "cannot read", "secret.onnx", "Permission denied")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\x7fELF" + bytes(60), b"{}", b"\n" * 99, b"\xff" * 300],
    ids=["empty", "zero", "text", "png", "elf", "json", "newlines", "ones"],
)
def test_file_that_is_no_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.onnx").write_bytes(content)
    assert "not an ONNX model" in refused(tmp_path / "odd.onnx", "odd.onnx")
    refused(content, "the model", "not an ONNX model")


def test_file_truncated_anywhere() -> None:
    data = LENET5.read_bytes()
    # Every length where the nodes are, every few hundred bytes where the weights are, the last ones again.
    lengths = [*range(0, 1500, 3), *range(1500, len(data), 997), *range(len(data) - 40, len(data))]
    for length in lengths:
        with pytest.raises(ModelError) as caught:
            import_model(data[:length])
        assert "\n" not in str(caught.value), length


def weight_spans(data: bytes) -> list[range]:
    """Where the file keeps its weights: almost any byte is a good one there."""
    spans = []
    for tensor in onnx.load_from_string(data).graph.initializer:
        start = data.index(tensor.raw_data)
        spans.append(range(start, start + len(tensor.raw_data)))
    return spans


def test_mutated_files_are_imported_or_refused() -> None:
    data = LENET5.read_bytes()
    spans = weight_spans(data)
    places = [i for i in range(len(data)) if not any(i in span for span in spans)]
    assert len(places) > 1500
    accepted = 0
    for seed in range(MUTATIONS):
        rng = np.random.default_rng(seed)
        mutated = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            mutated[rng.choice(places)] = rng.integers(256)
        start = time.process_time()
        refusal: TvmcnnError | None = None
        try:
            accepted += bool(import_model(bytes(mutated)).outputs)
        except TvmcnnError as error:
            refusal = error
        reasons = len(refusal.reasons) if isinstance(refusal, UnsupportedError) else 0
        assert refusal is None or len(str(refusal).splitlines()) == 1 + reasons, seed
        assert time.process_time() - start < MUTATION_SECONDS, seed
    assert 0 < accepted < MUTATIONS  # metadata may change; a node's operator may not


def test_text_that_is_not_utf8() -> None:
    damaged = LENET5.read_bytes().replace(b"relu1", b"rel\xff1")
    refused(damaged, "is damaged", "onnx.NodeProto.", "not UTF-8")
    metadata = LENET5.read_bytes().replace(b"white digit", b"white\xe9digit")
    refused(metadata, "is damaged", "onnx.StringStringEntryProto.value", "not UTF-8")


def test_weight_shorter_than_its_shape() -> None:
    short = onnx.load(LENET5)
    short.graph.initializer[0].dims[0] += 1
    name = short.graph.initializer[0].name
    refused(short, name, "raw_data size (600 bytes) is too small", "700 bytes required")


@pytest.mark.parametrize("extent", [5, 0, -1])
def test_weight_longer_than_its_shape(extent: int) -> None:
    long = onnx.load(LENET5)
    long.graph.initializer[0].dims[0] = extent  # 6 in the file; −1 would let NumPy guess
    name = long.graph.initializer[0].name
    refused(long, name)


@pytest.mark.parametrize("size", [5, 8])
def test_constant_longer_than_its_shape(size: int) -> None:
    """An attribute's data, also in a branch."""
    filled = node("ConstantOfShape", "s", "y", "fill", value=numpy_helper.from_array(np.float32([1]), "filling"))
    filled.attribute[0].t.raw_data = bytes(size)
    refused(model([filled], {"s": [2, 3, 5, 7]}), "is damaged: the data of its constant 'filling' is not 1")
    body = graph_of([filled], {}, {"y": [None] * 4}, name="branch")
    forked = node("If", "flag", "z", "fork", then_branch=body, else_branch=body)
    refused(model([forked], {"s": [2, 3, 5, 7], "flag": True}, outputs="z"), "the data of its constant 'filling'")


# ---- operators ------------------------------------------------------------------------------------------------------


def test_unsupported_operators_are_all_listed_at_once() -> None:
    nodes = [
        node("Conv", "x w", "c", "first"),
        node("RandomUniformLike", "c", "l", "norm"),
        node("Relu", "l", "r", "middle"),
        node("RandomNormalLike", "r", "q", "noise"),
        node("Unique", "q", "u", "up"),
        node("MaxPool", "u", "y", "good", kernel_shape=[3, 2]),
    ]
    constants = {
        "w": weight(5, 3, 3, 2),
    }
    with pytest.raises(UnsupportedError) as caught:
        import_model(model(nodes, constants))
    assert caught.value.reasons == (
        "node 'norm' (RandomUniformLike): operator RandomUniformLike is not supported",
        "node 'noise' (RandomNormalLike): operator RandomNormalLike is not supported",
        "node 'up' (Unique): operator Unique is not supported",
    )
    assert str(caught.value).splitlines()[0] == "the model has 3 nodes that tvmcnn cannot compile:"
    assert "good" not in str(caught.value) and "first" not in str(caught.value)


def test_unnamed_node_is_found_by_its_place() -> None:
    unnamed = node("RandomUniformLike", "x", "y")
    refused(model([unnamed]), "node '#0' (RandomUniformLike)", kind=UnsupportedError)


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ([node("Reshape", "x i", "y", "n")], {}, "its shape 'i' is computed at run time; only a constant"),
        ([node("Tile", "x r", "y", "n")], {}, "its repeats 'r' is computed at run time; only a constant"),
        ([node("Resize", ["x", "", "", "i"], "y", "n")], {}, "its sizes 'i' is computed at run time; only a constant"),
        ([node("Resize", ["x", "", "r"], "y", "n")], {}, "its scales 'r' is computed at run time; only a constant"),
        (
            [node("Dropout", "x p on", "y", "n")],
            {"p": weight(), "on": np.array(True)},
            "training_mode is true, not false as for inference: export the model in eval mode",
        ),
    ],
)
def test_unsupported_use_of_an_operator(nodes: list[NodeProto], constants: dict[str, Any], reason: str) -> None:
    inputs = {**X, "i": (TensorProto.INT64, (2,)), "r": (TensorProto.INT64, (4,))}
    used = {name for n in nodes for name in n.input}
    inputs = {name: value for name, value in inputs.items() if name in used and name not in constants}
    outputs = " ".join(nodes[0].output)
    text = refused(model(nodes, constants, inputs=inputs, outputs=outputs), kind=UnsupportedError)
    assert f"node 'n' ({nodes[0].op_type}): " in text
    assert reason in text


def test_string_tensors() -> None:
    words = model([node("Identity", "x", "y", "same")], inputs={"x": (TensorProto.STRING, (2, 3))})
    refused(words, "input 'x': its type is string; supported are float16, float32", kind=UnsupportedError)


def test_operator_of_another_domain() -> None:
    foreign = model([node("Fancy", "x", "y", name="f", domain="com.example")])
    version = foreign.opset_import.pop()  # of com.example
    refused(foreign, "com.example", "Name: f OpType: Fancy")
    foreign.opset_import.append(version)
    refused(foreign, "node 'f' (Fancy): operator com.example.Fancy is not supported", kind=UnsupportedError)


# ---- weights and shapes ---------------------------------------------------------------------------------------------


def test_missing_weight() -> None:
    refused(model([node("Conv", "x w", "y", "c")]), "input 'w' of node", "name: c OpType: Conv")


def test_mistyped_weight() -> None:
    def bad(dtype: type) -> onnx.ModelProto:
        return model([node("Conv", "x w", "y", "c")], {"w": weight(5, 3, 3, 2, dtype=dtype)})

    refused(bad(np.float64), "node 'c' (Conv): input 'x' is float32 and 'w' is float64")
    for dtype in (np.int8, np.int32):
        reason = f"node 'c' (Conv): input 'w' is {np.dtype(dtype)}; supported are float32, float64"
        refused(bad(dtype), reason, kind=UnsupportedError)


def test_input_of_another_type() -> None:
    bad = model([node("Relu", "x", "y", "r")], inputs={"x": (TensorProto.BFLOAT16, IMAGE)})
    refused(bad, "input 'x': its type is bfloat16; supported are float16, float32", kind=UnsupportedError)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (
            model([node("Conv", "x w", "y", "c", strides=[2, 3], pads=[1, 0, 2, 0])], {"w": weight(5, 3, 17, 3)}),
            "node 'c' (Conv): the window does not fit: H_out = ⌊(11 + 1 + 2 − 1·(17−1) − 1) / 2⌋ + 1",
        ),
        (
            model([node("Conv", "x w", "y", "c", dilations=[1, 7])], {"w": weight(5, 3, 3, 3)}),
            "W_out = ⌊(13 + 0 + 0 − 7·(3−1) − 1) / 1⌋ + 1 has the negative numerator -2",
        ),
        (
            model([node("MaxPool", "x", "y", "p", kernel_shape=[2, 19])]),
            "node 'p' (MaxPool): the window does not fit: W_out = ⌊(13 + 0 + 0 − 1·(19−1) − 1) / 1⌋ + 1",
        ),
        (
            model([node("Conv", "x w", "y", "c")], {"w": weight(5, 2, 3, 4)}),
            "the input has 3 channels and the weight is 5x2x3x4: with group 1 it needs 2·1 = 2 channels",
        ),
        (
            model([node("Conv", "x w", "y", "c", group=2)], {"w": weight(4, 2, 3, 5)}),
            "the input has 3 channels and the weight is 4x2x3x5: with group 2 it needs 2·2 = 4 channels",
        ),
        (
            model([node("Conv", "x w", "y", "c", group=3)], {"w": weight(4, 1, 3, 5)}),
            "with group 3 it needs 1·3 = 3 channels and a multiple of 3 maps",
        ),
        (
            model([node("Conv", "x w", "y", "c", group=0)], {"w": weight(4, 2, 3, 5)}),
            "with group 0",
        ),
        (
            model([node("Conv", "x w b", "y", "c")], {"w": weight(4, 3, 2, 5), "b": weight(7)}),
            "node 'c' (Conv): the bias is 7; the weight makes 4 maps",
        ),
        (
            model([node("Conv", "x w", "y", "c", kernel_shape=[5, 2])], {"w": weight(4, 3, 2, 5)}),
            "kernel_shape is [5, 2], but the weight 'w' is 4x3x2x5",
        ),
        (
            model([node("Conv", "x w", "y", "c", strides=[0, 2])], {"w": weight(4, 3, 2, 5)}),
            "node 'c' (Conv): kernel_shape, strides and dilations must be at least 1",
        ),
        (
            model([node("Conv", "x w", "y", "c", auto_pad="SAME")], {"w": weight(4, 3, 2, 5)}),
            "auto_pad is 'SAME'; allowed are NOTSET, SAME_UPPER, SAME_LOWER, VALID",
        ),
        (
            model([node("ReduceSum", "t", "y", "r", keepdims=-1)], inputs={"t": (3, 5)}),
            "node 'r' (ReduceSum): keepdims is -1; allowed are 0 and 1",
        ),
        (
            model([node("Gemm", "t w", "y", "g")], {"w": weight(7, 4)}, inputs={"t": (3, 5)}),
            "node 'g' (Gemm): A' is 3x5 and B' is 7x4: 5 ≠ 7",
        ),
        (
            model([node("MatMul", "t w", "y", "m")], {"w": weight(7, 4)}, inputs={"t": (3, 5)}),
            "node 'm' (MatMul): A is 3x5 and B is 7x4: 5 ≠ 7",
        ),
        (
            model([node("Add", "x w", "y", "a")], {"w": weight(1, 2, 11, 13)}),
            "node 'a' (Add): 1x3x11x13 and 1x2x11x13 do not broadcast",
        ),
        (
            model([node("Reshape", "x s", "y", "r")], {"s": np.array([7, -1])}),
            "node 'r' (Reshape): 1x3x11x13 (429 elements) does not reshape to [7, ",
        ),
        (
            model([node("Concat", "x w", "y", "k", axis=1)], {"w": weight(1, 2, 5, 13)}),
            "node 'k' (Concat): 1x3x11x13, 1x2x5x13 do not concatenate along axis 1",
        ),
        (
            model([node("Transpose", "x", "y", "t", perm=[0, 1, 1, 2])]),
            "perm [0, 1, 1, 2] is no permutation of the 4 axes",
        ),
    ],
    ids=lambda value: value.split(":")[0][:40] if isinstance(value, str) else "model",
)
def test_shapes_that_do_not_fit_show_the_numbers(bad: onnx.ModelProto, sentence: str) -> None:
    refused(bad, sentence, "the model: node '")


def test_open_dimension_that_is_not_the_leading_one() -> None:
    relu = [node("Relu", "x", "y", "r")]
    for shape, shown in ((("n", 3, "h", 13), "nx3xhx13"), ((None, 3, 0, 13), "?x3x?x13")):
        bad = model(relu, inputs={"x": shape})
        refused(bad, f"input 'x' of the model is {shown}", f"--input-shape x:Nx3x{shown.split('x')[2]}x13")
        assert import_model(bad, {"x": (2, 3, 5, 13)}).outputs[0].shape == (2, 3, 5, 13)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((1, 3, 11), "1x3x11"),
        ((1, 3, 11, 13, 1), "1x3x11x13x1"),
        ((1, 3, -2, 13), "1x3x-2x13"),
        ((1, 3, "h", 13), "1x3xhx13"),
        ((1, 3, 2.5, 13), "1x3x2.5x13"),
        ((), "scalar"),
    ],
)
def test_given_shape_that_does_not_fit(shape: Any, shown: str) -> None:
    good = model([node("Relu", "x", "y", "r")])
    refused(good, f"input 'x' of the model is 1x3x11x13; the shape {shown} does not fit it", input_shapes={"x": shape})


def test_unknown_input_name() -> None:
    good = model([node("Relu", "x", "y", "r")])
    refused(good, "the model has no input 'image'; its inputs are x", input_shapes={"image": (1, 3, 5, 7)})


@pytest.mark.parametrize("batch", [0, -2])
def test_batch_that_is_not_positive(batch: int) -> None:
    refused(model([node("Relu", "x", "y", "r")]), f"the batch is {batch}; it must be at least 1", batch=batch)


def test_input_without_a_shape() -> None:
    bad = model([node("Relu", "x", "y", "r")], inputs={"x": TensorProto.FLOAT})
    refused(bad, "'x' of the model has no shape")


# ---- the file as a whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [1, 6, onnx.defs.onnx_opset_version() + 1, 99])
def test_opset_out_of_range(opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    bad = model([node("Relu", "x", "y", "r")], opset=opset)
    refused(bad, f"the model uses opset {opset}; allowed are 7 to {newest}, the newest that onnx knows")


def test_opset_missing() -> None:
    bad = model([node("Relu", "x", "y", "r")])
    del bad.opset_import[:]
    refused(bad, "opset_import")


def test_cyclic_graph() -> None:
    bad = model([node("Add", "x b", "a", "first"), node("Relu", "a", "b", "second")], outputs="b")
    refused(bad, "the model has a cycle", "through node 'first' (Add), node 'second' (Relu)")


def test_names_given_twice() -> None:
    twice = model([node("Relu", "x", "y", "r"), node("Tanh", "x", "y", "t")])
    refused(twice, "'y' has been used as output names multiple times")
    refused(model([node("Relu", "x", "x", "r")], outputs="x"), "'x' has been used")
    double = model([node("Add", "x w", "y", "a")], {"w": weight(1, 3, 1, 1)})
    double.graph.initializer.append(double.graph.initializer[0])
    refused(double, "w initializer name is not unique")


def test_graph_without_nodes_or_outputs() -> None:
    refused(model([]), "it holds no nodes")
    refused(model([node("Relu", "x", "y", "r")], outputs=""), "the model has no outputs")


def test_output_that_is_never_computed() -> None:
    refused(model([node("Relu", "x", "y", "r")], outputs="y z"), "Graph output 'z'")
    constant = model([node("Relu", "x", "y", "r"), node("Relu", "w", "z", "c")], {"w": weight(2, 3)}, outputs="y z")
    assert [node.output for node in import_model(constant).nodes] == [
        "y",
        "z",
    ]  # by a kernel


def test_output_that_is_an_input() -> None:
    same = model([node("Relu", "x", "y", "r")], outputs="x y")
    refused(same, "output 'x' is an input itself; put an Identity between")


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Fail where what is refused was computed first, in part or whole."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("maker", ["Expand", "ConstantOfShape", "Tile"])
def test_constant_that_would_fill_the_memory(maker: str) -> None:
    """2 GB out of a file of a few hundred bytes: refused before anything is computed."""
    inputs = "s" if maker == "ConstantOfShape" else "one s"
    constants = {"one": np.ones(1, np.float32), "s": np.array([500_000_000])}
    bad = model(
        [node(maker, inputs, "big", "bomb"), node("Add", "x big", "y", "a")],
        {name: array for name, array in constants.items() if name in inputs.split()},
        inputs={"x": (1,)},
    )
    with little_memory():
        refused(bad, f"node 'bomb' ({maker}) makes a constant of 500000000", "64 MB")


def test_constants_that_grow_behind_one_another() -> None:
    """The shape of an Expand that only folding finds, and many constants that are each within the limit."""
    chain = [
        node("Shape", "x", "s0", "s0"),
        node("Mul", "s0 k", "s", "s"),
        node("Expand", "one s", "e", "bomb"),
        node("Add", "x e", "y", "y"),
    ]
    constants = {"k": np.array([100, 100, 100, 100]), "one": np.float32(1)}
    with little_memory():
        refused(model(chain, constants), "node 'bomb' (Expand) makes a constant of 100x300x1100x1300", "64 MB")
    many = [
        n
        for i in range(40)
        for n in (node("Expand", "one s", f"e{i}", f"e{i}"), node("ReduceSum", f"e{i}", f"r{i}", f"r{i}"))
    ]
    total = node("Sum", " ".join(["x", *(f"r{i}" for i in range(40))]), "y", "total")
    constants = {"s": np.array([15_000_000]), "one": np.float32(1)}
    refused(model([*many, total], constants), "makes a constant of 15000000", "1024 MB of all constants")


@pytest.mark.parametrize(
    ("nodes", "constants", "shape", "words"),
    [
        ([node("Relu", "x", "y", "y")], {}, (10**6, 10**6), "input 'x' of the model would be 1000000x1000000"),
        ([node("Expand", "x s", "y", "e")], {"s": [10**6, 10**6]}, (1, 1), "stored as 1000000x1000000, more than"),
        (
            [node("Reshape", "x a", "p", "p"), node("Reshape", "x b", "q", "q"), node("Mul", "p q", "y", "outer")],
            {"a": [10**6, 1], "b": [1, 10**6]},
            (10**6,),
            "node 'outer': its output would be stored as 1000000x1000000",
        ),
        ([node("Pad", "x p", "y", "e")], {"p": [0, 0, 2**40, 2**40]}, (3, 5), "more than 2,147,483,647 elements"),
        (
            [node("Resize", "x   s", "y", "e")],
            {"s": [10**6, 10**6]},
            (3, 5),
            "its output would be 1000000x1000000, more than",
        ),
    ],
    ids=["input", "Expand", "Mul", "Pad", "Resize"],
)
def test_tensor_of_a_million_million_elements(
    nodes: list[NodeProto], constants: dict[str, list[int]], shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    arrays = {name: np.array(values) for name, values in constants.items()}
    huge = model(nodes, arrays, inputs={"x": shape})
    with little_memory(), pytest.raises(TvmcnnError) as caught:
        tvmcnn.compile(huge, output=tmp_path / "x.so")
    assert words in str(caught.value)


def test_initializer_of_a_million_million_elements() -> None:
    bad = model([node("Add", "x w", "y", "y")], {"w": weight(3)})
    bad.graph.initializer[0].dims[:] = [10**6, 10**6]
    refused(bad, "TensorProto (tensor name: w) raw_data size (12 bytes) is too small for the declared shape")


def test_too_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.importer.functions.NODE_LIMIT", 2)
    nodes = [node("Relu", "x", "a", "a"), node("Relu", "a", "b", "b"), node("Relu", "b", "y", "y")]
    refused(model(nodes), "the model has 3 nodes; allowed are 2")


def external(folder: Path, location: str, **entries: str) -> Path:
    """A model whose weight lies in another file, written into `folder`."""
    bad = model([node("Conv", "x w", "y", "c")], {"w": weight(5, 3, 3, 2)})
    tensor = bad.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "ext.onnx").write_bytes(bad.SerializeToString())
    return folder / "ext.onnx"


def test_external_data_that_is_there(tmp_path: Path) -> None:
    """The control of the three tests below."""
    path = external(tmp_path, "w.bin")
    weight(5, 3, 3, 2).tofile(tmp_path / "w.bin")
    assert np.array_equal(import_model(path).constants["w"], weight(5, 3, 3, 2))


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    refused(external(tmp_path, "w.bin"), "ext.onnx: its external data cannot be loaded", "w.bin")


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "ABSOLUTE", ""])
def test_external_data_that_escapes_its_folder(location: str, tmp_path: Path) -> None:
    weight(5, 3, 3, 2).tofile(tmp_path / "w.bin")
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    path = external(inside, str(tmp_path / "w.bin") if location == "ABSOLUTE" else location)
    refused(path, "ext.onnx: its external data cannot be loaded")


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    weight(5, 3, 3, 2).tofile(tmp_path / "w.bin")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "w.bin").symlink_to(tmp_path / "w.bin")
    refused(external(inside, "w.bin"), "ext.onnx: its external data cannot be loaded")


def test_external_data_that_is_too_short(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    weight(5, 3, 3, 2)[:4].tofile(tmp_path / "w.bin")
    refused(path, "ext.onnx")
    refused(external(tmp_path, "w.bin", offset="1000000"), "ext.onnx")
    refused(external(tmp_path, "w.bin", offset="-8"), "ext.onnx")


def test_external_data_of_a_model_that_has_no_folder(tmp_path: Path) -> None:
    data = external(tmp_path, "w.bin").read_bytes()
    refused(data)


# ---- the machine and the disk ---------------------------------------------------------------------------------------


def compile_fails(folder: Path, kind: type[TvmcnnError], *words: str, **arguments: Any) -> None:
    """Compiling LeNet-5 into `folder` raises `kind` and leaves nothing there."""
    before = sorted(folder.iterdir()) if folder.is_dir() else []
    with pytest.raises(kind) as caught:
        tvmcnn.compile(LENET5, **{"output": folder / "net.so", "verify": False, "activations": False, **arguments})
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert (sorted(folder.iterdir()) if folder.is_dir() else []) == before


@pytest.mark.parametrize("target", ["sparc", "x86-64-v5", "", "X86-64-V3", "native "])
def test_unknown_target(target: str, tmp_path: Path) -> None:
    allowed = "allowed are native, host, x86-64-v3, x86-64-v3-vnni, x86-64-v4, x86-64-v4-vnni"
    compile_fails(tmp_path, TargetError, f"unknown target '{target}'", allowed, target=target)


def test_machine_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    compile_fails(tmp_path, TargetError, "tvmcnn runs on Linux on x86-64; this is Linux on aarch64")


def test_cpu_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.targets.kinds.cpu_flags", lambda: frozenset({"avx", "fma"}))
    compile_fails(tmp_path, TargetError, "lacks avx2, bmi1", "at least x86-64-v3")


def test_no_c_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    compile_fails(tmp_path, ToolError, "no C compiler found", "$CC, cc, gcc, clang", "apt install gcc")


def test_c_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    compile_fails(tmp_path, ToolError, "/bin/false failed (status 1)")


def test_c_compiler_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "mycc"
    script.write_text("#!/bin/sh\necho 'chain.c:3: note: look' >&2\necho 'chain.c:4: error: no luck' >&2\nexit 4\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    compile_fails(tmp_path, ToolError, "mycc failed (status 4): chain.c:4: error: no luck")


def test_c_compiler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user names is never replaced by something else without a word."""
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    compile_fails(tmp_path, ToolError, "$CC names the C compiler 'no-such-compiler', which is not found")


def test_c_compiler_with_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "env LC_ALL=C cc")
    tvmcnn.compile(LENET5, output=tmp_path / "net.so", verify=False, activations=False)
    assert (tmp_path / "net.so").is_file()


def test_output_that_is_no_library(tmp_path: Path) -> None:
    compile_fails(tmp_path, ToolError, "ends in '.bin'", "must end in .so", output=tmp_path / "net.bin")


def test_batch_that_contradicts_the_shape(tmp_path: Path) -> None:
    words = ("'input' is given the shape 2x1x32x32 and the batch 3",)
    compile_fails(tmp_path, ModelError, *words, input_shapes={"input": (2, 1, 32, 32)}, batch=3)


def test_batch_that_no_index_reaches(tmp_path: Path) -> None:
    compile_fails(
        tmp_path, ModelError, "99999999999999x1x32x32", "more than 2,147,483,647 elements", batch=99_999_999_999_999
    )


def test_output_folder_that_is_missing(tmp_path: Path) -> None:
    target = tmp_path / "no" / "such"
    compile_fails(target, ToolError, "cannot write", "net.so", "does not exist")
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "net.so").mkdir()
    compile_fails(tmp_path, ToolError, "cannot write", "net.so", "Is a directory")


def failing(code: int) -> Any:
    def fail(*words: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_output_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By monkeypatch, because root may write everywhere.
    monkeypatch.setattr("tvmcnn.files.tempfile.mkstemp", failing(errno.EACCES))
    compile_fails(tmp_path, ToolError, "cannot write", "net.so", "Permission denied")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.so").write_bytes(b"the library of yesterday")
    # A part of the file is there by then.
    monkeypatch.setattr("tvmcnn.artifact.container.trailer", failing(errno.ENOSPC))
    compile_fails(tmp_path, ToolError, "cannot write", "net.so", "No space left on device")
    assert (tmp_path / "net.so").read_bytes() == b"the library of yesterday"


def test_file_that_cannot_be_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.files.os.replace", failing(errno.EXDEV))
    compile_fails(tmp_path, ToolError, "cannot write", "net.so", os.strerror(errno.EXDEV))


def test_full_disk_for_the_compilers_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.files.tempfile.TemporaryDirectory", failing(errno.ENOSPC))
    compile_fails(tmp_path, ToolError, "No space left on device")


def test_bad_model_leaves_nothing(tmp_path: Path) -> None:
    bad = model([node("RandomUniformLike", "x", "y", "n")])
    with pytest.raises(UnsupportedError):
        tvmcnn.compile(bad, output=tmp_path / "net.so")
    assert list(tmp_path.iterdir()) == []


def test_wrong_library_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmcnn.errors import VerifyError

    monkeypatch.setattr("tvmcnn.check.bounds.SAFETY", 0.0)  # then every rounding is too much
    compile_fails(tmp_path, VerifyError, "is not written", "conv1", verify=True, activations=True)


def test_complex_constants(tmp_path: Path) -> None:
    """Where real numbers are wanted, of which Python would make errors of its own."""
    g = Graph(opset=18)
    x = g.input(1, 2, 4, 6)
    g.output(g.node("Resize", x, "", g.constant(np.array([1, 1, 2, 2])), mode="nearest"))
    model = g.model()
    (scales,) = (tensor for tensor in model.graph.initializer if list(tensor.dims) == [4])
    scales.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.complex64), scales.name))
    with pytest.raises(
        UnsupportedError, match=f"input '{scales.name}' is complex64; complex numbers are not supported"
    ):
        tvmcnn.compile(model, output=tmp_path / "net.so")


def test_words_that_are_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are a word that there is not."""
    g = Graph(opset=18)
    g.output(g.node("Resize", g.input(1, 2, 4, 6), "", g.constant(np.array([1, 1, 2, 2])), mode="nearest"))
    model = g.model()
    (mode,) = (attribute for attribute in model.graph.node[0].attribute if attribute.name == "mode")
    mode.s = b"near\xa9st"
    with pytest.raises(TvmcnnError, match="near\ufffdst"):
        tvmcnn.compile(model, output=tmp_path / "net.so")
