"""The oracle is checked too: by hand, by ONNX's own node cases, by onnxruntime, and on trained models."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from builders import graph_of, model_of, node, one_node
from one_node import Array, U, assert_case, both, evaluate, node_cases, session, why_left_out
from onnx import TensorProto, helper

from tvmcnn.check.reference import reference
from tvmcnn.check.reference_ops import OPERATORS, lookup
from tvmcnn.errors import InputError, ModelError, UnsupportedError

draw = partial(builders.draw, outliers=0.05, times=100)


def assert_sum_agrees(op: str, opset: int, arrays: list[Array | None], terms: int, **attributes: Any) -> None:
    """Compare a node that sums `terms` products with onnxruntime, within what float32 can be off by.

    Let y = sum over K terms of a_k * b_k. In float32 each product is rounded once and then takes part in at most K - 1
    additions, whatever their order, so it reaches the sum times (1 + d)^K with |d| <= u. Hence
    |err| <= ((1 + u)^K - 1) * sum |a_k * b_k|, about K * u * sum |a_k * b_k|. A scaling (alpha, the mean's 1 / n) and
    the reference's own rounding to float32 are three roundings more. The sum of absolute values is the same node
    on |inputs| with |alpha| and |beta|, by the reference itself.
    """
    theirs, ours = both(op, opset, arrays, **attributes)
    sizes: list[Array | None] = [None if array is None else np.abs(array) for array in arrays]
    positive = {name: abs(value) if isinstance(value, float) else value for name, value in attributes.items()}
    magnitude = evaluate(op, opset, sizes, **positive).astype(np.float64)
    limit = ((1 + U) ** (terms + 3) - 1) * magnitude
    excess = np.abs(theirs.astype(np.float64) - ours) - limit
    assert (excess <= 0).all(), f"{(excess > 0).sum()} of {excess.size} elements, worst {excess.max():.3g} over"


# --- by hand ---


def test_conv_by_hand() -> None:
    """One row of padding on top only, a lopsided kernel: a flip or a swapped pad would show."""
    x = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    w = np.array([[1, 2, 0], [0, -1, 0], [0, 0, 3]], np.float32).reshape(1, 1, 3, 3)
    y = evaluate("Conv", 11, [x, w, np.array([100], np.float32)], pads=[1, 0, 0, 0])
    # rows 0 to 2 of the padded input: 0 - 2 + 3 * 6; rows 1 to 3: (1 + 2 * 2) - 5 + 3 * 9
    np.testing.assert_array_equal(y, np.array([116, 127], np.float32).reshape(1, 1, 2, 1))


@pytest.mark.parametrize(
    ("numbers", "attributes", "expected"),
    [
        # [1 2] [3 4] [5 .]: what lies past the end never counts
        ([1, 2, 3, 4, 5], {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}, [1.5, 3.5, 5]),
        ([1, 2, 3, 4, 5], {"kernel_shape": [2], "strides": [2], "ceil_mode": 0}, [1.5, 3.5]),
        # [0 1 2] [2 3 4] [4 5 0]: the pads count only when asked for
        ([1, 2, 3, 4, 5], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, [1.5, 3, 4.5]),
        ([1, 2, 3, 4, 5], {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "count_include_pad": 1}, [1, 3, 3]),
        # [0 1 2] [2 3 4] [4 0 .]: the pad counts, what ceil_mode adds past it does not
        (
            [1, 2, 3, 4],
            {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1, "count_include_pad": 1},
            [1, 3, 2],
        ),
        # [1 2] 3 [0 .]: the second window would start in the right pad, so it is dropped
        ([1, 2, 3], {"kernel_shape": [2], "strides": [3], "pads": [0, 1], "ceil_mode": 1}, [1.5]),
    ],
)
def test_average_pool_by_hand(numbers: list[float], attributes: dict[str, Any], expected: list[float]) -> None:
    """Pads and ceil_mode in one dimension."""
    x = np.array(numbers, np.float32).reshape(1, 1, -1)
    np.testing.assert_array_equal(evaluate("AveragePool", 19, [x], **attributes).ravel(), expected)


@pytest.mark.parametrize(("size", "below"), [(3, [6, 15, 14]), (2, [6, 14, 10])])
def test_lrn_by_hand(size: int, below: list[float]) -> None:
    """N = 1, C = 3, alpha = size: each channel over 1 + the squares nearby; an even size looks upwards."""
    x = np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    y = evaluate("LRN", 13, [x], size=size, alpha=float(size), beta=1.0, bias=1.0)
    np.testing.assert_allclose(y.ravel(), np.array([1, 2, 3]) / below, rtol=2 * U)


def test_softmax_changes_its_meaning_at_opset_13() -> None:
    """Before 13 everything from axis 1 on is one axis; from 13 on the last axis alone."""
    x = np.zeros((2, 3, 5), np.float32)
    np.testing.assert_allclose(evaluate("Softmax", 12, [x]), 1 / 15, rtol=U)
    np.testing.assert_allclose(evaluate("Softmax", 13, [x]), 1 / 5, rtol=U)


def test_floats_are_not_rounded_between_nodes() -> None:
    """(1e8 + 1) - 1e8 is 1 in float64; float32 would answer 0."""
    nodes = [node("Add", "big x", "sum"), node("Sub", "sum big", "y")]
    model = model_of(
        nodes, {"x": (1,)}, {"y": (1,)}, {"big": np.array([1e8], np.float32)}, opset=13, ir_version=onnx.IR_VERSION
    )
    answer = reference(model, np.ones(1, np.float32), every_tensor=True)
    assert list(answer) == ["x", "sum", "y"]
    assert all(array.dtype == np.float32 for array in answer.values())
    assert answer["y"] == 1


# --- ONNX's own node cases ---

CASES = list(node_cases(OPERATORS))
EVALUATED = [case for case in CASES if why_left_out(case, OPERATORS) is None]


def test_node_cases_left_out() -> None:
    """Every operator has cases that are evaluated, and the reasons for leaving some out are the known ones."""
    reasons = Counter(
        reason for case in CASES if (reason := why_left_out(case, OPERATORS)) and "expanded" not in reason
    )
    by_operator = Counter(case.model.graph.node[0].op_type for case in EVALUATED)
    print(f"{len(EVALUATED)} node cases evaluated: {dict(by_operator)}\nleft out: {dict(reasons)}")
    assert set(by_operator) == set(OPERATORS) - {"GlobalLpPool", "MaxRoiPool"}  # ONNX has no case of these
    assert len(EVALUATED) >= 1000
    assert sum(reasons.values()) <= 200


@pytest.mark.parametrize("case", EVALUATED, ids=lambda case: case.name.removeprefix("test_"))
def test_node_case(case: Any) -> None:
    """Every operator of `reference_ops`."""
    assert_case(case)


# --- onnxruntime, on awkward sizes ---

SPATIAL = {1: (13,), 2: (11, 8), 3: (7, 9, 6)}  # with N = 2, C = 3 or 12 and M = 4 or 24 no two sizes of a tensor agree


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_conv_agrees_with_onnxruntime(rank: int, seed: int) -> None:
    """Kernels, strides, dilations, groups, lopsided pads and auto_pad."""
    rng = np.random.default_rng(100 * rank + seed)
    group = [1, 3, 12][seed % 3]
    channels, made = (3, 4) if group == 1 else (12, 24)
    kernel, strides = [int(k) for k in rng.permutation([2, 3, 1])[:rank]], rng.integers(1, 4, rank).tolist()
    attributes: dict[str, Any] = {"strides": strides, "group": group}
    auto_pad = ["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"][seed % 5]
    if auto_pad == "NOTSET":
        attributes["pads"] = rng.integers(0, 3, 2 * rank).tolist()
    else:
        attributes["auto_pad"] = auto_pad
    if "SAME" not in auto_pad:  # onnxruntime refuses SAME with dilations
        attributes["dilations"] = rng.integers(1, 3, rank).tolist()
    x = draw(rng, 2, channels, *SPATIAL[rank])
    w = draw(rng, made, channels // group, *kernel)
    terms = channels // group * int(np.prod(kernel)) + 1
    assert_sum_agrees("Conv", 11, [x, w, draw(rng, made) if seed % 2 else None], terms, **attributes)


def pool_attributes(rng: np.random.Generator, rank: int, seed: int, dilated: bool) -> dict[str, Any]:
    """Windows of every kind on which onnxruntime follows the operator page.

    It does not with the deprecated auto_pad: with SAME_* it leaves dilations out of the output size and cannot have
    a stride beyond the kernel (here: as TensorFlow, no pads), and VALID with ceil_mode gives it one window more.
    """
    kernel = rng.integers(1, 4, rank)
    attributes: dict[str, Any] = {"kernel_shape": kernel.tolist()}
    auto_pad = ["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"][seed % 6]
    strides = rng.integers(1, 4, rank)
    attributes["strides"] = (np.minimum(strides, kernel) if "SAME" in auto_pad else strides).tolist()
    if auto_pad == "NOTSET":
        attributes["pads"] = rng.integers(0, np.concatenate([kernel, kernel])).tolist()
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    else:
        attributes["auto_pad"] = auto_pad
    if dilated and "SAME" not in auto_pad:
        attributes["dilations"] = rng.integers(1, 3, rank).tolist()
    return attributes


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", range(24))
def test_max_pool_agrees_with_onnxruntime(rank: int, seed: int) -> None:
    """A maximum rounds nothing: equal to the last bit."""
    rng = np.random.default_rng(1000 * rank + seed)
    attributes = pool_attributes(rng, rank, seed, dilated=True)
    np.testing.assert_array_equal(*both("MaxPool", 12, [draw(rng, 2, 3, *SPATIAL[rank])], **attributes))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", range(24))
def test_average_pool_agrees_with_onnxruntime(rank: int, seed: int) -> None:
    """With and without the pads in the count, before and after dilations came."""
    rng = np.random.default_rng(2000 * rank + seed)
    opset = [11, 19][seed % 2]
    attributes = pool_attributes(rng, rank, seed, dilated=opset == 19)
    attributes["count_include_pad"] = seed // 2 % 2
    terms = int(np.prod(attributes["kernel_shape"]))
    assert_sum_agrees("AveragePool", opset, [draw(rng, 2, 3, *SPATIAL[rank])], terms, **attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools_agree_with_onnxruntime(rank: int) -> None:
    """Over one, two and three spatial axes."""
    x = draw(np.random.default_rng(rank), 2, 3, *SPATIAL[rank])
    np.testing.assert_array_equal(*both("GlobalMaxPool", 11, [x]))
    assert_sum_agrees("GlobalAveragePool", 11, [x], int(np.prod(x.shape[2:])))
    theirs, ours = both("GlobalLpPool", 11, [x], p=3)
    np.testing.assert_allclose(ours, theirs, rtol=(np.prod(x.shape[2:]) + 64) * U)


@pytest.mark.parametrize("flip_a", [0, 1])
@pytest.mark.parametrize("flip_b", [0, 1])
@pytest.mark.parametrize("c_shape", [None, (), (9,), (1, 9), (5, 1), (5, 9)])
def test_gemm_agrees_with_onnxruntime(flip_a: int, flip_b: int, c_shape: tuple[int, ...] | None) -> None:
    """Both transpositions, alpha, beta and every shape of C; M = 5, K = 33, N = 9."""
    rng = np.random.default_rng(7)
    a, b = draw(rng, *((33, 5) if flip_a else (5, 33))), draw(rng, *((9, 33) if flip_b else (33, 9)))
    c = None if c_shape is None else draw(rng, *c_shape)
    assert_sum_agrees("Gemm", 11, [a, b, c], 33 + 1, transA=flip_a, transB=flip_b, alpha=1.7, beta=-0.6)


@pytest.mark.parametrize(("a", "b"), [((5, 33), (33, 9)), ((2, 1, 5, 7), (3, 7, 4)), ((7,), (3, 7, 4)), ((5, 7), (7,))])
def test_matmul_agrees_with_onnxruntime(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Matrices, stacks of them and vectors."""
    rng = np.random.default_rng(8)
    assert_sum_agrees("MatMul", 13, [draw(rng, *a), draw(rng, *b)], a[-1])


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_batch_normalization_agrees_with_onnxruntime(rank: int, opset: int) -> None:
    """Ten roundings at most on the way of each of the three parts x * s, mean * s and b; s = scale / sqrt(...)."""
    rng = np.random.default_rng(9)
    x, scale, b, mean = draw(rng, 2, 3, *SPATIAL.get(rank, ())), draw(rng, 3), draw(rng, 3), draw(rng, 3)
    var = np.abs(draw(rng, 3))
    theirs, ours = both("BatchNormalization", opset, [x, scale, b, mean, var], epsilon=1e-3)
    row = (-1, *[1] * rank)
    s = (np.abs(scale) / np.sqrt(var.astype(np.float64) + 1e-3)).reshape(row)
    limit = 10 * U * ((np.abs(x) + np.abs(mean).reshape(row)) * s + np.abs(b).reshape(row))
    assert (np.abs(theirs.astype(np.float64) - ours) <= limit).all()


def test_batch_normalization_in_training_takes_its_own_statistics() -> None:
    """The statistics that it is given do not matter."""
    rng = np.random.default_rng(9)
    x, scale, b, other = draw(rng, 2, 3, 5, 4) + 2, draw(rng, 3), draw(rng, 3), draw(rng, 3)
    ours = evaluate("BatchNormalization", 15, [x, scale, b, other, other], training_mode=1, epsilon=0.5)
    flat = np.moveaxis(x.astype(np.float64), 1, 0).reshape(3, -1)
    normal = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 0.5)
    wanted = np.moveaxis((normal * scale[:, None] + b[:, None]).reshape(3, 2, 5, 4), 0, 1)
    np.testing.assert_allclose(ours, wanted, rtol=2**-23)  # the output is a float32


