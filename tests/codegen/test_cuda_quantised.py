"""Kernels on integers for GPUs, on the CPU by the shim: the same bytes as on CPUs."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from data import NVCC
from quantised import Quantised, any_input, operators

import tvmcnn
from tvmcnn import packing
from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.check.reference import reference
from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.cuda.defaults import GEMM_TILES
from tvmcnn.codegen.cuda import kernel
from tvmcnn.codegen.cuda.chain import Device
from tvmcnn.codegen.cuda.kernel import device_code
from tvmcnn.compiler import Compiled
from tvmcnn.configs import GemmConfig
from tvmcnn.errors import VerifyError
from tvmcnn.fuse import exact_sums, fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Step
from tvmcnn.ops.cuda import gemm_words
from tvmcnn.tuning.gpu import emit_candidates

pytestmark = pytest.mark.slow

ORDERS = ("0", "1", "7")  # of the threads of a block: ascending, descending, shuffled
Build = Callable[[Quantised], onnx.ModelProto]


@pytest.fixture(autouse=True)
def shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(NVCC))


def check(model: onnx.ModelProto, folder: Path, **options: Any) -> Compiled:
    """Compiled, and every byte of the outputs the oracle's in every order of threads."""
    compiled = tvmcnn.compile(model, "cuda:sm_80,sm_90", folder / "q.so", **options)
    assert compiled.verdict is not None and compiled.verdict.passed
    given = any_input(model)
    wanted = reference(model, given)
    net = tvmcnn.load(compiled.path)
    for order in ORDERS:
        ctypes.CDLL(None).setenv(b"CUDA_SHIM_ORDER", order.encode(), 1)  # os.environ is not where libraries look
        found = net.run(None, given)
        for array, other in zip(found, wanted.values(), strict=True):
            np.testing.assert_array_equal(array, other)
    ctypes.CDLL(None).unsetenv(b"CUDA_SHIM_ORDER")
    assert all(len(np.unique(array)) > 20 for array in found), "an output of few numbers"
    return compiled


def algorithms(compiled: Compiled) -> list[str]:
    return [step.choice.algorithm for step in compiled.program.steps]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("least", [0, 1 << 60])
