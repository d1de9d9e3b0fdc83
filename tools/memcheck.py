"""Run compiled networks under valgrind: no byte outside of what the caller gave, none read before it is written.

    python tools/memcheck.py [lenet5,resnet18@64,…] [--markdown docs/memcheck.md] [--json OUT.json]

Each network is compiled for AVX2 (valgrind knows no AVX-512), linked into a C program that allocates inputs, outputs
and the arena to the byte, and runs there on one thread and on two. The outputs must be those of Python, bit for bit;
that they are written out shows valgrind any byte of them that was never computed. Exit status 1 if anything is found.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from bench_models import Entry, parse

import tvmcnn
from tvmcnn.errors import InputError, ToolError
from tvmcnn.files import write_file
from tvmcnn.run.arrays import random_array

MODELS = (
    "lenet5,lenet5:3,squeezenet@64,mobilenet_v1@64,mobilenet_v2@64,mobilenet_v3_large@64,efficientnet_b0@64,"
    "shufflenet@64,resnet18@64,resnet50@64,densenet121@64,inception_v1@64,unet@64,vgg16@64,alexnet@64"
)
TARGET = "x86-64-v3"
THREADS = (1, 2)
VALGRIND = ("valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=all")
PAGE = """# Memory

Made by `python tools/memcheck.py --markdown docs/memcheck.md`: each network under valgrind's memcheck, compiled for
x86-64-v3, with every array and the arena allocated to the byte, on one thread and on two; outputs bit for bit those of
Python. Found: bytes read or written outside, read before they were written, or never freed.

| network | kernels | seconds | found |
|---|---|---|---|
"""
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "{name}.h"

static void *bytes(size_t count, int read) {{
  void *memory = aligned_alloc(64, count); /* to the byte: glibc asks for no multiple of 64 */
  if (read && fread(memory, 1, count, stdin) != count) exit(2);
  return memory;
}}

int main(void) {{
  void *arena = bytes({arena} + {scratch} * {threads}, 0);
  void *in[] = {{{inputs}}}, *out[] = {{{outputs}}};
  int32_t status = {name}_run_threads({arguments}, arena, {threads});
  if (status) return fprintf(stderr, "%s\n", {name}_message(status)), 3;
  size_t sizes[] = {{{sizes}}};
  for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); ++i) fwrite(out[i], 1, sizes[i], stdout), free(out[i]);
  for (int i = 0; i < (int)(sizeof in / sizeof *in); ++i) free(in[i]);
  free(arena);
  return 0;
}}
"""


@dataclass(frozen=True)
class Row:
    """What was found of one network: nothing, if all is well."""

    network: str
    kernels: int
    seconds: float
    found: str

    def __str__(self) -> str:
        return f"| {self.network} | {self.kernels} | {self.seconds:.0f} | {self.found or 'nothing'} |"


def examine(model: Path, batch: int | None, folder: Path, missing: int = 0) -> tuple[int, str]:
    """The number of kernels, and what valgrind or the comparison found first.

    `missing` bytes are left out of the arena: a mistake that must be found.
    """
    library = folder / "net.so"
    compiled = tvmcnn.compile(model, TARGET, library, batch=batch, activations=False)
    tvmcnn.compile(model, TARGET, folder / "net.a", batch=batch, activations=False, verify=False)
    net = tvmcnn.load(library, threads=1).programs[0]
    (folder / f"{net.symbol}.h").write_text(compiled.header)
    manifest = net.manifest
    given = [random_array(info, seed) for seed, info in enumerate(net.inputs)]
    wanted = net(*given)
    answers = b"".join(array.tobytes() for array in (wanted if isinstance(wanted, tuple) else (wanted,)))
    sizes = [int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize for info in net.outputs]
    for threads in THREADS:
        text = PROGRAM.format(
            name=net.symbol,
            arena=manifest["arena_bytes"] - missing,
            scratch=manifest["thread_bytes"],
            threads=threads,
            inputs=", ".join(f"bytes({array.nbytes}, 1)" for array in given),
            outputs=", ".join(f"bytes({size}, 0)" for size in sizes),
            sizes=", ".join(map(str, sizes)),
            arguments=", ".join([f"in[{i}]" for i in range(len(given))] + [f"out[{i}]" for i in range(len(sizes))]),
        )
        (folder / "main.c").write_text(text)
        command = ["cc", "-std=c11", "-g", "-O1", "main.c", "net.a", "-I.", "-o", "main", "-lm", "-pthread"]
        subprocess.run(command, cwd=folder, check=True)
        data = b"".join(array.tobytes() for array in given)
        done = subprocess.run([*VALGRIND, "./main"], cwd=folder, input=data, capture_output=True, check=False)
        if done.returncode or done.stderr:
            said = [re.sub(r"^==\d+== *", "", line) for line in done.stderr.decode(errors="replace").splitlines()]
            said = [line for line in said if line]
            return len(manifest["kernels"]), f"on {threads} threads: {said[0] if said else f'status {done.returncode}'}"
        if done.stdout != answers:
            return len(manifest["kernels"]), f"on {threads} threads other bits than from Python"
    return len(manifest["kernels"]), ""


def row(entry: Entry) -> Row:
    """One network, compiled in a folder of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kernels, found = examine(entry.file(Path(folder)), entry.batch if entry.batch > 1 else None, Path(folder))
    return Row(str(entry), kernels, time.monotonic() - began, found)


def main() -> int:
    """Examine each, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="?", default=MODELS, help="as of bench_peers.py (%(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        if shutil.which("valgrind") is None:
            raise ToolError("valgrind is not installed: on Debian 'apt install valgrind'")
        for entry in parse(options.models, (64, 64)):
            rows.append(row(entry))
            print(rows[-1], flush=True)
    except (InputError, ToolError) as error:
        print(f"memcheck: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in rows], indent=2) + "\n")
    if options.markdown is not None:
        write_file(options.markdown, (PAGE + "".join(f"{each}\n" for each in rows)).encode())
    return 1 if any(each.found for each in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
