"""Kernels on integers at awkward sizes, all in every byte as the oracle has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantised import TYPES, Quantised, at_halves, equal, operators

from tvmcnn import targets
from tvmcnn.compiler import Compiled
from tvmcnn.fuse import exact_sums

CONVOLUTIONS = {
    "padded": ((2, 5, 9, 12), (7, 5, 3, 2), {"pads": [1, 0, 2, 1]}),
    "strided": ((1, 3, 17, 15), (9, 3, 3, 5), {"strides": [2, 3], "pads": [1, 2, 0, 1]}),
    "dilated": ((1, 4, 11, 16), (5, 4, 3, 2), {"dilations": [2, 3], "auto_pad": "SAME_LOWER"}),
    "depthwise": ((2, 9, 7, 8), (9, 1, 3, 3), {"group": 9, "pads": [1, 1, 1, 1]}),
    "grouped": ((1, 6, 8, 31), (4, 3, 1, 2), {"group": 2}),
    "pointwise": ((1, 33, 7, 9), (17, 33, 1, 1), {}),
    "sequence": ((2, 5, 33), (7, 5, 3), {"pads": [1, 0]}),
    "volume": ((1, 3, 5, 6, 7), (4, 3, 2, 1, 3), {}),
    "whole": ((2, 5, 4, 3), (7, 5, 4, 3), {}),
}


@pytest.fixture(params=["integers", "float32"])
def sums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sums of products by loops over integers, and by the kernels of float32."""
    monkeypatch.setattr(exact_sums, "LEAST", 0 if request.param == "float32" else 1 << 60)
    return str(request.param)


def is_one(compiled: Compiled, op: str, sums: str) -> None:
    """All is one kernel on integers, or a sum in float32 that is requantised."""
    kernels = [ops for ops in operators(compiled) if ops not in ("Reorder", "Centred", "Reshape")]
    assert kernels in ([op], *([["Conv", "Requantised"], ["Gemm", "Requantised"]] if sums == "float32" else []))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("x_type", "w_type", "y_type"), [("uint8", "int8", "uint8"), ("int8", "uint8", "int8")])
def test_convolution(name: str, x_type: str, w_type: str, y_type: str, sums: str, target: str, tmp_path: Path) -> None:
    """A scale and a zero point a map, a bias, a Relu."""
    shape, kernel, attributes = CONVOLUTIONS[name]
    g = Quantised(4)
    x_zero, y_zero = (131, 40) if x_type == "uint8" else (-5, -60)
    scales, zeros = g.scale(kernel[0]), g.any_bytes(kernel[0], dtype=w_type)
    x = g.source(*shape, dtype=x_type, zero=x_zero)
    operands = [
        x,
        g.weight(*kernel, dtype=w_type, zero=zeros, scale=scales),
        g.bias(kernel[0], np.float32(0.0234) * scales),
    ]
    y = g.node("Relu", g.node("Conv", *operands, **attributes))
    compiled = equal(g.finished(g.up(y, 1.1, np.array(y_zero, y_type)), dtype=y_type), tmp_path, target)
    is_one(compiled, "QLinearConv", sums)


def test_weights_that_arrive(target: str, tmp_path: Path) -> None:
    """With a zero point of their own."""
    g = Quantised(12)
    x, w = g.source(2, 6, 9, 12, zero=131), g.source(8, 3, 3, 2, dtype="int8", zero=-9, scale=0.031)
    y = g.node("Conv", x, w, g.bias(8, np.float32(0.0234) * np.float32(0.031)), group=2, pads=[1, 0, 2, 1])
    compiled = equal(g.finished(g.up(y, 1.3, np.uint8(90))), tmp_path, target)
    assert operators(compiled) == ["QLinearConv"]


def test_factors_are_rounded_twice(sums: str, target: str, tmp_path: Path) -> None:
    """33 maps of which each rounds otherwise where the factor is rounded once."""
    g = Quantised(11)
    scales, sums = at_halves(0.0234, 5000.0, 33)
    bias = g.down(g.array(sums), np.float32(0.0234) * scales, axis=0)
    w = g.down(g.array(np.zeros((33, 2, 1, 1), np.int8)), scales, np.zeros(33, np.int8), axis=0)
    y = g.node("Conv", g.source(1, 2, 3, 5), w, bias)
    equal(g.finished(g.up(y, 5000.0, np.int8(3)), dtype="int8"), tmp_path, target)


