"""Fixtures that several files share; what they build models with is in builders.py."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from covering import covering
from data import GOLDEN
from graphs import quick
from helpers import TARGETS, use_target

from tvmcnn import compiler

# What a test edits must be compiled, not remembered; those of the cache, and of large networks, name one of their own.
os.environ["TVMCNN_CACHE"] = "off"
os.environ["TVMCNN_RECORDS"] = "off"  # whatever the user has tuned

# However the machine is lit: what a test wants of a terminal it says itself.
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
os.environ["TERM"] = "xterm-256color"
os.umask(0o022)  # whose files have the usual rights

NUMBERS = ("ops", "fuse", "importer", "check")  # folders of tests of what a library computes

if "PYTEST_XDIST_WORKER" in os.environ:  # whose siblings have the other CPUs: processes would import TVM for nothing
    compiler.usable_cpus = lambda: 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the texts under tests/golden")
    parser.addoption(
        "--every-case", action="store_true", help="run each combination of parameters: see tests/covering.py"
    )


@pytest.hookimpl(trylast=True)  # behind -k, whose choice is covered
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the cases that cover each test's parameters, unless all were asked for, or a case by its name."""
    if config.getoption("--every-case") or any("[" in word for word in config.args):
        return
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = set()
    for group in groups.values():
        cases = [getattr(item, "callspec", None) for item in group]
        params = [{name: repr(value) for name, value in case.params.items()} if case else {} for case in cases]
        kept |= {group[place].nodeid for place in covering(params)} if all(params) else {it.nodeid for it in group}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """ONNX conformance, operator by operator, if those tests ran."""
    found = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == "conformance" and report.when == "call"
    ]
    if found:
        import conformance

        outcomes = [conformance.Outcome(*value) for value in found]
        terminalreporter.section(f"ONNX conformance: {conformance.share(outcomes)} passed")
        terminalreporter.write_line("\n".join(conformance.table(outcomes)))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of data and models that do not come with the source: data/mnist, models/mnist-8 and so on."""
    if not os.environ.get("TVMCNN_TEST_DATA"):
        pytest.skip("TVMCNN_TEST_DATA is not set: it must name a folder that holds data/ and models/")
    folder = Path(os.environ["TVMCNN_TEST_DATA"])
    assert (folder / "models").is_dir(), f"TVMCNN_TEST_DATA is {folder}, which holds no models/"
    return folder


@pytest.fixture(scope="session", autouse=True)
def shim_headers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where cuda_shim/nvcc keeps its compiled headers, for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shim-headers"
    folder.mkdir(exist_ok=True)
    os.environ["CUDA_SHIM_HEADERS"] = str(folder)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each vector width in turn: the name to compile for."""
    return use_target(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def quick_compiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-price libraries where it is their numbers that are compared: see graphs/quick.py."""
    if request.path.parent.name in NUMBERS or request.node.get_closest_marker("numbers"):
        for module, name, value in quick.PATCHES:
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compares a text with tests/golden/<file>/<test>.txt; --update-golden writes it instead."""
    name = re.sub(r"[^\w.]+", "-", request.node.name.removeprefix("test_")).strip("-")
    path = GOLDEN / request.node.path.stem / f"{name}.txt"

    def compare(text: str) -> None:
        text = text.rstrip() + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        shown = path.relative_to(GOLDEN.parent.parent)
        if not path.exists():
            pytest.fail(
                f"{shown} is missing: run pytest {request.node.path.name} --update-golden and read what it wrote"
            )
        if text != path.read_text():
            lines = difflib.unified_diff(
                path.read_text().splitlines(), text.splitlines(), str(shown), "now", lineterm=""
            )
            pytest.fail("\n".join([*lines, "if this is meant: --update-golden"]))

    return compare
