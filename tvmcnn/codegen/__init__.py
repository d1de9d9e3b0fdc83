"""Generate: scheduled PrimFuncs become object code, and object code one shared library with a C ABI."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm import tirx

from tvmcnn.codegen import chain
from tvmcnn.codegen.cpu import compile_kernels
from tvmcnn.codegen.link import link
from tvmcnn.errors import ToolError
from tvmcnn.network import Program
from tvmcnn.targets import Target

Functions = Mapping[str, tirx.PrimFunc]  # by kernel name


@dataclass(frozen=True)
class Scheduled:
    """A program and the scheduled functions of its kernels, by name, with the open variants of some."""

    program: Program
    kernels: Functions
    opened: Functions

    @property
    def functions(self) -> Functions:
        """All of them by C symbol."""
        name = self.program.network.name
        named = {f"{name}_{kernel}": func for kernel, func in self.kernels.items()}
        return named | {f"{name}_{kernel}_open": func for kernel, func in self.opened.items()}


def generate(scheduled: Sequence[Scheduled], machine: Target, weights: Path) -> bytes:
    """The ELF image of programs that share the file `weights`: kernels by LLVM, chains by the C compiler, linked.

    Raises ToolError where the C compiler is missing or fails, or where there is no room for the compiler's own files.
    """
    name = scheduled[0].program.network.name
    functions = {symbol: func for each in scheduled for symbol, func in each.functions.items()}
    with scratch_folder() as folder:
        objects = []
        if functions:
            objects = [folder / "kernels.o"]
            compile_kernels(functions, machine).write_to_file(str(objects[0]))
        sources = {
            each.program.network.name: chain.source(each.program, machine, each.opened, f"{name}_weights")
            for each in scheduled
        }
        return link(folder, name, sources, weights, objects).read_bytes()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for the compiler's own files, gone at the end. Raises ToolError where there is no room."""
    try:
        with tempfile.TemporaryDirectory(prefix="tvmcnn-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ToolError(
            f"cannot write the compiler's own files ($TMPDIR names their place): {error.strerror}"
        ) from error
