"""Fill schedules/: a plain grid over the configs of the kernels of some networks, measured on this machine.

    python tools/tune_schedules.py lenet5 resnet18 resnet50@192x256 some/model.onnx -o schedules/x86-64-v4.jsonl

A network is lenet5, one of make_models.py at 224 x 224 or @HxW, or an ONNX file. The best few candidates of each
kernel are measured again, interleaved with the default, which stays unless one wins beyond the spread; nothing is
recorded unless the network built from all of them agrees with NumPy. Kernels that the file has already are left alone;
`--again` measures them too.
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
from bench_models import Entry, parse
from fma_peak import FmaPeak
from models import SIZE

import tvmcnn
from tvmcnn import tuning
from tvmcnn.artifact import write_file
from tvmcnn.choose import choose
from tvmcnn.errors import TvmcnnError
from tvmcnn.fusion import fuse, multiply_accumulates
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Program
from tvmcnn.records import Records, kernel_words
from tvmcnn.targets import Target, resolve, usable_cpus
from tvmcnn.tuning import Found

WIN = 0.97  # of the default's time: less would be within the spread of medians on a shared machine
RULES = ("direct", "winograd", "streamed", "columns", "dense", "pixels")


def tune(program: Program, target: Target, peak: FmaPeak, known: set[str]) -> Iterator[dict[str, Any]]:
    """Records for the kernels of one network that are not `known`, which it fills."""
    network = program.network
    weights = sum(t.size * t.item_bytes for step in program.steps for t in step.packed.values())
    steps = {kernel_words(network, step.choice.kernel): step for step in program.steps if step.choice.rule in RULES}
    for number, (words, step) in enumerate(steps.items(), 1):
        if words in known:
            continue
        known.add(words)
        with tempfile.TemporaryDirectory() as folder:
            found = tuning.best(network, step, target, Path(folder), usable_cpus(), weights)
        flops = 2 * multiply_accumulates(network, step.choice.kernel)
        reached = float(np.median([peak.measure() for _ in range(5)]))
        best, default = found[0], max(each.default_microseconds for each in found)
        share = flops / best.microseconds / 1e3 / reached
        print(f"[{number}/{len(steps)}] {words}: {best.tried} tried, default {default:.2f} µs,", end=" ")
        print(f"best {best.microseconds:.2f} by {best.choice.rule}, {share:.0%} of the peak", flush=True)
        if len(found) == 1 and best.microseconds >= WIN * default:
            found = [dataclasses.replace(best, choice=step.choice, microseconds=default)]  # so that it is known
        yield from (_record(words, each, flops, reached) for each in found)


def _record(words: str, found: Found, flops: int, peak: float) -> dict[str, Any]:
    gflops = flops / found.microseconds / 1e3
    evidence = {
        "time_us": round(found.microseconds, 3),
        "default_time_us": round(found.default_microseconds, 3) or None,
        "gflops": round(gflops, 1),
        "peak_share": round(gflops / peak, 3),
    }
    config = dataclasses.asdict(found.choice.config)
    return {"kernel": words, "rule": found.choice.rule, "config": config} | evidence


def verified(entry: Entry, target: str, folder: Path, entries: list[dict[str, Any]]) -> float | None:
    """The error of the network compiled with `entries`, relative to the largest output. Raises VerifyError."""
    records = folder / "records.jsonl"
    records.write_text("".join(json.dumps(each) + "\n" for each in entries))
    model, library = entry.file(folder), folder / "network.so"
    compiled = tvmcnn.compile(model, target, library, batch=entry.batch, records=[records], shipped_records=False)
    return None if compiled.verdict is None else compiled.verdict.as_json()["error"]


def main() -> int:
    """Tune the networks and write their records, verified."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NETWORK[:BATCH]")
    parser.add_argument("--target", default="native")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RECORDS.jsonl")
    parser.add_argument("--again", action="store_true", help="measure kernels that the file has, too")
    options = parser.parse_args()
    target = resolve(options.target)
    peak = FmaPeak(target)
    old = {} if not options.output.exists() else {_key(line): line for line in options.output.read_text().splitlines()}
    known = set() if options.again else {kernel for kernel, isa, _ in old if isa == target.name}
    command = f"python tools/tune_schedules.py {' '.join(options.networks)} -o {options.output}"
    machine = {"isa": target.name, "lanes": target.lanes, "cores": usable_cpus(), "machine": target.machine}
    try:
        for entry in parse(",".join(options.networks), SIZE):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                network = import_model(entry.file(folder), batch=entry.batch)
                program = lay_out(network, choose(network, fuse(network), target, Records({})), Weights())
                won = list(tune(program, target, peak, known))
                shared = {"target": machine, "tvmcnn": tvmcnn.__version__, "tvm": tvm.__version__, "command": command}
                shared["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
                won = [record | shared for record in won]
                error = verified(entry, options.target, folder, [*map(json.loads, old.values()), *won])
            old |= {_key(line): line for line in (json.dumps(r | {"max_rel_error": error}) for r in won)}
            write_file(options.output, "".join(f"{old[key]}\n" for key in sorted(old)))
            print(
                f"{entry}: {len(won)} records to {options.output}; the network is within {error} of NumPy", flush=True
            )
    except (TvmcnnError, ValueError) as error:
        print(f"tune_schedules: {error}", file=sys.stderr)
        return 1
    return 0


def _key(line: str) -> tuple[str, str, str]:
    entry = json.loads(line)
    return entry["kernel"], entry["target"]["isa"], entry["rule"]


if __name__ == "__main__":
    raise SystemExit(main())
