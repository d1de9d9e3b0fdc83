"""A plugin of pytest that records which functions each passing test runs in its own process, and how long it takes.

    MUTATION_RECORD=FOLDER python -m pytest -p mutation_record

Each worker leaves a file in the folder. What a test does in other processes is not seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent


class Recorder:
    """One coverage context a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self.left = folder, dict[str, float](), set[str]()
        self.coverage = coverage.Coverage(source=[str(ROOT / "tvmcnn")], data_file=None, config_file=False)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time a test, its fixtures too, and name what it runs by it."""
        self.coverage.switch_context(item.nodeid)
        start = time.monotonic()
        found = yield
        self.seconds[item.nodeid] = time.monotonic() - start
        self.coverage.switch_context("")
        return found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Forget one that fails or is skipped: it would seem to catch every slip, or none."""
        if not report.passed:
            self.left.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write what was seen: by file and line the tests."""
        self.coverage.stop()
        data = self.coverage.get_data()
        passed = {name: value for name, value in self.seconds.items() if name not in self.left}
        lines = {
            str(Path(path).relative_to(ROOT)): {
                line: [name for name in names if name in passed]
                for line, names in data.contexts_by_lineno(path).items()
            }
            for path in data.measured_files()
            if path.endswith(".py")  # a template of Jinja runs under its own name
        }
        name = os.environ.get("PYTEST_XDIST_WORKER", "alone")
        (self.folder / f"{name}.json").write_text(json.dumps({"seconds": passed, "lines": lines}))


def pytest_configure(config: pytest.Config) -> None:
    """Record in the processes that run tests."""
    runs = "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None)
    if runs and (folder := os.environ.get("MUTATION_RECORD")):
        config.pluginmanager.register(Recorder(Path(folder)))
