"""Fill schedules/: a plain grid over the register tiles of a network's kernels, measured on this machine.

    python tools/tune_schedules.py tvmcnn/data/lenet5.onnx -o schedules/x86-64-v3.jsonl

Every candidate is a compiled library, timed kernel by kernel; the best few of each kernel are measured again,
interleaved with the default, and one is recorded only if it wins beyond the spread and the network built from it
agrees with NumPy.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from fma_peak import FmaPeak

import tvmcnn
from tvmcnn.artifact import write_file
from tvmcnn.compiler import Compiled
from tvmcnn.configs import ColumnsConfig, DenseConfig, DirectConfig
from tvmcnn.errors import TvmcnnError
from tvmcnn.network import Step, divisors
from tvmcnn.records import kernel_words
from tvmcnn.targets import Target, resolve, usable_cpus

ORDERS = ("rw rb rh rc", "rb rh rw rc", "rh rw rb rc", "rb rw rc rh")
TOP = 4  # candidates of a kernel that are measured again
WIN = 0.97  # of the default's time: less would be within the spread of medians on a shared machine


def candidates(step: Step, target: Target) -> Iterator[Any]:
    """Every config of the step's rule that fits the registers and divides the output."""
    config, shape = step.choice.config, step.choice.kernel.output.shape
    if isinstance(config, ColumnsConfig):
        vectors = (shape[3] + step.choice.writes.halo[3]) // target.lanes
        yield from (ColumnsConfig(m, v) for m in divisors(shape[1]) for v in divisors(vectors) if m * v <= 8)
    elif isinstance(config, DirectConfig):
        per_block = 16 // target.lanes
        for vectors in {1, per_block, 2 * per_block, 4 * per_block}:
            if vectors > per_block and -(-shape[1] // 16) * per_block % vectors:
                continue
            for rows in divisors(shape[2]):
                for columns in divisors(shape[3]):
                    if 2 <= vectors * rows * columns <= target.registers:
                        for order in ORDERS:
                            yield from (DirectConfig(vectors, rows, columns, order, u) for u in (1, config.unroll))
    elif isinstance(config, DenseConfig):
        rows = shape[0]
        for vectors in range(1, target.registers):
            for tile in divisors(rows):
                if vectors * tile < target.registers and vectors * target.lanes < shape[1] + 8 * target.lanes:
                    depth = next(iter(step.packed.values())).shape[1]
                    parts = {p for p in (1, 2, 4) if vectors * tile * p < target.registers and depth % p == 0}
                    yield from (DenseConfig(vectors * target.lanes, tile, p, u) for p in parts for u in (1, 2))


def record(compiled: Compiled, step: Step, config: Any) -> dict[str, Any]:
    """The part of a record that the lookup reads."""
    words = kernel_words(compiled.program.network, step.choice.kernel)
    target = {"isa": compiled.target.name}
    return {"kernel": words, "target": target, "rule": step.choice.rule, "config": dataclasses.asdict(config)}


def build(model: Path, target: str, folder: Path, entries: list[dict[str, Any]], name: str, verify: bool) -> Compiled:
    """The network compiled with `entries` as its records."""
    records = folder / f"{name}.jsonl"
    records.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    library = folder / f"{name}.so"
    return tvmcnn.compile(
        model, target, library, records=[records], shipped_records=False, verify=verify, activations=verify
    )


def kernel_time(library: Path, kernel: str, seconds: float) -> float:
    """µs of one kernel of a library, alone."""
    (profile,) = tvmcnn.load(library).profile(seconds=seconds, kernel=kernel)
    return profile.microseconds


def tune(model: Path, target: str, folder: Path) -> list[dict[str, Any]]:
    """Records for the kernels of one model that beat the computed default."""
    base = build(model, target, folder, [], "base", verify=False)
    peak = FmaPeak(base.target)
    won = []
    for step in base.program.steps:
        default = step.choice.config
        if not isinstance(default, ColumnsConfig | DirectConfig | DenseConfig):
            continue
        tried = {}
        for number, config in enumerate(dict.fromkeys(candidates(step, base.target))):
            name = f"{step.choice.name}_{number}"
            try:
                made = build(model, target, folder, [record(base, step, config)], name, verify=False)
                tried[config] = (kernel_time(made.path, step.choice.name, 0.02), made.path)
            except Exception as error:  # a config that the rule cannot apply loses its turn, and is said
                print(f"  {step.choice.name} {config}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
        if not tried:
            continue
        best = sorted(tried, key=lambda config: tried[config][0])[:TOP]
        paths = {None: base.path} | {config: tried[config][1] for config in best}
        times: dict[Any, list[float]] = {config: [] for config in paths}
        for _ in range(9):
            for config, path in paths.items():
                times[config].append(kernel_time(path, step.choice.name, 0.02))
        medians = {config: float(np.median(values)) for config, values in times.items()}
        winner = min(best, key=lambda config: medians[config])
        print(
            f"{step.choice.name}: {len(tried)} tried, default {default} {medians[None]:.2f} µs,"
            f" best {winner} {medians[winner]:.2f} µs"
        )
        if medians[winner] < WIN * medians[None]:
            macs = next(k["macs"] for k in tvmcnn.load(base.path).manifest["kernels"] if k["name"] == step.choice.name)
            gflops = 2 * macs / medians[winner] / 1e3
            evidence = {
                "time_us": round(medians[winner], 3),
                "default_time_us": round(medians[None], 3),
                "gflops": round(gflops, 1),
                "peak_share": round(gflops / float(np.median([peak.measure() for _ in range(5)])), 3),
            }
            won.append(record(base, step, winner) | evidence)
    return won


def main() -> int:
    """Tune the models and write the records, verified."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--target", default="native")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RECORDS.jsonl")
    options = parser.parse_args()
    target = resolve(options.target)
    lines = []
    try:
        for model in options.models:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                won = tune(model, options.target, folder)
                verdict = build(model, options.target, folder, won, "best", verify=True).verdict
            command = f"python tools/tune_schedules.py {model} --target {options.target} -o {options.output}"
            machine = {
                "isa": target.name,
                "lanes": target.lanes,
                "l1_bytes": target.l1_bytes,
                "l2_bytes": target.l2_bytes,
                "cores": usable_cpus(),
                "machine": target.machine,
            }
            for entry in won:
                error = verdict.as_json()["error"] if verdict is not None else None
                entry |= {"target": machine, "max_rel_error": error, "tvmcnn": tvmcnn.__version__}
                entry |= {"tvm": tvm.__version__, "command": command}
                entry["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
                lines.append(json.dumps(entry))
    except TvmcnnError as error:
        print(f"tune_schedules: {error}", file=sys.stderr)
        return 1
    kept = [line for line in _lines(options.output) if _key(line) not in {_key(new) for new in lines}]
    write_file(options.output, "".join(f"{line}\n" for line in sorted({*kept, *lines})))
    print(f"wrote {len(lines)} new records to {options.output}, kept {len(kept)}")
    return 0


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _key(line: str) -> tuple[str, str, str]:
    entry = json.loads(line)
    return entry["kernel"], entry["target"]["isa"], entry["rule"]


if __name__ == "__main__":
    raise SystemExit(main())
