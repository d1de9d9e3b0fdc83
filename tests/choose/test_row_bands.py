"""Bands: convolutions cut by rows first compute what they compute cut by maps, and threads then keep to their rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from builders import Graph
from helpers import check, feeds, record, same_bits_in_any_memory

import tvmcnn
from tvmcnn.choose.cpu import tasks
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.compiler import Compiled
from tvmcnn.targets import resolve

pytestmark = pytest.mark.slow


def chain(batch: int = 1, maps: int = 50) -> onnx.ModelProto:
    """1x1, depthwise and 1x1 with a residual on 24 x 31 pixels, as in a MobileNet."""
    g = Graph()
    x = g.conv(g.input(batch, 3, 24, 31), 36, (1, 1))
    y = g.node("Relu", g.conv(x, maps, (1, 1)))
    y = g.node("Relu", g.conv(y, maps, (3, 3), group=maps, pads=[1, 1, 1, 1]))
    z = g.node("Relu", g.node("Add", g.conv(y, 36, (1, 1)), x))
    g.output(g.conv(z, 21, (2, 3), pads=[0, 1, 1, 1]))
    return g.model()


def bands(compiled: Compiled) -> list[int]:
    return [step.choice.config.bands for step in compiled.program.steps if step.choice.rule == "direct"]


def test_agrees_with_numpy(target: str, tmp_path: Path) -> None:
    compiled = check(chain(), tmp_path, target)
    assert all(each > 1 for each in bands(compiled)), bands(compiled)
    for step in compiled.program.steps:
        if step.choice.rule == "direct":
            assert tasks.cut_by_rows(step.choice)
            assert tasks.outer_loops(step.choice, resolve(target))[:2] == (1, step.choice.config.bands)


@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_on_threads(threads: int, tmp_path: Path) -> None:
    """With halos that each thread zeroes a part of, in memory full of NaNs."""
    model = chain()
    compiled = tvmcnn.compile(model, output=tmp_path / "chain.so")
    x = next(iter(feeds(model).values()))
    same_bits_in_any_memory(x, [tvmcnn.load(compiled.path, threads=count) for count in (1, threads)])


def test_many_weights_are_not_read_for_each_band(tmp_path: Path) -> None:
    """480 x 500 weights for 6 x 7 pixels; the depthwise convolution behind keeps to the maps it reads."""
    g = Graph()
    x = g.node("Relu", g.conv(g.conv(g.input(1, 3, 6, 7), 480, (1, 1)), 500, (1, 1)))
    g.output(g.conv(x, 500, (3, 3), group=500, pads=[1, 1, 1, 1]))
    assert set(bands(tvmcnn.compile(g.model(), output=tmp_path / "deep.so", verify=False))[1:]) == {1}


def test_images_of_a_batch_are_cut_by_images(tmp_path: Path) -> None:
    assert set(bands(tvmcnn.compile(chain(batch=2), output=tmp_path / "batch.so", verify=False))) == {1}


def test_records_do_not_decide(tmp_path: Path) -> None:
    """Records' times are those of one thread: they say nothing of bands."""
    plain = tvmcnn.compile(chain(), output=tmp_path / "plain.so", verify=False)
    steps = [step for step in plain.program.steps if step.choice.rule == "direct"]
    words = [kernel_words(plain.program.network, step.choice.kernel) for step in steps]
    path = tmp_path / "records.jsonl"
    for count in (1, 3):
        configs = [dataclasses.asdict(step.choice.config) | {"bands": count} for step in steps]
        path.write_text("".join(record(*each) for each in zip(words, ["direct"] * len(words), configs, strict=True)))
        found = tvmcnn.compile(chain(), output=tmp_path / "found.so", records=[path])
        assert {step.choice.tier for step in found.program.steps if step.choice.rule == "direct"} == {"given record"}
        assert bands(found) == bands(plain)


def test_a_convolution_of_a_constant(tmp_path: Path) -> None:
    """Too large to be folded, it has no image among its inputs."""
    g = Graph()
    x = g.input(3, 17, 60, 61)
    y = g.conv(g.node("Tanh", g.node("Div", g.draw(1, 17, 60, 61), g.draw(3, 17, 1, 1))), 24, (2, 1))
    g.output(g.node("Relu", x), y)
    verdict = tvmcnn.compile(g.model(), output=tmp_path / "net.so").verdict
    assert verdict is not None and verdict.passed
