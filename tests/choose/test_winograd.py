"""Winograd convolution in both ways, forced by records: awkward sizes, and that a wrong matrix is seen."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import winograd_error
from bench_models import parse
from builders import Graph
from helpers import feeds, record

import tvmcnn
from tvmcnn import winograd
from tvmcnn.artifact.manifest import described
from tvmcnn.choose import cuda as gpu
from tvmcnn.choose import records
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import GIVEN, Record, Records
from tvmcnn.choose.summary import by_winograd
from tvmcnn.compiler import Compiled
from tvmcnn.configs import StreamedConfig, WinogradConfig
from tvmcnn.errors import VerifyError
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.ops import winograd as expressions
from tvmcnn.targets import TARGETS, resolve

pytestmark = pytest.mark.slow

Config = StreamedConfig | WinogradConfig
CONFIGS: list[Config] = [
    WinogradConfig(4, 4, 4, strip=3, vectors=3, tiles=3, prefetch=True),
    WinogradConfig(2, 2, 2, strip=5, vectors=1, tiles=5),
    StreamedConfig(4, 4, 4, vectors=1, tiles=4, prefetch=True),
    StreamedConfig(2, 2, 2, vectors=3, tiles=5, unroll=2),
    WinogradConfig(2, 2, 2, strip=5, vectors=1, tiles=5, kernel=5),
    StreamedConfig(2, 2, 2, vectors=3, tiles=8, kernel=5, prefetch=True),
]  # vectors as blocks of 16 maps


def padded(batch: int, kernel: int = 3) -> onnx.ModelProto:
    """14 x 9 pixels with uneven pads make 15 x 9: four tiles by three, or eight by five. 18 channels to 33 maps."""
    g, more = Graph(), kernel // 2 - 1
    x = g.node("Relu", g.conv(g.input(batch, 18, 14, 9), 18, (1, 1)))
    g.output(g.node("Relu", g.conv(x, 33, (kernel, kernel), pads=[2 + more, more, 1 + more, 2 + more])))
    return g.model()


def residual(kernel: int = 3) -> onnx.ModelProto:
    """What is added after, of blocks too, and an output that another convolution reads with a halo."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(2, 17, 14, 9), 20, (1, 1)))
    y = g.node("Add", g.conv(x, 48, (kernel, kernel), pads=[kernel // 2] * 4), g.conv(x, 48, (1, 1)))
    g.output(g.conv(g.node("Relu", y), 19, (2, 3), pads=[1, 0, 1, 2]))
    return g.model()


def compiled(model: onnx.ModelProto, config: Config, folder: Path, target: str, **options: Any) -> Compiled:
    """The model with `config` for its convolutions by filters of its size, verified."""
    network = simplified(import_model(model))
    rule = "winograd" if isinstance(config, WinogradConfig) else "streamed"
    config = dataclasses.replace(config, vectors=config.vectors * 16 // resolve(target).lanes("float32"))
    words = [
        each
        for kernel in fuse(network)
        if f"x{config.kernel}x{config.kernel} " in (each := kernel_words(network, kernel))
    ]
    lines = [record(each, rule, asdict(config), isa=isa) for each in words for isa in TARGETS]
    (folder / "records.jsonl").write_text("".join(lines))
    files = [folder / "records.jsonl"]
    return tvmcnn.compile(model, target, folder / "net.so", records=files, shipped_records=False, **options)


def algorithms(made: Compiled) -> set[str]:
    return {step.choice.algorithm for step in made.program.steps}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_agrees_with_numpy(config: Config, target: str, tmp_path: Path) -> None:
    """Every tensor, those that fusion hides among them; batch 3, where weights serve several images."""
    made = compiled(padded(3, config.kernel), config, tmp_path, target)
    assert algorithms(made) >= ({"winograd"} if isinstance(config, WinogradConfig) else {"streamed", "winograd_data"})
    assert made.verdict is not None and len(made.verdict.tensors) > 3


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2], CONFIGS[4]], ids=str)
def test_with_a_residual(config: Config, target: str, tmp_path: Path) -> None:
    assert (
        compiled(residual(config.kernel), dataclasses.replace(config, **_tiles(config)), tmp_path, target).verdict
        is not None
    )


def _tiles(config: Config) -> dict[str, int]:
    if config.tile == 2:
        return {"strip": 5, "tiles": 5}
    return {"strip": 6, "tiles": 6} if isinstance(config, WinogradConfig) else {"tiles": 4}


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3], CONFIGS[4], CONFIGS[5]], ids=str)
def test_with_a_pool(config: Config, tmp_path: Path) -> None:
    """2 x 2 pixels of one tile become one: the tile makes fewer outputs."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 17, 14, 10), 32, (1, 1)))
    y = g.node("Relu", g.conv(x, 32, (config.kernel, config.kernel), pads=[config.kernel // 2] * 4))
    g.output(g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))
    config = dataclasses.replace(config, rows=1, columns=1, vectors=2)
    assert compiled(g.model(), config, tmp_path, "native").verdict is not None


def test_one_transform_for_two_readers(tmp_path: Path) -> None:
    """Two convolutions of one image share what transforms it."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 17, 14, 9), 18, (1, 1)))
    g.output(g.conv(x, 33, (3, 3), pads=[2, 0, 1, 2]), g.conv(x, 20, (3, 3), pads=[2, 0, 1, 2]))
    made = compiled(g.model(), CONFIGS[2], tmp_path, "native")
    assert [step.choice.algorithm for step in made.program.steps].count("winograd_data") == 1


