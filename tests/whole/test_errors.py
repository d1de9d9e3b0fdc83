"""What nobody foresaw ends in one sentence that names a file with all that a report needs."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import LENET5

import tvmcnn
from tvmcnn import tuning, worker_process
from tvmcnn.backend import TvmcnnBackend, TvmcnnRep
from tvmcnn.check import bisect, verify
from tvmcnn.cli import main
from tvmcnn.errors import InputError, InternalError, ToolError, TvmcnnError, caught
from tvmcnn.run import batched, gpu_runner, runner
from tvmcnn.run.bench import bench
from tvmcnn.version import __version__


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that reports are written to."""
    folder = tmp_path / "reports"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def written(folder: Path) -> list[Path]:
    """The reports there."""
    return sorted(folder.glob("tvmcnn-fault-*.txt"))


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise error

    return fail


@caught
def entry(
    first: str,
    second: int | None = None,
    *rest: Any,
    numbers: Iterable[float] = (),
    table: Mapping[str, int] | None = None,
    then: Callable[..., Any] = lambda: None,
    call: Callable[[], Any] | None = None,
) -> Any:
    """A public function, which fails as it is told."""
    if call is not None:
        call()
    return then()


# ---- faults of our own ----------------------------------------------------------------------------------------------


def test_a_fault_is_a_sentence_with_a_report(reports: Path) -> None:
    """What went wrong, in the words of the exception; in the file the traceback, the call, and what ran it."""

    def inner() -> None:
        {}["no such key"]

    array = np.zeros((3, 5))
    with pytest.raises(InternalError) as found:
        entry("one", 2, array, table={"a": 1}, then=functools_free(inner))
    [report] = written(reports)
    assert str(found.value) == (
        f"KeyError: 'no such key': this is a fault of tvmcnn, please report it with the file {report}"
    )
    assert found.value.report == str(report)
    assert isinstance(found.value.__cause__, KeyError)
    text = report.read_text()
    assert f"tvmcnn {__version__}" in text
    assert f"Python {'.'.join(map(str, sys.version_info[:3]))} on Linux" in text
    assert "entry('one', 2, <ndarray (3, 5)>, table={'a': 1}, then=<functools_free>)" in text
    assert 'in inner\n    {}["no such key"]' in text
    assert os.getcwd() in text
    assert report.stat().st_mode & 0o777 == 0o600


class functools_free:  # noqa: N801 (it stands for a function)
    """A callable without code of its own: what it raises is as good as ours."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __call__(self) -> Any:
        return self.function()


def test_the_report_cannot_be_written(monkeypatch: pytest.MonkeyPatch, reports: Path) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(InternalError) as found:
        entry("one", then=functools_free(failing(ZeroDivisionError("of nothing"))))
    assert str(found.value) == (
        "ZeroDivisionError: of nothing: this is a fault of tvmcnn, please report it;"
        " its report cannot be written (No space left on device)"
    )
    assert found.value.report is None
    assert not written(reports)


def test_a_fault_told_twice_is_reported_once(reports: Path) -> None:
    """Public functions call each other, and the command line calls them."""
    nested = caught(lambda: entry("one", then=functools_free(failing(KeyError("k")))))
    with pytest.raises(InternalError):
        nested()
    assert len(written(reports)) == 1


def test_a_fault_crosses_processes() -> None:
    error = InternalError("it broke", "/tmp/report.txt")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.report) == (InternalError, "it broke", "/tmp/report.txt")


def test_a_report_has_the_traceback_of_another_process(reports: Path) -> None:
    process = worker_process.Isolated(quiet=True)
    try:
        with pytest.raises(InternalError):
            entry("one", then=functools_free(lambda: process.call("json:loads", "{")))
    finally:
        process.close()
    [report] = written(reports)
    assert "In another process:" in report.read_text()
    assert "json/decoder.py" in report.read_text()


# ---- what is no fault of ours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputError("as it was"), InputError, "as it was"),
        (MemoryError("Unable to allocate 3 GiB"), ToolError, "there is not enough memory for this: Unable to allocate"),
        (MemoryError(), ToolError, "there is not enough memory for this: MemoryError"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), ToolError, "No space left on device: /x/y"),
        (OSError(errno.EMFILE, "Too many open files"), ToolError, "Too many open files"),
        (
            ModuleNotFoundError("no onnx", name="onnx.helper"),
            ToolError,
            r"this needs onnx.helper: .* 'tvmcnn\[compiler",
        ),
        (ModuleNotFoundError("no jinja2", name="jinja2"), ToolError, r"this needs jinja2: .* 'tvmcnn\[report\]'"),
        (ValueError("embedded null byte"), InputError, "a path has a null character in it"),
    ],
)
def test_what_the_machine_lacks(error: Exception, kind: type[TvmcnnError], text: str, reports: Path) -> None:
    with pytest.raises(kind, match=text):
        entry("one", then=functools_free(failing(error)))
    assert not written(reports)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), BrokenPipeError(), GeneratorExit()])
def test_what_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        entry("one", then=functools_free(failing(error)))


def test_what_is_the_callers_own(reports: Path) -> None:
    """A keyword that there is not is Python's to tell; what the caller's function raises is the caller's."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        entry("one", nothing=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        entry()  # type: ignore[call-arg]

    def cancel() -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        entry("one", call=cancel)
    with pytest.raises(LookupError, match="enough"):
        tvmcnn.compile(LENET5, output=reports / "x.so", report=lambda line: cancel())
    assert not written(reports)


