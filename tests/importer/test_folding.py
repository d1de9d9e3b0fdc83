"""Import: what is constant is computed, whatever decides its size, as long as that is known to be small."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import drawn, model_of, node
from onnx import NodeProto, TensorProto, numpy_helper

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer import import_model
from tvmcnn.network import Network

Array = np.ndarray[Any, Any]
IMAGE = (1, 3, 9, 8)


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, Any] | None = None,
    *,
    x: Sequence[int | str] = IMAGE,
    opset: int = 17,
    ir_version: int = 9,
) -> onnx.ModelProto:
    return model_of(nodes, {"x": x}, {"y": TensorProto.FLOAT}, constants, opset=opset, ir_version=ir_version)


def operand(network: Network, place: int = 1) -> Array:
    """The constant operand of the one node that is left."""
    (last,) = network.nodes
    return network.constants[last.inputs[place]]


# ---- as exporters write it ------------------------------------------------------------------------------------------


def padding(mode: str) -> list[NodeProto]:
    """How PyTorch writes F.pad(x, (2, 1, 0, 3)): zeros for the other axes by ConstantOfShape, turned round by Slice."""
    return [
        node("Shape", "x", "shape"),
        node("Size", "shape", "rank"),
        node("Mul", "rank two", "both"),
        node("Sub", "both four", "others"),
        node("Unsqueeze", "others zero", "length"),
        node("ConstantOfShape", "length", "zeros", value=numpy_helper.from_array(np.array([0]))),
        node("Concat", "given zeros", "all", axis=0),
        node("Reshape", "all pairs", "rows"),
        node("Slice", "rows last least zero last", "turned"),
        node("Transpose", "turned", "columns", perm=[1, 0]),
        node("Reshape", "columns last", "flat"),
        node("Cast", "flat", "pads", to=TensorProto.INT64),
        node("Pad", "x pads", "p", mode=mode),
    ]


PADDING = {
    "two": np.array(2), "four": np.array(4), "zero": np.array([0]), "given": np.array([2, 1, 0, 3]),
    "pairs": np.array([-1, 2]), "last": np.array([-1]), "least": np.array([-(2**63) + 1]),
}  # fmt: skip


def test_padding_as_pytorch_writes_it() -> None:
    conv = node("Conv", "p w", "y", strides=[2, 1])
    weights = {**PADDING, "w": drawn(5, 3, 3, 2)}
    network = import_model(model([*padding("constant"), conv], weights, x=("n", 3, "h", 8)), {"x": (1, 3, 9, 8)})
    assert [n.op for n in network.nodes] == ["Conv"]
    assert network.nodes[0]["pads"] == (0, 2, 3, 1)
    reflected = import_model(model([*padding("reflect"), conv], weights))
    assert [n.op for n in reflected.nodes] == ["Pad", "Conv"]
    assert reflected.tensors[reflected.nodes[0].output].shape == (1, 3, 12, 11)


def test_expansion_as_pytorch_writes_it() -> None:
    """x.expand(3, -1, 9, 8): where an extent is -1 that of the tensor stays, by Where over a ConstantOfShape."""
    nodes = [
        node("ConstantOfShape", "four", "ones", value=numpy_helper.from_array(np.array([1]))),
        node("Mul", "ones minus", "any"),
        node("Equal", "target any", "kept"),
        node("Where", "kept ones target", "extents"),
        node("Expand", "x extents", "y"),
    ]
    constants = {"four": np.array([4]), "minus": np.array(-1), "target": np.array([5, -1, 9, 8])}
    network = import_model(model(nodes, constants))
    assert [(n.op, network.outputs[0].shape) for n in network.nodes] == [("Expand", (5, 3, 9, 8))]


SHAPE = [
    node("Shape", "x", "shape"),
    node("Gather", "shape last", "extent", axis=0),  # 8
    node("Add", "x made", "y"),
]
SPOT = {"last": np.array(-1), "zero": np.array(0), "one": np.array(1), "step": np.array(3), "off": np.array([0.0, 2.5])}


@pytest.mark.parametrize(
    ("nodes", "constants", "wanted"),
    [
        ([node("ConstantOfShape", "shape", "made", value=numpy_helper.from_array(np.float32([0.5])))], {},
         np.full(IMAGE, 0.5, np.float32)),
        ([node("Range", "one extent step", "r"), node("ReduceSum", "r", "s"),
          node("Cast", "s", "made", to=1)], {}, np.float32(1 + 4 + 7).reshape(1)),
        ([node("Range", "zero extent one", "r"), node("Cast", "r", "made", to=1)], {},
         np.arange(8, dtype=np.float32)),
        ([node("OneHot", "which extent floats", "made", axis=-1)],
         {"which": np.array([5, 7, 0] * 3), "floats": np.float32([-1, 2])},
         np.where(np.arange(8) == np.array([5, 7, 0] * 3)[..., None], 2, -1).astype(np.float32)),
        ([node("Expand", "row shape", "made")], {"row": drawn(9, 1)},
         np.broadcast_to(drawn(9, 1), IMAGE)),
        ([node("Tile", "row times", "made")], {"row": drawn(9, 4), "times": np.array([1, 2])},
         np.tile(drawn(9, 4), (1, 2))),
        ([node("Pad", "row pads", "made")], {"row": drawn(4, 6), "pads": np.array([2, 1, 3, 1])},
         np.pad(drawn(4, 6), ((2, 3), (1, 1)))),
        ([node("Split", "row", "a b", axis=1), node("Mul", "a b", "made")], {"row": drawn(9, 16)},
         drawn(9, 16)[:, :8] * drawn(9, 16)[:, 8:]),
        ([node("TopK", "row count", "made places", axis=0)], {"row": drawn(11, 8), "count": np.array([9])},
         -np.sort(-drawn(11, 8), axis=0)[:9]),
        ([node("Unique", "row", "made", sorted=1)], {"row": np.float32([5, 1, 1, 3, 2, 7, 6, 5, 8, 4])},
         np.arange(1, 9, dtype=np.float32)),
        ([node("ScatterND", "row where what", "made")],
         {"row": drawn(9, 8), "where": np.array([[3], [8]]), "what": drawn(2, 8)},
         np.stack([drawn(2, 8)[[3, 8].index(i)] if i in (3, 8) else drawn(9, 8)[i] for i in range(9)])),
        ([node("NonZero", "row", "n"), node("Cast", "n", "made", to=1)],
         {"row": np.float32([1, 0, 2, 3, 0, 4, 5, 6, 7, 8])}, np.float32([[0, 2, 3, 5, 6, 7, 8, 9]])),
        ([node("CumSum", "row one", "made")], {"row": np.float32(np.arange(72).reshape(9, 8))},
         np.cumsum(np.arange(72).reshape(9, 8), axis=1).astype(np.float32)),
        ([node("Einsum", "row row", "made", equation="ij,ik->ij")], {"row": drawn(9, 8)},
         drawn(9, 8) * drawn(9, 8).sum(axis=1, keepdims=True)),
    ],
    ids=lambda value: value[0].op_type if isinstance(value, list) else "",
)  # fmt: skip
def test_constants(nodes: list[NodeProto], constants: dict[str, Array], wanted: Array) -> None:
    """Every operand is known once the shape of x is: the node is gone, and Add reads what it would have made."""
    made = model([*SHAPE[:2], *nodes, SHAPE[2]], {**SPOT, **constants})
    found = operand(import_model(made))
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-6, atol=1e-6)


def test_an_output_is_made_by_a_kernel() -> None:
    """Though all is known of it: a library has no output without one."""
    nodes = [node("Shape", "x", "s"), node("ConstantOfShape", "s", "y")]
    assert [n.op for n in import_model(model(nodes)).nodes] == ["ConstantOfShape"]


# ---- what is too large ----------------------------------------------------------------------------------------------

BOMBS: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "ConstantOfShape": (["huge"], {}, {"huge": [40_000, 50_000]}),
    "Expand": (["small", "huge"], {}, {"small": np.ones((1, 1), np.float32), "huge": [40_000, 50_000]}),
    "Range": (["from", "huge", "by"], {}, {"from": np.float32(0), "huge": np.float32(2e9), "by": np.float32(1)}),
    "OneHot": (["small", "huge", "off"], {}, {"small": [[1, 2]], "huge": [1_000_000_000], "off": np.float32([0, 1])}),
    "Tile": (["small", "huge"], {}, {"small": np.ones((2, 3), np.float32), "huge": [20_000, 20_000]}),
    "Pad": (["small", "huge"], {}, {"small": np.ones((2, 3), np.float32), "huge": [20_000, 0, 0, 40_000]}),
    "Resize": (["small", "", "huge"], {}, {"small": np.ones((2, 3), np.float32), "huge": np.float32([2e4, 2e4])}),
    "HannWindow": (["huge"], {}, {"huge": 2_000_000_000}),
    "Einsum": (["small", "small"], {"equation": "ij,kl->ijkl"}, {"small": np.ones((200, 300), np.float32)}),
}


@pytest.mark.parametrize("op", BOMBS)
@pytest.mark.parametrize("hidden", [False, True], ids=["known", "computed"])
def test_constants_that_would_fill_the_memory(op: str, hidden: bool) -> None:
    """Gigabytes out of a few hundred bytes: refused before anything is computed, also where folding alone finds the
    size, here behind a Split, whose outputs inference does not see through."""
    inputs, attributes, constants = BOMBS[op]
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    maker = [node(op, inputs, "big", name="bomb", **attributes), node("ReduceMax", "big", "top", keepdims=0)]
    if hidden and "huge" in arrays:
        arrays["halves"] = np.concatenate([np.atleast_1d(arrays.pop("huge"))] * 2)
        if op in ("Range", "HannWindow"):  # which take a scalar
            maker.insert(0, node("Squeeze", "part", "huge"))
        maker.insert(
            0,
            node("Split", "halves", ["huge" if op not in ("Range", "HannWindow") else "part", "spare"], num_outputs=2),
        )
    made = model([*maker, node("Add", "x top", "y")], arrays, opset=18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    becomes = {"Einsum": "MatMul"}.get(op, op)
    with pytest.raises(ModelError, match=rf"node 'bomb' \({becomes}\) makes a constant of .*: allowed are 64 MB"):
        import_model(made)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KB


@pytest.mark.parametrize(
    ("op", "operands", "attributes"),
    [
        ("ConstantOfShape", [np.array([3, 500, 7])], {}),
        ("ConstantOfShape", [np.array([3, 0, 7])], {}),
        ("Expand", [drawn(5, 1, 3), np.array([41, 1, 70, 3])], {}),
        ("Expand", [drawn(61, 5, 1), np.array([1, 70])], {}),
        ("Range", [np.array(3), np.array(50), np.array(7)], {}),
        ("Range", [np.float32(2.5), np.float32(-9), np.float32(-0.5)], {}),
        ("Range", [np.array(3), np.array(-50), np.array(7)], {}),
        ("OneHot", [np.array([[1, 2, 0]] * 5), np.array([70]), np.array([0.0, 1.0], np.float32)], {"axis": 1}),
        ("Tile", [drawn(2, 3, 1), np.array([7, 5, 11])], {}),
        ("Pad", [drawn(2, 3), np.array([7, -1, 0, 20])], {}),
        ("Pad", [drawn(2, 3), np.array([40, 60]), np.float32(1), np.array([-1])], {}),
        ("Resize", [drawn(2, 3), None, np.array([8.5, 9.0], np.float32)], {"mode": "nearest"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_by_the_values_of_operands(op: str, operands: list[Any], attributes: dict[str, Any]) -> None:
    """What the budget counts is what the oracle makes, where nothing has been inferred."""
    import onnx_ir as ir

    from tvmcnn.importer.budget import Budget

    arrays = {f"k{place}": array for place, array in enumerate(operands) if array is not None}
    names = [f"k{place}" if array is not None else "" for place, array in enumerate(operands)]
    made = reference(model([node(op, names, "y", **attributes)], arrays, opset=21), {"x": drawn(*IMAGE)})["y"]
    values = [ir.Value(name=n, const_value=ir.tensor(np.asarray(arrays[n]))) if n else None for n in names]
    budget = Budget("the model")
    before = budget.left
    assert budget.allows(ir.node(op, values, attributes)) is (True if op == "ConstantOfShape" else None)
    given = sum(np.asarray(array).nbytes for array in arrays.values())
    size = 4 * made.size if op != "Resize" else 4 * 17 * 27  # whose fractions are rounded up here, for the worst
    assert before - budget.left == max(0, size - given)
    unknown = ir.node(op, [ir.Value(name="run") for _ in names], attributes)
    assert budget.allows(unknown) is False


def test_random_numbers_are_not_folded() -> None:
    nodes = [node("Bernoulli", "k", "b", seed=1.0), node("Mul", "x b", "y")]
    with pytest.raises(UnsupportedError, match="operator Bernoulli is not supported"):
        import_model(model(nodes, {"k": np.full(8, 0.5, np.float32)}))


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What the optimizer has to say of a node that does not fold is not for the user, whom import tells why."""
    nodes = [node("Reshape", "k s", "r"), node("Add", "x r", "y")]
    with pytest.raises(ModelError, match=r"2x3 .* does not reshape to"):
        import_model(model(nodes, {"k": drawn(2, 3), "s": np.array([4, 5])}))
    assert not caplog.records