def test_integers(least: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, loops over integers, and sums in float32, whose factors tensor cores do not round: they have 8 bits."""
    monkeypatch.setattr(exact_sums, "LEAST", least)
    g = Quantised(3)
    scales = g.scale(17)
    x = g.up(g.input(2, 32, 9, 12), 0.031, np.uint8(113))
    f = g.down(x, 0.031, np.uint8(113))
    w = g.weight(17, 32, 3, 3, scale=scales, zero=np.zeros(17))
    y = g.node("Relu", g.node("Conv", f, w, g.bias(17, np.float32(0.031) * scales), pads=[1, 0, 1, 2]))
    y = g.down(g.up(y, 0.9, np.uint8(3)), 0.9, np.uint8(3))
    y = g.down(g.up(g.node("Add", y, g.source(*g.shape(y))), 1.3, np.uint8(9)), 1.3, np.uint8(9))
    y = g.node("Conv", y, g.weight(17, 17, 1, 1, dtype="uint8", zero=0))
    y = g.down(g.up(y, 9.0, np.uint8(9)), 1.3, np.uint8(9))
    y = g.down(g.up(g.node("HardSwish", y), 1.2, np.int8(-7)), 1.2, np.int8(-7))
    y = g.down(g.up(g.node("AveragePool", y, kernel_shape=[2, 3]), 1.1, np.uint8(9)), 1.1, np.uint8(9))
    y = g.node("MatMul", y, g.weight(g.shape(y)[-1], 31, axis=1))
    model = g.finished(g.up(y, 5.0, np.int8(3)), dtype="int8")
    compiled = check(model, tmp_path, precision=precision)
    assert {"QLinearConv+QLinearAdd", "Table", "QLinearConv" if least else "Requantised"} <= set(operators(compiled))


# ---- words of four bytes --------------------------------------------------------------------------------------------


def conv(
    g: Quantised,
    x: tuple[int, ...],
    w: tuple[int, ...],
    kinds: str = "uint8 int8 uint8",
    zeros: tuple[int, int] = (113, 0),
    **attributes: Any,
) -> onnx.ModelProto:
    """A convolution of bytes with a bias and a scale a map."""
    x_type, w_type, y_type = kinds.split()
    scales = g.scale(w[0])
    weight = g.weight(*w, dtype=w_type, zero=np.full(w[0], zeros[1]), scale=scales)
    bias = g.bias(w[0], np.float32(0.0234) * scales)
    y = g.node("Conv", g.source(*x, dtype=x_type, zero=zeros[0]), weight, bias, **attributes)
    return g.finished(g.up(y, 0.05 * np.sqrt(np.prod(w[1:])), np.array(9, y_type)), dtype=y_type)


def strided(g: Quantised) -> onnx.ModelProto:
    return conv(g, (2, 5, 11, 14), (19, 5, 3, 2), pads=[1, 0, 2, 1], strides=[2, 1])


def dilated(g: Quantised) -> onnx.ModelProto:
    kinds = "int8 int8 int8"
    return conv(g, (2, 7, 13, 9), (70, 7, 2, 3), kinds, (-5, 0), dilations=[3, 2], pads=[2, 1, 0, 3])


def pointwise(g: Quantised) -> onnx.ModelProto:
    return conv(g, (1, 36, 7, 11), (67, 36, 1, 1), "uint8 uint8 int8", (0, 128))


def stem(g: Quantised) -> onnx.ModelProto:
    return conv(g, (1, 3, 23, 18), (33, 3, 7, 5), "int8 uint8 uint8", (127, 128), strides=[2, 2], pads=[3, 2, 3, 2])


def grouped(g: Quantised) -> onnx.ModelProto:
    return conv(g, (2, 22, 6, 9), (18, 11, 3, 3), zeros=(255, 0), group=2, pads=[1, 1, 1, 1])


def beyond_a_byte(g: Quantised) -> onnx.ModelProto:
    """A zero point that moves weights to -3 … 252, which are two bytes."""
    return conv(g, (1, 130, 5, 7), (37, 130, 2, 2), "int8 uint8 int8", (-9, 3), pads=[1, 0, 1, 1])


def beyond_a_byte_to(g: Quantised) -> onnx.ModelProto:
    return conv(g, (2, 6, 5, 7), (37, 6, 2, 2), "uint8 uint8 uint8", (99, 250), pads=[1, 0, 1, 1])


def clipped(g: Quantised) -> onnx.ModelProto:
    w = g.weight(21, 6, 3, 3)
    y = g.node("Relu", g.node("Conv", g.source(1, 6, 8, 5, dtype="int8", zero=-128), w))
    return g.finished(g.up(y, 0.9, np.uint8(40)))


def residual(g: Quantised) -> onnx.ModelProto:
    w = g.weight(23, 18, 3, 3, scale=g.scale(23), zero=np.zeros(23))
    y = g.up(g.node("Conv", g.source(2, 18, 5, 9), w, pads=[1, 1, 1, 1]), 0.7, np.int8(3))
    y = g.node("Add", g.down(y, 0.7, np.int8(3)), g.source(2, 23, 5, 9, zero=100))
    return g.finished(g.up(y, 0.8, np.uint8(31)))


def split(g: Quantised) -> onnx.ModelProto:
    y = g.up(g.node("Conv", g.source(1, 131, 5, 6), g.weight(67, 131, 3, 3), pads=[0, 1, 2, 1]), 4.0, np.uint8(90))
    y = g.node("Mul", g.down(y, 4.0, np.uint8(90)), g.source(1, 67, 5, 6, dtype="int8", zero=-100))
    return g.finished(g.up(y, 9.0, np.uint8(131)))


def rows(g: Quantised) -> onnx.ModelProto:
    y = g.node("MatMul", g.source(3, 11, 77), g.weight(77, 45, axis=1, scale=g.scale(45), zero=np.zeros(45)))
    return g.finished(g.up(y, 2.0, np.int8(-5)), dtype="int8")


def few_rows(g: Quantised) -> onnx.ModelProto:
    x, w = g.source(3, 131, dtype="int8", zero=-3, scale=0.5), g.weight(131, 37, dtype="uint8", zero=128, scale=0.25)
    return g.finished(g.up(g.node("Gemm", x, w, g.bias(37, 0.125)), 200.0, np.uint8(99)))


def whole_words(g: Quantised) -> onnx.ModelProto:
    """Rows of 9 words, fewer than a step of the sum has, and of 34, which parts do not divide."""
    y = g.up(g.node("MatMul", g.source(13, 36), g.weight(36, 136)), 2.0, np.int8(-5))
    few = g.node("MatMul", g.source(2, 136, scale=0.5), g.weight(136, 33))
    return g.finished(y, g.up(few, 50.0, np.int8(3)), dtype="int8")


def covering(g: Quantised) -> onnx.ModelProto:
    return conv(g, (2, 9, 3, 5), (41, 9, 3, 5))


def integers_of(*shape: int) -> Build:
    """MatMulInteger: a zero point that arrives, and one a column, which moves weights beyond a byte."""

    def build(g: Quantised) -> onnx.ModelProto:
        x, w = g.bytes(*shape), g.array(g.any_bytes(shape[-1], 41, dtype="uint8"))
        given = [g.bytes(dtype="uint8"), g.array(g.any_bytes(41, dtype="uint8", least=1))]
        return g.finished(g.node("MatMulInteger", x, w, *given), dtype="int32")

    return build


def chain(g: Quantised) -> onnx.ModelProto:
    """Few enough products for one launch, if they were of floats."""
    y = g.node("Conv", g.source(2, 5, 7, 9), g.weight(12, 5, 3, 3))
    y = g.node("Conv", g.down(g.up(y, 3.0, np.int8(5)), 3.0, np.int8(5)), g.weight(10, 12, 2, 3))
    return g.finished(g.up(y, 15.0, np.uint8(120)))


WORDS: dict[str, tuple[Build, list[str]]] = {
    "strided": (strided, ["gemm_words_conv"]),
    "dilated": (dilated, ["gemm_words_conv"]),
    "pointwise": (pointwise, ["gemm_words_conv"]),
    "stem": (stem, ["gemm_words_conv"]),
    "grouped": (grouped, ["gemm_words_conv"]),
    "beyond_a_byte": (beyond_a_byte, ["gemm_words_partial", "gemm_words_sum"]),
    "beyond_a_byte_to": (beyond_a_byte_to, ["gemm_words_conv"]),
    "clipped": (clipped, ["gemm_words_conv"]),
    "residual": (residual, ["gemm_words_conv"]),
    "split": (split, ["gemm_words_partial", "gemm_words_sum"]),
    "rows": (rows, ["gemm_words_dense"]),
    "few_rows": (few_rows, ["gemv_words"]),
    "whole_words": (whole_words, ["gemm_words_dense", "gemv_words"]),
    "covering": (covering, ["gemv_words"]),
    "integers": (integers_of(2, 7, 35), ["gemm_words_dense"]),
    "few_integers": (integers_of(7, 35), ["gemv_words"]),
    "chain": (chain, ["gemm_words_conv", "gemm_words_conv"]),
}


@pytest.mark.parametrize("name", WORDS)
def test_words(name: str, tmp_path: Path, golden: Callable[[str], None]) -> None:
    build, wanted = WORDS[name]
    compiled = check(build(Quantised(11)), tmp_path)
    assert algorithms(compiled) == wanted
    for step in compiled.program.steps:
        text = device_code(step, "kernel").text
        assert ("__dp4a(" in text) == (step.choice.algorithm != "gemm_words_sum")
        assert not re.search(r"__dp4a\(.*, 0\);", text), "what is added is an instruction of its own"
    if name in ("strided", "few_rows"):
        golden(compiled.code["tir"]())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's own: a kernel of each algorithm, in one library."""
    monkeypatch.delenv("NVCC")
    g = Quantised(5)
    x = g.source(1, 131, 5, 6)
    y = g.down(g.up(g.node("Conv", x, g.weight(67, 131, 3, 3), pads=[1] * 4), 4.0, np.uint8(90)), 4.0, np.uint8(90))
    y = g.down(g.up(g.node("Conv", y, g.weight(9, 67, 1, 1)), 4.0, np.int8(-9)), 4.0, np.int8(-9))
    rows = g.node("MatMul", g.node("Reshape", y, g.constant(np.array([9, 30]))), g.weight(30, 33))
    covering = g.node("Conv", y, g.weight(21, 9, 5, 6))
    model = g.finished(g.up(rows, 4.0, np.uint8(7)), g.up(covering, 4.0, np.uint8(7)))
    lines: list[str] = []
    compiled = tvmcnn.compile(model, "cuda:sm_80,sm_90", tmp_path / "q.so", verify=False, report=lines.append)
    named = {name for name in algorithms(compiled) if "_words" in name}
    assert named == {name for name in ALGORITHMS if "_words" in name}
    told = [line for line in lines if "registers" in line]
    assert len(told) >= len(named) and not any("spilled" in line for line in told)


@pytest.mark.parametrize("tile", GEMM_TILES, ids=str)
def test_tiles_of_words(tile: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile, with the sum whole and in parts, at the depth of 8, which divides few sums."""
    g = Quantised(2)
    for split in (1, 3):
        monkeypatch.setattr(gpu, "configs", lambda *_: [GemmConfig(*tile, depth=8, split=split)])  # noqa: B023
        check(conv(Quantised(2), (1, 39, 6, 13), (67, 39, 2, 3), pads=[1, 0, 1, 1]), tmp_path)
    monkeypatch.setattr(gpu, "configs", lambda *_: [GemmConfig(*tile, depth=8)])
    check(rows(g), tmp_path)


def test_words_do_not_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", f"{NVCC} --races")
    for name in ("split", "rows", "few_rows"):
        compiled = tvmcnn.compile(WORDS[name][0](Quantised(11)), "cuda:sm_90", tmp_path / f"{name}.so")
        assert compiled.verdict is not None and compiled.verdict.passed


def test_what_is_not_in_words() -> None:
    """Narrow groups, weights that arrive, and a weight that two bytes do not make."""
    g = Quantised(4)
    x = g.source(2, 20, 6, 9)
    one, beyond = g.weight(20, 1, 3, 3), g.down(g.array(np.full((20, 20, 1, 1), 255, np.uint8)), 0.1)
    narrow, arriving = g.weight(20, 5, 1, 1), g.source(20, 20, 1, 1, zero=0)
    made = [
        g.node("Conv", x, one, group=20),
        g.node("Conv", x, narrow, group=4),
        g.node("Conv", x, beyond),
        g.node("Conv", x, arriving),
    ]
    network = simplified(import_model(g.finished(*(g.up(y, 3.0, np.uint8(9)) for y in made))), in_words=True)
    assert not any("_words" in choice.algorithm for choice in gpu.choose(network, fuse(network)))


def test_tuning_leaves_them(tmp_path: Path) -> None:
    """Its candidates are compared with NumPy in floats, as on CPUs."""
    assert emit_candidates(rows(Quantised(2)), "cuda:sm_90", tmp_path / "candidates") == 0


# ---- planted bugs ---------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def signs(patch: pytest.MonkeyPatch) -> None:
    """Unsigned bytes are taken for signed ones."""
    patch.setattr(gemm_words, "SIGNS", 0)


def offsets(patch: pytest.MonkeyPatch) -> None:
    """What is added to a sum forgets by how much they were moved."""
    patch.setattr(packing, "TO_SIGNED", {"int8": 0, "uint8": 0})


def turned(patch: pytest.MonkeyPatch) -> None:
    """The first channel is in the highest byte of an image's word."""
    real = gemm_words.word
    patch.setattr(gemm_words, "word", lambda values, dtype: real(values[::-1], dtype))


def other_padding(patch: pytest.MonkeyPatch) -> None:
    """Padding holds 0 where the zero point is another."""
    real = gemm_words.padding_word
    patch.setattr(gemm_words, "padding_word", lambda zero, dtype: real(0, dtype))


def more_channels(patch: pytest.MonkeyPatch) -> None:
    """The weights of the last word go on behind the last channel."""
    real = packing._as_words

    def edit(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        more = ((0, 0), (0, -weight.shape[1] % 4), *((0, 0) for _ in weight.shape[2:]))
        return real(np.pad(weight, more, mode="edge"))

    patch.setattr(packing, "_as_words", edit)


def lost_part(patch: pytest.MonkeyPatch) -> None:
    """The last part of a split sum is not added."""
    real = gemm_words.extents
    patch.setattr(gemm_words, "extents", lambda t: (real(t)[0] - 1, *real(t)[1:]) if len(t.shape) == 5 else real(t))


def lost_half(patch: pytest.MonkeyPatch) -> None:
    """A weight of more than 127 is 127."""
    real = packing._halves
    patch.setattr(packing, "_halves", lambda weight: [real(weight)[0]] * 2)


def lost_sum(patch: pytest.MonkeyPatch) -> None:
    """A word's products are added to 0."""

    def edited(step: Step, symbol: str) -> Device:
        device = device_code(step, symbol)
        text = re.sub(r"(__dp4a\(.*), sum_local_ptr\[.*\]\);", r"\1, 0);", device.text)
        return dataclasses.replace(device, text=text)

    patch.setattr(kernel, "device_code", edited)


def lost_zero(patch: pytest.MonkeyPatch) -> None:
    """A zero point that arrives is taken for 128 more."""
    patch.setattr(gemm_words, "TO_SIGNED", {"int8": 0, "uint8": 128})


BUGS: list[tuple[str, Plant]] = [
    *(("strided", plant) for plant in (signs, offsets, turned, other_padding, more_channels, lost_sum)),
    *(("rows", plant) for plant in (signs, offsets, turned, more_channels, lost_sum)),
    *(("few_integers", plant) for plant in (turned, lost_zero, lost_sum)),
    ("beyond_a_byte", lost_half),
    ("split", lost_part),
    ("split", other_padding),
]


@pytest.mark.parametrize(("name", "plant"), BUGS, ids=lambda part: getattr(part, "__name__", part))
def test_planted_bugs(name: str, plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found by the comparison that a compile makes."""
    plant(monkeypatch)
    with pytest.raises(VerifyError):
        tvmcnn.compile(WORDS[name][0](Quantised(11)), "cuda:sm_90", tmp_path / "q.so")