@pytest.mark.parametrize(
    ("arguments", "keywords", "text"),
    [
        ((5,), {}, "entry takes first as str, not 5"),
        (("a", 1.5), {}, r"entry takes second as int \| None, not 1.5"),
        (("a", True), {}, r"entry takes second as int \| None, not True"),
        (("a",), {"numbers": "1.5"}, r"entry takes numbers as Iterable\[float\], not '1.5'"),
        (("a",), {"numbers": [1, 2.5, None]}, r"entry takes numbers as Iterable\[float\], not \[1, 2.5, None\]"),
        (("a",), {"table": {"b": "c"}}, r"entry takes table as Mapping\[str, int\] \| None, not {'b': 'c'}"),
        (("a",), {"then": 7}, r"entry takes then as Callable\[\.\.\., Any\], not 7"),
    ],
)
def test_arguments_of_another_type(
    arguments: tuple[Any, ...], keywords: dict[str, Any], text: str, reports: Path
) -> None:
    """Blamed when something fails: not our fault then."""
    given = {"call": failing(AttributeError("'int' object has no attribute 'split'")), **keywords}
    given["call"] = functools_free(given["call"])
    with pytest.raises(InputError, match=f"^{text}$"):
        entry(*arguments, **given)
    assert not written(reports)


# ---- where it is caught ---------------------------------------------------------------------------------------------


def test_every_public_function_is_caught() -> None:
    """All but the hot path, a call of a CPU's runner, whose slow way is, and the oracle, which has its own guard."""
    functions = [getattr(tvmcnn, name) for name in tvmcnn.__all__ if inspect.isfunction(getattr(tvmcnn, name))]
    assert {f.__name__ for f in functions} == {"compile", "load", "quantize", "reference", "reweight", "tune"}
    functions = [f for f in functions if f.__name__ != "reference"]
    functions += [verify.verify_library, bisect.bisect, bench, tuning.tune]
    functions += [TvmcnnRep.run, *(vars(TvmcnnBackend)[n].__func__ for n in vars(TvmcnnBackend) if n[0] != "_")]
    for kind in (runner.Runner, gpu_runner.GpuRunner, batched.BatchedRunner):
        for name in ("bind", "run", "step_by_step", "activations", "profile"):
            plain = kind is gpu_runner.GpuRunner and name in ("step_by_step", "activations")  # which call or refuse
            functions += [] if plain else [getattr(kind, name)]
    functions += [gpu_runner.GpuRunner.__call__, batched.BatchedRunner.__call__, runner.Runner._run_checked]
    for function in functions:
        assert hasattr(function, "__wrapped__"), function
    assert not hasattr(runner.Runner.__call__, "__wrapped__")


def test_a_call_without_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tvmcnn.compile(LENET5, output=tmp_path / "l.so", verify=False, activations=False)
    net = tvmcnn.load(tmp_path / "l.so")
    x = np.zeros((1, 1, 32, 32), np.float32)
    monkeypatch.setattr(runner.np, "empty", failing(MemoryError("Unable to allocate 40 bytes")))
    with pytest.raises(ToolError, match="there is not enough memory for this: Unable to allocate 40 bytes"):
        net(x)


def test_a_command_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reports: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("tvmcnn.compiler.import_model", failing(RuntimeError("would take 301056 bytes of stack")))
    assert main(["compile", str(LENET5), "-o", str(tmp_path / "x y.so")]) == 1
    [report] = written(reports)
    words = "RuntimeError: would take 301056 bytes of stack: this is a fault of tvmcnn"
    assert capsys.readouterr().err == f"tvmcnn: {words}, please report it with the file {report}\n"
    assert "Traceback (most recent call last)" in report.read_text()
    report.unlink()
    monkeypatch.setattr("tvmcnn.machine.usable_cpus", failing(KeyError("k")))
    assert main(["targets", "--json"]) == 1
    [report] = written(reports)
    assert "\ntvmcnn targets --json\n" in report.read_text()
    assert capsys.readouterr().err.startswith("tvmcnn: KeyError: 'k': this is a fault of tvmcnn")


def test_output_on_a_terminal_of_ascii() -> None:
    """The table of operators has signs that ASCII has not."""
    done = subprocess.run(
        [sys.executable, "-m", "tvmcnn", "ops"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout
