"""Turns: two kernels that alternate, a group of maps at a time, compute what they compute one after the other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers import Graph, check, feeds, record, same_bits_in_any_memory

import tvmcnn
from tvmcnn import layout
from tvmcnn import turns as chosen
from tvmcnn.compiler import Compiled
from tvmcnn.errors import VerifyError
from tvmcnn.network import Turns
from tvmcnn.records import kernel_words


def pair(reader: str, batch: int = 1) -> onnx.ModelProto:
    """72 maps of 63 x 84 pixels, 1.5 MB, which no L2 of the targets holds, and what reads them one by one."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 3, 63, 84), 20, (1, 1)))
    y = g.node("Relu", g.conv(x, 72, (1, 1)))
    if reader == "depthwise":
        z = g.node("Relu", g.conv(y, 72, (3, 2), group=72, pads=[1, 0, 2, 1], strides=[2, 1]))
    else:
        z = g.node("MaxPool", y, kernel_shape=[3, 2], strides=[2, 2])
    g.output(g.conv(z, 17, (1, 1)), *([y] if reader == "output" else []))
    return g.model()


def turns(compiled: Compiled) -> list[tuple[int, int]]:
    """Groups of maps and bands of rows of the pairs that alternate."""
    found = [step.choice.turns for step in compiled.program.steps if step.choice.turns]
    return [(each.groups, len(each.bands)) for each in found]


@pytest.mark.parametrize("reader", ["depthwise", "pool"])
def test_agrees_with_numpy(reader: str, target: str, tmp_path: Path) -> None:
    """Step by step, where nothing alternates, the bits are the same; every hidden tensor can be seen."""
    assert turns(check(pair(reader), tmp_path, target)) == [(5, 2)]  # blocks of 16 maps, halves of the image


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_on_threads(threads: int, batch: int, tmp_path: Path) -> None:
    model = pair("depthwise", batch)
    compiled = tvmcnn.compile(model, output=tmp_path / "pair.so")
    assert turns(compiled) == [(5, 2) if batch == 1 else (10, 1)]
    x = next(iter(feeds(model).values()))
    same_bits_in_any_memory(x, [tvmcnn.load(compiled.path, threads=count) for count in (1, threads)])


def test_a_tensor_that_others_read_is_whole(tmp_path: Path) -> None:
    assert turns(tvmcnn.compile(pair("output"), output=tmp_path / "whole.so", verify=False)) == []


def test_small_maps_stay_in_cache_anyway(tmp_path: Path) -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 20, 31), 72, (1, 1))
    g.output(g.node("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2]))
    assert turns(tvmcnn.compile(g.model(), output=tmp_path / "small.so", verify=False)) == []


def test_scratch_is_one_group_of_maps(tmp_path: Path) -> None:
    compiled = tvmcnn.compile(pair("depthwise"), output=tmp_path / "pair.so", verify=False)
    (second,) = [step.choice for step in compiled.program.steps if step.choice.turns]
    assert compiled.program.thread_bytes * 5 == layout.stored_bytes(second.sources[0], second.reads[0])


def test_an_input_that_dies_early_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: the arena gives the first kernel's input away before the second is done."""
    plan = layout.plan

    def early(blocks: list[layout.Block]) -> int:
        for block in blocks:
            block.last = block.first + 1
        return plan(blocks)

    monkeypatch.setattr(layout, "plan", early)
    with pytest.raises(VerifyError):
        tvmcnn.compile(pair("depthwise"), output=tmp_path / "early.so")


def test_records_with_bands_of_their_own(tmp_path: Path) -> None:
    """The tuner measures each kernel alone, in bands; in turn with another it has those of the pair."""
    compiled = tvmcnn.compile(pair("depthwise"), output=tmp_path / "pair.so", verify=False)
    (i,) = [i for i, step in enumerate(compiled.program.steps) if step.choice.turns]
    network, records = compiled.program.network, tmp_path / "records.jsonl"
    lines = []
    for step, bands in zip(compiled.program.steps[i - 1 : i + 1], (3, 4), strict=True):
        choice = step.choice
        config = dataclasses.asdict(choice.config) | {"rows": 1, "bands": bands}
        lines.append(record(kernel_words(network, choice.kernel), "direct", config))
    records.write_text("".join(lines))
    again = tvmcnn.compile(pair("depthwise"), output=tmp_path / "again.so", records=[records])
    assert {step.choice.tier for step in again.program.steps[i - 1 : i + 1]} == {"given record"}
    assert turns(again) == turns(compiled) == [(5, 2)]


def test_a_band_that_lacks_a_row_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: the lower half's first window reads a row that the first kernel left out."""
    real = chosen._turns

    def short(*arguments: Any) -> Turns:
        made = real(*arguments)
        upper, (begin, end, *ours) = made.bands
        return dataclasses.replace(made, bands=(upper, (begin + 1, end, *ours)))

    monkeypatch.setattr(chosen, "_turns", short)
    with pytest.raises(VerifyError):
        tvmcnn.compile(pair("depthwise"), output=tmp_path / "short.so")
