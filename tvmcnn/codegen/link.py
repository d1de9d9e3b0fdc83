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

from tvmcnn.codegen.cpu import features
from tvmcnn.codegen.templates import NATIVE
from tvmcnn.errors import ToolError
from tvmcnn.targets import Target

POOL = "tvmcnn_pool_3"  # the memory of the threads' pool, which every library of a process shares
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
    targets: Sequence[Target],
) -> Path:
    """folder/{name}.so from the C sources of the chains by file, the weights and the kernels' objects in `folder`.

    The library exports the `public` symbols and the pool's and nothing else, needs no library but libc and libm, and is
    the same byte for byte wherever `folder` lies: objects in a fixed order, no build id, no path inside.
    """
    compiler, options = c_compiler(), around_kernels(targets[0])
    for program, source in sources.items():
        (folder / f"{program}.c").write_text(source)
    weights_object(folder, name, weights, compiler)
    write_exports(folder, [*public, POOL])
    shared = shared_objects((*compiler, *options), targets)
    for file, data in shared.items():
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
        *shared,
        "weights.o",
        *sorted(path.name for path in objects),
    ]
    run_compiler([*compiler, *flags, "-o", output, *names, "-lm", "-pthread"], folder)
    return folder / output


def shared_objects(command: tuple[str, ...], targets: Sequence[Target]) -> dict[str, bytes]:
    """Objects by file that are the same for every library of some targets, under names that no program has.

    They took more than half of what the C compiler does for a small network.
    """
    found = {
        "pool-threads.o": compiled_once(command, "pool-threads.c", (NATIVE / "pool.c").read_bytes()),
        "pool-memory.o": compiled_once(command, "pool-memory.s", (NATIVE / "pool.s").read_bytes()),
    } | entries_object(command)
    for target in targets:
        stem = f"features-{target.short}"
        found[f"{stem}.o"] = compiled_once(command, f"{stem}.c", features.source(target).encode())
    return found


def entries_object(command: tuple[str, ...]) -> dict[str, bytes]:
    """The object by file of what every tvm-ffi entry calls: entry.h."""
    return {"tvm-ffi.o": compiled_once(command, "tvm-ffi.c", (NATIVE / "entry.c").read_bytes())}


@functools.lru_cache(maxsize=32)
def compiled_once(command: tuple[str, ...], file: str, source: bytes) -> bytes:
    """The object code of `source`, named `file`: compiled once a process."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / file).write_bytes(source)
        run_compiler([*command, "-c", file, "-o", "compiled.o", *includes()], Path(name))
        return (Path(name) / "compiled.o").read_bytes()


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