@pytest.mark.parametrize(("channels", "size"), [(3, 3), (7, 5), (7, 1), (5, 3)])
def test_lrn_agrees_with_onnxruntime(channels: int, size: int) -> None:
    """Over channels, with N = 2 != C.

    Onnxruntime slides its sum of squares: one square in, one out. So an outlier that has left stays as an error of up
    to u * its square an update, 2 C updates: relative to the base, which is at least the bias, and beta times that in
    the power. The rest is a few roundings; 20 are allowed.
    """
    x = draw(np.random.default_rng(size), 2, channels, 6, 4)
    alpha, beta, bias = 0.02, 0.7, 2.0
    theirs, ours = both("LRN", 13, [x], size=size, alpha=alpha, beta=beta, bias=bias)
    passing = (x.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
    relative = 20 * U + beta * alpha / size * 2 * channels * U * passing / bias
    assert (np.abs(theirs.astype(np.float64) - ours) <= relative * np.abs(ours)).all()
    plain = passing < 50  # where no outlier passes, the bound is tight
    assert plain.any() and (relative[plain] < 1e-5).all()


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (9, 2), (12, -1), (12, 0), (13, 1), (13, -1), (13, 0), (13, None)])
def test_softmax_agrees_with_onnxruntime(opset: int, axis: int | None) -> None:
    """Both meanings of axis. exp(x - max) is off by the rounding of x - max, so by up to 2 u |x| of itself."""
    x = draw(np.random.default_rng(11), 2, 3, 5, 4)
    theirs, ours = both("Softmax", opset, [x], **({} if axis is None else {"axis": axis}))
    limit = (2 * float(np.abs(x).max()) + x.size + 10) * U
    np.testing.assert_allclose(theirs, ours, rtol=2 * limit, atol=1e-37)


