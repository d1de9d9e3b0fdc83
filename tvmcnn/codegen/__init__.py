"""Generate: scheduled PrimFuncs become object code, and object code one shared library with a C ABI."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tvm import tirx

from tvmcnn.codegen import chain
from tvmcnn.codegen.cpu import compile_kernels
from tvmcnn.codegen.link import link
from tvmcnn.errors import ToolError
from tvmcnn.network import Program
from tvmcnn.targets import Target

Functions = Mapping[str, tirx.PrimFunc]  # by kernel name


def generate(program: Program, machine: Target, kernels: Functions, opened: Functions) -> bytes:
    """The ELF image of a program: `kernels` by LLVM, their open variants too, the chain by the C compiler, linked.

    Raises ToolError where the C compiler is missing or fails, or where there is no room for the compiler's own files.
    """
    name = program.network.name
    functions = {f"{name}_{kernel}": func for kernel, func in kernels.items()}
    functions |= {f"{name}_{kernel}_open": func for kernel, func in opened.items()}
    with scratch_folder() as folder:
        objects = folder / "kernels.o"
        compile_kernels(functions, machine).write_to_file(str(objects))
        return link(folder, name, chain.source(program, machine, opened), program.weights, [objects]).read_bytes()


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
