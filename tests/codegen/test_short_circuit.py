"""Conditions whose tests of indices guard the reads behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from builders import model_of, node
from helpers import verified
from tvm import tirx

import tvmcnn
from tvmcnn.codegen.cpu import llvm
from tvmcnn.codegen.cpu.short_circuit import short_circuited
from tvmcnn.errors import VerifyError


def condition(test: Any) -> str:
    """The condition of a statement, as it is left."""
    body = tirx.IfThenElse(test, tirx.Evaluate(tirx.const(0)), None)
    return str(short_circuited(body).condition)


def test_tests_of_indices_come_first() -> None:
    x = tirx.decl_buffer((7,), "int32", "x")
    i, n = tirx.Var("i", "int32"), tirx.Var("n", "int32")
    read, below, above = x[i - 1] > 3, i < n, i >= 1
    assert condition(tirx.all(below, above)) == str(tirx.all(below, above))
    assert condition(tirx.all(read, x[0] > 5)) == str(tirx.all(read, x[0] > 5))
    false, true = tirx.const(False, "bool"), tirx.const(True, "bool")
    assert condition(tirx.all(below, above, read)) == str(tirx.if_then_else(tirx.all(below, above), read, false))
    assert condition(tirx.any(read, below)) == str(tirx.if_then_else(below, true, read))


def test_a_test_guards_every_read_behind_it() -> None:
    """Also the one of an `and` around it."""
    x = tirx.decl_buffer((7,), "int32", "x")
    i = tirx.Var("i", "int32")
    reads = (x[i] > 3, x[i + 1] > 5)
    nested = tirx.And(tirx.And(i < 6, reads[0]), reads[1])
    wanted = tirx.if_then_else(i < 6, tirx.And(*reads), tirx.const(False, "bool"))
    assert condition(nested) == str(wanted)


def test_vectors_are_left() -> None:
    x = tirx.decl_buffer((8,), "int32", "x")
    lanes = tirx.Ramp(0, 1, 4)
    test = tirx.And(lanes < tirx.Broadcast(tirx.const(3), 4), x[lanes] > tirx.Broadcast(tirx.const(1), 4))
    store = tirx.BufferStore(x, tirx.Select(test, x[lanes], x[lanes]), [lanes])
    assert str(short_circuited(store)) == str(store)


def pool_with_indices(length: int) -> onnx.ModelProto:
    """A window whose last tap lies behind x, where a page begins that nobody may read."""
    nodes = [node("MaxPool", "x", "y places", kernel_shape=[3], pads=[1, 1])]
    return model_of(nodes, {"x": (4, 3, length)}, {"y": None, "places": None}, opset=21)


@pytest.mark.parametrize("length", [15, 17])
def test_indices_of_a_pool_stay_inside(length: int, tmp_path: Path) -> None:
    verified(pool_with_indices(length), tmp_path, "x86-64-v3")


def test_the_pass_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCNN_CACHE", "off")
    monkeypatch.setattr(llvm, "short_circuited", lambda body: body)
    with pytest.raises(VerifyError, match="reads or writes outside of its memory"):
        tvmcnn.compile(pool_with_indices(15), "x86-64-v3", tmp_path / "x.so", jobs=1)
