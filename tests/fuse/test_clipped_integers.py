"""Clip between QuantizeLinear and DequantizeLinear: integers of fewer bits, bounded where they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantised import Quantised, equal, operators

from tvmcnn.fuse import clipped_integers

MAKERS: dict[str, Callable[[Quantised], str]] = {
    "Conv": lambda g: g.node("Relu", g.node("Conv", g.source(1, 5, 9, 7), g.weight(19, 5, 3, 2))),
    "MatMul": lambda g: g.node("MatMul", g.source(5, 33), g.weight(33, 17)),
    "Add": lambda g: g.node("Add", g.source(3, 5, 7, zero=3), g.source(3, 5, 7, scale=0.3)),
    "AveragePool": lambda g: g.node("AveragePool", g.source(1, 5, 9, 7), kernel_shape=[3, 2]),
    "Table": lambda g: g.node("Sigmoid", g.source(3, 5, 7, scale=0.1)),
}
RANGES = {"bits": (0, 15), "narrow": (1, 254), "one": (None, 31), "above": (90, 99), "crossed": (40, 20)}


def _model(name: str, low: int | None, high: int | None, scale: float) -> onnx.ModelProto:
    g = Quantised(5)
    bounds = ["" if each is None else g.array(np.uint8(each)) for each in (low, high)]
    q = g.node("Clip", g.up(MAKERS[name](g), scale, np.uint8(11)), *bounds)
    w = g.node("Mul", g.down(q, scale, np.uint8(11)), g.source(*g.shape(q)))
    return g.finished(q, g.up(w, 0.9, np.uint8(101)))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("bounds", RANGES)
def test_bounds(name: str, bounds: str, tmp_path: Path) -> None:
    """No kernel clips, but where the upper bound is the lower one: that is left as it is written."""
    model = _model(name, *RANGES[bounds], {"Conv": 4.0, "MatMul": 4.0, "Add": 0.1, "Table": 0.01}.get(name, 0.05))
    kernels = operators(equal(model, tmp_path))
    assert "Clip" not in kernels or (bounds == "crossed" and name != "Table")


def test_int8(target: str, tmp_path: Path) -> None:
    """Seven bits of a signed type."""
    g = Quantised(5)
    x = g.node("Conv", g.source(1, 5, 9, 7), g.weight(19, 5, 3, 2))
    y = g.node("Clip", g.up(x, 1.2, np.int8(-3)), g.array(np.int8(-64)), g.array(np.int8(63)))
    assert "Clip" not in operators(equal(g.finished(y, dtype="int8"), tmp_path, target))


def test_what_others_read_is_not_bounded(tmp_path: Path) -> None:
    g = Quantised(5)
    q = g.up(MAKERS["Conv"](g), 4.0, np.uint8(11))
    y = g.node("Clip", q, g.array(np.uint8(0)), g.array(np.uint8(15)))
    assert "Clip" in operators(equal(g.finished(q, y), tmp_path))


def test_a_bound_that_is_left_out_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the least integer stays what it was."""
    real = clipped_integers._bounded

    def planted(added: object, maker: object, clip: object) -> object:
        found = real(added, maker, clip)  # type: ignore[arg-type]
        assert found is not None
        return clipped_integers.dataclasses.replace(found, attributes={**found.attributes, "high": 255})

    monkeypatch.setattr(clipped_integers, "_bounded", planted)
    with pytest.raises(Exception, match="differ"):
        equal(_model("Conv", 0, 15, 4.0), tmp_path)