def test_exact_has_neither(tmp_path: Path) -> None:
    """And nothing to say of it, whatever records there are."""
    lines: list[str] = []
    made = compiled(padded(1), CONFIGS[0], tmp_path, "native", exact=True, report=lines.append)
    assert not algorithms(made) & {"winograd", "streamed"}
    assert made.manifest["winograd"] == ""
    assert not [line for line in (*lines, *described(tvmcnn.load(made.path).manifest)) if "Winograd" in line]


@pytest.mark.parametrize(
    ("config", "factor", "side"),
    [(CONFIGS[0], "10.5", 4), (CONFIGS[1], "0.556", 2), (CONFIGS[2], "10.5", 4), (CONFIGS[4], "3.95", 2)],
    ids=str,
)
def test_what_it_means_is_said(config: Config, factor: str, side: int, tmp_path: Path) -> None:
    """In one line of the log, and in the library; the factor is the one that verification allows."""
    lines: list[str] = []
    made = compiled(padded(1, config.kernel), config, tmp_path, "native", report=lines.append)
    said = (
        f"Winograd: 1 of 2 convolutions, with up to {factor} times the rounding error of direct ones; NaN, inf and"
        f" outliers spread inside a tile of {side} x {side} pixels (--exact has neither)"
    )
    assert [line for line in lines if line.startswith("Winograd")] == [said]
    assert f"{winograd.error_growth(config.tile, config.kernel):.3g}" == factor
    manifest = tvmcnn.load(made.path).manifest
    assert manifest["winograd"] == said
    assert said in described(manifest)


