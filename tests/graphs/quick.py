"""Quick: what a worker leaves out because it is the same for every model: half of a small model's compile time.

The C of the chains of calls is compiled without optimization, and the files of shipped records are looked through once.
The kernels of a model are one LLVM module, which is made of the same functions.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from tvmcnn import compiler, platforms
from tvmcnn.codegen import link
from tvmcnn.codegen.cpu import generate, kernels
from tvmcnn.codegen.cpu.generate import Functions
from tvmcnn.codegen.cpu.llvm import compile_kernels

_kept = tempfile.TemporaryDirectory(prefix="tvmcnn-pool-")


@functools.cache
def install() -> None:
    """Patch this process, once."""
    run, load = link.run_compiler, compiler.load_records
    version = platforms.compiler_version
    loaded: dict[str, object] = {}

    def quick(command: list[str], folder: Path, *, output: bool = False) -> str:
        if "pool-threads.c" not in command:  # which is compiled once a process
            command = ["-O0" if word == "-O2" else word for word in command]
        return run(command, folder, output=output)

    def once(target: object, *files: object, **kinds: object) -> object:
        key = repr((target, files, kinds))
        if key not in loaded:
            loaded[key] = load(target, *files, **kinds)  # type: ignore[arg-type]
        return loaded[key]

    def together(functions: Functions, *others: object) -> dict[str, bytes]:
        jobs = functions.jobs
        if not jobs:
            return {}
        scheduled = {symbol: kernels.scheduled(j.step, j.machine, opened=j.opened) for symbol, j in jobs.items()}
        scratch = {symbol: 0 if j.opened else j.step.choice.scratch_bytes for symbol, j in jobs.items()}
        path = Path(_kept.name) / "kernels.o"
        compile_kernels(scheduled, functions.machine, scratch).write_to_file(str(path))
        return {next(iter(jobs)): path.read_bytes()}

    generate.compile_functions = together  # type: ignore[assignment]
    link.run_compiler = quick  # type: ignore[attr-defined]
    compiler.load_records = once  # type: ignore[assignment]
    platforms.compiler_version = functools.cache(lambda *words: version(list(words)))  # type: ignore[assignment]
    cached = platforms.compiler_version
    platforms.compiler_version = lambda command: cached(*command)