# ---- quantised weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "attributes"),
    [
        ("int8", np.float32(0.03), None, {}),
        ("int8", np.float32(0.03), np.int8(-3), {}),
        ("uint8", np.abs(drawn(5)) + 0.01, np.arange(120, 125, dtype=np.uint8), {"axis": 0}),
        ("int8", np.abs(drawn(3)) + 0.01, np.array([-3, 0, 4], np.int8), {"axis": -3}),
        ("uint8", np.abs(drawn(5, 3, 2, 2)) + 0.01, None, {"axis": 3, "block_size": 2}),
        ("int32", np.float32(1e-6), None, {}),
    ],
    ids=["tensor", "zero", "maps", "channels", "blocks", "int32"],
)
def test_weights_behind_dequantize_linear(
    dtype: str, scale: Array, zero: Array | None, attributes: dict[str, int]
) -> None:
    """A float network whose weights are stored in fewer bits."""
    rng, limits = np.random.default_rng(5), np.iinfo(dtype)
    w = rng.integers(limits.min, limits.max, (5, 3, 2, 4), dtype, endpoint=True)
    given = {"w": w, "s": scale} | ({} if zero is None else {"z": zero})
    nodes = [node("DequantizeLinear", list(given), "f", **attributes), node("Conv", "x f", "y")]
    network = import_model(model(nodes, given, opset=21, ir_version=10))
    assert [n.op for n in network.nodes] == ["Conv"]
    assert network.folded == {"f": "constant: computed at compile time"}

    def spread(values: Array) -> Array:
        values = np.asarray(values, np.float64)
        if "block_size" in attributes:
            return values.repeat(attributes["block_size"], attributes["axis"])
        form = [1] * 4
        form[attributes.get("axis", 0)] = -1
        return values.reshape(form) if values.ndim else values

    exact = (w.astype(np.float64) - (0 if zero is None else spread(zero))) * spread(scale)
    found = operand(network)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1.2e-7 * (2 if dtype == "int32" else 1))  # int32 is rounded twice


