"""Images that become tokens and back are turned once, from blocks of channels and into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import Graph
from helpers import verified

from tvmcnn.compiler import Compiled
from tvmcnn.fuse.turn_images import REASON
from tvmcnn.network import TO_FIRST, TO_LAST

PIXELS = (5, 9)  # a width that fills no vectors, so that channels do


def copies(compiled: Compiled) -> list[str]:
    """The algorithms that move elements, in order."""
    moves = ("transpose", "reorder", "plain")
    return [step.choice.algorithm for step in compiled.program.steps if step.choice.algorithm in moves]


def flattened(g: Graph, x: str, perm: Sequence[int] = (0, 2, 1)) -> str:
    """An image as rows of tokens."""
    n, c, h, w = g.shape(x)
    return g.node("Transpose", g.node("Reshape", x, g.constant([n, c, h * w])), perm=perm)


def image(g: Graph, tokens: str) -> str:
    """Tokens as an image again."""
    n, _, c = g.shape(tokens)
    return g.node("Reshape", g.node("Transpose", tokens, perm=[0, 2, 1]), g.constant([n, c, *PIXELS]))


def convolved(g: Graph, channels: int, batch: int = 2) -> str:
    return g.node("Relu", g.conv(g.input(batch, 3, *PIXELS), channels, (1, 1)))


@pytest.mark.parametrize("channels", [32, 24, 20, 19])
@pytest.mark.parametrize("pads", [0, 1])
def test_nothing_else_is_copied(channels: int, pads: int, target: str, tmp_path: Path) -> None:
    """Whole blocks of channels, halves, quarters, single ones; with a halo for the convolution behind or none."""
    g = Graph()
    tokens = g.node("LayerNormalization", flattened(g, convolved(g, channels)), g.draw(channels), axis=-1)
    g.output(g.node("Exp", flattened(g, g.conv(image(g, tokens), 40, (1 + 2 * pads,) * 2, pads=[pads] * 4))))
    compiled = verified(g.model(), tmp_path, target)
    assert copies(compiled) == ["transpose"] * 3
    assert list(compiled.program.network.folded.values()) == [REASON] * 3
    assert {str(choice.writes)[:7] for choice in (step.choice for step in compiled.program.steps)} == {
        "NCHW16c",
        "plain",
    }
    turns = [node for node in compiled.program.network.nodes if node.op == "Transpose"]
    assert [node["perm"] for node in turns] == [TO_LAST, TO_FIRST, TO_LAST]


def test_channel_last_images(target: str, tmp_path: Path) -> None:
    """As ConvNeXt has them: the residual lies in blocks, and so does what is added to it."""
    g = Graph()
    x = convolved(g, 48)
    y = g.node("Transpose", g.conv(x, 48, (3, 3), pads=[1] * 4, group=48), perm=TO_LAST)
    y = g.node("MatMul", g.node("LayerNormalization", y, g.draw(48), axis=-1), g.draw(48, 48))
    y = g.node("Add", x, g.node("Transpose", y, perm=TO_FIRST))
    g.output(g.conv(y, 5, (1, 1)))
    compiled = verified(g.model(), tmp_path, target)
    assert copies(compiled).count("transpose") == 2
    (added,) = [step.choice for step in compiled.program.steps if "Add" in step.choice.kernel.ops.split("+")]
    assert all(layout.block == 16 for layout in added.reads)


@pytest.mark.parametrize("perm", [(0, 1, 3, 2), (0, 3, 1, 2)], ids=str)
def test_heads(perm: tuple[int, ...], target: str, tmp_path: Path) -> None:
    """Three heads of 16 channels, one after the other or pixel by pixel, on their way out of an image and back."""
    g = Graph()
    x = g.conv(g.input(2, 3, *PIXELS), 48, (1, 1))
    heads = g.node("Transpose", g.node("Reshape", x, g.constant([2, 3, 16, 45])), perm=perm)
    back = g.node("Transpose", g.node("Exp", heads), perm=[perm.index(axis) for axis in range(4)])
    g.output(g.conv(g.node("Reshape", back, g.constant([2, 48, *PIXELS])), 40, (3, 3), pads=[1] * 4))
    compiled = verified(g.model(), tmp_path, target)
    perms = [node["perm"] for node in compiled.program.network.nodes if node.op == "Transpose"]
    between = [(0, 2, 1, 3)] * 2 if perm == (0, 1, 3, 2) else []
    assert perms == [TO_LAST, *between, TO_FIRST]
    assert copies(compiled).count("transpose") == 2


def test_an_activation_before_the_convolution(tmp_path: Path) -> None:
    g = Graph()
    y = g.node("HardSwish", image(g, flattened(g, convolved(g, 32))))
    g.output(g.conv(y, 40, (3, 3), pads=[1] * 4))
    compiled = verified(g.model(), tmp_path)
    assert copies(compiled)[:2] == ["transpose", "transpose"]


def test_what_others_read_stays(tmp_path: Path) -> None:
    """The flat image is an output, and the flat tokens have a second reader."""
    g = Graph()
    x = convolved(g, 32)
    flat = g.node("Reshape", x, g.constant([2, 32, 45]))
    tokens = g.node("Exp", g.node("Transpose", flat, perm=[0, 2, 1]))
    back = g.node("Transpose", tokens, perm=[0, 2, 1])
    again = g.node("Reshape", back, g.constant([2, 32, *PIXELS]))
    g.output(flat, g.node("Neg", back), g.node("MaxPool", again, kernel_shape=[2, 2]))
    compiled = verified(g.model(), tmp_path)
    perms = [node["perm"] for node in compiled.program.network.nodes if node.op == "Transpose"]
    assert perms == [TO_LAST, (0, 2, 1), TO_FIRST]


def test_an_output_is_not_copied_again(tmp_path: Path) -> None:
    g = Graph()
    g.output(flattened(g, convolved(g, 32)))
    compiled = verified(g.model(), tmp_path)
    assert [node["perm"] for node in compiled.program.network.nodes if node.op == "Transpose"] == [(0, 2, 1)]


@pytest.mark.parametrize(
    ("flat", "perm"),
    [
        ((2, 32, 45), (1, 0, 2)),
        ((2, 32, 45), (2, 0, 1)),
        ((2, 2, 16, 45), (0, 2, 3, 1)),  # the heads last
        ((2, 2, 16, 45), (0, 2, 1, 3)),  # the pixels last
        ((2, 160, 9), (0, 2, 1)),  # channels and rows in one
        ((2, 8, 180), (0, 2, 1)),
    ],
    ids=str,
)
def test_others_stay(flat: tuple[int, ...], perm: tuple[int, ...], tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Transpose", g.node("Reshape", convolved(g, 32), g.constant(list(flat))), perm=perm))
    nodes = verified(g.model(), tmp_path).program.network.nodes
    assert [node["perm"] for node in nodes if node.op == "Transpose"] == [perm]


def test_other_types_stay_plain(tmp_path: Path) -> None:
    """Blocks hold float32 alone; an image in float64 is turned where it lies."""
    g = Graph()
    x = g.node("Cast", convolved(g, 32), to=11)
    g.output(g.node("Cast", g.node("Exp", flattened(g, x)), to=1))
    assert "transpose" not in copies(verified(g.model(), tmp_path))


def test_without_blocks_nothing_is_turned_into_them(tmp_path: Path) -> None:
    """Fewer channels than a block: the convolution behind reads them plain."""
    g = Graph()
    g.output(g.conv(image(g, g.node("Exp", flattened(g, convolved(g, 12)))), 6, (3, 3)))
    compiled = verified(g.model(), tmp_path)
    assert copies(compiled).count("transpose") <= 1
