"""Winograd's tiles before a pool that leaves out the last row or column: as many as the pool reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from builders import Graph

import tvmcnn
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import NONE
from tvmcnn.codegen.cpu.kernels import scheduled
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import pack
from tvmcnn.network import Node, Step, Tensor
from tvmcnn.targets import TARGETS
from tvmcnn.tuning.space import ordered
from tvmcnn.winograd import grid, halo

pytestmark = pytest.mark.slow


def pooled(height: int, width: int, maps: int = 48, window: int = 2) -> onnx.ModelProto:
    """Conv 3 x 3 of 16 channels, Relu, MaxPool."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, height, width), maps, (3, 3), pads=[1, 1, 1, 1]))
    g.output(g.node("MaxPool", x, kernel_shape=[window, window], strides=[window, window]))
    return g.model()


@pytest.mark.parametrize(("height", "width"), [(27, 25), (13, 9), (11, 22)])
def test_a_library_is_right(height: int, width: int, target: str, tmp_path: Path) -> None:
    made = tvmcnn.compile(pooled(height, width, 128), target, tmp_path / "net.so", own_records=False)
    assert "winograd" in {step.choice.algorithm for step in made.program.steps}
    assert made.verdict is not None and made.verdict.passed


@pytest.mark.parametrize(("height", "width", "window"), [(13, 9, 2), (11, 22, 2), (15, 21, 4)])
def test_every_candidate_can_be_scheduled(height: int, width: int, window: int) -> None:
    """27 x 25 pixels had 49 tiles, of which the pool read 42 in strips of 49."""
    target = TARGETS["x86-64-v3"]
    network = simplified(import_model(pooled(height, width, 32, window)))
    choices = choose(network, fuse(network), target, NONE)
    (conv,) = (choice for choice in choices if choice.kernel.anchor.op == "Conv")
    tried = ordered(network, conv, target)
    assert {"winograd", "streamed", "direct"} <= {choice.rule for choice in tried}
    for choice in tried:
        packed = {name: Tensor(name, a.shape, str(a.dtype)) for name, a in pack(choice, network.constants)}
        scheduled(Step(choice, packed, ()), target)


def test_tiles_and_halo() -> None:
    node = Node("Conv", "conv", ("x", "w"), "y", {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)})
    assert grid(node, (1, 16, 27, 25), 4) == (7, 7)
    assert grid(node, (1, 16, 27, 25), 4, (2, 2)) == (7, 6)
    assert halo(node, (1, 16, 27, 25), 4, (2, 2)) == (1, 1, 2, 0)
    assert grid(node, (1, 16, 15, 21), 4, (4, 4)) == (3, 5)
    assert halo(node, (1, 16, 15, 21), 4, (4, 4)) == (1, 1, 0, 0)  # the tiles end three rows before the image does
    wide = Node("Conv", "conv", ("x", "w"), "y", {"kernel_shape": (5, 5), "pads": (2, 1, 2, 0)})
    assert grid(wide, (1, 16, 27, 26), 2) == (14, 12)
    assert halo(wide, (1, 16, 27, 26), 2) == (2, 1, 3, 1)
    assert grid(wide, (1, 16, 27, 26), 2, (2, 2)) == (13, 11)
    assert halo(wide, (1, 16, 27, 26), 2, (2, 2)) == (2, 1, 1, 0)
