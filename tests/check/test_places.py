"""Operators that read at computed places: which answers a right library may give where a place is beside a tie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from builders import model_of, node

from tvmcnn.check.factors import Factors
from tvmcnn.check.jumps import admissible
from tvmcnn.check.observe import Observed
from tvmcnn.check.reference import reference
from tvmcnn.check.reference_ops.regions import roi_align
from tvmcnn.check.verify import Verdict, compare
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Array, Node


def step(op: str, **attributes: Any) -> Node:
    return Node(op, op, ("x", "z"), "y", attributes)


def judged(proto: onnx.ModelProto, inputs: dict[str, Array], spoil: Callable[[dict[str, Array]], None]) -> Verdict:
    """The verdict on NumPy's own float32 results, spoilt by a planted error."""
    network = simplified(import_model(proto))
    values = {name: np.array(array) for name, array in reference(proto, inputs, every_tensor=True).items()}
    spoil(values)
    outputs = tuple(values[tensor.name] for tensor in network.outputs)
    return compare(Observed(values, outputs), network, proto, inputs, Factors(), 0)


NEAREST = {"mode": "nearest", "padding_mode": "zeros", "align_corners": True}


def test_a_pixel_across_a_tie_may_stand_for_the_nearest() -> None:
    """Either pixel of a place beside the middle of two, any of four of one beside a corner, none other of another."""
    x = np.arange(25, dtype=np.float64).reshape(1, 1, 5, 5)
    places = np.array([[1.5 + 1e-9, 2], [1.5 - 1e-9, 2.5 + 1e-9], [1.4, 2]]) / 2 - 1  # column and row
    node, grid = step("GridSample", **NEAREST), places.reshape(1, 1, 3, 2)
    expected = np.array([12, 16, 11]).reshape(1, 1, 1, 3).astype(np.float64)
    for found, right in (
        ((11, 11, 11), (True, True, True)),
        ((12, 12, 12), (True, True, False)),
        ((13, 17, 10), (False, True, False)),
        ((11.001, 13, 0), (False, False, False)),
    ):
        answer = np.array(found, np.float64).reshape(1, 1, 1, 3)
        assert admissible(node, [x, grid], [0.0, 0.0], expected, answer).reshape(-1).tolist() == list(right)
    moved = np.full(expected.shape, 12.0)
    assert admissible(node, [x, grid], [0.0, 0.1], expected, moved).reshape(-1).tolist() == [True, True, True]


def test_a_bin_of_one_sample_more_may_stand_for_another() -> None:
    """A bin of 2 pixels, as float32 rounds, has two samples a side or three; never one, nor another region's."""
    x = np.random.default_rng(3).standard_normal((1, 2, 12, 13))
    words = {"mode": "avg", "output_height": 3, "output_width": 3, "spatial_scale": 1.0}
    words["coordinate_transformation_mode"] = "half_pixel"
    rois = np.array([[1.3, 1.2, 7.3 + 1e-9, 7.2 + 1e-9], [1.3, 1.2, 7.1, 6.9]])
    node, given = step("RoiAlign", sampling_ratio=0, **words), [x, rois, np.zeros(2, np.int64)]

    def sampled(ratio: int) -> Array:
        return np.asarray(roi_align(*given, sampling_ratio=ratio, **words))

    for ratio, right in ((0, [True, True]), (2, [True, True]), (3, [True, False]), (1, [False, False])):
        may = admissible(node, given, [0.0, 0.0, 0.0], sampled(0), sampled(ratio), 1e-6)
        assert may.all(axis=(1, 2, 3)).tolist() == right, ratio
    assert not admissible(node, given, [0.0, 0.0, 0.0], sampled(0), sampled(0)[::-1], 1e-6).all()


def test_places_beside_ties_are_excused_and_wrong_pixels_are_not() -> None:
    """A library that takes the other pixel at a place that rounding moves; and one that does at any other place."""
    nodes = [node("Sin", "g", "s"), node("GridSample", "x s", "y", mode="nearest", align_corners=1)]
    proto = model_of(nodes, {"x": (1, 3, 5, 7), "g": (1, 20, 20, 2)}, {"y": (None,) * 4}, opset=20)
    rng = np.random.default_rng(5)
    x, grid = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 3, 5, 7), (1, 20, 20, 2)))
    grid[0, 3, 4] = np.arcsin(np.float32(2.5 / 3 - 1)), 0  # column 2.5 of row 2

    def spoiled(column: int, row: int, pixel: int) -> Any:
        def spoil(found: dict[str, Array]) -> None:
            found["y"][0, :, row, column] = x[0, :, 2, pixel]

        return spoil

    for column, row, pixel, right in ((4, 3, 2, True), (4, 3, 3, True), (4, 3, 4, False), (5, 3, 3, False)):
        verdict = judged(proto, {"x": x, "g": grid}, spoiled(column, row, pixel))
        assert verdict.passed == right, (column, pixel, verdict)
