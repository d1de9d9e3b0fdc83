"""Candidates: a library of a few candidates of a kernel, each a call on memory that its operands lie in.

static void call_3(char* m, size_t turn) {
  tvmcnn_winograd_data_5a0c…(m, m + 131072, m + 999424, 0, 16);
  tvmcnn_conv_1f0c…(m, m + 131072, m + 1048576 + turn, m + 1114112 + turn, m + 524288, m + 999424, 0, 4);
}
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm_ffi

from tvmcnn.codegen.cpu.chain import pointers
from tvmcnn.codegen.cpu.features import asked, source
from tvmcnn.codegen.link import c_compiler, run_compiler
from tvmcnn.codegen.templates import NATIVE
from tvmcnn.targets import Target

FUNCTIONS = ("run", "time", "fill", "peak", "machine")


@dataclass(frozen=True)
class Call:
    """One kernel's function, the offsets of its arguments (those of constants are from the first constant), tasks."""

    symbol: str
    arguments: tuple[tuple[str, int], ...]  # ("memory" or "constants", bytes)
    tasks: int


@dataclass(frozen=True)
class Calls:
    """A candidate: its calls in order, where scratch and constants begin, and the copies that the constants have."""

    calls: tuple[Call, ...]
    scratch: int
    constants: int
    stride: int  # bytes of the constants
    copies: int


class Linker:
    """Makes libraries of trials in a folder; what they share is compiled once."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        include = f"-I{tvm_ffi.libinfo.find_include_path()}", f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}"
        self._flags = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", f"-I{NATIVE}", *include]
        (folder / "features.c").write_text(source(target))
        for path, march in (
            (NATIVE / "trial.c", target.baseline),
            (NATIVE / "entry.c", target.baseline),
            (Path("features.c"), target.baseline),
            (NATIVE / "peak.c", target.cpu),
        ):
            command = [*c_compiler(), *self._flags, f"-march={march}", "-c", str(path), "-o", f"{path.stem}.o"]
            run_compiler(command, folder)

    def link(self, name: str, candidates: Sequence[Calls], objects: Mapping[str, bytes]) -> Path:
        """The library folder/{name}.so, whose trial i is candidate i. Raises ToolError where the C compiler fails."""
        for symbol, data in objects.items():
            (self.folder / f"{symbol}.o").write_bytes(data)
        (self.folder / f"{name}.c").write_text(_source(candidates, self.target))
        exports = "; ".join(f"__tvm_ffi_{function}" for function in FUNCTIONS)
        (self.folder / "trials.map").write_text(f"{{ global: {exports}; local: *; }};\n")
        march = [f"-march={self.target.baseline}", "-Wl,--version-script=trials.map", "-Wl,-Bsymbolic"]
        parts = ["trial.o", "entry.o", "features.o", "peak.o", *(f"{symbol}.o" for symbol in objects), "-lm"]
        command = [*c_compiler(), *self._flags, *march, "-shared", "-o", f"{name}.so", f"{name}.c", *parts]
        run_compiler(command, self.folder)
        for symbol in objects:
            (self.folder / f"{symbol}.o").unlink()
        return self.folder / f"{name}.so"


def _source(candidates: Sequence[Calls], target: Target) -> str:
    counts = {call.symbol: len(call.arguments) for each in candidates for call in each.calls}
    prototypes = "\n".join(f"extern int32_t {symbol}({pointers(count)});" for symbol, count in counts.items())
    functions = "\n".join(itertools.starmap(_function, enumerate(candidates)))
    rows = ",\n  ".join(f"{{call_{i}, {each.stride}, {each.copies}, 0}}" for i, each in enumerate(candidates))
    return f"""#include "trial.h"

extern uint32_t {asked(target)}(void);
{prototypes}

{functions}

tvmcnn_trial tvmcnn_trials[] = {{
  {rows}
}};
const int32_t tvmcnn_trial_count = {len(candidates)};

int32_t tvmcnn_trial_supported(void) {{
  return {asked(target)}() == 0;
}}
"""


def _function(index: int, candidate: Calls) -> str:
    def argument(space: str, offset: int) -> str:
        return f"m + {candidate.constants + offset} + turn" if space == "constants" else f"m + {offset}"

    lines = "\n".join(
        f"  {call.symbol}({', '.join(itertools.starmap(argument, call.arguments))},"
        f" m + {candidate.scratch}, 0, {call.tasks});"
        for call in candidate.calls
    )
    return f"static void call_{index}(char* m, size_t turn) {{\n  (void)turn;\n{lines}\n}}\n"
