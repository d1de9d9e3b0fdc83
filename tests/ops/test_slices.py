"""Slice's bounds: ONNX clamps them otherwise than Python where one goes backwards from before the first element."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from builders import model_of, node

import tvmcnn
from tvmcnn.check.reference_ops.move import slice_
from tvmcnn.importer.operators.move import _clamped

LEAST, MOST = -(2**63), 2**63 - 1


def by_the_text(start: int, end: int, step: int, extent: int) -> list[int]:
    """The elements that ONNX's text for Slice-13 names, one by one."""
    start, end = (place + extent if place < 0 else place for place in (start, end))
    if step > 0:
        start, end = int(np.clip(start, 0, extent)), int(np.clip(end, 0, extent))
    else:
        start, end = int(np.clip(start, 0, extent - 1)), int(np.clip(end, -1, extent - 1))
    found = []
    while (start < end if step > 0 else start > end) and 0 <= start < extent:
        found.append(start)
        start += step
    return found


def test_bounds_are_clamped_as_the_text_says() -> None:
    """The importer and the oracle do it each in a way of its own."""
    places = (*range(-7, 8), LEAST, MOST)
    for start, end, step, extent in itertools.product(places, places, (1, 2, 5, -1, -2, -5, LEAST), (0, 1, 4)):
        wanted = by_the_text(start, end, step, extent)
        assert [*_clamped(start, end, step, extent)] == wanted, (start, end, step, extent)
        given = (np.array([number]) for number in (start, end, 0, step))
        assert slice_(np.arange(extent), *given).tolist() == wanted, (start, end, step, extent)


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("bounds", [(-5, LEAST, -1), (-9, -9, -2), (-5, 2, -1), (7, LEAST, -3), (-3, MOST, 2)], ids=str)
def test_slices_are_those_of_onnxruntime(bounds: tuple[int, int, int], folds: bool, tmp_path: Path) -> None:
    """Slices of what is computed, and of a constant."""
    x = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    numbers = {
        name: np.array([value]) for name, value in zip(("s", "e", "a", "t"), (*bounds[:2], 1, bounds[2]), strict=True)
    }
    nodes = [node("Slice", "c s e a t" if folds else "x s e a t", "y"), node("ReduceSum", "y a", "z", keepdims=0)]
    nodes.append(node("Add", "z x0", "w"))
    given = {"x": x, "x0": np.array([2.5], np.float32)}
    model = model_of(nodes, given, ["w", "y"], numbers | ({"c": x} if folds else {}), opset=13)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    net = tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "net.so").path)
    for ours, theirs in zip(net.run(None, given), session.run(None, given), strict=True):
        np.testing.assert_array_equal(ours, theirs)