@pytest.mark.parametrize("zero", [0, 128, 255])
def test_extreme_zero_points(zero: int, sums: str, target: str, tmp_path: Path) -> None:
    """Padding stands for the zero point, not for the integer 0; no bias, one scale, a Clip."""
    g = Quantised(5)
    x = g.source(1, 4, 9, 7, zero=zero)
    y = g.node("Conv", x, g.weight(5, 4, 3, 3), pads=[2, 1, 2, 1])
    y = g.node("Clip", y, g.constant(np.float32(-3.3)), g.constant(np.float32(41.7)))
    compiled = equal(g.finished(g.up(y, 0.31, np.uint8(255 - zero))), tmp_path, target)
    is_one(compiled, "QLinearConv", sums)


@pytest.mark.parametrize(
    "shapes", [((5, 33), (33, 9)), ((2, 3, 17), (17, 31)), ((3, 5, 7), (3, 7, 4)), ((7,), (7, 3)), ((3, 7), (7,))]
)
@pytest.mark.parametrize("w_type", TYPES)
def test_product(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], w_type: str, sums: str, target: str, tmp_path: Path
) -> None:
    left, right = shapes
    g = Quantised(6)
    columns = right[-1] if len(right) == 2 else 1
    many = {"scale": g.scale(columns), "zero": g.any_bytes(columns, dtype=w_type), "axis": 1} if columns > 1 else {}
    y = g.node("MatMul", g.source(*left, zero=100), g.weight(*right, dtype=w_type, **many))
    compiled = equal(g.finished(g.up(y, 0.9, np.uint8(120))), tmp_path, target)
    is_one(compiled, "QLinearMatMul", sums)


def test_product_of_two_inputs(target: str, tmp_path: Path) -> None:
    g = Quantised(6)
    y = g.node("MatMul", g.source(2, 5, 33, zero=100), g.source(2, 33, 9, dtype="int8", zero=-3, scale=0.0313))
    compiled = equal(g.finished(g.up(y, 0.7, np.int8(12)), dtype="int8"), tmp_path, target)
    assert operators(compiled) == ["QLinearMatMul"]


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned: int, sums: str, target: str, tmp_path: Path) -> None:
    g = Quantised(7)
    scales = g.scale(9)
    w = g.weight(*((9, 33) if turned else (33, 9)), scale=scales, zero=np.zeros(9), axis=0 if turned else 1)
    y = g.node("Gemm", g.source(5, 33), w, g.bias(9, np.float32(0.0234) * scales), transB=turned)
    compiled = equal(g.finished(g.up(y, 0.9, np.uint8(120))), tmp_path, target)
    is_one(compiled, "QLinearMatMul", sums)


@pytest.mark.parametrize("op", ["Add", "Mul", "Sum"])
@pytest.mark.parametrize("seed", range(4))
def test_every_pair(op: str, seed: int, target: str, tmp_path: Path) -> None:
    """All 65,536 pairs at drawn scales; what an FMA would round once shows in some."""
    g = Quantised(40 + seed)
    a, b = (g.scale() for _ in range(2))
    c = a * b * 150 if op == "Mul" else (a + b) / 2
    c = a if seed == 3 else c  # with an odd zero point ties abound where the scales are powers of two apart
    b = np.float32(a / 2) if seed == 3 else b
    x, y = g.source(256, 1, zero=113, scale=a), g.source(1, 256, dtype="int8", zero=-7, scale=b)
    z = g.node("Relu", g.node(op, x, y)) if seed == 2 else g.node(op, x, y)
    model = g.finished(g.up(z, c, np.uint8(77)))
    compiled = equal(model, tmp_path, target)
    assert operators(compiled) == ["QLinearMul" if op == "Mul" else "QLinearAdd"]
    import tvmcnn
    from tvmcnn.check.reference import reference

    every = {"x0": np.arange(256, dtype=np.uint8)[:, None], "x1": np.arange(-128, 128).astype(np.int8)[None]}
    found, (wanted,) = tvmcnn.load(compiled.path)(*every.values()), reference(model, every).values()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GlobalAveragePool", {}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 2, 0], "strides": [2, 1]}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 2, 0], "strides": [2, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [3, 2], "ceil_mode": 1}),
    ],
)
@pytest.mark.parametrize("dtype", TYPES)
def test_average(op: str, attributes: dict[str, Any], dtype: str, target: str, tmp_path: Path) -> None:
    g = Quantised(8)
    y = g.node(op, g.source(2, 5, 9, 12, dtype=dtype, zero=90), **attributes)
    compiled = equal(g.finished(g.up(y, 0.017, np.array(30, dtype)), dtype=dtype), tmp_path, target)
    assert operators(compiled) == ["QLinearAveragePool"]


