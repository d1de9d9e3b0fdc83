"""Taps that meet padding alone are dropped, and nothing else is."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from builders import Graph, drawn
from helpers import verified

from tvmcnn.errors import VerifyError
from tvmcnn.fuse import drop_dead_taps as dropping
from tvmcnn.fuse import passes
from tvmcnn.fuse.drop_dead_taps import drop_dead_taps
from tvmcnn.importer import import_model
from tvmcnn.network import Network, Node


def convolution(network: Network) -> Node:
    (node,) = (node for node in network.nodes if node.op == "Conv")
    return node


def dropped(g: Graph) -> Node:
    return convolution(drop_dead_taps(import_model(g.model())))


@pytest.mark.parametrize(
    ("extent", "kernel", "attributes", "left", "pads"),
    [
        ((16, 20), (3, 3), {"dilations": [24, 36], "pads": [24, 36, 24, 36]}, (1, 1), (0, 0, 0, 0)),
        ((16, 20), (3, 3), {"dilations": [12, 24], "pads": [12, 24, 12, 24]}, (3, 1), (12, 0, 12, 0)),
        ((16, 20), (3, 3), {"dilations": [12, 12], "pads": [12, 12, 12, 12]}, (3, 3), (12, 12, 12, 12)),
        ((1, 9), (3, 5), {"pads": [1, 2, 1, 2]}, (1, 5), (0, 2, 0, 2)),
        ((2, 11), (5, 4), {"pads": [2, 1, 2, 0]}, (3, 4), (1, 1, 1, 0)),
        ((3, 7), (4, 3), {"pads": [3, 1, 0, 1], "strides": [1, 2]}, (3, 3), (2, 1, 0, 1)),
        ((5, 8), (3, 3), {"dilations": [7, 1], "pads": [5, 1, 9, 1]}, (3, 3), (5, 1, 9, 1)),
        ((4, 6), (2, 3), {"dilations": [9, 1], "pads": [5, 0, 3, 2]}, (2, 3), (5, 0, 3, 2)),
        ((8,), (3,), {"dilations": [16], "pads": [16, 16]}, (1,), (0, 0)),
        ((2, 3, 5), (3, 3, 3), {"dilations": [4, 1, 2], "pads": [4, 1, 2, 4, 1, 2]}, (1, 3, 3), (0, 1, 2, 0, 1, 2)),
    ],
)
def test_what_is_left(
    extent: tuple[int, ...],
    kernel: tuple[int, ...],
    attributes: dict[str, list[int]],
    left: tuple[int, ...],
    pads: tuple[int, ...],
    tmp_path: Path,
) -> None:
    """And what is left computes the same, as every compile verifies."""
    g = Graph()
    g.output(g.conv(g.input(12, 17, *extent), 33, kernel, **attributes))
    node = dropped(g)
    assert (node["kernel_shape"], node["pads"]) == (left, pads)
    verified(g.model(), tmp_path)


def test_no_window_is_one_too_small() -> None:
    """Beside a count of the taps that meet a pixel, for every small window; outputs keep their number."""
    numbers = itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3), (1, 2, 4), (0, 1, 2, 3, 5), (0, 1, 2, 4))
    shorter = 0
    for extent, taps, stride, dilation, begin, end in numbers:
        made = (extent + begin + end - (taps - 1) * dilation - 1) // stride + 1
        if made < 1:
            continue
        first, last, before, after = dropping._along(extent, made, taps, stride, dilation, begin, end)
        for tap in (*range(first), *range(last, taps)):
            assert not any(0 <= y * stride + tap * dilation - begin < extent for y in range(made))
        assert min(before, after) >= 0
        assert (extent + before + after - (last - first - 1) * dilation - 1) // stride + 1 == made
        assert before == begin - first * dilation
        shorter += last - first < taps
    assert shorter > 100


def test_no_tap_that_is_no_number_goes() -> None:
    """Infinity times the zeros of the padding is NaN, which the user shall see."""
    for value, left in ((np.inf, (3, 3)), (np.nan, (3, 3)), (1e30, (1, 1))):
        g = Graph()
        array = drawn(9, 5, 3, 3)
        array[2, 3, 0, 1] = value
        weight = g.constant(array)
        g.output(g.node("Conv", g.input(1, 5, 4, 6), weight, dilations=[8, 8], pads=[8, 8, 8, 8]))
        assert dropped(g)["kernel_shape"] == left


def test_a_window_that_is_moved_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong tap of three stays."""

    def moved(network: Network) -> Network:
        right = drop_dead_taps(network)
        node = convolution(right)
        wrong = network.constants[convolution(network).inputs[1]][:, :, 0:1, 0:1]
        return dataclasses.replace(right, constants={**right.constants, node.inputs[1]: np.ascontiguousarray(wrong)})

    monkeypatch.setattr(passes, "PASSES", (moved, *passes.PASSES[1:]))
    g = Graph()
    g.output(g.conv(g.input(1, 17, 5, 7), 20, (3, 3), dilations=[9, 9], pads=[9, 9, 9, 9]))
    with pytest.raises(VerifyError):
        verified(g.model(), tmp_path)


def test_a_network_without_dead_taps_is_the_same_object() -> None:
    g = Graph()
    g.output(g.conv(g.input(1, 17, 5, 7), 20, (3, 3), pads=[1, 1, 1, 1]))
    network = import_model(g.model())
    assert drop_dead_taps(network) is network
