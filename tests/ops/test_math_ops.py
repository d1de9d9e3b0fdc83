"""Element-wise operators, reductions and normalisations against NumPy's own functions in float64, every dtype, at the
values where formulas break: zeros of both signs, infinities, NaN, the least integer, a divisor of 0.

Each case is one node through tvmcnn.backend; ONNX's own cases are in test_conformance.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph, draw
from helpers import feeds
from onnx import helper

import tvmcnn
from tvmcnn.backend import run_node
from tvmcnn.fuse import ELEMENTWISE
from tvmcnn.ops import formulas

Array = np.ndarray[Any, Any]
U = 2.0**-24
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 1e-30, -1e-30, 30.0, -30.0, 88.0, -103.0, np.inf, -np.inf, np.nan]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def node(op: str, *arrays: Array, outputs: int = 1, dtype: Any = None, **attributes: Any) -> Any:
    """The node's outputs, of the dtype of the first operand unless given."""
    names = [f"x{i}" for i in range(len(arrays))]
    made = [f"y{i}" for i in range(outputs)]
    infos = [(dtype or arrays[0].dtype, None)] * outputs
    found = run_node(helper.make_node(op, names, made, **attributes), list(arrays), outputs_info=infos)
    return found[0] if outputs == 1 else found


def values(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Normal numbers with outliers of ±30, the special ones first; integers over their whole range, its ends first."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith("float"):
        x = np.where(rng.random(shape) < 1 / 16, 30, 1) * rng.standard_normal(shape)
        x.reshape(-1)[: len(SPECIAL)] = SPECIAL[: x.size]
        return x.astype(dtype)
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    x.reshape(-1)[:4] = [info.min, info.max, 0, 1]
    return x


def close(found: Array, wanted: Array, ulps: float = 16, floor: float = 1e-37) -> None:
    """Within `ulps` units of float32's rounding of each element, or of `floor`; NaN and infinities in their places."""
    assert found.shape == wanted.shape
    with np.errstate(over="ignore"):  # overflow is an infinity
        found, wanted = found.astype(np.float64), wanted.astype(np.float32).astype(np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    excess = np.abs(found[finite] - wanted[finite]) - ulps * U * np.maximum(np.abs(wanted[finite]), floor)
    assert excess.max(initial=-1) <= 0, f"{found[finite][excess.argmax()]} is not {wanted[finite][excess.argmax()]}"


# ---- floats ---------------------------------------------------------------------------------------------------------

erf = np.vectorize(math.erf)


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def elu(x: Array, alpha: float) -> Array:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


# Operator, attributes, the function in float64, and where 1 + x cancels, the size that counts
ACTIVATIONS: list[tuple[str, dict[str, Any], Callable[[Array], Array], float]] = [
    ("Relu", {}, lambda x: np.maximum(x, 0), 0),
    ("LeakyRelu", {"alpha": 0.25}, lambda x: np.where(x >= 0, x, 0.25 * x), 0),
    ("ThresholdedRelu", {"alpha": 0.75}, lambda x: np.where(x > 0.75, x, 0), 0),
    ("Shrink", {"lambd": 0.75, "bias": 0.25}, lambda x: np.sign(x) * (np.abs(x) > 0.75) * (np.abs(x) - 0.25), 0),
    ("Elu", {"alpha": 1.5}, lambda x: elu(x, 1.5), 1),
    ("Celu", {"alpha": 0.5}, lambda x: np.maximum(x, 0) + np.minimum(0, 0.5 * np.expm1(x / 0.5)), 1),
    ("Selu", {"alpha": 1.5, "gamma": 1.25}, lambda x: 1.25 * elu(x, 1.5), 1),
    ("Sigmoid", {}, lambda x: 1 / (1 + np.exp(-x)), 1e-30),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.375}, lambda x: np.clip(0.25 * x + 0.375, 0, 1), 1),
    ("HardSwish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 30),
    ("Softplus", {}, softplus, 1e-30),
    ("Softsign", {}, lambda x: x / (1 + np.abs(x)), 0),
    ("Mish", {}, lambda x: x * np.tanh(softplus(x)), 1e-30),
    ("Gelu", {}, lambda x: x / 2 * (1 + erf(x / math.sqrt(2))), 30),
    ("Gelu", {"approximate": "tanh"}, lambda x: x / 2 * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))), 30),
    ("Erf", {}, erf, 1),
    ("Tanh", {}, np.tanh, 1),
    ("Exp", {}, np.exp, 1e-37),
    ("Log", {}, np.log, 0.01),
    ("Sqrt", {}, np.sqrt, 0),
    ("Reciprocal", {}, lambda x: 1 / x, 0),
    ("Abs", {}, np.abs, 0),
    ("Neg", {}, np.negative, 0),
    ("Sign", {}, np.sign, 0),
    ("Floor", {}, np.floor, 0),
    ("Ceil", {}, np.ceil, 0),
    ("Round", {}, np.rint, 0),
    ("Sin", {}, np.sin, 1),
    ("Cos", {}, np.cos, 1),
    ("Tan", {}, np.tan, 1),
    ("Asin", {}, np.arcsin, 1e-3),
    ("Acos", {}, np.arccos, 1e-3),
    ("Atan", {}, np.arctan, 1e-3),
    ("Sinh", {}, np.sinh, 1e-3),
    ("Cosh", {}, np.cosh, 1e-3),
    ("Asinh", {}, np.arcsinh, 1),
    ("Acosh", {}, np.arccosh, 1),
    ("Atanh", {}, np.arctanh, 1e-37),
]
IDS = [f"{op}{'-'.join(map(str, attributes.values()))}" for op, attributes, _, _ in ACTIVATIONS]


