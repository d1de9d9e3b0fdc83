"""Transposed convolutions become convolutions of the small image, where their windows are whole strides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import Graph
from helpers import verified

import tvmcnn
from tvmcnn.errors import VerifyError


def transposed(g: Graph, kernel: tuple[int, int], maps: int = 16, bias: bool = True, **attributes: Any) -> str:
    x = g.conv(g.input(2, 6, 5, 7), 18, (1, 1))
    operands = [x, g.draw(18, maps, *kernel), *([g.draw(maps)] if bias else [])]
    return g.node("Relu", g.node("ConvTranspose", *operands, **attributes))


@pytest.mark.parametrize("maps", [16, 10])
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((2, 2), {"strides": [2, 2]}),
        ((3, 3), {"strides": [3, 3], "pads": [0, 1, 2, 0]}),
        ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((2, 6), {"strides": [2, 2], "pads": [0, 3, 1, 2]}),
        ((6, 3), {"strides": [3, 3], "pads": [4, 0, 2, 1], "output_padding": [2, 1]}),
        ((4, 2), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((3, 4), {"strides": [1, 2], "pads": [1, 1, 0, 2]}),
        ((6, 2), {"strides": [3, 1], "pads": [2, 1, 4, 0], "output_padding": [1, 0]}),
    ],
    ids=str,
)
def test_a_convolution_and_a_move(
    kernel: tuple[int, int], attributes: dict[str, Any], maps: int, target: str, tmp_path: Path
) -> None:
    """In whole blocks of maps and not, compared with the reference's ConvTranspose."""
    g = Graph()
    g.output(transposed(g, kernel, maps, bias=maps == 16, **attributes))
    compiled = verified(g.model(), tmp_path, target)
    assert [node.op for node in compiled.program.network.nodes] == ["Conv", "Conv", "DepthToSpace", "Relu"]
    moved = [step.choice.algorithm for step in compiled.program.steps if step.choice.kernel.anchor.op == "DepthToSpace"]
    assert moved == ["depth_to_space" if maps == 16 else "plain"]


@pytest.mark.parametrize(("kernel", "pads"), [((3, 2), [1, 1, 1, 0]), ((1, 4), [0, 0, 0, 3])], ids=str)
def test_at_stride_1_there_is_no_move(kernel: tuple[int, int], pads: list[int], target: str, tmp_path: Path) -> None:
    g = Graph()
    g.output(transposed(g, kernel, pads=pads))
    compiled = verified(g.model(), tmp_path, target)
    assert [node.op for node in compiled.program.network.nodes] == ["Conv", "Conv", "Relu"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {"strides": [2, 2]}),  # two phases have one tap and two
        ((2, 2), {"strides": [2, 2], "output_padding": [1, 0]}),  # a row that no window reaches
        ((3, 2), {"pads": [3, 0, 0, 0]}),  # cuts more than it adds
        ((2, 2), {"strides": [2, 2], "group": 2}),
        ((4, 4), {"strides": [2, 2], "dilations": [1, 2]}),
    ],
    ids=str,
)
def test_others_stay(kernel: tuple[int, int], attributes: dict[str, Any], tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("ConvTranspose", g.input(1, 6, 5, 7), g.draw(6, 4, *kernel), **attributes))
    compiled = verified(g.model(), tmp_path)
    assert [node.op for node in compiled.program.network.nodes] == ["ConvTranspose"]


def test_volumes_stay(tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("ConvTranspose", g.input(1, 6, 5, 7, 4), g.draw(6, 3, 2, 2, 2), strides=[2, 2, 2]))
    assert [node.op for node in verified(g.model(), tmp_path).program.network.nodes] == ["ConvTranspose"]


def test_a_wrong_order_of_the_pixels_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the taps of a window transposed."""
    from tvmcnn.fuse import passes, split_transposed

    def wrong(network: Any) -> Any:
        found = split_transposed.split_transposed(network)
        (name,) = [n for n in found.constants if n.endswith(".pixels.weight")]
        pixels = found.constants[name].reshape(-1, 2, 2, 6).transpose(0, 2, 1, 3).reshape(found.constants[name].shape)
        found.constants[name] = pixels  # type: ignore[index]
        return found

    monkeypatch.setattr(passes, "PASSES", (wrong, *passes.PASSES[1:]))
    g = Graph()
    g.output(g.node("ConvTranspose", g.input(1, 6, 5, 7), g.draw(6, 4, 2, 2), strides=[2, 2]))
    with pytest.raises(VerifyError):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")