def test_large_weights_behind_dequantize_linear() -> None:
    """Weights four times the size of what the file has are no bomb, however large: as large as the file."""
    from tvmcnn.importer import budget

    w = np.random.default_rng(5).integers(-128, 127, (300, 301), np.int8)
    nodes = [node("DequantizeLinear", "w s", "f"), node("MatMul", "x f", "y")]
    made = model(nodes, {"w": w, "s": np.float32(0.5)}, x=(7, 300))
    limit = budget.FOLD_LIMIT
    try:
        budget.FOLD_LIMIT = 1 << 10
        np.testing.assert_array_equal(operand(import_model(made)), w * np.float32(0.5))
        made.graph.node[0].CopyFrom(node("Cast", "w", "f", to=TensorProto.FLOAT))  # which makes as much of them
        with pytest.raises(ModelError, match="makes a constant of 300x301"):
            import_model(made)
    finally:
        budget.FOLD_LIMIT = limit


def test_weights_that_meet_quantised_activations_do_not_fold() -> None:
    """They are wanted as the integers that they are."""
    nodes = [
        node("QuantizeLinear", "x s z", "q", name="round"),
        node("DequantizeLinear", "q s z", "d", name="back"),
        node("DequantizeLinear", "w s", "f"),
        node("Conv", "d f", "y"),
    ]
    w = np.random.default_rng(5).integers(-128, 127, (5, 3, 2, 4), np.int8)
    network = import_model(model(nodes, {"w": w, "s": np.float32(0.5), "z": np.uint8(7)}))
    assert [each.op for each in network.nodes] == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]
    assert network.constants["w"].dtype == np.int8


