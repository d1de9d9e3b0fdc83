"""LSTM, GRU and RNN of every attribute, operand and output, compiled, against the reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, draw, model_of, node

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.choose.cpu import tasks
from tvmcnn.errors import ModelError, TvmcnnError, UnsupportedError
from tvmcnn.importer import import_model

Array = np.ndarray[Any, Any]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INPUTS = ("x", "w", "r", "b", "sequence_lens", "initial_h", "initial_c", "p")
OUTPUTS = ("y", "y_h", "y_c")
WEIGHTS = frozenset("wrbp")
TIMES, BATCH, DEPTH = 5, 3, 6
ULPS = {"float16": 2.0**-10, "float32": 2.0**-24, "float64": 2.0**-53}


def operands(
    op: str,
    hidden: int = 11,
    directions: int = 1,
    *more: str,
    layout: int = 0,
    batch: int = BATCH,
    dtype: str = "float32",
) -> dict[str, Array]:
    """What a layer reads: x, w, r and b, and those that `more` names; R keeps the states as large as they are."""
    rng, gates = np.random.default_rng([hidden, directions]), GATES[op]
    state = (directions, batch, hidden) if layout == 0 else (batch, directions, hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (TIMES, batch, DEPTH) if layout == 0 else (batch, TIMES, DEPTH),
        "w": (directions, gates * hidden, DEPTH),
        "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden),
        **{"initial_h": state, "initial_c": state, "p": (directions, 3 * hidden)},
    }
    wanted = ("x", "w", "r", "b", *more)
    found = {name: draw(rng, *shapes[name], dtype=dtype) for name in wanted if name in shapes}
    found["r"] = (found["r"] / np.sqrt(hidden)).astype(dtype)
    if "sequence_lens" in more:
        found["sequence_lens"] = np.resize(np.array([3, 0, 9, 5, 1], np.int32), batch)
    return found


def model(
    op: str,
    given: dict[str, Array],
    constant: frozenset[str] = WEIGHTS,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """One layer; what `constant` names is a weight of the file, the rest arrives."""
    names = [name if name in given else "" for name in INPUTS[: 8 if op == "LSTM" else 6]]
    made = [name if name in outputs else "" for name in OUTPUTS[: 3 if op == "LSTM" else 2]]
    hidden = given["r"].shape[2]
    nodes = [node(op, names, made, "layer", hidden_size=hidden, **attributes)]
    weights = {name: array for name, array in given.items() if name in constant}
    feeds = {name: array for name, array in given.items() if name not in constant}
    results = {name: _kind(name, given, **attributes) for name in made if name}
    return model_of(nodes, feeds, results, weights, opset=opset, name="recurrent")


def _kind(name: str, given: dict[str, Array], *, layout: int = 0, **attributes: Any) -> Array:
    """An array like an output."""
    directions, _, hidden = given["r"].shape
    times, batch = given["x"].shape[:2] if layout == 0 else given["x"].shape[1::-1]
    state = (directions, batch, hidden) if layout == 0 else (batch, directions, hidden)
    whole = (times, *state) if layout == 0 else (batch, times, directions, hidden)
    return np.zeros(whole if name == "y" else state, given["x"].dtype)


def agree(op: str, given: dict[str, Array], constant: frozenset[str] = WEIGHTS, **more: Any) -> dict[str, Array]:
    """The compiled layer against the reference; returns what it made."""
    proto = model(op, given, constant, **more)
    feeds = {name: array for name, array in given.items() if name not in constant}
    found = tvmcnn.backend.run_model(proto, list(feeds.values()))
    wanted = reference(proto, feeds)
    for ours, (name, theirs) in zip(found, wanted.items(), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
        bound = 64 * ULPS[theirs.dtype.name] * max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=0, atol=bound, err_msg=name)
    return dict(zip(wanted, found, strict=True))


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [1, 7, 16, 17, 33, 40])
@pytest.mark.parametrize(("op", "direction"), [*zip(GATES, ("forward", "reverse", "bidirectional"), strict=True)])
def test_hidden_sizes(op: str, direction: str, hidden: int) -> None:
    """States of less than a vector, of whole ones, and of tiles that overlap."""
    given = operands(op, hidden, 2 if direction == "bidirectional" else 1)
    agree(op, given, direction=direction, outputs=("y", "y_h"))


@pytest.mark.parametrize("batch", [1, 2, 5, 13])
@pytest.mark.parametrize("op", GATES)
def test_batches(op: str, batch: int) -> None:
    """Rows of one tile, and of tiles that overlap."""
    agree(op, operands(op, 18, 1, "initial_h", batch=batch), outputs=("y", "y_h"))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_batch_first(op: str, direction: str) -> None:
    """Layout 1."""
    given = operands(op, 11, 2 if direction == "bidirectional" else 1, "initial_h", layout=1)
    agree(op, given, direction=direction, outputs=("y", "y_h"), layout=1)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("wanted", [w for count in (1, 2, 3) for w in itertools.combinations(OUTPUTS, count)])
def test_outputs(wanted: tuple[str, ...], layout: int) -> None:
    """Each output alone and with others."""
    given = operands("LSTM", 11, 2, "initial_c", layout=layout)
    agree("LSTM", given, outputs=wanted, direction="bidirectional", layout=layout)


def test_no_rows() -> None:
    """An empty batch, and sequences without steps or elements."""
    given = operands("LSTM", 11)
    for shape in ((TIMES, 0, DEPTH), (0, BATCH, DEPTH)):
        assert agree("LSTM", {**given, "x": np.zeros(shape, np.float32)})["y"].size == 0
    nothing = {"x": np.zeros((TIMES, BATCH, 0), np.float32), "w": np.zeros((1, 44, 0), np.float32)}
    agree("LSTM", {**given, **nothing})


# ---- operands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", GATES)
def test_everything_arrives(op: str) -> None:
    """No operand is constant."""
    more = ("initial_h", "sequence_lens", *(("initial_c", "p") if op == "LSTM" else ()))
    given = operands(op, 21, 2, *more)
    agree(op, given, frozenset(), direction="bidirectional", outputs=("y", "y_h"))


@pytest.mark.parametrize("left_out", ["b", "w", "r"])
@pytest.mark.parametrize("reset", [0, 1])
def test_some_operands_arrive(left_out: str, reset: int) -> None:
    """No bias, and each weight at run time alone."""
    given = operands("GRU", 21)
    if left_out == "b":
        del given["b"]
    agree("GRU", given, WEIGHTS - {left_out}, linear_before_reset=reset)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("known", [True, False])
def test_sequences_of_different_lengths(op: str, direction: str, known: bool) -> None:
    """Y is zero behind the end of each, and the last states are those at the end; of no step they are zero."""
    directions = 2 if direction == "bidirectional" else 1
    given = operands(op, 21, directions, "sequence_lens", "initial_h")
    constant = WEIGHTS | ({"sequence_lens"} if known else set())
    found = agree(op, given, constant, direction=direction, outputs=OUTPUTS if op == "LSTM" else ("y", "y_h"))
    assert not found["y"][3:, :, 0].any()
    assert not found["y"][:, :, 1].any()
    assert not found["y_h"][:, 1].any()
    assert found["y"][:, :, 2].any(axis=(1, 2)).all()


def test_lengths_of_all_steps_cost_nothing() -> None:
    given = operands("LSTM", 11, 1, "initial_h") | {"sequence_lens": np.full(BATCH, TIMES, np.int32)}
    given["initial_h"][:] = 0
    network = import_model(model("LSTM", given, frozenset(given) - {"x"}))
    assert [each.op for each in network.nodes] == ["Gemm", "LSTM"]
    assert network.nodes[1]["arriving"] == ()


# ---- attributes -----------------------------------------------------------------------------------------------------

NUMBERED = {  # by activation how many of alpha and beta it takes
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"), (0, 0)),
    **dict.fromkeys(("LeakyRelu", "ThresholdedRelu", "Elu"), (1, 0)),
    **dict.fromkeys(("Affine", "ScaledTanh", "HardSigmoid"), (1, 1)),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_activations(name: str) -> None:
    alphas, betas = NUMBERED[name]
    words = {"activation_alpha": [0.3]} if alphas else {}
    words |= {"activation_beta": [0.4]} if betas else {}
    agree("RNN", operands("RNN", 21), activations=[name], **words)


def test_defaults_of_activations() -> None:
    for name in ("LeakyRelu", "ThresholdedRelu", "Elu", "HardSigmoid"):
        agree("RNN", operands("RNN", 21), activations=[name])


def test_numbers_are_taken_in_order() -> None:
    """Activations that have none take none, and those of the second direction take what is left."""
    names = ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "ScaledTanh", "Elu"]
    words = {"activation_alpha": [0.3, 0.7, 1.1, 0.9], "activation_beta": [0.4, 0.6]}
    agree("LSTM", operands("LSTM", 21, 2), direction="bidirectional", activations=names, **words)


@pytest.mark.parametrize("op", GATES)
def test_clip(op: str) -> None:
    more = ("initial_c",) if op == "LSTM" else ()
    agree(op, operands(op, 21, 1, *more), clip=0.4)


@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize("hidden", [37, 32])
def test_reset_before_or_behind_the_product(reset: int, hidden: int) -> None:
    given = operands("GRU", hidden, 2, "initial_h")
    agree("GRU", given, direction="bidirectional", linear_before_reset=reset, outputs=("y", "y_h"))


@pytest.mark.parametrize("coupled", [0, 1])
def test_peepholes(coupled: int) -> None:
    given = operands("LSTM", 21, 2, "p", "initial_c")
    agree("LSTM", given, direction="bidirectional", input_forget=coupled, outputs=OUTPUTS)


# ---- types, opsets, targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("op", GATES)
def test_types(op: str, dtype: str) -> None:
    agree(op, operands(op, 21, 1, "initial_h", "sequence_lens", dtype=dtype), outputs=("y", "y_h"))


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("op", GATES)
def test_opsets(op: str, opset: int) -> None:
    agree(op, operands(op, 11, 1, "sequence_lens", "initial_h"), opset=opset, outputs=("y", "y_h"))


@pytest.mark.parametrize("op", GATES)
def test_shared_by_threads(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions and rows of the batch are tasks; no bit depends on how many threads there are."""
    monkeypatch.setattr(tasks, "MIN_MICROSECONDS", 0.0)
    given = operands(op, 21, 2, "initial_h", batch=13)
    proto = model(op, given, direction="bidirectional", outputs=("y", "y_h"))
    compiled = tvmcnn.compile(proto, "x86-64-v3", tmp_path / "net.so")
    assert compiled.verdict is not None and compiled.verdict.passed
    assert next(step.choice.tasks for step in compiled.program.steps if step.choice.kernel.anchor.op == op) > 2
    feeds = {name: given[name] for name in ("x", "initial_h")}
    one, two = (tvmcnn.load(compiled.path, threads=count).run(None, feeds) for count in (1, 2))
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "error", "words"),
    [
        ({"direction": "backward"}, ModelError, "direction is 'backward'; allowed are forward, reverse, bidirectional"),
        ({"direction": "bidirectional"}, ModelError, "its W 'w' is 1x44x6; .* it must be 2x44x6"),
        ({"activations": ["Sigmoid", "Tanh"]}, ModelError, "it has 2 activations; LSTM needs 3 for direction forward"),
        ({"activations": ["Sigmoid", "Tanh", "Swish"]}, UnsupportedError, "its activation 'Swish' is none of ONNX's"),
        ({"activations": ["Affine", "Tanh", "Tanh"]}, ModelError, "Affine has no activation_alpha"),
        ({"activation_alpha": [1.0]}, ModelError, "activation_alpha has 1 numbers; .* take 0"),
        ({"layout": 2}, ModelError, "layout is 2; allowed are 0 and 1"),
        ({"clip": -1.0}, ModelError, "clip is -1.0; it must be at least 0"),
    ],
)
def test_refusals(attributes: dict[str, Any], error: type[TvmcnnError], words: str) -> None:
    with pytest.raises(error, match=words):
        import_model(model("LSTM", operands("LSTM"), **attributes))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("b", (1, 44), "its B 'b' is 1x44; for X 5x3x6, a hidden size of 11 and direction forward it must be 1x88"),
        ("p", (1, 44), "its P 'p' is 1x44; .* it must be 1x33"),
        ("initial_c", (1, 3, 10), "its initial_c 'initial_c' is 1x3x10; .* it must be 1x3x11"),
        ("x", (5, 18), "X is 5x18 and R is 1x44x11; both must have three axes"),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, ...], words: str) -> None:
    given = operands("LSTM", 11, 1, "p", "initial_c")
    proto = model("LSTM", given | {name: np.zeros(shape, np.float32)})
    with pytest.raises(ModelError, match=words):
        import_model(proto)


