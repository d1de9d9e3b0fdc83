"""The operators that the oracle takes from onnx.reference: on ONNX's node cases, and beside onnxruntime on both."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.reference
import pytest
from builders import model_of, node, one_node
from one_node import Array, U, assert_case, data_of, node_cases, session, why_left_out

from tvmcnn.check.reference import reference
from tvmcnn.check.reference.walk import CONTROL
from tvmcnn.check.reference_ops import OPERATORS
from tvmcnn.check.reference_ops.onnx_reference import TAKEN

# Operators of ONNX that the oracle has no meaning for, each with its reason.
REFUSED = {
    "random: no two runs agree": "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    "onnxruntime has none to compare with": "SwiGLU",
    "its state has a type that no input need tell": "LinearAttention",
    "never compared: no node case, or none that onnxruntime runs": "ImageDecoder",
    "of training": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "sequences and optionals are no tensors": """
        ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty
        SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence""",
    "text is no number": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
}

CASES = [case for case in node_cases(TAKEN) if why_left_out(case, TAKEN) is None]
ORT_DIFFERS = {
    # where a mask hides a row, ONNX's product with the bias is -inf and onnxruntime's is the least number
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
}


def test_every_operator_has_its_place() -> None:
    """Each of ONNX's is ours, or taken from the version in which it came on, or refused for a reason."""
    since: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            since[schema.name] = min(schema.since_version, since.get(schema.name, 1000))
    places = Counter([*OPERATORS, *TAKEN, *CONTROL, *(name for names in REFUSED.values() for name in names.split())])
    assert set(places) == set(since)
    assert set(places.values()) == {1}
    assert {name: since[name] for name in TAKEN} == TAKEN


@pytest.mark.parametrize("op", sorted(TAKEN))
def test_node_cases(op: str) -> None:
    """As ONNX expects them; and as onnxruntime answers, which lacks some of the newest kernels."""
    cases = [case for case in CASES if case.model.graph.node[0].op_type == op]
    assert cases
    for case in cases:
        assert_case(case)
        if case.name in ORT_DIFFERS:
            continue
        try:
            run = session(case.model)
            theirs = [run.run(None, feeds) for feeds, _ in data_of(case)]
        except Exception as error:  # onnxruntime's errors have no name
            assert any(word in str(error) for word in ("NOT_IMPLEMENTED", "FAIL")), error  # noqa: PT017
            continue
        for (feeds, _), answer in zip(data_of(case), theirs, strict=True):
            for ours, wanted in zip(reference(case.model, feeds).values(), answer, strict=True):
                assert_alike(ours, wanted, 256 if wanted.dtype == np.float32 else 256 * 2**13)


