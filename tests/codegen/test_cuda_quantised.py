"""Kernels on integers for GPUs, on the CPU by the shim: the same bytes as on CPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data import NVCC
from quantised import Quantised, any_input, operators

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.fuse import exact_sums

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("least", [0, 1 << 60])
def test_integers(least: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops over integers, and sums in float32, whose factors tensor cores do not round: they have 8 bits."""
    monkeypatch.setenv("NVCC", str(NVCC))
    monkeypatch.setattr(exact_sums, "LEAST", least)
    g = Quantised(3)
    scales = g.scale(17)
    x = g.up(g.input(2, 32, 9, 12), 0.031, np.uint8(113))
    f = g.down(x, 0.031, np.uint8(113))
    w = g.weight(17, 32, 3, 3, scale=scales, zero=np.zeros(17))
    y = g.node("Relu", g.node("Conv", f, w, g.bias(17, np.float32(0.031) * scales), pads=[1, 0, 1, 2]))
    y = g.down(g.up(y, 0.9, np.uint8(3)), 0.9, np.uint8(3))
    y = g.down(g.up(g.node("Add", y, g.source(*g.shape(y))), 1.3, np.uint8(9)), 1.3, np.uint8(9))
    y = g.down(g.up(g.node("HardSwish", y), 1.2, np.int8(-7)), 1.2, np.int8(-7))
    y = g.down(g.up(g.node("AveragePool", y, kernel_shape=[2, 3]), 1.1, np.uint8(9)), 1.1, np.uint8(9))
    y = g.node("MatMul", y, g.weight(g.shape(y)[-1], 31, axis=1))
    model = g.finished(g.up(y, 5.0, np.int8(3)), dtype="int8")
    compiled = tvmcnn.compile(model, "cuda:sm_90", tmp_path / "q.so", precision=precision)
    assert compiled.verdict is not None and compiled.verdict.passed
    assert {"QLinearAdd", "Table"} <= set(operators(compiled))
    given = any_input(model)
    (wanted,) = reference(model, given).values()
    np.testing.assert_array_equal(tvmcnn.load(compiled.path)(*given.values()), wanted)
