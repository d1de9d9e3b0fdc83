"""Compile the well-known networks and compare them with onnxruntime: one table of agreement, time and memory.

    python tools/check_networks.py [--only resnet18,yunet-n-320] [--size 64] [--batches 1,3] [--numpy]
                                   [--markdown table.md] [--json table.json]

The networks are those of make_models.py and, where TVMCNN_TEST_DATA names a folder that holds models/, the trained ones
there. Each runs on random, negative and outlier-spiked inputs; max |difference| may be 1e-4 of max |output|. An output
of which onnxruntime itself is farther than that from the NumPy reference, in float64, is compared with that. Compile
times are of the first batch, with an empty cache and then again. Exit status 1 if a network fails; its row says why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from models import NETWORKS, SIZE, make

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, TvmcnnError, UnsupportedError
from tvmcnn.files import write_file
from tvmcnn.machine import cpu_name, usable_cpus
from tvmcnn.network import Array, Shape, dims
from tvmcnn.run.runner import Runner
from tvmcnn.targets import resolve

TOLERANCE = 1e-4  # of the largest output: both sides round, in different orders
TRAINED = ("mnist-8", "lenet5-ccoltong", "squeezenet-fp32-cast", "super-resolution-10", "yunet-n-320")
KINDS: Mapping[str, Callable[[np.random.Generator, Shape], Array]] = {
    "random": lambda rng, shape: rng.standard_normal(shape),
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "spiked": lambda rng, shape: np.where(rng.random(shape) < 1 / 40, 30.0, 1.0) * rng.standard_normal(shape),
}
PAGE = """# Networks

Made by `python tools/check_networks.py --markdown docs/networks.md`. Each network runs on random, negative and
outlier-spiked inputs beside onnxruntime; the difference is the largest, relative to the largest output. Compile times
are without verification, with an empty cache and then again. The arena holds all intermediate tensors; no plan needs
less than the largest set that is alive at once. The weights are drawn; those of the last five networks are trained.
mnist-8 has no batch but 1: its Reshape says so.

onnxruntime's Sigmoid is off by 1e-7 however small its result: of yunet's scores, around 1e-5, it is 1 % from NumPy's
float64, and tvmcnn 6e-6. Where onnxruntime itself is wrong by more than 1e-4, the difference is that to NumPy.

"""
CACHE = "TVMCNN_CACHE"  # the variable that names the folder of compiled kernels


@dataclass(frozen=True)
class Row:
    """What was found of one network: differences relative to the largest output, by batch; seconds and bytes."""

    name: str
    reason: str = ""  # why it failed, in one sentence
    input: str = ""
    operators: str = ""
    nodes: int = 0
    kernels: int = 0
    differences: dict[int, float] = field(default_factory=dict)  # to onnxruntime
    numpy_difference: float | None = None
    cold_seconds: float | None = None
    cached_seconds: float | None = None
    library_bytes: int = 0
    arena_bytes: int = 0
    arena_lower_bound: int | None = None

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name}: FAILED: {self.reason}"
        found = ", ".join(f"{value:.1e} at batch {batch}" for batch, value in self.differences.items())
        numpy = f", to NumPy {self.numpy_difference:.1e}" if self.numpy_difference is not None else ""
        seconds = f"compiled in {self.cold_seconds:.1f} s, again in {self.cached_seconds:.1f} s"
        return f"{self.name}: {self.nodes} nodes in {self.kernels} kernels, {found}{numpy}, {seconds}"


def check(name: str, size: int, batches: Sequence[int], folder: Path, *, numpy: bool = False) -> Row:
    """Compile a network for each batch and compare it; `folder` is for its files.

    A failure is a row with its reason.
    """
    row = Row(name)
    try:
        path = trained()[name] if name in TRAINED else _written(name, size, folder)
        model = onnx.load(str(path))
        operators = ", ".join(sorted({node.op_type for node in model.graph.node}))
        row = dataclasses.replace(row, operators=operators, nodes=len(model.graph.node))
        for batch in batches:
            source = _rebatched(model, batch, path, folder)
            first = row.cold_seconds is None
            try:
                net, cold, cached = _compiled(source, folder, batch, again=first)
            except ModelError:
                if source == path or first:
                    raise
                continue  # a Reshape of the model fixes its batch
            session = open_session(source)
            if first:
                row = dataclasses.replace(row, cold_seconds=cold, cached_seconds=cached, **_figures(net))
            differences = [_difference_of(net, session, onnx.load(str(source)), feeds) for feeds in inputs(net, batch)]
            row = dataclasses.replace(row, differences={**row.differences, batch: float(np.max(differences))})
            if first and numpy:
                row = dataclasses.replace(row, numpy_difference=_numpy_difference(net, model, batch))
        return dataclasses.replace(row, reason=_disagreement(row))
    except Exception as error:  # whatever it is, the other networks still have their turn
        return dataclasses.replace(row, reason=one_sentence(error))


def _rebatched(model: onnx.ModelProto, batch: int, path: Path, folder: Path) -> Path:
    """The model's file, or one for another batch where the model fixes that."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    leading = [v.type.tensor_type.shape.dim[0] for v in model.graph.input if v.name not in initialized]
    if all(dim.dim_value in (0, batch) for dim in leading):
        return path
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for value in (*other.graph.input, *other.graph.output):
        if value.name not in initialized:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del other.graph.value_info[:]
    write_file(folder / "rebatched.onnx", other.SerializeToString())
    return folder / "rebatched.onnx"


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime, the oracle, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(net: Runner, seed: int) -> Iterator[dict[str, Array]]:
    """One set of arrays for each of KINDS."""
    for position, draw in enumerate(KINDS.values()):
        rng = np.random.default_rng([seed, position])
        yield {info.name: draw(rng, info.shape).astype(np.float32) for info in net.inputs}


