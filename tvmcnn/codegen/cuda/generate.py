"""Generate for GPUs: the steps of programs become one CUDA C++ file, and that a shared library with the C ABI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmcnn.cache import Cache, digest_of, sources_digest
from tvmcnn.choose.fits import refusing
from tvmcnn.codegen.cuda import chain
from tvmcnn.codegen.cuda.chain import Device
from tvmcnn.codegen.cuda.nvcc import Resources, compile_object, link, nvcc_version, resources
from tvmcnn.codegen.jobs import Symbols, gpu_key, symbol_of, without_names
from tvmcnn.configs import WholeConfig
from tvmcnn.files import no_room
from tvmcnn.network import Program
from tvmcnn.progress import Progress
from tvmcnn.targets import Gpu


@dataclass(frozen=True)
class Kernels:
    """The kernels of some programs: their symbols, program by program, and the text of each once."""

    programs: tuple[Program, ...]
    symbols: tuple[Symbols, ...]
    texts: dict[str, Device]
    machine: Gpu

    @staticmethod
    def of(programs: Sequence[Program], machine: Gpu, progress: Progress) -> Kernels:
        """Declared, scheduled and written as CUDA C++: a few hundredths of a second each."""
        from tvmcnn.codegen.cuda import kernel  # TVM, which takes a second, and is not there where libraries only run

        steps = [
            (index, step) for index, program in enumerate(programs) for step in program.steps if not step.choice.is_view
        ]
        symbols = tuple(Symbols({}, {}) for _ in programs)
        texts: dict[str, Device] = {}
        for done, (index, step) in enumerate(steps):
            progress("writing kernels", done, len(steps))
            nameless = step if isinstance(step.choice.config, WholeConfig) else without_names(step)
            symbol = symbol_of(step, gpu_key(nameless))
            if symbol not in texts:
                with refusing(step.choice):
                    texts[symbol] = kernel.device_code(nameless, symbol)
            symbols[index].kernels[step.choice.name] = symbol
        progress("writing kernels", len(steps), len(steps))
        return Kernels(tuple(programs), symbols, texts, machine)

    def source(self, weights_bytes: int) -> str:
        """The CUDA C++ file."""
        return chain.source(self.programs, self.machine, self.symbols, self.texts, weights_bytes)


def generate(
    kernels: Kernels,
    weights: Path,
    weights_bytes: int,
    folder: Path,
    cache: Cache,
    report: Callable[[str], None],
    progress: Progress,
) -> Path:
    """The ELF image of programs that share the file `weights`, in `folder`: nvcc's object, from the cache if it has it.

    `report` receives a line a kernel and architecture, with the registers and the shared memory that ptxas gave it.

    Raises ToolError where nvcc is missing or fails, or where there is no room for its files.
    """
    source = kernels.source(weights_bytes)
    key = digest_of(["cuda", source, repr(kernels.machine.archs), nvcc_version(), sources_digest("codegen")])
    names = [program.network.name for program in kernels.programs]
    try:
        code, log = cache.get(key), cache.get(digest_of([key, "log"]))
        if code is None or log is None:
            progress("compiling kernels by nvcc", 0, 0)
            code, said = compile_object(folder, names[0], source, kernels.machine)
            progress("compiling kernels by nvcc", 1, 1)
            log = said.encode()
            cache.put(key, code)
            cache.put(digest_of([key, "log"]), log)
        for line in _taken(kernels, resources(log.decode())):
            report(line)
        return link(folder, names, code, weights)
    except OSError as error:
        raise no_room(error) from error


def _taken(kernels: Kernels, found: Sequence[Resources]) -> Iterator[str]:
    """k1_conv        48 registers, 4096 bytes of shared memory on sm_80; 40 registers, …"""
    by_symbol: dict[str, list[Resources]] = {}
    for each in found:
        by_symbol.setdefault(each.symbol, []).append(each)
    for symbols in kernels.symbols:
        for name, symbol in symbols.kernels.items():
            told = [
                f"{each.registers} registers, {each.shared} bytes of shared memory"
                f"{f', {each.spills} bytes of registers spilled' if each.spills else ''} on {each.arch}"
                for each in by_symbol.pop(symbol, [])
            ]
            if told:
                yield f"{name:<14} {'; '.join(told)}"


def tir(programs: Sequence[Program]) -> str:
    """The scheduled TVMScript of every kernel."""
    from tvmcnn.codegen.cuda.kernel import scheduled

    steps = [step for program in programs for step in program.steps if not step.choice.is_view]
    return "\n\n".join(f"# {step.choice.name}\n{scheduled(step).script()}" for step in steps)