@pytest.mark.parametrize(("op", "attributes", "function", "floor"), ACTIVATIONS, ids=IDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_activation(op: str, attributes: dict[str, Any], function: Callable[[Array], Array], floor: float) -> None:
    x = values(3, 5, 17)
    if op in ("HardSwish", "Mish", "Gelu"):
        x[np.isneginf(x)] = -30  # −∞ · 0
    if op in ("Shrink", "ThresholdedRelu"):
        x[np.isnan(x)] = 3  # NaN > alpha is false
    found = node(op, x, **attributes)
    close(found, function(x.astype(np.float64)), 16, max(floor, 1e-37))
    if op == "Neg":
        assert np.array_equal(np.signbit(found), np.signbit(-x))


@pytest.mark.parametrize(("op", "attributes", "function", "floor"), ACTIVATIONS[:15], ids=IDS[:15])
def test_epilogue(
    op: str, attributes: dict[str, Any], function: Callable[[Array], Array], floor: float, tmp_path: Path
) -> None:
    """A convolution to 17 maps, where 15 lanes of the second block are padding, and a reader of the blocks."""
    g = Graph(opset=20)
    x = g.conv(g.input(2, 3, 5, 7), 17, (3, 2))
    g.output(g.conv(g.node(op, x, **attributes), 4, (1, 1), bias=False))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so")
    assert compiled.program.steps[0].choice.kernel.ops == f"Conv+{op}"
    assert compiled.verdict is not None and compiled.verdict.passed


def test_every_formula_is_fused_and_meant() -> None:
    assert set(formulas.FORMULAS) == ELEMENTWISE
    assert set(formulas.FORMULAS) <= set(tvmcnn.importer.operators.OPERATORS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_floats(dtype: str) -> None:
    a, b = values(2, 1, 17, dtype=dtype), values(5, 1, dtype=dtype, seed=1)[:, :1] * 3
    with np.errstate(all="ignore"):
        for op, function in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide)):
            np.testing.assert_array_equal(node(op, a, b), function(a, b), err_msg=op)
        for op, variadic in (("Max", np.maximum), ("Min", np.minimum)):  # NaN on any side wins
            np.testing.assert_array_equal(node(op, a, b, a[:1]), variadic(variadic(a, b), a[:1]), err_msg=op)
        np.testing.assert_array_equal(node("Sum", a, b, a), a + b + a)
        np.testing.assert_array_equal(node("Mean", a, b), (a + b) / 2)
        np.testing.assert_array_equal(node("Mod", a, b, fmod=1), np.fmod(a, b))
        close(node("Pow", np.abs(a), b / 9), np.power(np.abs(a.astype(np.float64)), b / 9), 64)
        comparisons = (("Less", np.less), ("LessOrEqual", np.less_equal), ("Greater", np.greater))
        for op, compared in (*comparisons, ("GreaterOrEqual", np.greater_equal), ("Equal", np.equal)):
            np.testing.assert_array_equal(node(op, a, a[::-1], dtype=bool), compared(a, a[::-1]), err_msg=op)