@pytest.mark.parametrize(
    ("op", "opset", "attributes", "roundings"),
    [
        ("Relu", 13, {}, 0),
        ("LeakyRelu", 16, {}, 2),
        ("LeakyRelu", 6, {"alpha": 0.3}, 2),
        ("Clip", 6, {"min": -0.5, "max": 2.0}, 0),
        ("Clip", 6, {"max": 2.0}, 0),
        ("Identity", 13, {}, 0),
        ("HardSigmoid", 6, {}, 16),
        ("HardSigmoid", 6, {"alpha": 0.3, "beta": 0.4}, 16),
        ("HardSwish", 14, {}, 16),
        ("Dropout", 7, {"ratio": 0.5}, 0),
        ("Dropout", 10, {"ratio": 0.5}, 0),
        ("Dropout", 13, {}, 0),
    ],
)
def test_elements_agree_with_onnxruntime(op: str, opset: int, attributes: dict[str, Any], roundings: int) -> None:
    """One input, with outliers. HardSigmoid and HardSwish cancel near their lower knee, so the bound has |x| + 1."""
    x = draw(np.random.default_rng(12), 2, 3, 7, 5)
    theirs, ours = both(op, opset, [x], **attributes)
    assert (np.abs(theirs.astype(np.float64) - ours) <= roundings * U * (np.abs(x) + 1)).all()


