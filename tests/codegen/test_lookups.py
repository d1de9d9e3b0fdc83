"""Vectors of bytes out of a table of 256: the instructions, every byte, and what is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import TARGETS
from quantised import TYPES, Quantised
from tvm import tirx

import tvmcnn
from tvmcnn.codegen.cpu import lookups
from tvmcnn.codegen.cpu.lookups import looked_up
from tvmcnn.errors import VerifyError

WIDE = "x86-64-v4"
needs_avx512 = pytest.mark.skipif(WIDE not in TARGETS, reason="no AVX-512 here")


def shuffled(count: int, x_type: str, y_type: str) -> tuple[onnx.ModelProto, np.ndarray[Any, Any], str]:
    """A table of another byte for every one; all of them, over and over, and the model's output."""
    g = Quantised(3)
    x = g.source(3, count, dtype=x_type)
    y = g.up(g.node("Neg", x), 0.0234, np.array(3, y_type))
    given = np.resize(np.arange(256, dtype=np.uint8).view(x_type), (3, count))
    return g.finished(y, dtype=y_type), given, y


@pytest.mark.parametrize("count", [1, 5, 6, 11, 16, 31, 32, 33, 171, 256])
@pytest.mark.parametrize("x_type", TYPES)
@pytest.mark.parametrize("y_type", TYPES)
def test_every_byte(count: int, x_type: str, y_type: str, target: str, tmp_path: Path) -> None:
    """At whole vectors, parts of one, and with the last cut short."""
    model, given, name = shuffled(count, x_type, y_type)
    found = tvmcnn.load(tvmcnn.compile(model, target, tmp_path / "q.so").path)(given)
    np.testing.assert_array_equal(found, tvmcnn.reference(model, given)[name])


def test_instructions(tmp_path: Path) -> None:
    """Pairs of bytes are permuted where AVX-512 is, and nowhere else; libraries for it are made anywhere."""
    model = shuffled(256, "uint8", "uint8")[0]
    for target in ("x86-64-v3", WIDE):
        compiled = tvmcnn.compile(model, target, tmp_path / "q.so", verify=False)
        text = compiled.code["asm"]()
        assert ("vpermi2w" in text or "vpermt2w" in text) is (target == WIDE)


def _swapped_halves(patch: pytest.MonkeyPatch) -> None:
    real = lookups._chosen
    patch.setattr(lookups, "_chosen", lambda table, dtype, half, pair: real(table, dtype, 1 - half, pair))


def _first_of_a_pair(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tirx, "shift_left", lambda value, by: tirx.shift_right(value, by))


@needs_avx512
@pytest.mark.parametrize("plant", [_swapped_halves, _first_of_a_pair])
def test_a_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, name = shuffled(256, "uint8", "uint8")
    tvmcnn.compile(model, WIDE, tmp_path / "q.so")
    plant(monkeypatch)
    with pytest.raises(VerifyError, match=rf"first tensor that differs from NumPy is {name}:"):
        tvmcnn.compile(model, WIDE, tmp_path / "wrong.so")


def test_what_is_left() -> None:
    """Tables of other sizes and types, and indices that are no bytes."""
    x = tirx.decl_buffer((64,), "uint8", "x")
    lanes = tirx.Ramp(0, 1, 32)
    for extent, table_type, index_type in ((255, "uint8", "uint8"), (256, "int16", "uint8"), (256, "uint8", "int8")):
        table = tirx.decl_buffer((extent,), table_type, "table")
        y = tirx.decl_buffer((64,), table_type, "y")
        bytes_ = tirx.BufferLoad(x, [lanes])
        index = tirx.Cast("int32x32", bytes_ if index_type == "uint8" else tirx.reinterpret("int8x32", bytes_))
        store = tirx.BufferStore(y, tirx.BufferLoad(table, [index]), [lanes])
        assert str(looked_up(store)) == str(store)
    table, y = (tirx.decl_buffer((256,), "uint8", name) for name in ("table", "y"))
    store = tirx.BufferStore(y, tirx.BufferLoad(table, [tirx.Cast("int32x32", tirx.BufferLoad(x, [lanes]))]), [lanes])
    assert str(looked_up(store)) != str(store)