def test_conversions(target: str, tmp_path: Path) -> None:
    """Floats, those between two integers among them, to integers with a scale an axis, and back to others."""
    g = Quantised(9)
    q = g.up(g.input(3, 5, 17), g.scale(5), g.any_bytes(5), axis=1)
    d = g.down(q, g.scale(17), g.any_bytes(17), axis=-1)
    compiled = equal(g.finished(g.up(d, 0.03, np.uint8(3))), tmp_path, target)
    assert operators(compiled) == ["QuantizeLinear", "DequantizeLinear", "QuantizeLinear"]


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_16_bits(dtype: str, target: str, tmp_path: Path) -> None:
    """They are computed with in float32, and moved as they are."""
    g = Quantised(9)
    zero = np.array(4321, dtype)
    q = g.up(g.input(3, 5, 17), 0.0001, zero)
    moved = g.up(g.node("Transpose", g.down(q, 0.0001, zero), perm=[2, 0, 1]), 0.0001, zero)
    y = g.up(g.node("Add", g.down(moved, 0.0001, zero), g.down(moved, 0.0001, zero)), 0.0002, zero)
    compiled = equal(g.finished(y, dtype=dtype), tmp_path, target)
    assert "Transpose" in operators(compiled)
    assert "QLinearAdd" not in operators(compiled)


def test_ties_and_ends(tmp_path: Path) -> None:
    """Halves go to the even number, and what is beyond the ends stays at them; NaN is the least."""
    import tvmcnn

    g = Quantised(10)
    tvmcnn.compile(g.finished(g.up(g.input(11), 2.0, np.uint8(5))), output=tmp_path / "q.so")
    x = np.array([1, 3, 5, -1, -3, -11, 499, 501, 1e30, -np.inf, np.nan], np.float32)
    y = tvmcnn.load(tmp_path / "q.so")(x)
    np.testing.assert_array_equal(y, [5, 7, 7, 5, 3, 0, 255, 255, 255, 0, 0])


@pytest.mark.parametrize(("depth", "parts"), [(514, 1), (515, 2), (1028, 2), (1029, 3)])
def test_sums_that_float32_holds(
    depth: int, parts: int, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """514 products of 255 by 128 are less than 2^24; more are several sums, which are added in int32.

    For machines that have no kernels for bytes.
    """
    monkeypatch.setattr(exact_sums, "LEAST", 0)
    monkeypatch.setattr(targets.Target, "multiplies_bytes", False)
    g = Quantised(13)
    w = g.down(g.array(np.full((depth, 17), -128, np.int8)), 0.03, np.int8(0))
    y = g.node("MatMul", g.source(3, depth, zero=0), w)
    model = g.finished(g.up(y, 20.0, np.int8(127)), dtype="int8")
    compiled = equal(model, tmp_path, target)
    assert operators(compiled).count("Gemm") == parts
    import tvmcnn
    from tvmcnn.check.reference import reference

    x = np.full((3, depth), 255, np.uint8)
    (wanted,) = reference(model, {"x0": x}).values()
    np.testing.assert_array_equal(tvmcnn.load(compiled.path)(x), wanted)
