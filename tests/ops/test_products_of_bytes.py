"""Products of rows of bytes by a constant matrix: equal in every byte to the oracle at awkward sizes, on CPUs with VNNI
and without.

Compiling verifies with every operand at the end of a page that nobody may touch: a byte that is read beyond it ends the
process.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantised import Quantised, any_input, equal, operators

import tvmcnn
from tvmcnn import targets
from tvmcnn.check.reference import reference
from tvmcnn.choose.cpu import dense_dots
from tvmcnn.compiler import Compiled
from tvmcnn.configs import DenseDotsConfig
from tvmcnn.network import Choice

CLASSES = ("x86-64-v3", "x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni")
SIZES = {  # rows, terms, columns
    "one of each": ((1,), 4, 1),
    "fewer columns than lanes": ((1,), 33, 10),
    "a lone vector": ((), 18, 9),
    "a column more": ((5,), 35, 17),
    "tiles": ((13,), 66, 37),
    "a stack": ((2, 3), 7, 31),
    "a deep stack": ((2, 1, 4), 5, 33),
    "whole vectors": ((7,), 64, 48),
    "many": ((57,), 129, 130),
}


@pytest.fixture(params=CLASSES)
def cpus(request: pytest.FixtureRequest) -> str:
    """Each class of CPUs that this one is of."""
    if missing := targets.TARGETS[request.param].missing():
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    return str(request.param)


def product(
    rows: tuple[int, ...], depth: int, columns: int, x_type: str = "uint8", w_type: str = "int8", zeros: Any = 0
) -> onnx.ModelProto:
    """A product between integers; of a matrix it is a Gemm with a bias a column."""
    g = Quantised(8)
    scales = g.scale(columns)
    w = g.weight(depth, columns, dtype=w_type, scale=scales, zero=np.broadcast_to(zeros, columns), axis=1)
    x = g.source(*rows, depth, dtype=x_type, zero=131 if x_type == "uint8" else -5)
    bias = [g.bias(columns, np.float32(0.0234) * scales)] if len(rows) == 1 else []
    y = g.node("Gemm" if bias else "MatMul", x, w, *bias)
    return g.finished(g.up(y, 3.1, np.uint8(40)))


def choice(compiled: Compiled) -> Choice:
    """The only kernel's."""
    (step,) = compiled.program.steps
    assert step.choice.algorithm == "dense_dots"
    return step.choice


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("x_type", ["uint8", "int8"])
def test_product(size: str, x_type: str, cpus: str, tmp_path: Path) -> None:
    rows, depth, columns = SIZES[size]
    config = choice(equal(product(rows, depth, columns, x_type), tmp_path, cpus)).numbers(DenseDotsConfig)
    quads = cpus.endswith("vnni")
    assert config.terms == (4 if quads else 2)
    assert config.shift == (128 if quads and x_type == "int8" else 0)
    assert config.narrow == (not quads and np.prod(rows) == 1)


def test_weights_of_16_bits(cpus: str, tmp_path: Path) -> None:
    """Less their zero points they are no bytes: two products an instruction on all CPUs."""
    model = product((5,), 35, 37, w_type="uint8", zeros=np.arange(37) * 6)
    assert choice(equal(model, tmp_path, cpus)).numbers(DenseDotsConfig).terms == 2


