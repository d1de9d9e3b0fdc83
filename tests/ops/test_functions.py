"""The polynomials of ops/functions.py: within 2 ulp of float64's functions, from denormals to the largest floats."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from builders import Graph
from function_errors import FUNCTIONS, Worst, of_one, of_two, worst

import tvmcnn
from tvmcnn.ops import functions

STEP = 15_013  # a prime: 286,000 floats, with all last digits


def error(op: str, folder: Path) -> Worst:
    return of_two(1 << 30, folder) if op == "Pow" else of_one(op, STEP, folder, lambda *_: None)


@pytest.mark.parametrize("op", [*FUNCTIONS, "Pow"])
def test_two_ulp(op: str, tmp_path: Path) -> None:
    found = error(op, tmp_path)
    assert 0.5 < found.ulp <= 2, found


@pytest.mark.parametrize(
    ("op", "name"),
    [("Erf", "ERF"), ("Erf", "ERFC"), ("Log", "LOG"), ("Sin", "SIN"), ("Cos", "COS"), ("Pow", "LOG2"), ("Pow", "EXP2")],
)
def test_a_wrong_digit_is_found(op: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another third digit of the coefficient in the middle, which is small."""
    digits = list(getattr(functions, name))
    digits[len(digits) // 2] *= 1 + 2.0**-9
    monkeypatch.setattr(functions, name, tuple(digits))
    assert error(op, tmp_path).ulp > 2


def gelu_errors(folder: Path) -> tuple[float, float]:
    """The largest error of Gelu relative to |x|, in units of 2^−24, and that of x > −1 in ulp."""
    bits = np.arange(0x00800000, 0x7F800000, STEP, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), -bits.view(np.float32)])
    g = Graph(opset=20)
    given = g.input(x.size)
    g.output(g.node("Gelu", given))
    tvmcnn.compile(g.model(), output=folder / "x.so", verify=False)
    found = tvmcnn.load(folder / "x.so")(x).astype(np.float64)
    wide = x.astype(np.float64)
    wanted = wide * np.vectorize(math.erfc)(-wide / math.sqrt(2)) / 2
    off = np.abs(found - wanted)
    ulp = off / np.maximum(np.spacing(np.abs(wanted).astype(np.float32)), 2.0**-149)
    return float((off / np.abs(wide)).max() * 2**24), float(ulp[wide > -1].max())


def test_gelu_is_as_near_as_its_docstring_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relative, ulp = gelu_errors(tmp_path)
    assert 1 < relative < 2.5
    assert 1 < ulp < 5
    digits = list(functions.GELU)
    digits[len(digits) // 2] *= 1 + 2.0**-9
    monkeypatch.setattr(functions, "GELU", tuple(digits))
    assert gelu_errors(tmp_path)[0] > 20


def test_errors_are_told() -> None:
    """An error of the tool's own arithmetic would make every test here pass."""
    x = np.array([1, 2, 3, 4], np.float32)
    wanted = np.array([1, 2, np.nan, np.inf])
    assert worst("", (x,), np.array([1, 2, np.nan, np.inf], np.float32), wanted).ulp == 0
    assert worst("", (x,), np.array([1, 2 + 3 * 2.0**-22, np.nan, np.inf], np.float32), wanted).ulp == 3
    for wrong in ([1, 2, 3, np.inf], [1, 2, np.nan, 3e38], [1, np.inf, np.nan, np.inf], [np.nan, 2, np.nan, np.inf]):
        assert worst("", (x,), np.array(wrong, np.float32), wanted).ulp == np.inf


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_powers_that_are_known(tmp_path: Path) -> None:
    """Squares, cubes, roots and reciprocals, and a power that is none of these, also of what only C defines."""
    x = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30], [-1.5, 2.75, 1e30, -1e-45, 3, -7]], np.float32)
    g = Graph()
    given = g.input(2, 6)
    powers = [0.5, 1.0, 2.0, 3.0, -1.0, 1.5, -2.0, 0.0]
    g.output(*(g.node("Pow", given, g.constant(np.float32(power))) for power in powers))
    tvmcnn.compile(g.model(), output=tmp_path / "x.so")
    found = tvmcnn.load(tmp_path / "x.so").run(None, {given: x})
    for y, power in zip(found, powers, strict=True):
        wanted = np.power(x.astype(np.float64), np.full(x.shape, power)).astype(np.float32)  # one power alone is a root
        np.testing.assert_allclose(y, wanted, rtol=2.0**-22, err_msg=str(power))
        assert np.array_equal(np.signbit(y[~np.isnan(y)]), np.signbit(wanted[~np.isnan(y)]))
