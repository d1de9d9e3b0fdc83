"""Where a weight of a half type is expanded once for several tiles: threads keep their tasks, scratch has its bytes."""

from __future__ import annotations

import dataclasses

import pytest
from builders import Graph

from tvmcnn.choose.cpu import choose
from tvmcnn.choose.cpu.expanded_weights import BAND, ENOUGH_TASKS, FEWEST_TASKS
from tvmcnn.choose.records import NONE
from tvmcnn.configs import DirectConfig
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Choice
from tvmcnn.targets import TARGETS


def chosen(kind: str, shape: tuple[int, ...], maps: int, target: str = "x86-64-v4", **attributes: int) -> Choice:
    g = Graph()
    g.output(g.conv(g.input(*shape), maps, (3, 3), **attributes))
    network = simplified(import_model(g.model(), weights=kind))
    choices = choose(network, fuse(network), TARGETS[target], NONE, exact=True)
    return next(choice for choice in choices if choice.kernel.anchor.op == "Conv")


def test_more_bands() -> None:
    """A large image is cut into so many bands that threads have enough tasks, none of them too small."""
    whole, half = chosen("fp32", (1, 64, 58, 59), 64), chosen("fp16", (1, 64, 58, 59), 64)
    assert (whole.expanded, half.expanded) == (False, True)
    assert half.tasks >= ENOUGH_TASKS
    config = half.numbers(DirectConfig)
    assert config.bands > whole.numbers(DirectConfig).bands
    assert 56 * 57 / config.bands >= BAND
    assert half.scratch_bytes == config.vectors * 64 * 64 * 9  # a tile's maps of 64 channels, 3 x 3 taps


@pytest.mark.parametrize("shape", [(1, 64, 16, 17), (1, 96, 6, 5)])
def test_as_it_is_read(shape: tuple[int, ...]) -> None:
    """The choice stays as it was where too few tiles read a weight, or too few tasks would be left."""
    whole, half = chosen("fp32", shape, 48), chosen("bf16", shape, 48)
    assert not half.expanded
    assert dataclasses.replace(half, kernel=whole.kernel) == whole


def test_several_images() -> None:
    """Each image has tasks of its own: no bands."""
    half = chosen("fp16", (4, 64, 16, 17), 96, "x86-64-v3")
    assert half.expanded
    assert half.numbers(DirectConfig).bands == 1
    assert half.tasks >= FEWEST_TASKS


def test_too_large_for_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS["x86-64-v4"]
    assert chosen("fp16", (1, 64, 58, 59), 64).expanded
    monkeypatch.setitem(TARGETS, target.name, dataclasses.replace(target, l2_bytes=50_000))
    assert not chosen("fp16", (1, 64, 58, 59), 64).expanded


def test_depthwise() -> None:
    """One that waits for its image is left alone."""
    assert not chosen("fp16", (1, 180, 28, 29), 180, group=180).expanded
