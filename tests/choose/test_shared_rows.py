"""Large images that share their frames: all maps of a row before the next, with the same bits on any threads."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import Graph
from helpers import feeds, same_bits_in_any_memory, verified

import tvmcnn
from tvmcnn.compiler import Compiled


def along_frames(batch: int, rows: int, **attributes: list[int]) -> Graph:
    """A convolution along the frames of another's volume: 144 channels of an image, of which a frame has 48."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 3, 4, rows, 37), 48, (1, 1, 1)))
    g.output(g.conv(x, 147, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0], **attributes))
    return g


def rows_first(compiled: Compiled) -> bool:
    """True if the last convolution has all maps of a row of tiles before the next row."""
    choices = [step.choice for step in compiled.program.steps if step.choice.kernel.anchor.op == "Conv"]
    return bool(choices[-1].config.rows_first)


def test_agrees_with_numpy(target: str, tmp_path: Path) -> None:
    g = along_frames(1, 60)
    compiled = verified(g.model(), tmp_path, target)
    assert rows_first(compiled)
    # The frames with one of zeros on either side, the maps and the weights, each once
    last = next(kernel for kernel in tvmcnn.load(compiled.path).manifest["kernels"] if kernel["macs"] > 1 << 26)
    assert last["bytes"] == 4 * (6 * 48 * 60 * 37 + 4 * 160 * 60 * 37 + 160 * 144 + 160)
    x = next(iter(feeds(g.model()).values()))
    same_bits_in_any_memory(x, [tvmcnn.load(compiled.path, threads=count) for count in (1, 2, 3)])


@pytest.mark.parametrize(
    ("batch", "rows", "stride"), [(2, 60, 1), (1, 20, 1), (1, 60, 3)], ids=["copied", "small", "apart"]
)
def test_others_are_read_for_each_tile(batch: int, rows: int, stride: int, tmp_path: Path) -> None:
    """Copied images, small ones, and those that begin where the one before ends."""
    model = along_frames(batch, rows, strides=[stride, 1, 1]).model()
    compiled = tvmcnn.compile(model, output=tmp_path / "x.so", verify=False, target="x86-64-v4")
    assert not rows_first(compiled)
