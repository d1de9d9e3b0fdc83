"""A MaxPool by a large window is one by its rows and one by its columns, and others stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from builders import Graph
from helpers import verified

import tvmcnn
from tvmcnn.errors import VerifyError
from tvmcnn.fuse import separate_pools as separating
from tvmcnn.network import Node


def pooled(g: Graph, maps: int = 18, **attributes: Any) -> None:
    """Between convolutions, as spatial pyramids have them."""
    x = g.conv(g.input(2, 7, 14, 19), maps, (1, 1))
    g.output(g.conv(g.node("MaxPool", x, **attributes), 5, (1, 1)))


@pytest.mark.parametrize("maps", [18, 3])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [13, 13], "pads": [6, 6, 6, 6]},
        {"kernel_shape": [5, 7], "pads": [2, 3, 1, 2]},
        {"kernel_shape": [7, 6], "strides": [3, 2], "pads": [5, 0, 2, 4]},
        {"kernel_shape": [5, 4], "dilations": [2, 3], "pads": [0, 2, 3, 1]},
        {"kernel_shape": [9, 5], "strides": [2, 1], "ceil_mode": 1},
    ],
    ids=str,
)
def test_by_rows_and_by_columns(attributes: dict[str, Any], maps: int, target: str, tmp_path: Path) -> None:
    """In blocks of channels, and in plain layout."""
    g = Graph()
    pooled(g, maps, **attributes)
    compiled = verified(g.model(), tmp_path, target)
    columns, rows = [node for node in compiled.program.network.nodes if node.op == "MaxPool"]
    assert (columns["kernel_shape"], rows["kernel_shape"]) == (
        (attributes["kernel_shape"][0], 1),
        (1, attributes["kernel_shape"][1]),
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [5, 6], "strides": [5, 6]},  # reads each pixel once
        {"kernel_shape": [1, 13]},
    ],
    ids=str,
)
def test_others_stay(attributes: dict[str, Any], tmp_path: Path) -> None:
    g = Graph()
    pooled(g, **attributes)
    assert [node.op for node in verified(g.model(), tmp_path).program.network.nodes].count("MaxPool") == 1


def test_wrong_pads_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the pads in front of and behind the columns change places."""
    right = separating._along

    def wrong(node: Node, axis: int) -> dict[str, object]:
        top, left, bottom, end = node["pads"]
        turned = {**node.attributes, "pads": (top, end, bottom, left)}
        return right(dataclasses.replace(node, attributes=turned), axis)

    monkeypatch.setattr(separating, "_along", wrong)
    g = Graph()
    pooled(g, kernel_shape=[5, 7], pads=[2, 3, 1, 2])
    with pytest.raises(VerifyError):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")