@pytest.mark.parametrize("exponent", [0.0, -0.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, -2.0])
def test_known_powers(exponent: float, tmp_path: Path) -> None:
    """Exponents for which there are products and roots, and their neighbours: x^0 is 1, of NaN too."""
    g = Graph()
    g.output(g.node("Pow", g.input(3, 17), g.constant(np.float32(exponent))))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so", verify=False)
    x = np.abs(values(3, 17)) + np.float32(0.25)
    x[1, 2] = np.nan
    found = tvmcnn.load(compiled.path)(x)
    close(found, np.power(x.astype(np.float64), exponent), 16)


def test_prelu_and_clip() -> None:
    x = values(2, 3, 17)
    slope = np.array([[0.5], [-2], [3]], np.float32)
    np.testing.assert_array_equal(node("PRelu", x, slope), np.where(x >= 0, x, slope * x))
    low, high = np.float32(-0.75), np.float32(1.5)
    np.testing.assert_array_equal(node("Clip", x, np.asarray(low), np.asarray(high)), np.clip(x, low, high))
    i = values(2, 3, 17, dtype="int8")
    np.testing.assert_array_equal(node("Clip", i, np.int8(-7), np.int8(90)), np.clip(i, -7, 90))


def test_clip_by_what_is_no_number(tmp_path: Path) -> None:
    """A bound that is NaN bounds nothing, whether it is a constant or arrives; an infinite one may cut everything."""
    bounds = [(low, high) for low in (np.nan, -np.inf, np.inf, -0.75) for high in (np.nan, np.inf, -np.inf, 1.5)]
    g = Graph()
    x, late = g.input(2, 3, 17), g.input()
    for low, high in bounds:
        g.output(g.node("Clip", x, g.constant(np.float32(low)), g.constant(np.float32(high))))
    g.output(g.node("Clip", x, late, g.constant(np.float32(1.5))), g.node("Clip", x, "", late))
    tvmcnn.compile(g.model(), output=tmp_path / "x.so")
    given = values(2, 3, 17)
    found = tvmcnn.load(tmp_path / "x.so").run(None, {x: given, late: np.array(np.nan, np.float32)})
    for y, (low, high) in zip(found, [*bounds, (np.nan, 1.5), (np.nan, np.nan)], strict=True):
        raised = np.where(given < low, np.float32(low), given)
        np.testing.assert_array_equal(y, np.where(raised > high, np.float32(high), raised), err_msg=f"{low} {high}")


def test_classification_of_floats() -> None:
    x = values(3, 17)
    np.testing.assert_array_equal(node("IsNaN", x, dtype=bool), np.isnan(x))
    np.testing.assert_array_equal(node("IsInf", x, dtype=bool), np.isinf(x))
    np.testing.assert_array_equal(node("IsInf", x, dtype=bool, detect_positive=0), np.isneginf(x))