def test_a_sequence_without_steps_has_no_last_state() -> None:
    given = operands("GRU", layout=1) | {"x": np.zeros((BATCH, 0, DEPTH), np.float32)}
    with pytest.raises(UnsupportedError, match="its sequences have no steps; at least one is needed for Y_h and Y_c"):
        import_model(model("GRU", given, outputs=("y", "y_h"), layout=1), {"x": (BATCH, 0, DEPTH)})


# ---- networks -------------------------------------------------------------------------------------------------------


def text_recogniser() -> onnx.ModelProto:
    """A CRNN as PyTorch exports it: columns of the image are the times of two bidirectional layers."""
    g = Graph()
    x = g.input(2, 1, 8, 40)
    x = g.node("Relu", g.conv(x, 16, (3, 3), pads=[1, 1, 1, 1]))
    x = g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Relu", g.conv(x, 24, (4, 3), pads=[0, 1, 0, 1]))
    x = g.node("Transpose", g.node("Squeeze", x, g.constant(np.array([2]))), perm=[2, 0, 1])
    for depth in (24, 2 * 20):
        r = g.constant(g.rng.standard_normal((2, 4 * 20, 20)) / 4)
        w = g.constant(g.rng.standard_normal((2, 4 * 20, depth)) / 5)
        x = g.node("LSTM", x, w, r, g.draw(2, 8 * 20), hidden_size=20, direction="bidirectional")
        x = g.node("Reshape", g.node("Transpose", x, perm=[0, 2, 1, 3]), g.constant(np.array([0, 0, -1])))
    x = g.node("Gemm", g.node("Reshape", x, g.constant(np.array([-1, 40]))), g.draw(40, 11), g.draw(11))
    g.output(g.node("Reshape", x, g.constant(np.array([20, 2, 11]))))
    return g.model()


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_text_recogniser(target: str, tmp_path: Path) -> None:
    proto = text_recogniser()
    compiled = tvmcnn.compile(proto, target, tmp_path / "crnn.so")
    assert compiled.verdict is not None and compiled.verdict.passed
    assert [step.choice.rule for step in compiled.program.steps].count("recurrent") == 2
    assert compiled.fallbacks == 0
    x = draw(3, 2, 1, 8, 40)
    (wanted,) = reference(proto, {"x0": x}).values()
    np.testing.assert_allclose(tvmcnn.load(compiled.path)(x), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