@pytest.mark.parametrize(("op", "limit"), [("Sigmoid", 64), ("Tanh", 64), ("Exp", 16), ("Sqrt", 2)])
def test_functions_agree_with_onnxruntime(op: str, limit: int) -> None:
    """On numbers of order one: onnxruntime uses polynomials good to some units in the last place."""
    x = np.random.default_rng(13).uniform(0.1, 4, (3, 7, 5)).astype(np.float32)
    theirs, ours = both(op, 13, [x])
    np.testing.assert_allclose(theirs, ours, rtol=limit * U)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(("a", "b"), [((2, 3, 5, 4), (3, 1, 4)), ((5, 1), (2, 3, 1, 4)), ((3,), ())])
def test_arithmetic_agrees_with_onnxruntime(op: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Broadcast both ways; one rounding in each."""
    rng = np.random.default_rng(14)
    theirs, ours = both(op, 13, [draw(rng, *a), draw(rng, *b)])
    np.testing.assert_allclose(theirs, ours, rtol=2 * U)


@pytest.mark.parametrize(("op", "expected"), [("Add", 3.0), ("Sub", -1.0), ("Mul", 2.0), ("Div", 0.5)])
def test_arithmetic_of_opset_6_lines_up_by_axis(op: str, expected: float) -> None:
    """B (3) with axis 1 goes with the channels, which NumPy would refuse; B (4) without axis with the last axis."""
    a, b = np.ones((2, 3, 4), np.float32), np.array([0, 2, 0], np.float32)
    y = evaluate(op, 6, [a, b], broadcast=1, axis=1)
    assert (y[:, 1] == expected).all() and (y[:, [0, 2]] != expected).all()
    y = evaluate(op, 6, [a, np.array([0, 0, 2, 0], np.float32)], broadcast=1)
    assert (y[..., 2] == expected).all() and (y[..., [0, 1, 3]] != expected).all()
    with pytest.raises(ModelError, match="without broadcast"):
        evaluate(op, 6, [a, b])


X = draw(np.random.default_rng(15), 2, 3, 5, 4)


def ints(*numbers: int) -> Array:
    """An int64 input."""
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("op", "opset", "more", "attributes"),
    [
        ("Concat", 13, [X[:, :2]], {"axis": 1}),
        ("Concat", 4, [X[..., :1], X[..., 1:]], {"axis": 3}),
        ("Concat", 13, [X, X[:, :, :1]], {"axis": -2}),
        ("Pad", 2, [], {"pads": [0, 1, 2, 0, 1, 0, 0, 3], "value": 2.5}),
        ("Pad", 2, [], {"pads": [0, 0, 2, 1, 0, 0, 3, 2], "mode": "reflect"}),
        ("Pad", 2, [], {"pads": [0, 0, -1, 2, 0, 0, 1, -1], "mode": "edge"}),
        ("Pad", 13, [ints(0, 1, 2, 0, 1, 0, -2, 3), np.array(-7, np.float32)], {}),
        ("Pad", 13, [ints(0, 0, 1, 2, 0, 0, 4, 0)], {"mode": "reflect"}),
        ("Pad", 18, [ints(1, 2, 3, 0), None, ints(-1, 1)], {"mode": "edge"}),
        ("Pad", 19, [ints(0, 0, 1, 2, 0, 0, 3, 4)], {"mode": "wrap"}),
        ("Reshape", 13, [ints(0, -1, 2)], {}),
        ("Reshape", 13, [ints(4, 0, 10)], {}),
        ("Reshape", 5, [ints(-1)], {}),
        ("Transpose", 13, [], {"perm": [2, 0, 3, 1]}),
        ("Transpose", 13, [], {}),
        ("Flatten", 9, [], {"axis": 0}),
        ("Flatten", 9, [], {"axis": 2}),
        ("Flatten", 11, [], {"axis": -1}),
        ("Squeeze", 11, [], {}),
        ("Unsqueeze", 11, [], {"axes": [0, 3]}),
        ("Unsqueeze", 13, [ints(-1, 2)], {}),
        ("Slice", 9, [], {"starts": [1, -3], "ends": [99, -1], "axes": [1, 2]}),
        ("Slice", 13, [ints(4, 0), ints(-99, 3), ints(2, -1), ints(-2, 2)], {}),
        ("Gather", 13, [np.array([[2, 0], [1, -1]], np.int64)], {"axis": 1}),
        ("Shape", 15, [], {"start": 1, "end": -1}),
        ("Cast", 13, [], {"to": TensorProto.INT32}),
        ("Cast", 13, [], {"to": TensorProto.FLOAT16}),
        ("Clip", 13, [np.array(-0.5, np.float32), None], {}),
        ("Clip", 13, [None, np.array(0.5, np.float32)], {}),
        ("Upsample", 7, [], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
        ("Resize", 13, [None, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}),
        (
            "Resize",
            11,
            [np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32)],
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_moves_agree_with_onnxruntime(op: str, opset: int, more: list[Any], attributes: dict[str, Any]) -> None:
    """What only moves numbers, or rounds them once, is equal to the last bit."""
    np.testing.assert_array_equal(*both(op, opset, [X, *more], **attributes))


ROW = X[0, 0, 0]  # (4,), which fits the last axis
GEMM = [X[0, 0], X[0, 0].T, ROW.repeat(2)[:5]]  # (5, 4) @ (4, 5) + (5,)
NORM = [X, *[abs(X[0, :, 0, 0])] * 4]
PADS = [0, 0, 1, 2, 0, 0, 3, 0]


@pytest.mark.parametrize(
    ("op", "old", "new"),
    [
        ("Cast", (5, [X], {"to": "INT32"}), (13, [X], {"to": TensorProto.INT32})),
        ("Cast", (1, [X], {"to": "DOUBLE"}), (13, [X], {"to": TensorProto.DOUBLE})),
        ("Concat", (1, [X, X[:, :1]], {}), (13, [X, X[:, :1]], {"axis": 1})),
        ("Reshape", (1, [X], {"shape": [0, -1]}), (13, [X, ints(0, -1)], {})),
        ("Pad", (1, [X], {"paddings": PADS, "value": 7.0}), (2, [X], {"pads": PADS, "value": 7.0})),
        ("Gemm", (6, GEMM, {"broadcast": 1}), (7, GEMM, {})),
        ("Pow", (1, [abs(X), ROW], {"broadcast": 1}), (13, [abs(X), ROW], {})),
        ("Dropout", (6, [X], {"is_test": 1}), (13, [X], {})),
        ("Upsample", (1, [X], {"height_scale": 2.0, "width_scale": 3.0}), (7, [X], {"scales": [1.0, 1.0, 2.0, 3.0]})),
        ("Resize", (10, [X, np.array([1, 1, 2, 3], np.float32)], {}), (7, [X], {"scales": [1.0, 1.0, 2.0, 3.0]})),
        ("BatchNormalization", (6, NORM, {"is_test": 1}), (15, NORM, {})),
        ("Clip", (1, [X], {"min": -1.0}), (6, [X], {"min": -1.0})),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_old_form_means_the_same_as_the_new(op: str, old: Any, new: Any) -> None:
    """Opsets that onnxruntime no longer takes, against a newer form of the same operator."""
    ours = evaluate(op, old[0], old[1], **old[2])
    newer = evaluate("Upsample" if op == "Resize" else op, new[0], new[1], **new[2])
    assert ours.dtype == newer.dtype
    np.testing.assert_array_equal(ours, newer)


@pytest.mark.parametrize("transform", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("scales", [(2, 3), (1.5, 0.5), (0.4, 1)])
def test_linear_resize_agrees_with_onnxruntime(transform: str, scales: tuple[float, float]) -> None:
    """Places are computed in float32 there: off by some u of their size (up to 12), times the step to the neighbour."""
    theirs, ours = both(
        "Resize",
        13,
        [X, None, np.array([1, 1, *scales], np.float32)],
        mode="linear",
        coordinate_transformation_mode=transform,
    )
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=12 * 8 * U * float(np.abs(X).max()))


# --- trained models ---

DATA = os.environ.get("TVMCNN_TEST_DATA", "")
real_model = pytest.mark.skipif(not DATA, reason="set TVMCNN_TEST_DATA to a folder with models/")


def model_path(name: str) -> str:
    """The ONNX file of a trained model."""
    return str(Path(DATA) / "models" / name / "model.onnx")


def read_tensor(path: Path) -> Array:
    """A tensor of the ONNX model zoo's test data."""
    return onnx.numpy_helper.to_array(onnx.load_tensor(str(path)))


@real_model
@pytest.mark.parametrize(
    ("name", "number"), [("mnist-8", 0), ("mnist-8", 1), ("mnist-8", 2), ("super-resolution-10", 0)]
)
def test_published_pairs(name: str, number: int) -> None:
    """The model's own input and output, computed by others in float32: 1e-3 of the largest output."""
    folder = Path(model_path(name)).parent / f"test_data_set_{number}"
    answer = reference(model_path(name), read_tensor(folder / "input_0.pb"))
    (ours,), theirs = answer.values(), read_tensor(folder / "output_0.pb")
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


@real_model
@pytest.mark.parametrize("name", ["mnist-8", "lenet5-ccoltong", "squeezenet-fp32-cast", "yunet-n-320"])
def test_every_tensor_agrees_with_onnxruntime(name: str) -> None:
    """Each node's output on a random picture, within 2e-5 of its largest element, so that the first wrong node is told.

    A node's sums have K <= 4608 terms; their errors spread as sqrt(K) * u = 4e-6 and grow a little from layer to layer.
    """
    model = onnx.load(model_path(name))
    runs = session(model_path(name)).get_inputs()
    initialized = {tensor.name for tensor in model.graph.initializer}
    (given,) = [value for value in runs if value.name not in initialized]
    declared = {output.name for output in model.graph.output}
    names = [output for node in model.graph.node for output in node.output[:1]]
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in declared)
    x = np.random.default_rng(16).uniform(0, 255, given.shape).astype(np.float32)
    theirs = dict(zip(names, session(model).run(names, {given.name: x}), strict=True))
    ours = reference(model_path(name), {given.name: x}, every_tensor=True)
    assert len(theirs) > 10
    for tensor, wanted in theirs.items():
        assert ours[tensor].shape == wanted.shape and ours[tensor].dtype == wanted.dtype, tensor
        off = np.abs(ours[tensor].astype(np.float64) - wanted).max()
        assert off <= 2e-5 * np.abs(wanted).max(), f"{tensor}: {off:.3g} of {np.abs(wanted).max():.3g}"


