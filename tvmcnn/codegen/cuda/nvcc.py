"""Compile CUDA C++ by nvcc: one library with code for several GPUs, without libtvm_ffi and without a driver."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmcnn.codegen.cuda.chain import exports
from tvmcnn.codegen.entries import facts_exported
from tvmcnn.codegen.link import (
    FLAGS,
    c_compiler,
    entries_object,
    includes,
    named_compiler,
    run_compiler,
    weights_object,
    write_exports,
)
from tvmcnn.errors import ToolError
from tvmcnn.targets import Gpu

PLACES = ("/usr/local/cuda/bin/nvcc",)


def nvcc() -> list[str]:
    """The command of the CUDA compiler: $NVCC, which may have arguments, else nvcc, of PyPI's or of a toolkit.

    Raises ToolError with how to get one.
    """
    if named := named_compiler("NVCC", "CUDA compiler"):
        return named
    found = shutil.which("nvcc") or next((place for place in (*_packaged(), *PLACES) if Path(place).exists()), None)
    if found is None:
        raise ToolError(
            "no CUDA compiler found (looked for $NVCC, nvcc, /usr/local/cuda): pip install 'tvmcnn[cuda]', or a toolkit"
        )
    return [str(found)]


def _packaged() -> list[str]:
    """Where PyPI's nvidia-cuda-nvcc puts it."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else []
    return [str(path) for folder in folders for path in sorted(Path(folder).glob("*/bin/nvcc"))]


def nvcc_version() -> str:
    """What nvcc says of itself, behind its command: $NVCC may have flags of the user's."""
    command = nvcc()
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return f"{command}\n{done.stdout}{done.stderr}"


@dataclass(frozen=True)
class Resources:
    """What ptxas gives a kernel on one architecture: registers a thread, bytes of shared memory a block, and bytes of
    registers that a thread spills, stored and loaded."""

    symbol: str
    arch: str
    registers: int
    shared: int
    spills: int


def resources(log: str) -> list[Resources]:
    """Resources of each kernel in nvcc's log, by symbol and architecture; none in the log of another compiler."""
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        symbol, arch = re.match(r"(\w+)' for '(\w+)'", part).groups()  # type: ignore[union-attr]
        numbers = {
            word: sum(map(int, re.findall(pattern, part)))
            for word, pattern in (
                ("registers", r"Used (\d+) registers"),
                ("shared", r"(\d+) bytes smem"),
                ("spills", r"(\d+) bytes spill"),
            )
        }
        found.append(Resources(symbol, arch, **numbers))
    return sorted(found, key=lambda each: (each.symbol, each.arch))


def compile_object(folder: Path, name: str, source: str, target: Gpu) -> tuple[bytes, str]:
    """The object code of the CUDA C++ `source`, for the host and each GPU, and nvcc's log.

    Raises ToolError where nvcc fails.
    """
    (folder / f"{name}.cu").write_text(source)
    numbers = [arch.removeprefix("sm_") for arch in target.archs]
    newest = numbers[-1].removesuffix("a")
    flags = [
        *("-c", "-std=c++17", "-O3", "-w", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"),
        "-Xptxas=--register-usage-level=10",  # by default some kernels of tensor cores spill 16 bytes for occupancy
        *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers),
        f"-gencode=arch=compute_{newest},code=compute_{newest}",
        *includes(),
    ]
    log = run_compiler([*nvcc(), *flags, "-o", f"{name}.o", f"{name}.cu"], folder)
    return (folder / f"{name}.o").read_bytes(), log


def link(folder: Path, names: Sequence[str], code: bytes, weights: Path) -> Path:
    """folder/{name}.so from nvcc's object of programs of these names, and their weights.

    It needs no library of CUDA's nor of C++'s: both runtimes are inside, and CUDA's loads the driver if there is one.
    Raises ToolError.
    """
    name = names[0]
    (folder / f"{name}.o").write_bytes(code)
    weights_object(folder, name, weights, c_compiler())
    entries = entries_object((*c_compiler(), *FLAGS))
    for file, data in entries.items():
        (folder / file).write_bytes(data)
    write_exports(folder, [*(symbol for program in names for symbol in exports(program)), *facts_exported(name)])
    words = ("--version-script=exports.map", "-Bsymbolic", "--build-id=none", "--as-needed", "-s")
    own = "-Xcompiler=-static-libstdc++,-static-libgcc"
    flags = ["-shared", "--cudart=static", own, *(f"-Xlinker={word}" for word in words)]
    run_compiler([*nvcc(), *flags, "-o", f"{name}.so", f"{name}.o", *entries, "weights.o"], folder)
    return folder / f"{name}.so"