# ---- operators of onnxruntime ---------------------------------------------------------------------------------------

OWN = {"domain": "com.microsoft"}


@pytest.mark.parametrize(
    ("activation", "params", "ops"),
    [
        ("", [], ["Conv"]),
        ("Relu", [], ["Conv", "Relu"]),
        ("Tanh", [], ["Conv", "Tanh"]),
        ("LeakyRelu", [0.3], ["Conv", "LeakyRelu"]),
        ("Clip", [-0.25, 0.5], ["Conv", "Clip"]),
        ("HardSigmoid", [0.3, 0.4], ["Conv", "HardSigmoid"]),
    ],
)
@pytest.mark.parametrize("summand", [False, True])
def test_fused_conv(activation: str, params: list[float], ops: list[str], summand: bool) -> None:
    """onnxruntime's Conv with a fourth operand that is added before the activation."""
    weights = {"w": drawn(5, 3, 3, 2), "b": drawn(5)} | ({"z": drawn(1, 5, 7, 7)} if summand else {})
    more = {"activation": activation} if activation else {}
    more |= {"activation_params": params} if params else {}
    made = model([node("FusedConv", ["x", *weights], "y", **OWN, **more)], weights)
    network = import_model(made)
    assert [n.op for n in network.nodes] == [*ops[:1], *(["Add"] if summand else []), *ops[1:]]
    assert network.outputs[0].shape == (1, 5, 7, 7)
    last = network.nodes[-1]
    numbers = [value for key, value in last.attributes.items() if key in ("alpha", "beta", "min", "max")]
    assert numbers == pytest.approx(params)