@real_model
def test_a_fixed_batch_may_be_overridden() -> None:
    """lenet5-ccoltong declares a batch of 10 and flattens with -1; three pictures answer as they do among ten."""
    x = np.random.default_rng(17).standard_normal((10, 1, 28, 28)).astype(np.float32)
    (ten,), (three,) = (reference(model_path("lenet5-ccoltong"), part).values() for part in (x, x[:3]))
    np.testing.assert_allclose(ten[:3], three, rtol=2 * U)


# --- what cannot be evaluated ---


def test_all_unsupported_nodes_are_told_at_once() -> None:
    """Two unknown operators, one of another domain, an unknown attribute and an output that is not made."""
    nodes = [
        node("Bernoulli", "x", "a", name="first"),
        node("Relu", "a", "b", name="fine"),
        node("Relu", "b", "c", name="foreign", domain="com.example"),
        node("Relu", "c", "d", name="odd", slope=2.0),
        node("Relu", "d", "y places", name="two"),
        node("HardSwish", "y", "z"),
    ]
    graph = graph_of(nodes, {"x": (1, 1, 8)}, "places")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    with pytest.raises(UnsupportedError) as caught:
        reference(model, np.zeros((1, 1, 8), np.float32))
    assert len(caught.value.reasons) == 5
    for reason, words in zip(
        caught.value.reasons,
        [("first", "Bernoulli"), ("foreign", "com.example"), ("odd", "slope"), ("two", "places"), ("'z'", "opset 13")],
        strict=True,
    ):
        assert all(word in reason for word in words), reason


