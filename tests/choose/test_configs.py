"""Configs: what each field may be, and what becomes of one that is sound but does not fit its kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import Graph
from data import NVCC
from helpers import record

import tvmcnn
from tvmcnn import configs
from tvmcnn.blocks import BLOCK
from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import GIVEN, NONE, Records, parse
from tvmcnn.codegen.cuda import kernel as cuda
from tvmcnn.configs import CONFIGS, Config, DenseConfig, DirectConfig, GemmConfig, MmaConfig, WinogradConfig
from tvmcnn.errors import TvmcnnError
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Choice, Network
from tvmcnn.precision import ON_GPUS
from tvmcnn.schedule.cuda.fragments import SIDE
from tvmcnn.targets import TARGETS
from tvmcnn.tuning.journal import Log
from tvmcnn.tuning.problem import problems
from tvmcnn.tuning.search import State
from tvmcnn.tuning.space import key_of, neighbours
from tvmcnn.winograd import MATRICES

V3 = TARGETS["x86-64-v3"]
CLASSES = Config.__subclasses__()


@pytest.mark.parametrize("config", CLASSES, ids=lambda config: config.__name__)
def test_every_field_is_checked(config: type[Config]) -> None:
    """But the parts of a network in one kernel: they are choices, which no record has."""
    needed = {"parts": ()} if config is configs.WholeConfig else {}
    names = [field.name for field in dataclasses.fields(config) if field.name not in needed]
    for name, value in itertools.product(names, (None, -3, 1.5, 2.0, "2", "zz", [1], 10**9, 10**400)):
        with pytest.raises(ValueError, match=rf"^{name} is .{{1,60}}, but must be "):
            config(**{name: value}, **needed)


@pytest.mark.parametrize(
    ("config", "numbers", "reason"),
    [
        (DirectConfig, {"rows": 0}, "rows is 0, but must be at least 1"),
        (DirectConfig, {"rows": True}, "rows is True, but must be a whole number"),
        (DirectConfig, {"prefetch": 1}, "prefetch is 1, but must be false or true"),
        (DirectConfig, {"order": "rb rh rw"}, "order is 'rb rh rw', but must be rb, rh, rw and rc in some order"),
        (DirectConfig, {"rows": 64, "columns": 64}, "vectors x rows x columns is 8192, but must be at most 128"),
        (DenseConfig, {"width": 1024, "parts": 4}, "width x rows x parts is 4096, but must be at most 2048"),
        (WinogradConfig, {"tile": 3}, "tile is 3, but must be 2 or 4"),
        (GemmConfig, {"thread_maps": 3}, "thread_maps is 3, but must be a divisor of maps, 64"),
        (GemmConfig, {"maps": 512, "pixels": 256}, "a block has 8192 threads, but may have at most 1024"),
        (MmaConfig, {"warp_pixels": 8}, "warp_pixels is 8, but must be a multiple of 16 and a divisor of pixels, 64"),
        (MmaConfig, {"precision": "fp8"}, "precision is 'fp8', but must be tf32 or fp16"),
    ],
)
def test_what_is_wrong_is_said(config: type[Config], numbers: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        config(**numbers)


def test_what_is_allowed_is_what_there_is() -> None:
    """The words of configs.py, which knows nobody, are those of the stages."""
    for tile, kernel in MATRICES:
        GemmConfig(winograd=tile)
        WinogradConfig(tile=tile, kernel=kernel)
    for precision in {*ON_GPUS} - {"fp32"}:
        MmaConfig(precision=precision)
    assert (configs.SIDE, configs.LANES) == (SIDE, BLOCK)


# ---- kernels that they do not fit -----------------------------------------------------------------------------------


def three_by_three(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 18, 14, 25), 33, (3, 3), pads=[1, 1, 1, 1]))


def five_by_five(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 18, 14, 25), 33, (5, 5), pads=[2, 2, 2, 2]))


def pooled(g: Graph) -> str:
    y = g.node("Relu", g.conv(g.input(1, 17, 15, 12), 48, (3, 3), pads=[1, 1, 1, 1]))
    return g.node("MaxPool", y, kernel_shape=[3, 2], strides=[3, 2])


def strided(g: Graph) -> str:
    return g.conv(g.input(1, 18, 14, 9), 33, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2])


def depthwise(g: Graph) -> str:
    return g.conv(g.node("Relu", g.conv(g.input(1, 18, 14, 9), 32, (1, 1))), 32, (3, 3), group=32)


def few_maps(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 1, 32, 30), 6, (5, 5)))


def odd_groups(g: Graph) -> str:
    return g.conv(g.input(1, 21, 7, 9), 12, (1, 1), group=3)


def dense(g: Graph) -> str:
    return g.node("Gemm", g.input(10, 40), g.draw(40, 50), g.draw(50))


def row(g: Graph) -> str:
    return g.node("Gemm", g.input(3, 40), g.draw(40, 50), g.draw(50))


UNFIT = "the convolution is not of at least 16 channels by 3 x 3 or 5 x 5 filters of stride 1"
CONVOLUTIONS = ("direct", "winograd", "streamed", "gemm")
CASES = {  # with the rules that a record may name for it, of which some never fit
    three_by_three: CONVOLUTIONS,
    five_by_five: CONVOLUTIONS,
    pooled: CONVOLUTIONS,
    strided: CONVOLUTIONS,
    depthwise: ("direct", "winograd"),
    few_maps: ("columns", "direct"),
    odd_groups: ("pixels", "gemm"),
    dense: ("dense", "gemm"),
    row: ("dense", "gemv"),
}
NUMBERS = [1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 18, 21, 28, 32, 33, 48, 63, 64, 100, 256, 1024, 5003]


def drawn(rng: random.Random, rule: str) -> dict[str, Any]:
    """The fields of some config of a rule: half of them at random among what they may be."""
    while True:
        names = ["rb", "rh", "rw", "rc"]
        rng.shuffle(names)
        values = [" ".join(names), False, True, 0, "tf32", *NUMBERS]
        fields = {}
        for field in dataclasses.fields(CONFIGS[rule]):
            allowed = [value for value in values if not configs.limits(CONFIGS[rule])[field.name](value)]
            fields[field.name] = rng.choice([field.default, rng.choice(allowed)])
        try:
            CONFIGS[rule](**fields)
        except ValueError:  # too many sums or threads together
            continue
        return fields


def chosen(network: Network, rule: str, fields: dict[str, Any]) -> tuple[Choice, ...]:
    """The choices where every kernel has the same record, for the target that has the rule."""
    kernels, isa = fuse(network), "cuda:sm_80" if rule in ("gemm", "gemv") else V3.isa
    lines = {
        kernel_words(network, each): parse(json.loads(record(kernel_words(network, each), rule, fields, isa=isa)))
        for each in kernels
    }
    records = Records({words: {rule: (line, GIVEN)} for words, line in lines.items()})
    return choose(network, kernels, V3, records) if isa == V3.isa else gpu.choose(network, kernels, records)


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_any_config_is_taken_or_refused(build: Callable[[Graph], str]) -> None:
    """Nothing but a sentence comes of choosing and packing by it, whatever it is."""
    g = Graph()
    g.output(build(g))
    network, rng = simplified(import_model(g.model())), random.Random(7)
    for rule in CASES[build]:
        for _ in range(25):
            with contextlib.suppress(TvmcnnError):
                lay_out(network, chosen(network, rule, drawn(rng, rule)), Weights())


@pytest.mark.parametrize(
    ("build", "rule", "fields", "reason"),
    [
        (three_by_three, "winograd", {"strip": 8}, "8 does not divide the 28 tiles"),
        (three_by_three, "winograd", {"parts": 2}, "2 does not divide the 3 blocks of 16 maps"),
        (three_by_three, "streamed", {"rows": 2}, "a tile makes 4 x 4 pixels, not 2 x 4"),
        (three_by_three, "winograd", {"kernel": 5}, "the filters are 3 x 3, not 5 x 5"),
        (five_by_five, "streamed", {"kernel": 5}, "filters of 5 x 5 make no tiles of 4 x 4"),
        (five_by_five, "gemm", {"winograd": 2}, "the filters are 5 x 5, not 3 x 3"),
        (pooled, "streamed", {}, "the pool of 3 x 2 pixels does not divide a tile of 4 x 4"),
        (strided, "winograd", {}, UNFIT),
        (strided, "streamed", {}, UNFIT),
        (odd_groups, "pixels", {"groups": 6}, "the convolution has 3 groups, and a run at least 16 pixels"),
        (
            odd_groups,
            "pixels",
            {"groups": 3, "pixels": 9},
            "the convolution has 3 groups, and a run at least 16 pixels",
        ),
        (odd_groups, "pixels", {"groups": 3, "maps": 3, "pixels": 21}, "3 does not divide the 4 maps of a group"),
        (odd_groups, "pixels", {"groups": 3, "pixels": 20}, "20 does not divide the 63 pixels"),
        (dense, "dense", {"rows": 11}, "a tile has 11 rows, the product 10"),
        (
            strided,
            "direct",
            {"columns": 8, "overlap": True},
            "a tile of 1 x 8 is larger than the 7 x 5 pixels, and overlaps none",
        ),
        (dense, "gemm", {"split": 2}, "a matrix product is not split, nor by Winograd"),
        (dense, "gemm", {"winograd": 4}, "a matrix product is not split, nor by Winograd"),
        (
            strided,
            "gemm",
            {"winograd": 4},
            "the convolution is not of at least 16 channels by 3 x 3 or 5 x 5 filters of stride 1",
        ),
        (pooled, "gemm", {"thread_pixels": 4}, "a thread has no whole windows of 6 pixels"),
    ],
    ids=lambda each: each.__name__ if callable(each) else None,
)
def test_why_it_does_not_fit(build: Callable[[Graph], str], rule: str, fields: dict[str, Any], reason: str) -> None:
    """What would be computed wrongly, where nobody may verify it."""
    g = Graph()
    g.output(build(g))
    network = simplified(import_model(g.model()))
    with pytest.raises(TvmcnnError, match=rf"^the record of .* does not fit it: rule {rule}, ") as caught:
        chosen(network, rule, fields)
    assert str(caught.value).endswith(f": {reason}")


@pytest.mark.parametrize(
    ("target", "rule", "fields"),
    [("native", "dense", {"width": 16, "parts": 7}), ("cuda:sm_80", "gemv", {"parts": 32})],
)
def test_what_the_rule_refuses_is_the_records(
    target: str, rule: str, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind choosing and packing: 7 parts of a sum of 40 terms, and sums that a block has no memory for."""
    monkeypatch.setenv("NVCC", str(NVCC))
    monkeypatch.setattr(cuda, "SHARED_BYTES", 2048)
    g = Graph()
    g.output(row(g))
    words = kernel_words(network := simplified(import_model(g.model())), fuse(network)[0])
    line = record(words, rule, fields, isa=target if rule == "gemv" else "")
    (tmp_path / "records.jsonl").write_text(line)
    with pytest.raises(
        TvmcnnError, match=rf"^the record of k0_gemm: .* does not fit it: rule {rule}, .*parts={fields['parts']}"
    ):
        tvmcnn.compile(g.model(), target, tmp_path / "net.so", records=[tmp_path / "records.jsonl"])
    assert not (tmp_path / "net.so").exists()


def test_the_tuner_tries_no_record_that_does_not_fit() -> None:
    g = Graph()
    g.output(three_by_three(g))
    network = simplified(import_model(g.model()))
    (problem,) = problems(lay_out(network, choose(network, fuse(network), V3, NONE), Weights()))
    fits, not_so = ("winograd", WinogradConfig(unroll=8)), ("winograd", WinogradConfig(strip=8))
    order = [key_of(choice) for choice in State(problem, Log(), V3, [not_so, fits], [], {"winograd": not_so}, 0).order]
    assert fits in order[:2]
    assert not_so not in order


def test_neighbours_stay_within_what_is_allowed() -> None:
    """A tile with one number more may have too many sums: then it is no neighbour."""
    g = Graph()
    g.output(dense(g))
    network = simplified(import_model(g.model()))
    (choice,) = [each for each in choose(network, fuse(network), V3, NONE) if each.rule == "dense"]
    widest = dataclasses.replace(choice, config=DenseConfig(width=512, parts=4))
    found = [each.config for each in neighbours(network, widest, V3)]
    assert all(config.width * config.rows * config.parts <= configs.SUMS for config in found)
