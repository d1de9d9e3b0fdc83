"""Quick: what a test of numbers leaves out because it is the same for every model: a quarter of a small compile.

The C of the chains of calls is compiled without optimization, and the files of shipped records are looked through once.
The kernels of a model are one LLVM module, which is made of the same functions, and TVM's schedules do not check the
types of their arguments, which took a third of scheduling.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tvm.s_tir import Schedule

from tvmcnn import compiler
from tvmcnn.choose.records import load_records
from tvmcnn.codegen import link
from tvmcnn.codegen.cpu import generate, kernels
from tvmcnn.codegen.cpu.generate import Functions
from tvmcnn.codegen.cpu.llvm import compile_kernels
from tvmcnn.codegen.link import run_compiler

_kept = tempfile.TemporaryDirectory(prefix="tvmcnn-kernels-")
_loaded: dict[str, object] = {}


def _run(command: list[str], folder: Path, *, output: bool = False) -> str:
    if "compiled.o" not in command:  # which is compiled once a process
        command = ["-O0" if word == "-O2" else word for word in command]
    return run_compiler(command, folder, output=output)


def _records(target: object, *files: object, **kinds: object) -> object:
    key = repr((target, files, kinds))
    if key not in _loaded:
        _loaded[key] = load_records(target, *files, **kinds)  # type: ignore[arg-type]
    return _loaded[key]


def _together(functions: Functions, *others: object) -> dict[str, bytes]:
    jobs = functions.jobs
    if not jobs:
        return {}
    scheduled = {symbol: kernels.scheduled(j.step, j.machine, opened=j.opened) for symbol, j in jobs.items()}
    scratch = {symbol: 0 if j.opened else j.step.choice.scratch_bytes for symbol, j in jobs.items()}
    path = Path(_kept.name) / "kernels.o"
    compile_kernels(scheduled, functions.machine, scratch).write_to_file(str(path))
    return {next(iter(jobs)): path.read_bytes()}


def _unchecked() -> list[tuple[object, str, object]]:
    """The methods of Schedule without the check of types around each."""
    methods = vars(Schedule).items()
    return [(Schedule, name, method.__wrapped__) for name, method in methods if hasattr(method, "__wrapped__")]


PATCHES: tuple[tuple[object, str, object], ...] = (
    (generate, "compile_functions", _together),
    (link, "run_compiler", _run),
    (compiler, "load_records", _records),
    *_unchecked(),
)


def install() -> None:
    """Patch this process for good."""
    for module, name, value in PATCHES:
        setattr(module, name, value)
