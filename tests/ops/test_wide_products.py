"""Products of so many columns that a row of sums has no room on the stack, and no halo to fill its last tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import draw, model_of, node

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.configs import STACK_LIMIT, DenseConfig

pytestmark = pytest.mark.slow

WIDTH = 65621  # no multiple of a vector, and one row of sums is more than STACK_LIMIT: AVX2's tiles are of few rows
DEPTH = 6


@pytest.mark.parametrize(
    ("columns", "rows", "tiles"),
    [
        (448, 4, 4),  # whole tiles
        (449, 4, 1),  # 5 tiles, the last cut short: computed as one
        (16384, 4, 147),  # 147 tiles of 112 by 4 rows: 263,424 bytes
        (16240, 4, 145),  # whole again
        (16241, 4, 1),  # 146 tiles: 261,632 bytes, which fit
        (65600, 1, 586),
    ],
)
def test_tiles_across(columns: int, rows: int, tiles: int) -> None:
    config = DenseConfig(112, rows)
    assert config.tiles_across(columns) == tiles
    if columns % 112:
        assert (4 * rows * (-(-columns // 112) * 112) > STACK_LIMIT) == (tiles > 1)


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
    assert all(DenseConfig(**kernel["config"]).tiles_across(WIDTH) > 1 for kernel in products)
    wanted = reference(model, feeds)
    for info, found in zip(net.outputs, net.run(None, feeds), strict=True):
        # A softmax divides by a sum of WIDTH terms, which 8 lanes or more have added up, each rounding by 2^-24.
        allowed = 2e-6 + (WIDTH / 8 * 2.0**-24 if info.name == softmax else 0)
        assert np.abs(found - wanted[info.name]).max() <= allowed * np.abs(wanted[info.name]).max(), info.name
