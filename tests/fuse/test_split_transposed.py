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


@pytest.mark.parametrize("maps", [10, 5])
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        ((5, 4), {"strides": [2, 3], "pads": [0, 2, 1, 1]}),
        ((3, 2), {"strides": [2, 2], "output_padding": [1, 1]}),  # a row that no window reaches
        ((2, 7), {"strides": [1, 3], "pads": [0, 4, 1, 4]}),
        ((3, 5), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
    ids=str,
)
def test_a_convolution_of_each_phase(
    kernel: tuple[int, int], attributes: dict[str, Any], maps: int, target: str, tmp_path: Path
) -> None:
    """Where windows are not of whole strides, so that their taps differ by the phase."""
    g = Graph()
    g.output(transposed(g, kernel, maps, bias=maps == 10, **attributes))
    compiled = verified(g.model(), tmp_path, target)
    phases = attributes["strides"][0] * attributes["strides"][1]
    ops = [node.op for node in compiled.program.network.nodes]
    assert ops == ["Conv", *["Conv"] * phases, "Concat", "DepthToSpace", "Relu"]
    algorithms = {step.choice.kernel.anchor.op: step.choice.algorithm for step in compiled.program.steps}
    assert algorithms["Concat"] == ("view" if maps > 5 else "plain"), "maps of zeros fill blocks"
    assert algorithms["DepthToSpace"] == ("depth_to_space" if maps > 5 else "plain")


@pytest.mark.parametrize(("channels", "maps"), [(18, 8), (16, 1), (12, 5)])
def test_groups(channels: int, maps: int, target: str, tmp_path: Path) -> None:
    """In 2, each channel alone, and in 3."""
    g, group = Graph(), {18: 2, 16: 16, 12: 3}[channels]
    x = g.node("Relu", g.input(2, channels, 5, 7))
    operands = (g.draw(channels, maps, 4, 3), g.draw(group * maps))
    y = g.node("ConvTranspose", x, *operands, strides=[2, 2], pads=[1, 0, 1, 1], group=group)
    g.output(y)
    compiled = verified(g.model(), tmp_path, target)
    assert [node.op for node in compiled.program.network.nodes] == ["Relu", *["Conv"] * 4, "Concat", "DepthToSpace"]


@pytest.mark.parametrize(("maps", "batch"), [(21, 1), (6, 3)])
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((2, 2, 2), {"strides": [2, 2, 2]}),
        ((4, 2, 3), {"strides": [2, 2, 1], "pads": [1, 0, 1, 1, 0, 1]}),
        ((3, 3, 3), {"strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1], "output_padding": [1, 1, 1]}),
        ((6, 2, 4), {"strides": [3, 1, 2], "pads": [4, 0, 1, 2, 1, 1]}),
        ((1, 2, 2), {"strides": [1, 2, 2]}),
        ((3, 2, 3), {"pads": [1, 0, 1, 1, 1, 2]}),
    ],
    ids=str,
)
def test_volumes(kernel: tuple[int, ...], attributes: dict[str, Any], maps: int, batch: int, tmp_path: Path) -> None:
    """As 3-D U-Nets enlarge them: frames between convolutions, whose phases are those of frames too."""
    g = Graph()
    x = g.node("Relu", g.node("Conv", g.input(batch, 9, 4, 5, 7), g.draw(18, 9, 1, 1, 1)))
    y = g.node("ConvTranspose", x, g.draw(18, maps, *kernel), g.draw(maps), **attributes)
    g.output(g.node("Conv", g.node("Relu", y), g.draw(11, maps, 1, 1, 1)))
    compiled = verified(g.model(), tmp_path)
    plain = [step.choice for step in compiled.program.steps if step.choice.algorithm == "plain"]
    allowed = {"Transpose", "UnfoldFrames", *(("DepthToSpace", "Concat") if maps == 6 else ())}
    assert {choice.kernel.anchor.op for choice in plain} <= allowed


@pytest.mark.parametrize(("kernel", "pads"), [((3, 2), [1, 1, 1, 0]), ((1, 4), [0, 0, 0, 3])], ids=str)
def test_at_stride_1_there_is_no_move(kernel: tuple[int, int], pads: list[int], target: str, tmp_path: Path) -> None:
    g = Graph()
    g.output(transposed(g, kernel, pads=pads))
    compiled = verified(g.model(), tmp_path, target)
    assert [node.op for node in compiled.program.network.nodes] == ["Conv", "Conv", "Relu"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((2, 3), {"strides": [3, 3]}),  # two phases have a tap, one has none
        ((3, 2), {"pads": [3, 0, 0, 0]}),  # cuts more than it adds
        ((7, 9), {"strides": [5, 6]}),  # would be thirty convolutions
        ((4, 4), {"strides": [2, 2], "dilations": [1, 2]}),
    ],
    ids=str,
)
def test_others_stay(kernel: tuple[int, int], attributes: dict[str, Any], tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("ConvTranspose", g.input(1, 6, 5, 7), g.draw(6, 4, *kernel), **attributes))
    compiled = verified(g.model(), tmp_path)
    assert [node.op for node in compiled.program.network.nodes] == ["ConvTranspose"]


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