def test_the_worst_of_several_is_said_also_for_gpus() -> None:
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 17, 14, 25), 48, (3, 3), pads=[1, 1, 1, 1]))
    g.output(g.conv(g.conv(x, 32, (3, 3), pads=[1, 1, 1, 1]), 19, (2, 2)))
    network = simplified(import_model(g.model()))
    found: dict[str, dict[str, tuple[Record, str]]] = {}
    for kernel, tile in zip(fuse(network), (2, 4), strict=False):
        line = record(kernel_words(network, kernel), "gemm", {"winograd": tile}, isa="cuda:sm_80")
        found[kernel_words(network, kernel)] = {"gemm": (records.parse(json.loads(line)), GIVEN)}
    choices = gpu.choose(network, fuse(network), Records(found))
    assert by_winograd(choices).startswith("Winograd: 2 of 3 convolutions, with up to 10.5 times")
    assert "a tile of 4 x 4 pixels" in by_winograd(choices)
    assert by_winograd(gpu.choose(network, fuse(network), Records(found), exact=True)) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_tiles(value: float, tmp_path: Path) -> None:
    """As the line says: Winograd lets it reach all pixels of a tile, of which a window holds it; --exact does not."""
    g = Graph()
    g.output(g.conv(g.input(1, 18, 14, 9), 33, (3, 3), pads=[1, 1, 1, 1]))
    (x,) = feeds(g.model()).values()
    x[0, 3, 6, 5] = value
    reached = {}
    for exact in (False, True):
        (folder := tmp_path / str(exact)).mkdir()
        made = compiled(g.model(), WinogradConfig(strip=6, vectors=1, tiles=6), folder, "native", exact=exact)
        rows, columns = np.nonzero(~np.isfinite(tvmcnn.load(made.path)(x)[0]).all(axis=0))
        reached[exact] = {*zip(rows.tolist(), columns.tolist(), strict=True)}
    window = {(row, column) for row in (5, 6, 7) for column in (4, 5, 6)}
    tiles = {(row, column) for row in range(4, 8) for column in range(4, 8)}
    assert reached[True] == window
    assert reached[False] == tiles


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("matrix", ["bt", "at", "g"])
def test_a_wrong_matrix_is_seen(matrix: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One factor of one matrix off by a thousandth."""
    key = (config.tile, config.kernel)
    right = winograd.MATRICES[key]
    rows = [list(row) for row in getattr(right, matrix)]
    rows[1][1] *= 1.001
    wrong = dataclasses.replace(right, **{matrix: tuple(map(tuple, rows))})
    for module in (winograd, expressions):
        monkeypatch.setattr(module, "MATRICES", {**winograd.MATRICES, key: wrong})
    with pytest.raises(VerifyError):
        compiled(padded(1, config.kernel), config, tmp_path, "native")


def test_sums_in_groups_are_the_same_sums() -> None:
    """`_combination` rearranges a row of a matrix: on numbers in place of tensors it is their product."""
    values = [3.0, -1.5, 0.25, 7.0, -2.0, 11.0]
    for key, matrices in winograd.MATRICES.items():
        for name, groups in (("bt", expressions.PARITY), ("g", expressions.PARITY), ("at", expressions.PAIRS)):
            for row in getattr(matrices, name):
                terms = [expressions.float32(value) for value in values[: len(row)]]
                made = float(expressions._combination(row, groups, lambda k, terms=terms: terms[k]).value)
                assert made == pytest.approx(float(np.dot(row, values[: len(row)])), rel=1e-6), (key, name, row)


def test_prefetch_changes_no_bit(tmp_path: Path) -> None:
    model = padded(3)
    x = next(iter(feeds(model).values()))
    found = []
    for prefetch in (False, True):
        made = compiled(model, dataclasses.replace(CONFIGS[2], prefetch=prefetch), tmp_path, "native")
        assert ("prefetcht1" in made.code["asm"]()) == prefetch
        path = made.path.rename(tmp_path / f"prefetch{int(prefetch)}.so")
        found.append(tvmcnn.load(path)(x).tobytes())
    assert found[0] == found[1]


def test_error_beside_that_of_direct_convolution() -> None:
    """The table's row: Winograd rounds more, --exact has none of it."""
    (entry,) = parse("squeezenet@40", 224)
    row = winograd_error.compare(entry, "x86-64-v3")
    assert 0 < row.winograd < row.convolutions
    assert 0 < row.worst[1] < row.worst[0] < 1e-4
    assert all(0 < error < 1e-4 for error in row.output)
    assert str(row).count("|") == winograd_error.PAGE.splitlines()[-1].count("|")