@pytest.mark.parametrize(
    ("op", "opset", "more", "attributes", "words"),
    [
        ("BatchNormalization", 6, [np.ones(3, np.float32)] * 4, {}, "is_test"),
        ("Dropout", 13, [None, np.array(True)], {}, "training_mode"),
        ("Cast", 19, [], {"to": TensorProto.FLOAT8E4M3FN}, "type 17"),
        ("Cast", 21, [], {"to": TensorProto.INT4}, "type 22"),
    ],
)
def test_what_is_left_out_is_refused(
    op: str, opset: int, more: list[Any], attributes: dict[str, Any], words: str
) -> None:
    """Training and the like, with the node's name."""
    x = np.ones((2, 3, 5, 4), np.float32)
    with pytest.raises(UnsupportedError, match=rf"the_node.*{op}.*{words}"):
        evaluate(op, opset, [x, *more], **attributes)


@pytest.mark.parametrize(
    ("op", "more", "attributes", "words"),
    [
        ("Conv", [np.ones((4, 2, 1, 1), np.float32)], {}, "do not fit"),
        ("Conv", [np.ones((4, 3, 9, 9), np.float32)], {}, "window of 9"),
        ("Conv", [np.ones((4, 3, 2, 2), np.float32)], {"strides": [1]}, "not 2-D"),
        ("Conv", [], {}, "'w'"),
        ("MaxPool", [], {}, "kernel_shape"),
        ("Relu", [np.ones(1, np.float32)], {}, "too many"),
        ("Reshape", [ints(7, -1)], {}, "reshape"),
    ],
)
def test_a_node_that_contradicts_itself(op: str, more: list[Any], attributes: dict[str, Any], words: str) -> None:
    """A missing input or attribute, or shapes that do not fit, is the model's mistake and names the node."""
    with pytest.raises(ModelError, match=rf"the_node.*{words}"):
        evaluate(op, 13, [np.ones((2, 3, 5, 4), np.float32), *more], **attributes)


