"""Compare the machine code of every kernel with that of an earlier commit: a change of shape alone leaves it as it was.

    python tools/same_code.py BASE [--networks lenet5,resnet18,…] [--size 224] [--targets x86-64-v3,…,cuda:sm_80]
                              [--diff] [--json FILE]

BASE is any commit. Both trees compile the same files, each in a process of its own, without a cache: for CPUs the
assembly of each kernel and the C that chains them are compared, for GPUs the CUDA C++, which needs nvcc; and the hash
of the packed weights. Names that hold a hash of the compiler's own sources count as equal. Exit status 1 for a
difference, which `--diff` shows.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
from models import NETWORKS, make

from tvmcnn.errors import ToolError
from tvmcnn.files import write_file
from tvmcnn.progress import bar

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("x86-64-v3", "x86-64-v4", "cuda:sm_80")
# All that it asks of a tree is the public `compile`, so that any commit can be the base.
PROGRAM = """
import json, sys, tempfile, tvmcnn
model, target = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    made = tvmcnn.compile(model, target, f"{folder}/net.so", verify=False, activations=False)
texts = {kind: made.code[kind]() for kind in made.code if kind != "tir"}
json.dump({**texts, "weights": made.manifest["made_of"]["weights"]}, sys.stdout)
"""
HASHED = re.compile(r"\b(tvmcnn_[a-z0-9]+_)[0-9a-f]{20}\b")  # a function: see jobs.symbol_of
PLACE = re.compile(r"^\.Ltmp\d+:\n", re.MULTILINE)  # which debugging information numbers through the file
FUNCTION = re.compile(r"^(k\d+_\w+):", flags=re.MULTILINE)  # its label in the assembly


def unpacked(commit: str, folder: Path) -> Path:
    """The tree of a commit in a folder. Raises ToolError for one that is unknown."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        raise ToolError(f"there is no commit '{commit}': {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def texts(tree: Path, model: Path, target: str) -> dict[str, str]:
    """What a tree makes of a model, by kernel or part. Raises ToolError with what it says if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "TVMCNN_CACHE": "off", "TVMCNN_RECORDS": "off"}
    command = [sys.executable, "-c", PROGRAM, str(model), target]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{tree} does not compile {model.name} for {target}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return by_kernel(found)


def by_kernel(found: Mapping[str, str]) -> dict[str, str]:
    """The assembly cut at its functions, the rest as it is; hashes in names are counted instead, places left out."""
    parts: dict[str, str] = {}
    for kind, text in found.items():
        seen: dict[str, int] = {}
        plain = HASHED.sub(lambda m: f"{m[1]}{seen.setdefault(m[0], len(seen))}", text)  # noqa: B023 (used at once)
        if kind == "asm":
            plain = PLACE.sub("", plain.partition("\t.section\t.debug_")[0])
            starts = [*FUNCTION.finditer(plain)]
            ends = [*(match.start() for match in starts[1:]), len(plain)]
            parts |= {m[1]: plain[m.start() : end] for m, end in zip(starts, ends, strict=True)}
        else:
            parts[kind] = plain
    return parts


def differing(base: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """The kernels and parts that differ, or that only one side has."""
    return [name for name in {**base, **ours} if base.get(name) != ours.get(name)]


def models(names: str, size: int, folder: Path) -> list[Path]:
    """The files of networks: those of make_models.py by name, lenet5, or any ONNX file."""
    found = []
    for name in names.split(","):
        if name == "lenet5":
            found.append(ROOT / "tvmcnn" / "data" / "lenet5.onnx")
        elif name in NETWORKS:
            found.append(folder / f"{name}.onnx")
            onnx.save(make(name, size), found[-1])
        elif Path(name).is_file():
            found.append(Path(name).resolve())
        else:
            raise ToolError(f"'{name}' is neither a file nor one of lenet5, {', '.join(NETWORKS)}")
    return found


def main() -> int:
    """Compile, compare, and print a line a network and target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="the commit to compare with")
    parser.add_argument("--networks", default=",".join(["lenet5", *NETWORKS]), help="default: all")
    parser.add_argument("--size", type=int, default=224, help="of square inputs (default: 224)")
    parser.add_argument("--targets", default=None, help=f"default: {','.join(TARGETS)}, the last if nvcc is there")
    parser.add_argument("--diff", action="store_true", help="show what differs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    there = TARGETS if shutil.which(os.environ.get("NVCC", "nvcc")) else TARGETS[:-1]
    targets = options.targets.split(",") if options.targets else there
    rows: list[dict[str, object]] = []
    try:
        with tempfile.TemporaryDirectory() as scratch, bar() as progress:
            base = unpacked(options.base, Path(scratch, "base"))
            pairs = [(m, t) for m in models(options.networks, options.size, Path(scratch)) for t in targets]
            for done, (model, target) in enumerate(pairs):
                progress("comparing", done, len(pairs))
                sides = [texts(tree, model, target) for tree in (base, ROOT)]
                different = differing(*sides)
                rows.append({"network": model.stem, "target": target, "parts": len(sides[1]), "different": different})
                told = f"different: {', '.join(different)}" if different else "the same"
                print(f"{model.stem:<20} {target:<12} {len(sides[1]):>4} kernels and parts, {told}", flush=True)
                for name in different if options.diff else ():
                    before, now = (side.get(name, "").splitlines() for side in sides)
                    print("\n".join(difflib.unified_diff(before, now, f"{name} before", f"{name} now", lineterm="")))
            progress("comparing", len(pairs), len(pairs))
    except ToolError as error:
        parser.error(str(error))
    if options.json is not None:
        write_file(options.json, json.dumps(rows, indent=1) + "\n")
    return int(any(row["different"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
