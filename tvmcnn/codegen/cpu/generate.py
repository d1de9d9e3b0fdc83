"""Generate for CPUs: the steps of programs become object code, and that one shared library with a C ABI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcnn.cache import Cache
from tvmcnn.choose.fits import refusing
from tvmcnn.codegen import entries
from tvmcnn.codegen.cpu import chain, dispatch
from tvmcnn.codegen.jobs import Job, Symbols, jobs_of
from tvmcnn.codegen.link import archive, link
from tvmcnn.codegen.workers import JobError, build
from tvmcnn.files import no_room
from tvmcnn.network import Program
from tvmcnn.progress import Progress
from tvmcnn.targets import Target


@dataclass(frozen=True)
class Functions:
    """The C functions of some programs: their symbols, program by program, and the jobs that make them."""

    programs: tuple[Program, ...]
    symbols: tuple[Symbols, ...]
    jobs: Mapping[str, Job]
    machine: Target

    @staticmethod
    def of(programs: Sequence[Program], machine: Target, *, activations: bool) -> Functions:
        """Every function once, whatever the number of kernels and programs that call it."""
        found = [jobs_of(program, machine, activations=activations) for program in programs]
        jobs = {symbol: job for _, each in found for symbol, job in each.items()}
        return Functions(tuple(programs), tuple(symbols for symbols, _ in found), jobs, machine)

    def sources(self, library: str) -> dict[str, str]:
        """The C of each program's chain, by its name; `library` is that of the whole, which has the weights."""
        weights = f"{library}_weights"
        pairs = zip(self.programs, self.symbols, strict=True)
        return {p.network.name: chain.source(p, self.machine, symbols, weights) for p, symbols in pairs}


def compile_functions(functions: Functions, cache: Cache, processes: int, progress: Progress) -> dict[str, bytes]:
    """The object code of every function by symbol: from the cache, or compiled and put there.

    Raises JobError for one that fails.
    """
    total = len(functions.jobs)
    found = {symbol: cache.get(job.key) for symbol, job in functions.jobs.items()}
    objects = {symbol: data for symbol, data in found.items() if data is not None}
    missing = {symbol: job for symbol, job in functions.jobs.items() if symbol not in objects}
    progress("compiling kernels", len(objects), total)

    def done(symbol: str, data: bytes) -> None:
        objects[symbol] = data
        cache.put(missing[symbol].key, data)
        progress("compiling kernels", len(objects), total)

    if missing:
        build(missing, processes, done)
        cache.prune()
    return objects


def generate(
    name: str, classes: Sequence[Functions], objects: Mapping[str, bytes], weights: Path, folder: Path
) -> Path:
    """The ELF image folder/{name}.so of programs that share the file `weights`: their objects and chains, linked.

    Of several classes of CPUs there are functions for each, the best first. Raises ToolError where the C compiler is
    missing or fails, or where there is no room for the compiler's own files.
    """
    try:
        for symbol, data in objects.items():
            (folder / f"{symbol}.o").write_bytes(data)
        paths = [folder / f"{symbol}.o" for symbol in sorted(objects)]
        sources, public = all_sources(name, classes)
        return link(folder, name, sources, public, weights, paths, [functions.machine for functions in classes])
    except OSError as error:
        raise no_room(error) from error


def archived(name: str, classes: Sequence[Functions], folder: Path) -> Path:
    """The static library of what `generate` has linked in `folder`. Raises ToolError."""
    try:
        return archive(folder, name, all_sources(name, classes)[1])
    except OSError as error:
        raise no_room(error) from error


def all_sources(name: str, classes: Sequence[Functions]) -> tuple[dict[str, str], list[str]]:
    """The C of a library by file, and the symbols that it exports."""
    sources = {label: text for functions in classes for label, text in functions.sources(name).items()}
    public = [symbol for label in sources for symbol in chain.exports(label)]
    targets = ", ".join(functions.machine.name for functions in classes)
    sources[next(iter(sources))] += f"\n{entries.facts(name, targets)}"  # in a file of its own: 30 ms of the compiler's
    public += entries.facts_exported(name)
    if len(classes) > 1:
        programs = [functions.programs for functions in classes]
        public += [symbol for label, _ in dispatch.labelled(name, programs) for symbol in dispatch.exports(label)]
        sources[f"{name}-dispatch"] = dispatch.source(name, programs)
    return sources, public


def compiled(functions: Functions, cache: Cache, processes: int, progress: Progress) -> dict[str, bytes]:
    """`compile_functions`, whose failure names the record that a kernel's config comes from: it may not fit."""
    try:
        return compile_functions(functions, cache, processes, progress)
    except JobError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            raise no_room(cause) from cause
        choices = {
            symbols.kernels[step.choice.name]: step.choice
            for program, symbols in zip(functions.programs, functions.symbols, strict=True)
            for step in program.steps
            if step.choice.name in symbols.kernels
        }
        choice = choices.get(error.symbol)
        if choice is None:
            raise cause from cause.__cause__
        with refusing(choice):
            raise cause from cause.__cause__


def tir(programs: Sequence[Program], machine: Target) -> str:
    """The scheduled TVMScript of every kernel."""
    from tvmcnn.codegen.cpu.kernels import scheduled

    steps = [step for program in programs for step in program.steps if not step.choice.is_view]
    return "\n\n".join(f"# {step.choice.name}\n{scheduled(step, machine).script()}" for step in steps)


def assembly(programs: Sequence[Program], machine: Target) -> str:
    """The assembly of every kernel, each under its name; those of further batches after their program's."""
    from tvmcnn.codegen.cpu.kernels import scheduled
    from tvmcnn.codegen.cpu.llvm import compile_kernels

    named: dict[str, Any] = {}
    scratch: dict[str, int] = {}
    for index, program in enumerate(programs):
        prefix = f"{program.network.name}_" if index else ""
        steps = [step for step in program.steps if not step.choice.is_view]
        named |= {f"{prefix}{step.choice.name}": scheduled(step, machine) for step in steps}
        scratch |= {f"{prefix}{step.choice.name}": step.choice.scratch_bytes for step in steps}
    text: str = compile_kernels(named, machine, scratch).inspect_source("asm")
    return text