# ---- integers and bools ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(dtype: str) -> None:
    """Sums wrap around; a division by 0 is 0, and that of the least integer by −1 the least integer, as in NumPy."""
    a, b = values(4, 9, dtype=dtype), values(4, 9, dtype=dtype, seed=1)
    b[0, :3] = [a.dtype.type(-1 % 2**8) if dtype.startswith("u") else -1, 0, 3]
    b[1] = np.arange(1, 10)
    exact = {
        op: function(a.astype(object), b.astype(object)) for op, function in (("Add", np.add), ("Mul", np.multiply))
    }
    bits = 8 * a.dtype.itemsize
    for op, wanted in exact.items():
        wrapped = np.vectorize(lambda v: int(v) % 2**bits, otypes=[object])(wanted)
        found = node(op, a, b)
        np.testing.assert_array_equal(found.astype(object) % 2**bits, wrapped, err_msg=op)
    safe = np.where(b == 0, 1, b).astype(object)
    cut = np.vectorize(lambda p, q: abs(int(p)) // abs(int(q)) * (1 if (p < 0) == (q < 0) else -1), otypes=[object])
    quotient = np.where(b == 0, 0, cut(a.astype(object), safe))
    np.testing.assert_array_equal(node("Div", a, b).astype(object) % 2**bits, quotient % 2**bits)
    rest = np.where(b == 0, 0, a.astype(object) - cut(a.astype(object), safe) * safe)
    np.testing.assert_array_equal(node("Mod", a, b, fmod=1).astype(object), rest)
    np.testing.assert_array_equal(node("Mod", a, b).astype(object), np.where(b == 0, 0, a.astype(object) % safe))
    for op, function in (("Min", np.minimum), ("Max", np.maximum)):
        np.testing.assert_array_equal(node(op, a, b), function(a, b))
    np.testing.assert_array_equal(node("Less", a, b, dtype=bool), a < b)
    np.testing.assert_array_equal(node("BitwiseXor", a, b), a ^ b)
    np.testing.assert_array_equal(node("Abs", a), np.abs(a))
    np.testing.assert_array_equal(node("Sign", a), np.sign(a))
    if dtype.startswith("u"):
        amount = (b % (bits + 3)).astype(dtype)
        wanted = np.where(amount >= bits, 0, a >> np.minimum(amount, bits - 1).astype(dtype))
        np.testing.assert_array_equal(node("BitShift", a, amount, direction="RIGHT"), wanted)


def test_bools() -> None:
    a, b = values(5, 17, dtype="bool"), values(17, dtype="bool", seed=1)
    for op, function in (("And", np.logical_and), ("Or", np.logical_or), ("Xor", np.logical_xor), ("Equal", np.equal)):
        np.testing.assert_array_equal(node(op, a, b), function(a, b), err_msg=op)
    np.testing.assert_array_equal(node("Not", a), ~a)
    np.testing.assert_array_equal(node("ReduceMax", a, np.array([1]), dtype=bool, keepdims=0), a.any(axis=1))
    x, y = values(5, 1), values(1, 17, seed=2)
    np.testing.assert_array_equal(node("Where", a, x, y, dtype=x.dtype), np.where(a, x, y))


@pytest.mark.parametrize("source", ["float32", "float64", "int8", "int64", "uint8", "uint64", "bool"])
def test_cast(source: str) -> None:
    x = values(3, 17, dtype=source)
    if source.startswith("float"):
        x = np.clip(np.nan_to_num(x), -100, 100)
    for target in ("float32", "float64", "int16", "int64", "uint8", "bool"):
        if target.startswith("u") and source.startswith("float"):
            x = np.abs(x)  # C leaves negative floats to unsigned integers undefined
        wanted = x.astype(target)
        code = helper.np_dtype_to_tensor_dtype(np.dtype(target))
        np.testing.assert_array_equal(node("Cast", x, dtype=target, to=code), wanted, err_msg=target)


# ---- reductions -----------------------------------------------------------------------------------------------------

REDUCTIONS: dict[str, Callable[..., Array]] = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceProd": np.prod,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceSumSquare": lambda x, **k: np.sum(x**2, **k),
    "ReduceL1": lambda x, **k: np.sum(np.abs(x), **k),
    "ReduceL2": lambda x, **k: np.sqrt(np.sum(x**2, **k)),
    "ReduceLogSum": lambda x, **k: np.log(np.sum(x, **k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.sum(np.exp(x), **k)),
}


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction(op: str) -> None:
    """Along the last axis, the first, both, none of the two ends and all of them; axes in any order."""
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((3, 5, 2, 17)) + (3 if op == "ReduceLogSum" else 0)).astype(np.float32)
    x[0, 0, 0, 0] = 30
    all_axes = ((3,), (0,), (0, -1), (1, 2), (3, 1), (-1, -2), (0, 1, 2, 3))
    for axes, keepdims in zip(all_axes, (1, 0, 1, 0, 1, 0, 0), strict=True):
        wanted = REDUCTIONS[op](x.astype(np.float64), axis=axes, keepdims=bool(keepdims))
        terms = math.prod(x.shape[axis] for axis in axes)
        size = float(np.sum(np.abs(x))) if op in ("ReduceSum", "ReduceMean", "ReduceLogSum") else 1.0
        found = node(op, x, np.array(axes), keepdims=keepdims)
        close(found, np.asarray(wanted), terms + 16, size / terms)


def test_reductions_of_integers_and_of_nothing() -> None:
    x = np.random.default_rng(4).integers(-9, 9, (4, 7), np.int64)
    for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1"):
        np.testing.assert_array_equal(node(op, x, np.array([1]), keepdims=0), REDUCTIONS[op](x, axis=1), err_msg=op)
    np.testing.assert_array_equal(node("ReduceMean", x, np.array([1]), keepdims=0), np.trunc(x.mean(axis=1)))
    empty = np.zeros((2, 0, 3), np.float32)
    for op, wanted in (("ReduceSum", 0), ("ReduceMax", -np.inf), ("ReduceMin", np.inf), ("ReduceProd", 1)):
        np.testing.assert_array_equal(node(op, empty, np.array([1]), keepdims=0), np.full((2, 3), wanted), err_msg=op)
    same = values(2, 9)
    np.testing.assert_array_equal(node("ReduceMax", same, noop_with_empty_axes=1), same)