def difference(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The largest max |difference| / max |output| of several outputs; infinite where a value is not finite."""
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            raise TvmcnnError(f"an output is {dims(ours.shape)}, that of the oracle {dims(theirs.shape)}")
        relative = float(np.max(np.abs(ours.astype(np.float64) - theirs)) / np.max(np.abs(theirs)))
        worst = max(worst, relative if np.isfinite(relative) else np.inf)
    return worst


def one_sentence(error: Exception) -> str:
    """An error in one line: of many unsupported nodes the first, and how many more there are."""
    if isinstance(error, UnsupportedError):
        more = f" (and {len(error.reasons) - 1} more nodes)" if len(error.reasons) > 1 else ""
        return f"{error.reasons[0]}{more}"
    text = " ".join(str(error).split())
    return text if isinstance(error, TvmcnnError) else f"{type(error).__name__}: {text[:300]}"


def _compiled(path: Path, folder: Path, batch: int, *, again: bool) -> tuple[Runner, float, float]:
    """The network for one batch; seconds to compile it with an empty cache, and a second time."""
    library, seconds = folder / "network.so", []
    with tempfile.TemporaryDirectory(dir=folder) as cache, mock.patch.dict(os.environ, {CACHE: cache}):
        for _ in range(2 if again else 1):
            start = time.perf_counter()
            tvmcnn.compile(path, output=library, batch=batch, verify=False)
            seconds.append(time.perf_counter() - start)
    net = tvmcnn.load(library)
    assert isinstance(net, Runner), "one batch, one program"
    return net, seconds[0], seconds[-1]


def _figures(net: Runner) -> dict[str, Any]:
    return {
        "input": ", ".join(dims(info.shape) for info in net.inputs),
        "kernels": len(net.manifest["kernels"]),
        "library_bytes": net.path.stat().st_size,
        "arena_bytes": net.manifest["arena_bytes"],
        "arena_lower_bound": net.manifest.get("arena_lower_bound"),
    }


def _difference_of(
    net: Runner, session: onnxruntime.InferenceSession, model: onnx.ModelProto, feeds: dict[str, Array]
) -> float:
    """The difference to onnxruntime; of an output that onnxruntime itself gets wrong, that to NumPy.

    Its Sigmoid is off by 1e-7 however small the result: yunet's scores of 1e-5 are 1 % off, and tvmcnn's 2e-6.
    """
    names = [info.name for info in net.outputs]
    ours, theirs = net.run(None, feeds), session.run(names, feeds)
    if difference(ours, theirs) <= TOLERANCE:
        return difference(ours, theirs)
    exact = reference(model, feeds)
    judged = [
        exact[name] if difference([wrong], [exact[name]]) > TOLERANCE else wrong
        for name, wrong in zip(names, theirs, strict=True)
    ]
    return difference(ours, judged)


def _numpy_difference(net: Runner, model: onnx.ModelProto, batch: int) -> float:
    names = [info.name for info in net.outputs]
    worst = 0.0
    for feeds in inputs(net, batch):
        expected = reference(model, feeds)
        worst = max(worst, difference(net.run(None, feeds), [expected[name] for name in names]))
    return worst


def _disagreement(row: Row) -> str:
    """Why the row's differences are too large; empty if they are not."""
    found = {f"onnxruntime at batch {batch}": value for batch, value in row.differences.items()}
    if row.numpy_difference is not None:
        found["NumPy"] = row.numpy_difference
    worst = max(found, key=lambda oracle: found[oracle])
    if found[worst] <= TOLERANCE:
        return ""
    return f"it differs from {worst} by {found[worst]:.1e} of the largest output; allowed is {TOLERANCE:.0e}"


# ---- the networks ---------------------------------------------------------------------------------------------------


def trained() -> dict[str, Path]:
    """The trained models that TVMCNN_TEST_DATA has, by name."""
    root = os.environ.get("TVMCNN_TEST_DATA")
    return {name: Path(root) / "models" / name / "model.onnx" for name in TRAINED} if root else {}


def _written(name: str, size: int, folder: Path) -> Path:
    path = folder / "network.onnx"
    write_file(path, make(name, size).SerializeToString(deterministic=True))
    return path


# ---- the table ------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], batches: Sequence[int]) -> str:
    """The table, a line a network. A model that fixes its batch has no difference for another."""
    with_numpy = any(row.numpy_difference is not None for row in rows)
    heads = ["network", "input", "nodes → kernels", *(f"difference, batch {batch}" for batch in batches)]
    heads += ["to NumPy"] if with_numpy else []
    heads += ["compile", "again", "library", "arena", "largest live set", "operators"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row.name, row.input, f"{row.nodes} → {row.kernels}"]
        if row.reason:
            lines.append(f"| {row.name} | {row.reason.replace('|', '/')} {'|' * (len(heads) - 1)}")
            continue
        cells += [f"{row.differences[batch]:.1e}" if batch in row.differences else "" for batch in batches]
        cells += ["" if row.numpy_difference is None else f"{row.numpy_difference:.1e}"] if with_numpy else []
        cells += [f"{row.cold_seconds:.1f} s", f"{row.cached_seconds:.1f} s", f"{row.library_bytes / 1e6:.1f} MB"]
        cells += [_megabytes(row.arena_bytes), _megabytes(row.arena_lower_bound), row.operators]
        lines.append(f"| {' | '.join(cells)} |")
    versions = f"tvmcnn {tvmcnn.__version__} for {resolve('native')} and onnxruntime {onnxruntime.__version__}"
    return "\n".join([*lines, "", f"{versions} on {cpu_name()}, {usable_cpus()} cores."]) + "\n"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f} MB"


def main() -> int:
    """Print one line a network as it is done, then the table; with --markdown and --json write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME,…", help="these networks, not all")
    parser.add_argument("--size", type=int, default=SIZE, help="rows and columns of the made models (%(default)s)")
    parser.add_argument("--batches", default="1,3", help="those that a model can have (%(default)s)")
    parser.add_argument("--numpy", action="store_true", help="compare with the NumPy reference too: slow at full size")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batches.split(",")]
    known = [*NETWORKS, *trained()]
    names = options.only.split(",") if options.only else known
    hint = "" if trained() else "; TVMCNN_TEST_DATA is not set, so that the trained ones are missing"
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"there is no network '{unknown[0]}'; there are {', '.join(known)}{hint}")

    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(check(name, options.size, batches, Path(scratch), numpy=options.numpy))
        print(rows[-1], flush=True)
    table = markdown(rows, batches)
    print(f"\n{table}")
    if options.markdown is not None:
        write_file(options.markdown, PAGE + table)
    if options.json is not None:
        write_file(options.json, json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return 1 if any(row.reason for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
