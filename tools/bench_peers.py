"""Latency beside ONNX Runtime's: same inputs, outputs compared first, one process, interleaved rounds, medians.

    python tools/bench_peers.py --models lenet5:1 --threads 1 --json out.json

Absolute times on a shared machine mean little; the ratios and the share of the FMA peak, measured in the same rounds,
do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from fma_peak import FmaPeak

import tvmcnn
from tvmcnn import timing
from tvmcnn.demo import MODEL
from tvmcnn.errors import TvmcnnError
from tvmcnn.network import Array
from tvmcnn.targets import resolve

TOLERANCE = 1e-4  # of the largest output: both sides round, in different orders


@dataclass(frozen=True)
class Row:
    """One network at one batch size: medians in µs, ratios above 1 where tvmcnn is faster."""

    model: str
    batch: int
    difference: float  # largest, relative to the largest output
    ours: float  # net(x)
    ours_bound: float  # net(x, out=y)
    ort_run: float  # session.run
    ort_binding: float  # session.run_with_iobinding
    ratio_run: float
    ratio_binding: float
    gflops: float  # of net(x, out=y), from the multiply-accumulates of convolutions and matrix products
    peak: float  # GFLOP/s of one core, in the same rounds
    peak_share: float


def compare(model: Path, name: str, batch: int, target: str, rounds: int) -> Row:
    """Compile `model` for `batch`, check it against onnxruntime, and time both in turn."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "network.so"
        tvmcnn.compile(model, target, library, batch=batch, verify=False)
        net = tvmcnn.load(library, threads=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {info.name: rng.standard_normal(info.shape, dtype=np.float32) for info in net.inputs}
    arrays = list(feeds.values())
    outputs = tuple(np.empty(info.shape, np.float32) for info in net.outputs)

    expected = session.run(None, feeds)
    found = net.run(None, feeds)
    difference = max(_difference(a, b) for a, b in zip(found, expected, strict=True))
    if difference > TOLERANCE:
        raise TvmcnnError(f"{name}: outputs differ by {difference:.1e} of the largest; not timed")

    binding = session.io_binding()
    for key, array in feeds.items():
        binding.bind_cpu_input(key, array)
    for info in net.outputs:
        binding.bind_output(info.name)
    peak = FmaPeak(resolve(target))
    peaks: list[float] = []  # measured in the same rounds
    calls = (
        lambda: net(*arrays),
        lambda: net(*arrays, out=outputs),
        lambda: session.run(None, feeds),
        lambda: session.run_with_iobinding(binding),
        lambda: peaks.append(peak.measure()),
    )
    times = itertools.islice(timing.rounds(calls, 0.005), rounds)
    ours, bound, run, bind, _ = (float(np.median(samples)) for samples in zip(*times, strict=True))
    reached = float(np.median(peaks))
    flops = 2 * sum(kernel["macs"] for kernel in net.manifest["kernels"])
    gflops = flops / bound / 1e3
    return Row(
        name, batch, difference, ours, bound, run, bind, run / ours, bind / bound, gflops, reached, gflops / reached
    )


def _difference(a: Array, b: Array) -> float:
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(b))), 1e-30))


def main() -> int:
    """Print one line a model; with --json write the rows too."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", default="lenet5:1", help="NAME:BATCH,…; a name is lenet5 or the path of an ONNX file"
    )
    parser.add_argument("--threads", type=int, default=1, choices=[1])
    parser.add_argument("--target", default="native")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rows = []
    try:
        for entry in options.models.split(","):
            name, _, batch = entry.rpartition(":") if ":" in entry else (entry, "", "1")
            path = MODEL if name == "lenet5" else Path(name)
            row = compare(path, name, int(batch), options.target, options.rounds)
            rows.append(row)
            print(
                f"{row.model} batch {row.batch}: {row.ours:.1f} µs against onnxruntime {onnxruntime.__version__} run"
                f" {row.ort_run:.1f} ({row.ratio_run:.2f}x); out= {row.ours_bound:.1f} against io-binding"
                f" {row.ort_binding:.1f} ({row.ratio_binding:.2f}x); {row.gflops:.1f} of {row.peak:.1f} GFLOP/s"
                f" ({row.peak_share:.0%}); outputs within {row.difference:.1e}"
            )
    except (TvmcnnError, ValueError) as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
