"""What loading costs is measured by a tool: here that it measures, with few libraries and a small "large" one."""

from __future__ import annotations

from pathlib import Path

import bench_load
import pytest

pytestmark = pytest.mark.slow


def test_every_figure_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_load, "LARGE", "squeezenet@32")
    found = bench_load.measure(3, tmp_path)
    assert found["import"] > 0 and found["import_runner"] > 0
    assert found["large_bytes"] > found["small_bytes"] > 0 and found["small_all"] > 0
    assert all(anonymous > 0 for anonymous, _ in (found["copies"][key] for key in ("before", "loaded", "called")))
    assert 0 < found["shared"]["Pss"] < found["shared"]["Rss"], "processes share its pages"
    assert "of its own, each of 3 loaded libraries" in bench_load.page(found)