def assert_alike(ours: Array, theirs: Array, roundings: int) -> None:
    """Within so many roundings of the largest element; none for integers."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if theirs.dtype.kind != "f":
        np.testing.assert_array_equal(ours, theirs)
        return
    scale = float(np.max(np.abs(theirs), initial=0, where=np.isfinite(theirs)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=roundings * U * scale)


# --- no two sizes alike ---

R = np.random.default_rng(31)


def f(*shape: int) -> Array:
    """Normal numbers."""
    return R.standard_normal(shape).astype(np.float32)


def i(*numbers: int) -> Array:
    """Integers of 64 bits."""
    return np.array(numbers, np.int64)


def boxes(*shape: int) -> Array:
    """Corners of boxes that overlap here and there."""
    centre, size = R.uniform(0, 1, (*shape, 2)), R.uniform(0.1, 0.5, (*shape, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], -1).astype(np.float32)


def lines(rows: int, columns: int, most: int) -> Array:
    """Rows of different places below `most`."""
    return np.stack([R.permutation(most)[:columns] for _ in range(rows)])


BYTES = [R.integers(0, 255, shape).astype(np.uint8) for shape in [(2, 3, 7, 6), (4, 3, 3, 2), (2, 5, 7), (7, 3)]]
HALVED = BYTES[3].astype(np.int8) // 2  # onnxruntime adds two products with uint8 in 16 bits where AVX2 is all there is
NINE = np.array(9, np.uint8)
LIMITS = [boxes(2, 20), R.uniform(0, 1, (2, 3, 20)).astype(np.float32), i(5), np.array([0.4], np.float32)]
HALVES = np.round(2 * f(4, 5, 6)) / 2  # with many alike
SPARSE = np.where(R.random((3, 5, 4)) < 0.5, 0, f(3, 5, 4)).astype(np.float32)
AXIS = np.array(-2, np.int64)
HEADS = [f(2, 5, 24), f(2, 7, 24), f(2, 7, 18)]
TURNS = [f(9, 4), f(9, 4), R.integers(0, 9, (2, 5))]
SCATTERED = [f(4, 6, 5), lines(2, 3, 6)[..., None].repeat(4, 2), f(2, 3, 4)]
ROWS = [f(4, 5, 3), R.integers(0, 4, (7, 1)), f(7, 5, 3)]  # some of them twice
COLUMNS = {"pads": [1, 0, 0, 1], "strides": [2, 2], "dilations": [2, 1]}

# operator, opset, inputs, attributes, outputs, and how many roundings of float32 onnxruntime makes on the way
AWKWARD: list[tuple[str, int, list[Array | None], dict[str, Any], int, int]] = [
    ("AffineGrid", 20, [f(3, 2, 3), i(3, 2, 5, 7)], {}, 1, 8),
    ("AffineGrid", 20, [f(2, 3, 4), i(2, 5, 3, 4, 6)], {"align_corners": 1}, 1, 8),
    ("Attention", 23, [f(2, 3, 5, 8), f(2, 3, 7, 8), f(2, 3, 7, 6)], {"is_causal": 1, "scale": 0.3}, 1, 32),
    ("Attention", 24, HEADS, {"q_num_heads": 3, "kv_num_heads": 3}, 1, 32),
    ("CausalConvWithState", 27, [f(2, 5, 7), f(5, 1, 3), f(5)], {}, 2, 8),
    ("CenterCropPad", 18, [f(5, 8, 3), i(7, 4, 3)], {}, 1, 0),
    ("CenterCropPad", 18, [f(2, 5, 9, 4), i(8, 3)], {"axes": [-2, 3]}, 1, 0),
    ("Col2Im", 18, [f(2, 30, 20), i(5, 7), i(2, 3)], {}, 1, 8),
    ("Col2Im", 18, [f(2, 12, 12), i(7, 9), i(2, 3)], COLUMNS, 1, 8),
    ("Compress", 11, [f(3, 5, 4), np.array([1, 0, 1, 1, 0], bool)], {"axis": 1}, 1, 0),
    ("Compress", 9, [f(3, 5), np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)], {}, 1, 0),
    ("ConvInteger", 10, [*BYTES[:2], NINE, NINE], {"pads": [1, 0, 2, 1], "strides": [2, 1]}, 1, 0),
    ("ConvInteger", 10, [BYTES[0], BYTES[1][:3, :1], NINE], {"dilations": [2, 2], "group": 3}, 1, 0),
    ("CumProd", 26, [f(3, 5, 4), AXIS], {"exclusive": 1, "reverse": 1}, 1, 8),
    ("CumSum", 14, [f(3, 5, 4), AXIS], {}, 1, 8),
    ("CumSum", 11, [f(3, 5, 4), AXIS], {"exclusive": 1, "reverse": 1}, 1, 8),
    ("DFT", 17, [f(3, 5, 7, 1)], {"axis": 1}, 1, 64),
    ("DFT", 20, [f(3, 5, 7, 2), None, AXIS], {"inverse": 1}, 1, 64),
    ("DFT", 20, [f(3, 5, 8, 1), None, AXIS], {"onesided": 1}, 1, 64),
    ("DFT", 20, [f(3, 5, 8, 2), np.array(6, np.int64), AXIS], {}, 1, 64),
    ("Det", 11, [f(2, 3, 5, 5)], {}, 1, 64),
    ("Einsum", 12, [f(2, 3, 5), f(2, 5, 4)], {"equation": "bij,bjk->bik"}, 1, 16),
    ("Einsum", 12, [f(3, 4, 4)], {"equation": "...ii->...i"}, 1, 0),
    ("Einsum", 12, [f(2, 3, 5), f(2, 7, 5)], {"equation": "b...j , b k j -> k b ..."}, 1, 16),
    ("MatMulInteger", 10, [*BYTES[2:], NINE, NINE], {}, 1, 0),
    ("MatMulInteger", 10, [BYTES[2][0], HALVED, NINE, np.array([100, 1, -2], np.int8)], {}, 1, 0),
    ("MelWeightMatrix", 17, [i(8)[0], i(64)[0], i(8192)[0], np.float32(0), np.float32(4000)], {}, 1, 8),
    ("MelWeightMatrix", 17, [i(13)[0], i(100)[0], i(16000)[0], np.float32(60), np.float32(7600)], {}, 1, 8),
    *[("NonMaxSuppression", 11, [*LIMITS, np.array([0.2], np.float32)], {"center_point_box": n}, 1, 0) for n in (0, 1)],
    ("NonMaxSuppression", 10, [*LIMITS[:2], i(50), LIMITS[3]], {}, 1, 0),
    ("NonMaxSuppression", 10, [*LIMITS[:2], i(50)[0], np.float32(0.3)], {}, 1, 0),
    ("NonMaxSuppression", 10, LIMITS[:2], {}, 1, 0),
    ("NonZero", 9, [SPARSE], {}, 1, 0),
    ("NonZero", 13, [SPARSE > 0], {}, 1, 0),
    ("RMSNormalization", 23, [f(2, 3, 5), f(5)], {}, 1, 16),
    ("RMSNormalization", 23, [f(2, 3, 5), f(3, 5)], {"axis": 1, "epsilon": 0.1}, 1, 32),
    ("RotaryEmbedding", 23, [f(2, 3, 5, 8), *TURNS], {}, 1, 8),
    ("RotaryEmbedding", 23, [f(2, 5, 24), *TURNS], {"num_heads": 3, "interleaved": 1}, 1, 8),
    ("STFT", 17, [f(2, 40, 1), i(7)[0], f(12)], {"onesided": 1}, 1, 64),
    ("STFT", 17, [f(2, 40, 1), i(7)[0], None, i(16)[0]], {"onesided": 0}, 1, 64),
    ("Scatter", 9, [f(4, 5), i(1, 0, 2, 1, 3)[None], f(1, 5)], {}, 1, 0),
    ("ScatterElements", 11, [f(4, 5), i(-1, 0, 2, 1, -4)[None], f(1, 5)], {}, 1, 0),
    *[
        ("ScatterElements", 18, SCATTERED, {"axis": 1, "reduction": r}, 1, 2)
        for r in ("none", "add", "mul", "max", "min")
    ],
    ("ScatterND", 11, [f(4, 5, 3), np.stack([*lines(2, 3, 4)], -1), f(3, 3)], {}, 1, 0),
    *[("ScatterND", 18, ROWS, {"reduction": r}, 1, 16) for r in ("add", "mul")],
    *[("ScatterND", 18, ROWS, {"reduction": r}, 1, 0) for r in ("max", "min")],
    ("Shrink", 9, [f(3, 5)], {"lambd": 0.4, "bias": 0.1}, 1, 2),
    ("TensorScatter", 24, [f(2, 3, 7, 4), f(2, 3, 2, 4), i(3, 6)], {"mode": "circular"}, 1, 0),
    ("TopK", 1, [HALVES], {"k": 3, "axis": 1}, 2, 0),
    ("TopK", 10, [HALVES, i(2)], {}, 2, 0),
    ("TopK", 11, [HALVES, i(3)], {"axis": 0, "largest": 0}, 2, 0),
]  # fmt: skip


@pytest.mark.parametrize("op", sorted(TAKEN))
def test_awkward_sizes_agree_with_onnxruntime(op: str) -> None:
    """ONNX's cases have sizes that are alike, in which its LRN was right by accident."""
    rows = [row for row in AWKWARD if row[0] == op]
    assert rows
    for _, opset, arrays, attributes, outputs, roundings in rows:
        given = [None if array is None else np.asarray(array) for array in arrays]
        model, feeds = one_node(op, opset, given, outputs=outputs, **attributes)
        try:
            run = session(model)
        except Exception:  # onnxruntime's errors have no name
            assert opset > 22  # an older onnxruntime may not know these yet
            continue
        for ours, wanted in zip(reference(model, feeds).values(), run.run(None, feeds), strict=True):
            assert_alike(ours, wanted, roundings)


def test_a_taken_operator_computes_in_float64() -> None:
    """1e8 + 1 is no float32: what follows a sum must still see the 1."""
    nodes = [
        node("CumSum", "x axis", "sums"),
        node("Slice", "sums one two", "last"),
        node("Sub", "last big", "y"),
    ]
    constants = {"axis": np.int64(0), "one": i(1), "two": i(2), "big": np.array([1e8], np.float32)}
    model = model_of(nodes, {"x": (2,)}, {"y": (1,)}, constants, opset=13, ir_version=onnx.IR_VERSION)
    y = reference(model, np.array([1e8, 1], np.float32))["y"]
    assert y.dtype == np.float32
    assert y == 1
