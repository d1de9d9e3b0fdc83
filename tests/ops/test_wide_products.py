"""Products of so many columns that a row of sums has no room on the stack, and no halo to fill its last tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import draw, model_of, node

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.configs import DenseConfig

pytestmark = pytest.mark.slow

WIDTH = 65621  # no multiple of a vector; a row of sums has no room on the stack
DEPTH = 6


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (336, [0, 112, 224]),
        (337, [0, 112, 224, 225]),  # the last tile begins where it ends with the row
        (112, [0]),
        (40, [0]),  # a lone tile is wider than the row
    ],
)
def test_first_columns(columns: int, first: list[int]) -> None:
    assert DenseConfig(112, 4).first_columns(columns) == first


def test_rows_of_no_whole_tiles(tmp_path: Path) -> None:
    """A stack of matrices, few rows and many, with a bias, an activation, and a second tensor in the epilogue."""
    rng = np.random.default_rng(3)
    feeds: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    nodes, outputs = [], {}
    for index, (lead, epilogue) in enumerate(
        [((3, 5), "bias"), ((1, 8), "Relu"), ((2, 7), "residual"), ((28,), "residual"), ((1, 1, 4), "Softmax")]
    ):
        x, w, b, m, y = (f"{letter}{index}" for letter in "xwbmy")
        feeds[x] = draw(rng, *lead, DEPTH)
        weights |= {w: draw(rng, DEPTH, WIDTH), b: draw(rng, WIDTH)}
        nodes += [node("MatMul", [x, w], m), node("Add", [m, b], f"s{index}")]
        if epilogue == "residual":
            feeds[f"r{index}"] = draw(rng, *lead, WIDTH)
            nodes.append(node("Add", f"s{index} r{index}", y))
        elif epilogue == "Softmax":
            softmax = y
            nodes.append(node("Softmax", f"s{index}", y, axis=-1))
        else:
            nodes.append(node("Relu" if epilogue == "Relu" else "Identity", f"s{index}", y))
        outputs[y] = (*lead, WIDTH)
    model = model_of(nodes, feeds, outputs, weights, name="wide")
    tvmcnn.compile(model, output=tmp_path / "wide.so", verify=False, activations=False)
    net = tvmcnn.load(tmp_path / "wide.so", threads=2)
    products = [kernel for kernel in net.manifest["kernels"] if kernel["algorithm"] == "dense"]
    assert len(products) == 5
    assert all(WIDTH % kernel["config"]["width"] for kernel in products)
    wanted = reference(model, feeds)
    for info, found in zip(net.outputs, net.run(None, feeds), strict=True):
        # A softmax divides by a sum of WIDTH terms, which 8 lanes or more have added up, each rounding by 2^-24.
        allowed = 2e-6 + (WIDTH / 8 * 2.0**-24 if info.name == softmax else 0)
        assert np.abs(found - wanted[info.name]).max() <= allowed * np.abs(wanted[info.name]).max(), info.name


def test_a_scalar_seen_as_a_matrix(tmp_path: Path) -> None:
    """Flatten makes 1 x 1 of it, in the same memory."""
    nodes = [node("Flatten", "x", "row", axis=0), node("MatMul", "row weight", "y")]
    weight = np.arange(1, 11, dtype=np.float32).reshape(1, 10)
    model = model_of(nodes, {"x": ()}, "y", {"weight": weight})
    net = tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "x.so").path)
    np.testing.assert_array_equal(net(np.array(1.5, np.float32)), 1.5 * weight)