def test_operators_of_onnxruntime_compute_what_they_say(tmp_path: Path) -> None:
    """One after another, in names that the file's own tensors have, compared with the oracle's own reading of them."""
    weights = {"w": drawn(5, 3, 3, 2), "b": drawn(5), "z": drawn(1, 5, 7, 7)}
    weights |= {"f.conv": drawn(5, 1, 1), "y.alpha": drawn(7)}
    nodes = [
        node("FusedConv", "x w b z", "f", activation="Clip", activation_params=[-0.75, 2.0], **OWN),
        node("Mul", "f f.conv", "m"),
        node("Gelu", "m", "g", **OWN),
        node("Add", "g y.alpha", "h"),
        node("QuickGelu", "h", "q", alpha=1.25, **OWN),
        node("QuickGelu", "q", "y", **OWN),
    ]
    made = model(nodes, weights)
    verdict = tvmcnn.compile(made, output=tmp_path / "own.so").verdict
    assert verdict is not None and verdict.passed
    x = drawn(*IMAGE)
    h = reference(model([*nodes[:3], node("Add", "g y.alpha", "y")], weights), {"x": x})["y"].astype(np.float64)
    q = h / (1 + np.exp(-1.25 * h))
    np.testing.assert_allclose(tvmcnn.load(tmp_path / "own.so")(x), q / (1 + np.exp(-1.702 * q)), atol=1e-5)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "reason"),
    [
        (
            "FusedConv",
            ["x", "w"],
            {"activation": "Mish"},
            "its activation is Mish with 0 activation_params, which is not known",
        ),
        ("FusedConv", ["x", "w"], {"activation": "LeakyRelu"}, "its activation is LeakyRelu with 0 activation_params"),
        ("QuickGelu", ["x"], {"beta": 2.0}, "its attribute beta is none of onnxruntime's schema, which has alpha"),
    ],
)
def test_what_they_do_not_say(op: str, inputs: list[str], attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        import_model(model([node(op, inputs, "y", name="own", **OWN, **attributes)], {"w": drawn(5, 3, 3, 2)}))
    assert caught.value.reasons[0].startswith(f"node 'own' ({op}): {reason}")


def test_other_operators_of_onnxruntime() -> None:
    with pytest.raises(UnsupportedError, match=r"operator com\.microsoft\.NhwcMaxPool is not supported"):
        import_model(model([node("NhwcMaxPool", "x", "y", **OWN, kernel_shape=[2, 2])]))


# ---- transposed convolutions ----------------------------------------------------------------------------------------


def test_same_pads_of_transposed_convolutions() -> None:
    """Sizes and values beside onnxruntime, for kernels shorter, longer and as long as the stride."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing to compare with")
    from tvmcnn.importer.operators import OPERATORS, Value

    options = ort.SessionOptions()
    options.log_severity_level = 4
    compared = 0
    for kernel in (1, 2, 3, 5):
        for stride in (1, 2, 3, 4):
            for dilation in (1, 2):
                for extra in range(min(stride, 2)):
                    for word in ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"):
                        x, w = drawn(1, 2, 4), drawn(2, 3, kernel)
                        attributes = {"strides": [stride], "dilations": [dilation], "output_padding": [extra]}
                        made = model(
                            [node("ConvTranspose", "x w", "y", auto_pad=word, **attributes)], {"w": w}, x=x.shape
                        )
                        session = ort.InferenceSession(
                            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
                        )
                        wanted = session.run(None, {"x": x})[0]
                        meaning = OPERATORS["ConvTranspose"](
                            Value("x", x.shape, "float32"),
                            Value("w", w.shape, "float32", w),
                            auto_pad=word,
                            **attributes,
                        )
                        assert not isinstance(meaning, tuple)
                        case = (kernel, stride, dilation, extra, word)
                        assert meaning.shape == wanted.shape, case
                        np.testing.assert_allclose(reference(made, {"x": x})["y"], wanted, atol=1e-5, err_msg=str(case))
                        compared += 1
    assert compared == 4 * 7 * 2 * 4


def test_transposed_convolutions_with_kernels_shorter_than_their_strides(tmp_path: Path) -> None:
    weights = {"w": drawn(3, 5, 1, 2), "v": drawn(5, 2, 2, 1)}
    nodes = [
        node("ConvTranspose", "x w", "c", strides=[2, 3], auto_pad="SAME_LOWER"),
        node("ConvTranspose", "c v", "y", strides=[3, 2], auto_pad="SAME_UPPER"),
    ]
    verdict = tvmcnn.compile(model(nodes, weights), output=tmp_path / "up.so").verdict
    assert verdict is not None and verdict.passed
    assert tvmcnn.load(tmp_path / "up.so").outputs[0].shape == (1, 2, 50, 45)