def test_wrong_inputs_are_told_with_what_is_expected() -> None:
    """Names, a lone array for two inputs, the number of axes and the type."""
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    model, _ = one_node("MatMul", 13, [a, b])
    with pytest.raises(InputError, match=r"\['x0', 'input'\].*\['x0', 'x1'\]"):
        reference(model, {"x0": a, "input": b})
    with pytest.raises(InputError, match=r"\['x0'\].*\['x0', 'x1'\]"):
        reference(model, {"x0": a})
    with pytest.raises(InputError, match=r"\['x0', 'x1'\].*one array"):
        reference(model, a)
    with pytest.raises(InputError, match=r"'x1'.*\(4,\).*\[3, 4\]"):
        reference(model, {"x0": a, "x1": b[0]})
    with pytest.raises(InputError, match=r"'x1'.*int64.*float32"):
        reference(model, {"x0": a, "x1": b.astype(np.int64)})
    assert reference(model, {"x0": np.ones((5, 3)), "x1": b})["y0"].shape == (5, 4)


def test_an_initializer_is_not_an_input(tmp_path: Path) -> None:
    """It may stand among the graph's inputs, as in old files; from a file, bytes and a ModelProto alike."""
    model, feeds = one_node("Mul", 7, [np.full((2, 3), 5, np.float32), np.full(3, 2, np.float32)])
    model.graph.initializer.append(onnx.numpy_helper.from_array(feeds["x1"], "x1"))
    onnx.save(model, tmp_path / "model.onnx")
    for source in (model, model.SerializeToString(), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        assert (reference(source, feeds["x0"])["y0"] == 10).all()
    assert list(reference(model, feeds["x0"], every_tensor=True)) == ["x0", "y0"]
    assert (reference(model, {"x0": feeds["x0"], "x1": np.full(3, 4, np.float32)})["y0"] == 20).all()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """Neither an absent file nor one that is not ONNX ends in a traceback of protobuf's."""
    (tmp_path / "bad.onnx").write_bytes(b"this is not a model")
    for name in ("bad.onnx", "absent.onnx"):
        with pytest.raises(ModelError, match=name):
            reference(tmp_path / name, np.zeros(1, np.float32))


def test_lookup_takes_the_newest_that_is_not_newer() -> None:
    """Softmax changed at 13; HardSwish came at 14."""
    assert lookup("Softmax", 12) is OPERATORS["Softmax"][1]
    assert lookup("Softmax", 13) is lookup("Softmax", 25) is OPERATORS["Softmax"][13]
    assert lookup("HardSwish", 13) is None