@pytest.mark.parametrize("columns", [5, 21])
def test_infinities_alone_are_no_neutral_element(columns: int) -> None:
    """One element after the other, and in lanes."""
    x = np.full((3, columns), -np.inf, np.float32)
    x[1] = np.inf
    x[2, 3] = 2
    axes = np.array([1])
    np.testing.assert_array_equal(node("ReduceMax", x, axes, keepdims=0), x.max(axis=1))
    np.testing.assert_array_equal(node("ReduceMin", -x, axes, keepdims=0), (-x).min(axis=1))
    np.testing.assert_array_equal(node("ReduceLogSumExp", x, axes, keepdims=0), [-np.inf, np.inf, 2])


@pytest.mark.parametrize("columns", [16, 31, 32, 1003])
def test_rows_in_lanes(columns: int) -> None:
    """Whole vectors, one, and one that has elements of the last."""
    x = drawn(3, 5, columns)
    for op in ("ReduceSum", "ReduceProd", "ReduceMin"):
        wanted = REDUCTIONS[op](x.astype(np.float64), axis=2)
        close(node(op, x, np.array([2]), keepdims=0), wanted, columns + 16, float(np.sum(np.abs(x[0, 0]))) / columns)
    close(node("Softmax", x, axis=2), _softmax(x, 2), columns / 4 + 32)
    across = x.transpose(0, 2, 1).copy()  # vectors of rows where there are whole ones
    close(node("Softmax", x[:, :3], axis=1), _softmax(x[:, :3], 1), 64)
    close(node("Softmax", across, axis=1), _softmax(across, 1), columns / 4 + 32)


