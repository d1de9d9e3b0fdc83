"""Floats are no real numbers: x − x may be NaN, 0·x too, and x + y − y is not x. TVM's simplifier says otherwise, and
nothing of that may reach a user. All against NumPy's own arithmetic in the same dtype, to the bit; what is stored in
float16 is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tvmcnn
from tvmcnn.ops import elementwise, formulas

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = {"float": np.float32, "double": np.float64, "float16": np.float16}
X = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.5, 3e-8, 1024.0]

# Nodes from x, y and the constants zero, minus and half, and the same in NumPy
ALGEBRA: dict[str, Callable[..., Any]] = {
    "z = Sub (x, x)": lambda x, y, c: x - x,
    "z = Equal (x, x)": lambda x, y, c: x == x,
    "e = Equal (x, x) z = Not (e)": lambda x, y, c: x != x,
    "s = Add (x, y) z = Sub (s, x)": lambda x, y, c: (x + y) - x,
    "s = Add (x, y) z = Sub (s, y)": lambda x, y, c: (x + y) - y,
    "s = Add (x, x) z = Sub (s, x)": lambda x, y, c: (x + x) - x,
    "s = Sub (x, y) z = Add (s, y)": lambda x, y, c: (x - y) + y,
    "s = Add (x, y) z = Sub (x, s)": lambda x, y, c: x - (x + y),
    "s = Sum (x, y) t = Sub (s, x) z = Equal (t, y)": lambda x, y, c: (x + y) - x == y,
    "s = Sub (x, y) t = Sub (x, y) z = Sub (s, t)": lambda x, y, c: (x - y) - (x - y),
    "z = Mul (x, zero)": lambda x, y, c: x * c(0),
    "z = Mul (minus, x)": lambda x, y, c: c(-0.0) * x,
    "z = Div (zero, x)": lambda x, y, c: c(0) / x,
    "z = Div (x, zero)": lambda x, y, c: x / c(0),
    "z = Div (x, minus)": lambda x, y, c: x / c(-0.0),
    "s = Add (x, zero) z = Reciprocal (s)": lambda x, y, c: c(1) / (x + c(0)),
    "s = Sub (x, minus) z = Reciprocal (s)": lambda x, y, c: c(1) / (x - c(-0.0)),
    "s = Mul (x, zero) z = Add (s, y)": lambda x, y, c: x * c(0) + y,
    "z = LeakyRelu <alpha: float = 0.0> (x)": lambda x, y, c: np.where(x >= 0, x, c(0) * x),
    "z = PRelu (x, zero)": lambda x, y, c: np.where(x >= 0, x, c(0) * x),
}


def model(nodes: str, kind: str, made: np.dtype[Any], shape: str) -> onnx.ModelProto:
    """A graph of `nodes`; onnx.parser reads no −0."""
    result = "bool" if made == np.bool_ else kind
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}{shape} x, {kind}{shape} y) => ({result}{shape} z)'
    proto = onnx.parser.parse_model(f"{text} <{kind} zero = {{0}}> {{ {nodes} }}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(-0.0, DTYPES[kind]), "minus"))
    return proto


def operands(kind: str) -> tuple[Array, Array]:
    """Every pair of the numbers, as a matrix."""
    x, y = np.meshgrid(np.array(X, DTYPES[kind]), np.array(X[::-1], DTYPES[kind])[:-1])
    return x, y


@pytest.mark.parametrize("kind", DTYPES)
def test_algebra(kind: str, tmp_path: Path) -> None:
    x, y = operands(kind)
    dtype = np.float32 if kind == "float16" else DTYPES[kind]
    for nodes, function in ALGEBRA.items():
        wanted = np.asarray(function(x.astype(dtype), y.astype(dtype), dtype))
        wanted = wanted if wanted.dtype == np.bool_ else wanted.astype(DTYPES[kind])
        compiled = tvmcnn.compile(model(nodes, kind, wanted.dtype, "[8, 9]"), output=tmp_path / "x.so", verify=False)
        net = tvmcnn.load(compiled.path, threads=1)
        given = {"x": x, "y": y}
        (found,) = net.run(None, {each.name: given[each.name] for each in net.inputs})
        np.testing.assert_array_equal(found, wanted, err_msg=f"{kind}: {nodes}")
        there = ~np.isnan(wanted)
        assert np.array_equal(np.signbit(found[there] * 1.0), np.signbit(wanted[there] * 1.0)), f"{kind}: {nodes}"


@pytest.mark.parametrize("nodes", ["s = Relu (c) z = Sub (s, c)", "s = Add (c, y) z = Sub (s, y)", "z = Sub (c, c)"])
def test_epilogue(nodes: str, tmp_path: Path) -> None:
    """Behind a convolution of a pixel by 1, in blocks of channels: what is not x stays."""
    proto = model(f"c = Conv (x, w) {nodes}", "float", np.dtype(np.float32), "[1, 5, 3, 7]")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(5, dtype=np.float32)[:, :, None, None], "w"))
    x = np.resize(np.float32([1e-3, np.inf, -3.25, 7]), (1, 5, 3, 7))
    x[:, :, 1:] = 0.5  # an infinity makes NaN of all maps of its pixel
    y = np.full_like(x, 2.0**20)
    tvmcnn.compile(proto, output=tmp_path / "x.so", verify=False)
    net = tvmcnn.load(tmp_path / "x.so", threads=1)
    given = {"x": x, "y": y}
    (found,) = net.run(None, {each.name: given[each.name] for each in net.inputs})
    with np.errstate(all="ignore"):
        c = np.einsum("mc,nchw->nmhw", np.eye(5, dtype=np.float32), x)
        wanted = {"R": np.maximum(c, 0) - c, "A": (c + y) - y, "S": c - c}[nodes.split("= ")[1][0]]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("module", "veil"), [(elementwise, "veiled"), (formulas, "_veiled_zero")])
def test_each_veil_counts(module: Any, veil: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without either of the two veils TVM's algebra is back."""
    monkeypatch.setattr(module, veil, lambda x, times=1: x)
    with pytest.raises((AssertionError, tvmcnn.TvmcnnError)):
        test_algebra("float", tmp_path)