@pytest.mark.parametrize(("width", "rows", "parts", "unroll"), [(2, 3, 1, 1), (1, 5, 2, 1), (3, 1, 2, 2), (1, 7, 4, 1)])
def test_any_tile(
    width: int, rows: int, parts: int, unroll: int, cpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last of rows and of columns overlap those before; parts of the sum are interleaved."""
    real = dense_dots.dots_config

    def given(state: Any, *sizes: Any) -> DenseDotsConfig:
        tile = {"width": width * state.target.lanes("float32"), "rows": rows, "parts": parts, "unroll": unroll}
        return dataclasses.replace(real(state, *sizes), **tile)

    monkeypatch.setattr(dense_dots, "dots_config", given)
    equal(product((13,), 63, 53), tmp_path, cpus)  # 16 groups of four, 32 of two
    equal(product((13,), 64, 49, "int8"), tmp_path, cpus)


def test_a_narrow_product_is_summed_in_parts(cpus: str, tmp_path: Path) -> None:
    """One vector of columns of one row would wait for each instruction before."""
    assert choice(equal(product((1,), 512, 10), tmp_path, cpus)).numbers(DenseDotsConfig).parts > 1


def test_threads(cpus: str, tmp_path: Path) -> None:
    model = product((57,), 261, 300)
    compiled = equal(model, tmp_path, cpus, threads=2)
    assert choice(compiled).tasks > 1
    given = any_input(model)
    one, two = (tvmcnn.load(compiled.path, threads=threads)(*given.values()) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("x_type", "x", "zero"), [("uint8", 255, 0), ("int8", -128, 127), ("int8", 127, -128)])
@pytest.mark.parametrize("w", [-128, 127])
def test_no_sum_saturates(x_type: str, x: int, zero: int, w: int, cpus: str, tmp_path: Path) -> None:
    """All of one sign and as large as can be: what adds pairs in 16 bits would saturate at the first."""
    g = Quantised(3)
    weight = g.down(g.array(np.full((4609, 17), w, np.int8)), np.float32(0.03), np.int8(0))
    model = g.finished(g.up(g.node("MatMul", g.source(3, 4609, dtype=x_type, zero=zero), weight), 1e3, np.uint8(128)))
    compiled = equal(model, tmp_path, cpus)
    choice(compiled)
    given = np.full((3, 4609), x, x_type)
    (wanted,) = reference(model, {"x0": given}).values()
    assert 0 < wanted.min() == wanted.max() < 255
    np.testing.assert_array_equal(tvmcnn.load(compiled.path)(given), wanted)


@pytest.mark.parametrize("channels", [16, 37])
def test_an_image_of_one_pixel_is_read_as_it_lies(channels: int, cpus: str, tmp_path: Path) -> None:
    """In blocks of channels, whose padding may hold anything."""
    g = Quantised(9)
    x = g.up(g.node("Conv", g.source(2, 8, 5, 7), g.weight(channels, 8, 1, 1)), 0.4, np.uint8(9))
    x = g.up(g.node("GlobalAveragePool", g.down(x, 0.4, np.uint8(9))), 0.3, np.uint8(17))
    y = g.node("Gemm", g.down(g.node("Flatten", x), 0.3, np.uint8(17)), g.weight(channels, 19))
    compiled = equal(g.finished(g.up(y, 0.9, np.uint8(120))), tmp_path, cpus)
    last = compiled.program.steps[-1].choice
    assert last.algorithm == "dense_dots"
    assert last.reads[0].block == 16


def test_an_image_of_many_pixels_too(cpus: str, tmp_path: Path) -> None:
    g = Quantised(9)
    x = g.up(g.node("Conv", g.source(2, 8, 3, 5), g.weight(21, 8, 1, 1)), 0.4, np.uint8(9))
    y = g.node("Gemm", g.down(g.node("Flatten", x), 0.4, np.uint8(9)), g.weight(21 * 15, 19))
    compiled = equal(g.finished(g.up(y, 9.0, np.uint8(120))), tmp_path, cpus)
    assert [step.choice.algorithm for step in compiled.program.steps][-2:] == ["dots", "dense_dots"]


@pytest.mark.parametrize(("depth", "weight"), [(3, 5), (33_100, -128)])
def test_what_it_does_not_take(depth: int, weight: int, tmp_path: Path) -> None:
    """Rows shorter than a group of terms, and sums that a shift of the bytes by 128 could take out of int32."""
    g = Quantised(3)
    w = g.down(g.array(np.full((depth, 5), weight, np.int8)), np.float32(0.03), np.int8(0))
    compiled = equal(g.finished(g.up(g.node("MatMul", g.source(2, depth), w), 900.0, np.uint8(128))), tmp_path)
    assert "dense_dots" not in [step.choice.algorithm for step in compiled.program.steps]


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
@pytest.mark.parametrize("w_type", ["uint8", "int8"])
@pytest.mark.parametrize("arrives", [True, False])
def test_integers_of_a_scale_that_arrives(x_type: str, w_type: str, arrives: bool, cpus: str, tmp_path: Path) -> None:
    """MatMulInteger, with zero points a column of the constant matrix."""
    g = Quantised(5)
    x, w = g.bytes(2, 7, 35, dtype=x_type), g.array(g.any_bytes(35, 41, dtype=w_type))
    zero = g.bytes(dtype=x_type) if arrives else g.array(np.array(99, x_type))
    zeros = g.array(g.any_bytes(41, dtype=w_type) if w_type == "uint8" else np.zeros(41, np.int8))
    model = g.finished(g.node("MatMulInteger", x, w, zero, zeros), dtype="int32")
    config = choice(equal(model, tmp_path, cpus)).numbers(DenseDotsConfig)
    assert config.terms == (4 if w_type == "int8" and cpus.endswith("vnni") else 2)


def test_vnni_without_avx_512(tmp_path: Path) -> None:
    """Compiled where it may not run."""
    compiled = tvmcnn.compile(product((5,), 35, 37), "x86-64-v3-vnni", tmp_path / "x.so", verify=False)
    text = compiled.code["asm"]()
    assert "vpdpbusd" in text
    assert "zmm" not in text
    assert operators(compiled) == ["QLinearMatMul"]
