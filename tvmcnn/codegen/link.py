"""Link: kernels, weights and the C of the chain become one shared library, with the machine's C compiler."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tvm_ffi

from tvmcnn.codegen.templates import NATIVE
from tvmcnn.errors import ToolError
from tvmcnn.targets import Target

POOL = "tvmcnn_pool_3"  # the memory of the threads' pool, which every library of a process shares
POOL_SOURCES = (NATIVE / "pool.c", NATIVE / "pool.h", NATIVE / "pool.s")
FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden")


def around_kernels(target: Target) -> tuple[str, ...]:
    """Options for the C around the kernels: without extensions, so that {name}_check itself runs on every CPU."""
    return *FLAGS, f"-march={target.baseline}", f"-DTVMCNN_PAUSE={target.pause}"


def c_compiler() -> list[str]:
    """The command of the C compiler: $CC, which may have arguments, else cc, gcc or clang.

    Raises ToolError with how to get one.
    """
    if named := named_compiler("CC", "C compiler"):
        return named
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    raise ToolError("no C compiler found (looked for $CC, cc, gcc, clang): install one, on Debian by 'apt install gcc'")


def named_compiler(variable: str, what: str) -> list[str]:
    """The command that an environment variable names, with its arguments; none if it names none.

    Raises ToolError if that is not found.
    """
    named = shlex.split(os.environ.get(variable, ""))
    if named and shutil.which(named[0]) is None:
        raise ToolError(f"${variable} names the {what} '{named[0]}', which is not found")
    return named


def compiler_version(command: list[str]) -> str:
    """What a compiler says of itself, asked once a process: gcc (Debian 12.2.0-14) 12.2.0.

    Raises ToolError where it does not run.
    """
    return _version(tuple(command))


@functools.lru_cache(maxsize=8)
def _version(command: tuple[str, ...]) -> str:
    lines = run_compiler([*command, "--version"], Path.cwd(), output=True).strip().splitlines()
    return next((line.strip() for line in reversed(lines) if "release" in line), lines[0] if lines else "unknown")


def includes() -> list[str]:
    """The folders of our headers, tvm-ffi's and DLPack's, as options."""
    folders = NATIVE, tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()
    return [f"-I{folder}" for folder in folders]


def write_exports(folder: Path, symbols: Iterable[str]) -> None:
    """folder/exports.map, by which the linker hides every other symbol."""
    (folder / "exports.map").write_text(f"{{ global: {'; '.join(symbols)}; local: *; }};\n")


def link(
    folder: Path,
    name: str,
    sources: Mapping[str, str],
    public: Iterable[str],
    weights: Path,
    objects: Sequence[Path],
    target: Target,
) -> Path:
    """folder/{name}.so from the C sources of the chains by file, the weights and the kernels' objects in `folder`.

    The library exports the `public` symbols and the pool's and nothing else, needs no library but libc and libm, and is
    the same byte for byte wherever `folder` lies: objects in a fixed order, no build id, no path inside.
    """
    compiler, options = c_compiler(), around_kernels(target)
    for program, source in sources.items():
        (folder / f"{program}.c").write_text(source)
    weights_object(folder, name, weights, compiler)
    write_exports(folder, [*public, POOL])
    for file, data in pool_objects((*compiler, *options), tuple(path.read_bytes() for path in POOL_SOURCES)).items():
        (folder / file).write_bytes(data)
    run_compiler([*compiler, *options, "-c", *(f"{program}.c" for program in sources), *includes()], folder)
    output = f"{name}.so"
    flags = [
        "-shared",
        "-s",
        "-Wl,--version-script=exports.map",
        "-Wl,-Bsymbolic",
        "-Wl,--build-id=none",
        "-Wl,--as-needed",
    ]
    names = [
        *(f"{program}.o" for program in sources),
        "pool-threads.o",
        "pool-memory.o",
        "weights.o",
        *sorted(path.name for path in objects),
    ]
    run_compiler([*compiler, *flags, "-o", output, *names, "-lm", "-pthread"], folder)
    return folder / output


@functools.lru_cache(maxsize=4)
def pool_objects(command: tuple[str, ...], sources: tuple[bytes, ...]) -> dict[str, bytes]:
    """The objects of the threads' pool by file, the same for every library: compiled once a process.

    It took two fifths of what the compiler does for a small network. `sources` are the texts, lest one that was edited
    since be taken for another.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Names that no program has: C identifiers, from which its file is called
        (folder / "pool-threads.c").write_bytes(sources[0])
        run_compiler([*command, "-c", "pool-threads.c", *includes()], folder)
        run_compiler([*command, "-c", str(NATIVE / "pool.s"), "-o", "pool-memory.o"], folder)
        return {file: (folder / file).read_bytes() for file in ("pool-threads.o", "pool-memory.o")}


def archive(folder: Path, name: str, public: Iterable[str]) -> Path:
    """folder/{name}.a of the objects that `link` has left in `folder`: one member, whose only global symbols are the
    `public` ones and the pool's, so that several networks go into one program.

    Raises ToolError where binutils' objcopy or ar is missing or fails.
    """
    objects = sorted(path.name for path in folder.glob("*.o"))
    (folder / "public.txt").write_text("\n".join([*public, POOL]) + "\n")
    run_compiler([*c_compiler(), "-r", "-nostdlib", "-o", f"{name}.whole", *objects], folder)
    run_compiler(
        [*_tool("OBJCOPY", "objcopy"), "--keep-global-symbols=public.txt", f"{name}.whole", f"{name}.o"], folder
    )
    run_compiler([*_tool("AR", "ar"), "rcsD", f"{name}.a", f"{name}.o"], folder)
    return folder / f"{name}.a"


def _tool(variable: str, name: str) -> list[str]:
    """The command of one of binutils' programs. Raises ToolError where it is missing."""
    if named := named_compiler(variable, name):
        return named
    if shutil.which(name) is None:
        raise ToolError(
            f"a static library needs {name} (looked for ${variable}, {name}): on Debian 'apt install binutils'"
        )
    return [name]


def weights_object(folder: Path, name: str, weights: Path, compiler: list[str]) -> None:
    """folder/weights.o, with the weights as the symbol {name}_weights."""
    if weights.stat().st_size:
        (folder / "weights.bin").symlink_to(weights)
    else:
        (folder / "weights.bin").write_bytes(bytes(1))
    (folder / "weights.s").write_text(
        f'.section .rodata,"a",@progbits\n.balign 64\n.hidden {name}_weights\n.globl {name}_weights\n'
        f'{name}_weights:\n.incbin "weights.bin"\n.section .note.GNU-stack,"",@progbits\n'
    )
    run_compiler([*compiler, "-c", "weights.s"], folder)


def run_compiler(command: list[str], folder: Path, *, output: bool = False) -> str:
    """Run a command of the C compiler in `folder`, and what it says there or on its output. Raises ToolError with its
    first error."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise ToolError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise ToolError(f"{command[0]} failed (status {done.returncode}): {lines[0] if lines else 'no message'}")
    return done.stdout if output else done.stderr
