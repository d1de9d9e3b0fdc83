"""The tuner: candidates that compile and compute the same, records that the compiler then follows."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Graph

import tvmcnn
from tvmcnn import tuning
from tvmcnn.choose import choose
from tvmcnn.compiler import Compiled
from tvmcnn.configs import DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.fusion import fuse
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Program
from tvmcnn.records import Records, load_records
from tvmcnn.targets import TARGETS, resolve

TOOLS = Path(__file__).parent.parent / "tools"
KERNEL = "conv 1x16x9x14 32x16x3x3 k3,3 s1,1 p1,1,1,1 d1,1 g1 float32 +bias +relu"


def small(maps: int = 32) -> onnx.ModelProto:
    """A convolution that direct and Winograd compute, and a matrix product."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 9, 14), maps, (3, 3), pads=[1, 1, 1, 1]))
    y = g.node("Flatten", g.node("GlobalAveragePool", x))
    g.output(g.node("Gemm", y, g.draw(maps, 11), g.draw(11)))
    return g.model()


def program_of(model: onnx.ModelProto) -> Program:
    network = import_model(model)
    return lay_out(network, choose(network, fuse(network), resolve("native"), Records({})), Weights())


def algorithm(compiled: Compiled) -> tuple[str, str]:
    """Algorithm and tier of the convolution."""
    step = next(s for s in compiled.program.steps if s.choice.kernel.anchor.op == "Conv")
    return step.choice.algorithm, step.choice.tier


def record(rule: str, time: float, **config: Any) -> str:
    entry = {
        "kernel": KERNEL,
        "target": {"isa": resolve("native").name},
        "rule": rule,
        "config": config,
        "time_us": time,
    }
    return json.dumps(entry | {"tvmcnn": tvmcnn.__version__, "tvm": version("apache-tvm")}) + "\n"


def test_candidates_fit_the_registers() -> None:
    """For both widths; the strips and tiles of Winograd divide, too."""
    program = program_of(small())
    choice = next(s.choice for s in program.steps if s.choice.kernel.anchor.op == "Conv")
    for target in TARGETS.values():
        found = list(tuning.candidates(choice, program.network, target))
        assert {type(each.config) for each in found} == {DirectConfig, WinogradConfig, StreamedConfig}
        for each in found:
            config = each.config
            pixels = config.tiles if each.rule != "direct" else config.rows * config.columns
            assert config.vectors * pixels + min(config.vectors, pixels) < target.registers
            if each.rule == "winograd":
                assert config.strip % config.tiles == 0 and each.scratch_bytes > 0


def test_best_of_each_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rules are measured, and no candidate is slower than the default of its rule by its own measure."""
    monkeypatch.setattr(tuning, "SECONDS", 1e-4)
    program = program_of(small())
    step = next(s for s in program.steps if s.choice.kernel.anchor.op == "Conv")
    found = tuning.best(program.network, step, resolve("native"), tmp_path, 1, 1 << 20)
    assert {each.choice.rule for each in found} == {"direct", "winograd", "streamed"}
    assert found[0].microseconds <= found[1].microseconds
    own = next(each for each in found if each.choice.rule == step.choice.rule)
    assert own.microseconds <= own.default_microseconds
    assert all(each.tried > 20 for each in found)


def test_the_faster_record_decides(tmp_path: Path) -> None:
    """Between algorithms too; `exact` takes the record of direct convolution."""
    winograd = {"tile": 2, "rows": 2, "columns": 2, "strip": 7, "vectors": 1, "tiles": 7}
    direct = {"vectors": 1, "rows": 3, "columns": 2}
    for times, wanted in (((1.0, 2.0), "winograd"), ((2.0, 1.0), "direct")):
        path = tmp_path / "records.jsonl"
        path.write_text(record("winograd", times[0], **winograd) + record("direct", times[1], **direct))
        compiled = tvmcnn.compile(small(), output=tmp_path / "small.so", records=[path])
        assert algorithm(compiled) == (wanted, "given record")
        exact = tvmcnn.compile(small(), output=tmp_path / "small.so", records=[path], exact=True)
        assert algorithm(exact) == ("direct", "given record")
        (config,) = (s.choice.config for s in exact.program.steps if s.choice.kernel.anchor.op == "Conv")
        assert (config.rows, config.columns) == (3, 2)


@pytest.mark.parametrize("tile", [{"rows": 2, "columns": 4}, {"rows": 4, "columns": 3, "blocks": 2}], ids=str)
def test_tiles_need_not_divide(tile: dict[str, int], tmp_path: Path) -> None:
    """Rows, columns and blocks of maps that are left over are smaller tiles, with the same bits."""
    found = []
    vectors = tile.pop("blocks", 1) * 16 // resolve("native").lanes
    for config in ({"rows": 3, "columns": 7, "vectors": 1}, {"vectors": vectors, "prefetch": True} | tile):
        path = tmp_path / "records.jsonl"
        path.write_text(record("direct", 1.0, **config).replace("32x16", "48x16"))
        compiled = tvmcnn.compile(small(48), output=tmp_path / "small.so", records=[path])
        assert algorithm(compiled) == ("direct", "given record")
        assert ("prefetcht1" in compiled.code["asm"]()) == config.get("prefetch", False)
        net = tvmcnn.load(compiled.path.rename(tmp_path / f"{len(found)}.so"))
        found.append(net(np.random.default_rng(0).standard_normal((1, 16, 9, 14)).astype(np.float32)).tobytes())
    assert found[0] == found[1]


def test_fastest_of_no_records() -> None:
    assert Records({}).fastest(KERNEL, ("winograd", "direct"), resolve("native")) is None


def test_tool_writes_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tools/tune_schedules.py writes, load_records reads and compile follows; known kernels are left alone."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(tuning, "SECONDS", 1e-4)
    model, output = tmp_path / "small.onnx", tmp_path / "records.jsonl"
    model.write_bytes(small().SerializeToString())
    spec = importlib.util.spec_from_file_location("tune_schedules", TOOLS / "tune_schedules.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["tune_schedules", str(model), "-o", str(output)])
    assert tool.main() == 0
    written = [json.loads(line) for line in output.read_text().splitlines()]
    ours = [entry for entry in written if entry["kernel"] == KERNEL]
    assert {entry["rule"] for entry in ours} == {"direct", "winograd", "streamed"}
    assert all(entry["time_us"] > 0 and entry["max_rel_error"] < 1e-4 and entry["command"] for entry in written)
    assert load_records([output], shipped=False).configs
    before = output.read_text()
    assert tool.main() == 0
    assert output.read_text() == before
    assert algorithm(tvmcnn.compile(model, output=tmp_path / "small.so", records=[output]))[1] == "record"
