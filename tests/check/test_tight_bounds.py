"""The verification's bounds from the other side: not so wide that a plain error passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph
from helpers import Array, feeds
from onnx import numpy_helper

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.check.verify import verify_library

# A bound allows 8 standard deviations of a random walk of as many steps as there are roundings, each of half a unit of
# the largest value. Rounding errors are spread evenly over that half unit (1/√3 of it), partial sums are on average
# half as long as the whole and smaller than the largest output, and the largest of a few thousand errors lies between 3
# and 4 deviations: the bound comes to 15 to 30 times the largest error seen. Twice that is allowed.
WIDEST = 64.0


def convolution() -> onnx.ModelProto:
    g = Graph()
    g.output(g.conv(g.input(1, 18, 9, 10), 17, (5, 5), bias=False))
    return g.model()


def product() -> onnx.ModelProto:
    g = Graph()
    g.output(g.node("MatMul", g.input(7, 900), g.draw(900, 33)))
    return g.model()


def chain() -> onnx.ModelProto:
    """Errors of one layer that the next passes on."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 18, 9, 10), 20, (3, 3), bias=False))
    g.output(g.conv(x, 17, (3, 3), bias=False))
    return g.model()


def scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same with the last layer's weights larger by a factor, and so its output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weight = next(w for w in copy.graph.initializer if w.name == copy.graph.node[-1].input[1])
    weight.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weight) * factor).astype(np.float32), weight.name))
    return copy


def relative(found: Array, wanted: Array) -> float:
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


@pytest.mark.parametrize("build", [convolution, product, chain])
def test_an_error_well_above_rounding_is_refused(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    """A right library passes; the model whose output is larger by 64 times the rounding error seen is another one."""
    model = build()
    path = tvmcnn.compile(model, output=tmp_path / "x.so", verify=False, exact=True).path
    seen = 0.0
    for seed in range(3):
        x = next(iter(feeds(model, seed).values()))
        (wanted,) = reference(model, {"x0": x}).values()
        seen = max(seen, relative(tvmcnn.load(path)(x).astype(np.float64), wanted.astype(np.float64)))
    assert 0 < seen < 1e-5
    assert verify_library(path, model)[0].passed
    assert not verify_library(path, scaled(model, 1 + WIDEST * seen))[0].passed
