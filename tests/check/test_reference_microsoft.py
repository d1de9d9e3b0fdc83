"""The oracle's operators of com.microsoft, beside onnxruntime, which brought them into the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import model_of, node, one_node
from one_node import Array, U, session
from onnx import helper

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer import import_model

DOMAIN = "com.microsoft"
R = np.random.default_rng(61)


def f(*shape: int) -> Array:
    """Normal numbers."""
    return R.standard_normal(shape).astype(np.float32)


def foreign(op: str, arrays: list[Array | None], **attributes: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node of that domain."""
    model, feeds = one_node(op, 17, arrays, **attributes)
    model.graph.node[0].domain = DOMAIN
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model, feeds


X, W, B = f(2, 6, 9, 8), f(4, 3, 3, 2), f(4)
PLACED = {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}
ADDED = f(2, 4, 5, 7)  # as large as that convolution's result


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("FusedConv", [X, W, B], PLACED),
        ("FusedConv", [X, W, B], PLACED | {"activation": "Relu"}),
        ("FusedConv", [X, W, None, ADDED], PLACED | {"activation": "Relu"}),
        ("FusedConv", [X, W, B, ADDED], PLACED),
        ("FusedConv", [X, W, B], PLACED | {"activation": "Sigmoid"}),
        ("FusedConv", [X, W], PLACED | {"activation": "Tanh"}),
        ("FusedConv", [X, W, B], PLACED | {"activation": "LeakyRelu", "activation_params": [0.3]}),
        ("FusedConv", [X, W, B], PLACED | {"activation": "Clip", "activation_params": [-0.5, 2.0]}),
        ("FusedConv", [X, W, B], PLACED | {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
        ("FusedConv", [X, W, B], {"group": 2, "auto_pad": "SAME_LOWER", "kernel_shape": [3, 2], "activation": "Relu"}),
        ("Gelu", [3 * X], {}),
        ("QuickGelu", [3 * X], {}),
        ("QuickGelu", [X], {"alpha": -0.6}),
        ("FastGelu", [3 * X], {}),
        ("FastGelu", [3 * X, f(8)], {}),
        ("BiasGelu", [3 * X, f(8)], {}),
        ("FusedMatMul", [f(2, 5, 7), f(7, 4)], {"alpha": -1.7}),
        ("FusedMatMul", [f(2, 7, 5), f(2, 4, 7)], {"transA": 1, "transB": 1}),
        ("FusedMatMul", [f(5, 2, 7), f(2, 7, 4)], {"transBatchA": 1}),
        ("FusedMatMul", [f(7, 3, 2, 5), f(3, 2, 7, 4)], {"transBatchA": 1, "transA": 1}),
        ("FusedGemm", [f(5, 7), f(4, 7), f(4)], {"transB": 1, "alpha": 1.7, "beta": -0.6, "activation": "Relu"}),
        (
            "FusedGemm",
            [f(7, 5), f(7, 4)],
            {"transA": 1, "activation": "LeakyRelu", "activation_alpha": 0.3},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_agrees_with_onnxruntime(op: str, arrays: list[Array | None], attributes: dict[str, Any]) -> None:
    """Each form; sums have 18 products at most, whose roundings and those of an activation are 64 of the largest."""
    model, feeds = foreign(op, arrays, **attributes)
    ours, theirs = reference(model, feeds)["y0"], session(model).run(None, feeds)[0]
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=64 * U * np.abs(theirs).max())


def test_what_onnxruntime_makes_of_a_network() -> None:
    """The optimizer's own file: a convolution and its activation are one node in it, and mean the same."""
    nodes = [
        node("Conv", "x w b", "c", **PLACED),
        node("Relu", "c", "r"),
        node("Conv", "r v", "e"),
        node("LeakyRelu", "e", "y", alpha=0.2),
    ]
    weights = {"w": W, "b": B, "v": f(3, 4, 2, 1)}
    plain = model_of(nodes, {"x": X}, "y", weights, ir_version=10)
    fused = optimized(plain)
    assert [each.op_type for each in fused.graph.node] == ["FusedConv", "FusedConv"]
    np.testing.assert_array_equal(reference(fused, X)["y"], reference(plain, X)["y"])


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxruntime's extended optimizations make of a model."""
    ort = pytest.importorskip("onnxruntime")
    from tempfile import TemporaryDirectory

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def test_what_is_not_known_is_refused() -> None:
    """Another operator of the domain, another activation, too few parameters."""
    for op, arrays, attributes, words in (
        ("NhwcMaxPool", [X], {}, "of domain com.microsoft"),
        ("FusedConv", [X, W], {"group": 2, "activation": "Erf"}, "activation 'Erf'"),
    ):
        with pytest.raises(UnsupportedError, match=f"the_node.*{words}"):
            reference(*foreign(op, arrays, **attributes))
    with pytest.raises(ModelError, match=r"0 parameters.*'Clip'"):
        reference(*foreign("FusedConv", [X, W], group=2, activation="Clip"))


def lstm_in_integers(
    seed: int, dtype: str, *, columns: bool, **attributes: Any
) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, Array]]:
    """A DynamicQuantizeLSTM, and the LSTM of what its weights stand for; I, H, D, T and N are 3, 5, 2, 4 and 6."""
    rng, limits = np.random.default_rng(seed), np.iinfo(dtype)
    initializers: dict[str, Array] = {"b": rng.standard_normal((2, 40)).astype(np.float32)}
    for name, rows in (("w", 3), ("r", 5)):
        q = rng.integers(limits.min, limits.max, (2, rows, 20), dtype)
        scale = rng.uniform(0.002, 0.01, (2, 20) if columns else 2).astype(np.float32)
        zero = rng.integers(limits.min, limits.max, scale.shape, dtype)
        wide = q.astype(np.float32) - zero.reshape(2, 1, -1).astype(np.float32)
        initializers |= {f"{name}q": q, f"{name}s": scale, f"{name}z": zero}
        initializers[name] = np.transpose(wide * scale.reshape(2, 1, -1), (0, 2, 1))
    attributes |= {"hidden_size": 5, "direction": "bidirectional"}
    outputs = ["y", "h", "c"]
    names = ["x", "wq", "rq", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    node_ = helper.make_node("DynamicQuantizeLSTM", names, outputs, domain=DOMAIN, **attributes)
    plain = helper.make_node("LSTM", ["x", "w", "r", "b"], outputs, **attributes)
    models = []
    for each in (node_, plain):
        read = {name: array for name, array in initializers.items() if name in each.input}
        models.append(model_of([each], {"x": (4, 6, 3)}, outputs, read, opset=17))
    return models[0], models[1], {"x": rng.standard_normal((4, 6, 3)).astype(np.float32)}


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_lstm_in_integers(dtype: str, columns: bool, tmp_path: Path) -> None:
    """Computed with what the weights stand for, here and in the library; onnxruntime rounds x and h too."""
    words = {"activations": ["Sigmoid", "Tanh", "Softsign"] * 2} if columns else {}
    model, plain, feeds = lstm_in_integers(3, dtype, columns=columns, **words)
    found, wanted = reference(model, feeds), reference(plain, feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    compiled = tvmcnn.compile(model, output=tmp_path / "lstm.so")
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    if not words:
        theirs = session(model).run(None, feeds)
        scale = np.abs(theirs[0]).max()
        np.testing.assert_allclose(theirs[0], found["y"], rtol=0, atol=0.05 * scale)


def test_lstm_without_scales() -> None:
    model, _, _ = lstm_in_integers(3, "int8", columns=False)
    model.graph.node[0].input[8] = ""
    with pytest.raises(UnsupportedError, match="it must have 12, its weights and their scales among them"):
        import_model(model)
