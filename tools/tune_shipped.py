"""Fill schedules/: tune the kernels of the networks that ship with records, for each instruction set.

    python tools/tune_shipped.py [--networks resnet18,unet] [--targets x86-64-v4] [--budget 3m] [--work build/shipped]

A network is lenet5, one of make_models.py at 224 x 224 or @HxW, with :BATCH, or an ONNX file. The journals in the work
folder know every measurement: the same command goes on where it ended, and a kernel that two networks share is tuned
once. Each network is compiled with its records and verified before the file of its target is rewritten.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench_models import Entry, parse
from models import SIZE

import tvmcnn
from tvmcnn.choose.records import Record, read_records, schedules_folder, unfit
from tvmcnn.errors import TvmcnnError
from tvmcnn.files import write_file
from tvmcnn.targets import TARGETS
from tvmcnn.tuning.table import watcher

# Not unet, shufflenet and other sizes: they show what the records are worth for networks that have none.
NETWORKS = (
    "lenet5,lenet5:256,resnet18,resnet50,vgg16,mobilenet_v1,mobilenet_v2,mobilenet_v3_large,efficientnet_b0,squeezenet,"
    "densenet121,inception_v1,inception_v2"
)


def tune(entry: Entry, target: str, budget: str, work: Path, folder: Path) -> None:
    """Spend the budget on one network, and compile it with what was found."""
    records = work / f"{target}.jsonl"
    model = entry.file(folder)

    def say(line: str) -> None:
        print(f"  {line}", flush=True)

    print(f"{entry} for {target}", flush=True)
    tuned = tvmcnn.tune(
        model, target, budget, records, batch=entry.batch, report=say, watch=watcher(say, live=True), measure=False
    )
    say(f"{tuned.measured} trials in {tuned.seconds:.0f} s; kernels {tuned.default_us:.0f} -> {tuned.best_us:.0f} µs")
    compiled = tvmcnn.compile(
        model, target, folder / "network.so", batch=entry.batch, records=[records], own_records=False
    )
    say(str(compiled.verdict))


def shipped(records: Iterable[Record], command: str) -> str:
    """The lines of a file of schedules/, in an order that does not depend on when a kernel was tuned."""

    def order(record: Record) -> tuple[str, str]:
        return record.kernel, record.rule

    entries = [{**record.entry, "command": command} for record in sorted(records, key=order)]
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def main() -> int:
    """Tune every network for every target; after each, the file in schedules/ has what is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS, help="separated by commas (%(default)s)")
    parser.add_argument("--targets", default=",".join(reversed(TARGETS)), help="separated by commas (%(default)s)")
    parser.add_argument("--budget", default="3m", help="for a network on a target, which may need less (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/shipped"), help="keeps the journals (%(default)s)")
    options = parser.parse_args()
    command = f"python tools/tune_shipped.py --budget {options.budget}"
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        entries = parse(options.networks, SIZE)
        for target in options.targets.split(","):
            for entry in entries:
                with tempfile.TemporaryDirectory() as folder:
                    tune(entry, target, options.budget, options.work, Path(folder))
                found = [each for each in read_records(options.work / f"{target}.jsonl")[0] if not unfit(each, target)]
                path = schedules_folder() / f"{target}.jsonl"
                write_file(path, shipped(found, command))
                print(f"  {len(found)} records in {path}", flush=True)
    except (TvmcnnError, ValueError) as error:
        print(f"tune_shipped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
