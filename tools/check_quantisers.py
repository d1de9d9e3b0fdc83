"""Networks that others quantise, compiled unchanged: all integers equal to the oracle's on each target.

    python tools/check_quantisers.py [--only nncf,branches] [--models DIR] [--markdown FILE] [FILE.onnx …]

onnxruntime, Intel's Neural Compressor, NNCF and Brevitas quantise small CNNs in their usual settings; ddddocr's wheel
has a trained network whose scales come at run time. Each file is made once, into `--models`, and compiled for each
target; one and two threads must give the same integers. A line a network: how many kernels compute on integers, which
in other types, which products are computed in float32 though they are quantised, and why; of how many tensors every
integer was equal. Exit status 1 if a network is refused or a byte differs.

Needs tvmcnn[quantisers], best in an environment of its own: these packages hold back NumPy. What pip says:

    pip install --extra-index-url https://download.pytorch.org/whl/cpu '.[quantisers]'
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import quantisers
from quantisers import NETWORKS, QUANTISERS
from zoo_wheels import Wheel, fetched

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import TvmcnnError
from tvmcnn.files import write_file

TARGETS = ("native", "x86-64-v3")
THREADS = (1, 2)
DYNAMIC = Wheel("ddddocr", "1.6.1", "ddddocr/common_old.onnx", {"input1": (1, 1, 64, 140)})
IN_FLOAT32 = " is computed in float32, though it is quantised: "


@dataclass
class Row:
    """What was found of a network."""

    network: str
    quantiser: str
    version: str = ""
    kernels: str = ""  # of the log
    reasons: list[str] = field(default_factory=list)
    equal: int = 0  # tensors of integers
    excused: int = 0  # elements on the other side of a half, which a rounding error of floats before reaches over
    failed: str = ""

    def __str__(self) -> str:
        start = f"{self.network} by {self.quantiser}"
        if self.failed:
            return f"{start}: FAILED: {self.failed}"
        reasons = "".join(f"\n    {reason}" for reason in self.reasons)
        halves = f", {self.excused} elements at halves" if self.excused else ""
        return f"{start}: {self.kernels}; {self.equal} tensors of integers equal{halves}{reasons}"


def checked(row: Row, path: Path, shapes: dict[str, tuple[int, ...]]) -> Row:
    """Compile a network for each target, and compare its integers with the oracle's on each number of threads."""
    try:
        given = _drawn(path, shapes)
        wanted = reference(path, given, every_tensor=True)
        for target in TARGETS:
            _compare(row, path, target, given, wanted)
    except (TvmcnnError, AssertionError) as error:
        row.failed = " ".join(str(error).split())
    return row


def _compare(row: Row, path: Path, target: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    lines = list[str]()
    shapes = {name: array.shape for name, array in given.items()}
    with tempfile.TemporaryDirectory(prefix="quantisers-") as folder:
        compiled = tvmcnn.compile(path, target, Path(folder) / "q.so", shapes, report=lines.append)
        row.kernels = next((line.partition(": ")[2] for line in lines if line.startswith("integers: ")), "no integers")
        row.reasons = [note for note in compiled.program.network.notes if IN_FLOAT32 in note]
        assert compiled.verdict is not None  # which follows each step, and wants equal integers of equal operands
        row.excused = max(row.excused, compiled.verdict.excused)
        row.equal = len(
            {
                error.name
                for error in (*compiled.verdict.tensors, *compiled.verdict.outputs)
                if error.exact and not error.excused
            }
        )
        made = [_integers(compiled.path, threads, given) for threads in THREADS]
    names = [name for name in made[0] if name in wanted]
    before = names[: _until_floats(lines, names)]
    for threads, found in zip(THREADS, made, strict=True):
        for name in names:
            same = np.array_equal(found[name], (wanted if name in before else made[0])[name])
            assert same, f"'{name}' has other bytes: {target}, {threads} threads"


def _until_floats(lines: list[str], names: list[str]) -> int:
    """All integers of a network without floats between; else the first: others round what differs in last bits."""
    alone = any(line.startswith("integers: ") and " 0 in other types" in line for line in lines)
    return len(names) if alone else 1


def _integers(path: Path, threads: int, given: dict[str, Any]) -> dict[str, Any]:
    """All integers that a library makes."""
    net = tvmcnn.load(path, threads=threads)
    ordered = [given[info.name] for info in net.inputs]
    answer = net(*ordered)
    answers = answer if isinstance(answer, tuple) else (answer,)
    found = net.activations(*ordered) | {info.name: array for info, array in zip(net.outputs, answers, strict=True)}
    return {name: array for name, array in found.items() if array.dtype.kind in "iu"}


def _drawn(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """An image: normal numbers; an open batch is 1."""
    model, rng = onnx.load(path, load_external_data=False), np.random.default_rng(11)
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name not in weights:
            shape = shapes.get(value.name) or tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def rows(only: list[str], models: Path) -> Iterator[Row]:
    """Make and check what is asked for, one after the other."""
    for quantiser in QUANTISERS:
        for network in NETWORKS:
            if not any(part in f"{network}-{quantiser}" for part in only) or not quantisers.takes(quantiser, network):
                continue
            row = Row(network, quantiser, quantisers.version(quantiser))
            try:
                path = quantisers.quantised(network, quantiser, models)
            except Exception as error:  # whatever a quantiser raises
                row.failed = f"it is not quantised: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                yield row
                continue
            yield checked(row, path, {})
    if any(part in DYNAMIC.file for part in only):
        path, row = models / DYNAMIC.file, Row("common_old", DYNAMIC.project, f"{DYNAMIC.project} {DYNAMIC.version}")
        row.failed = "" if path.is_file() else fetched(DYNAMIC, path)
        yield row if row.failed else checked(row, path, DYNAMIC.shapes)


def markdown(found: list[Row]) -> str:
    """A table, a line a network."""
    lines = ["| network | quantised by | kernels on 8 bits, and in other types | tensors equal |", "|---|---|---|---|"]
    for row in found:
        cells = (row.network, f"{row.version} ({row.quantiser})", row.failed or row.kernels, str(row.equal))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join([*lines, "", f"tvmcnn {tvmcnn.__version__}, onnx {importlib.metadata.version('onnx')}."]) + "\n"


def main() -> int:
    """Print a line a network as it is done, then how many passed; with --markdown write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="ONNX files that something else made")
    parser.add_argument("--only", default="", metavar="PART,…", help="NETWORK-QUANTISER that has one of these in it")
    parser.add_argument("--models", type=Path, default=Path("quantised"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    others = (checked(Row(path.stem, "file"), path, {}) for path in options.files)
    found = []
    for row in others if options.files else rows(options.only.split(","), options.models):
        print(row, flush=True)
        found.append(row)
    wrong = sum(bool(row.failed) for row in found)
    print(f"{len(found) - wrong} of {len(found)} networks compile, and their integers are equal")
    if options.markdown is not None:
        write_file(options.markdown, markdown(found))
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    raise SystemExit(main())
