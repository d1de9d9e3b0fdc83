"""Products of so many columns that a row of sums has no room on the stack, and no halo to fill its last tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.configs import STACK_LIMIT, DenseConfig

WIDTH = 18385  # a recogniser's characters: 5 · 3677, no multiple of a vector
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
    nodes, weights, outputs = [], [], []
    for index, (lead, epilogue) in enumerate(
        [((3, 5), "bias"), ((1, 8), "Relu"), ((2, 7), "residual"), ((28,), "residual"), ((1, 1, 4), "Softmax")]
    ):
        x, w, b, m, y = (f"{letter}{index}" for letter in "xwbmy")
        feeds[x] = rng.standard_normal((*lead, DEPTH)).astype(np.float32)
        weights += [numpy_helper.from_array(rng.standard_normal((DEPTH, WIDTH)).astype(np.float32), w)]
        weights += [numpy_helper.from_array(rng.standard_normal(WIDTH).astype(np.float32), b)]
        nodes += [helper.make_node("MatMul", [x, w], [m]), helper.make_node("Add", [m, b], [f"s{index}"])]
        if epilogue == "residual":
            feeds[f"r{index}"] = rng.standard_normal((*lead, WIDTH)).astype(np.float32)
            nodes.append(helper.make_node("Add", [f"s{index}", f"r{index}"], [y]))
        elif epilogue == "Softmax":
            nodes.append(helper.make_node("Softmax", [f"s{index}"], [y], axis=-1))
        else:
            nodes.append(helper.make_node("Relu" if epilogue == "Relu" else "Identity", [f"s{index}"], [y]))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, (*lead, WIDTH)))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in feeds.items()]
    graph = helper.make_graph(nodes, "wide", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tvmcnn.compile(model, output=tmp_path / "wide.so", verify=False, activations=False)
    net = tvmcnn.load(tmp_path / "wide.so", threads=2)
    products = [kernel for kernel in net.manifest["kernels"] if kernel["algorithm"] == "dense"]
    assert len(products) == 5
    assert all(DenseConfig(**kernel["config"]).tiles_across(WIDTH) > 1 for kernel in products)
    wanted = reference(model, feeds)
    for info, found in zip(net.outputs, net.run(None, feeds), strict=True):
        assert np.abs(found - wanted[info.name]).max() <= 2e-6 * np.abs(wanted[info.name]).max(), info.name