def _softmax(x: Array, axis: int) -> Array:
    exact = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return exact / exact.sum(axis, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint64"])
@pytest.mark.parametrize("last", [0, 1])
def test_arg(dtype: str, last: int) -> None:
    """The first of equal elements, or the last; along the last axis and along another."""
    x = np.random.default_rng(5).integers(0, 4, (3, 6, 17)).astype(dtype)
    for op, function in (("ArgMax", np.argmax), ("ArgMin", np.argmin)):
        for axis in (1, -1):
            mirrored = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
            wanted = np.expand_dims(mirrored if last else function(x, axis=axis), axis)
            found = node(op, x, axis=axis, select_last_index=last, dtype=np.int64)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{op} {axis}")


# ---- normalisations -------------------------------------------------------------------------------------------------


def normal(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Mean 0 and variance 1 along the axes, in float64."""
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def drawn(*shape: int, seed: int = 6) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) + 2
    x.reshape(-1)[-1] = 30
    return x.astype(np.float32)


def test_instance_and_group_normalization() -> None:
    x, scale, bias = drawn(2, 6, 5, 17), drawn(6, seed=7), drawn(6, seed=8)
    parameters = (scale[:, None, None], bias[:, None, None])
    wanted = normal(x, (2, 3), 0.25) * parameters[0] + parameters[1]
    close(node("InstanceNormalization", x, scale, bias, epsilon=0.25), wanted, 128, 30)
    for groups in (1, 3, 6):
        grouped = normal(x.reshape(2, groups, -1), (2,), 1e-3).reshape(x.shape)
        found = node("GroupNormalization", x, scale, bias, num_groups=groups, epsilon=1e-3)
        close(found, grouped * parameters[0] + parameters[1], 128, 30)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_layer_normalization(axis: int) -> None:
    x = drawn(3, 5, 17)
    scale, bias = drawn(*x.shape[axis:], seed=7), drawn(17, seed=8)
    axes = tuple(range(axis % 3, 3))
    found, mean, inverse = node("LayerNormalization", x, scale, bias, outputs=3, axis=axis, epsilon=0.5)
    close(found, normal(x, axes, 0.5) * scale + bias, 256, 30)
    close(mean, x.astype(np.float64).mean(axes, keepdims=True), 64)
    close(inverse, 1 / np.sqrt(x.astype(np.float64).var(axes, keepdims=True) + 0.5), 64)


def test_layer_normalization_of_a_long_row() -> None:
    """On an offset that would cancel a mean of squares; no bias."""
    x = drawn(2, 3, 1003) + np.float32(300)
    scale = drawn(1003, seed=7)
    wanted = normal(x, (2,), 1e-5) * scale
    close(node("LayerNormalization", x, scale, axis=2), wanted, 4096, 30)


def test_batch_normalization_with_statistics_at_run_time() -> None:
    x, scale, bias, mean = drawn(2, 5, 3, 17), drawn(5, seed=7), drawn(5, seed=8), drawn(5, seed=9)
    var = np.abs(drawn(5, seed=10))
    s, b, m, v = (np.asarray(p, np.float64)[:, None, None] for p in (scale, bias, mean, var))
    found = node("BatchNormalization", x, scale, bias, mean, var, epsilon=0.125)
    close(found, (x - m) / np.sqrt(v + 0.125) * s + b, 64, 30)


@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (4, 0.5), (11, 0.6)])
def test_lrn(size: int, beta: float) -> None:
    """An even size reaches one channel further behind; a large one past both ends."""
    x = drawn(2, 7, 3, 5)
    squares = x.astype(np.float64) ** 2
    total = np.zeros_like(squares)
    for c in range(7):
        total[:, c] = squares[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1].sum(axis=1)
    found = node("LRN", x, size=size, alpha=0.5, beta=beta, bias=2.0)
    close(found, x / (2 + 0.5 / size * total) ** beta, 64)


@pytest.mark.parametrize("columns", [19, 40, 67, 96, 130])
def test_softmax_of_rows_side_by_side(columns: int, target: str, tmp_path: Path) -> None:
    """Rows that fill no vector, whole vectors, tiles of 65 of them, and 67 that nothing divides."""
    g = Graph()
    g.output(g.node("Softmax", g.input(2, 5, 7, columns), axis=2))
    tvmcnn.compile(g.model(), target, tmp_path / "x.so", verify=False)
    x = draw(3, 2, 5, 7, columns, outliers=0.1)
    found = tvmcnn.load(tmp_path / "x.so", target=target)(x)
    wide = np.exp(x.astype(np.float64) - x.max(axis=2, keepdims=True))
    np.testing.assert_allclose(found, wide / wide.sum(axis=2, keepdims=True), rtol=4e-6, atol=1e-30)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("columns", [17, 32])
def test_log_softmax(columns: int, axis: int) -> None:
    x = drawn(3, 5, columns) * 9
    shifted = x.astype(np.float64) - x.max(axis, keepdims=True)
    wanted = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    close(node("LogSoftmax", x, axis=axis), wanted, 64, 1)
    close(node("Softmax", x.astype(np.float64), axis=axis), np.exp(wanted), 64)


# ---- the tests can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "wrong", "test"),
    [
        ("Mish", lambda x: formulas.mish(x) * formulas.of(x, 1 + 2.0**-19), lambda: test_activation(*ACTIVATIONS[12])),
        ("Max", lambda a, *rest: formulas.FORMULAS["Min"](a, *rest), lambda: test_binary_floats("float32")),
        ("Div", lambda a, b: a * b, lambda: test_integers("int32")),
    ],
)
def test_a_wrong_formula_is_caught(
    op: str, wrong: Callable[..., Any], test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    test()
    monkeypatch.setitem(formulas.FORMULAS, op, wrong)
    with pytest.raises(AssertionError):
        test()


def test_operands_that_do_not_fit(tmp_path: Path) -> None:
    x = values(3, 17)
    with pytest.raises(tvmcnn.ModelError, match="3x17 and 5 do not broadcast"):
        node("Mul", x, values(5, 4)[:, 0])
    with pytest.raises(tvmcnn.ModelError, match="the slope is 2x3x17, which does not broadcast to 3x17"):
        node("PRelu", x, values(2, 3, 17))
    with pytest.raises(tvmcnn.ModelError, match="num_groups is 2, which does not divide the 3 channels of 1x3x17"):
        node("GroupNormalization", x[None], x[:, 0], x[:, 1], num_groups=2)
    with pytest.raises(tvmcnn.ModelError, match="approximate is 'sigmoid'; allowed are none and tanh"):
        node("Gelu", x, approximate="sigmoid")
    with pytest.raises(tvmcnn.UnsupportedError, match="input 'x0' is int32; supported are float32, float64"):
        node("Sigmoid", values(3, 5, dtype="int32"))
    assert not list(tmp_path.iterdir()) and feeds
