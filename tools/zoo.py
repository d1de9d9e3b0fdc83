"""Today's networks, compiled unchanged: what agrees with onnxruntime, and the times beside it and OpenVINO.

    python tools/zoo.py [--only timm:convnext,torchvision:,pypi:] [--exporters torchscript,dynamo] [--models DIR]
                        [--results zoo.jsonl] [--again] [--threads 1,2] [--seconds 5] [--markdown docs/zoo.md]
    python tools/zoo.py FILE.onnx …                       any other file

Each network is exported or fetched once, to `--models`, and measured in a process of its own, which may take a while or
die. Its row goes into `--results` at once: a run that is broken off goes on where it was, `--again` measures what is
there already. Exit status 1 if a network is refused or differs. Needs tvmcnn[zoo].
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zoo_networks
from rich.console import Console
from zoo_measure import THREADS, Row
from zoo_networks import EXPORTERS, Entry
from zoo_wheels import WHEELS, Wheel, fetched

import tvmcnn
from tvmcnn.files import write_file
from tvmcnn.progress import bar
from tvmcnn.worker_process import Isolated, LostError

LONGEST = 900.0  # seconds that a network may take to be exported or to be measured
PAGE = """# Today's networks

Made by `python tools/zoo.py --markdown docs/zoo.md`. One network of each family of timm, the smallest, and those of
torchvision, exported from PyTorch with weights that its seed draws, and the trained ones that wheels on PyPI carry,
with inputs as large as their applications give; none of them is changed. A ratio is the time of the better of
onnxruntime and OpenVINO to that of tvmcnn: above 1 tvmcnn is ahead. All three are timed in turn in one process, with
bound inputs and outputs; a time is the median of the rounds.
Differences are to onnxruntime, relative to the largest output; where onnxruntime itself is further than 1e-4 from
NumPy's float64, the one in brackets is to that. Compile times are without verification, with an empty cache and again.

"""


def rows_in(path: Path) -> dict[str, Row]:
    """The rows that a file of results has, by network; of several of one the last."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {row.network: row for row in (Row(**json.loads(line)) for line in lines if line.strip())}


def row_of(entry: Entry | Wheel | Path, models: Path, seconds: float, threads: tuple[int, ...]) -> Row:
    """Export or fetch a network, if it is not there yet, and measure it, each in a process of its own."""
    name = str(entry)
    path = entry if isinstance(entry, Path) else models / entry.file
    models.mkdir(parents=True, exist_ok=True)
    if isinstance(entry, Entry) and not path.is_file() and (reason := _isolated("zoo_networks:written", entry, path)):
        return Row(name, reason=f"PyTorch does not export it: {reason}")
    if isinstance(entry, Wheel) and not path.is_file() and (reason := fetched(entry, path)):
        return Row(name, reason=reason)
    bound = (entry.shapes, entry.values) if isinstance(entry, Wheel) else ({}, {})
    found = _isolated("zoo_measure:measured", name, str(path), seconds, threads, *bound)
    return Row(name, reason=found) if isinstance(found, str) else Row(**found)


def _isolated(function: str, *arguments: object) -> Any:
    """What a function returns in a process of its own, or how that ended."""
    process = Isolated(quiet=True)
    try:
        return process.call(function, *arguments, seconds=LONGEST)
    except LostError as error:
        return f"the process {error}"
    finally:
        process.close()


# ---- what is told ---------------------------------------------------------------------------------------------------


def line(row: Row) -> str:
    """One line of the log."""
    if row.reason:
        return f"{row.network}: FAILED: {row.reason}"
    found = {threads: ratio for threads in THREADS if (ratio := row.ratio(threads)) is not None}
    ratios = ", ".join(f"{ratio:.2f} on {threads} thread{'s'[: threads > 1]}" for threads, ratio in found.items())
    seconds = f"compiled in {row.cold_seconds:.1f} s, again in {row.cached_seconds:.1f} s"
    return f"{row.network}: {ratios}, difference {_difference(row)}, {seconds}"


def _difference(row: Row) -> str:
    exact = "" if row.exact_difference is None else f" ({row.exact_difference:.0e})"
    return f"{row.difference:.0e}{exact}"


def summary(rows: Sequence[Row]) -> str:
    """How many compile and agree, and the geometric mean of the ratios."""
    right = [row for row in rows if not row.reason]
    lines = [f"{len(right)} of {len(rows)} networks compile and agree."]
    for threads in THREADS:
        ratios = [ratio for row in right if (ratio := row.ratio(threads)) is not None]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            behind = sum(ratio < 0.95 for ratio in ratios)
            plural = "s" if threads > 1 else ""
            lines.append(
                f"{threads} thread{plural}: geometric mean of {len(ratios)} ratios {mean:.2f}, least {min(ratios):.2f};"
                f" {behind} behind by more than 5 %."
            )
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """The table, a line a network."""
    heads = ["network", "input", "nodes → kernels", "difference"]
    for threads in THREADS:
        heads += [f"ms, {threads} thread{'s'[: threads > 1]}", "onnxruntime", "OpenVINO", "ratio"]
    heads += ["compile", "again", "library"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        if row.reason:
            lines.append(f"| {row.network} | {row.reason.replace('|', '/')} {'|' * (len(heads) - 1)}")
            continue
        cells = [row.network, row.inputs, f"{row.nodes} → {row.kernels}", _difference(row)]
        for threads in THREADS:
            times, ratio = row.microseconds.get(str(threads), {}), row.ratio(threads)
            cells += [f"{times[name] / 1e3:.2f}" if name in times else "" for name in ("", "onnxruntime", "openvino")]
            cells.append("" if ratio is None else f"{ratio:.2f}")
        cells += [f"{row.cold_seconds:.1f} s", f"{row.cached_seconds:.1f} s", f"{row.library_bytes / 1e6:.1f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    machines = ", ".join(sorted({row.cpu for row in rows if row.cpu}))
    return "\n".join([summary(rows), "", *lines, "", f"tvmcnn {tvmcnn.__version__} on {machines}."]) + "\n"


def main() -> int:
    """Print one line a network as it is done, then how many there are of each kind; with --markdown write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="ONNX files; none for the zoo's own")
    parser.add_argument("--only", metavar="PART,…", help="networks whose name has one of these in it")
    parser.add_argument("--exporters", default=",".join(EXPORTERS), metavar="NAME,…", help="(%(default)s)")
    parser.add_argument("--models", type=Path, default=Path("zoo"), metavar="DIR", help="exported files (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("zoo.jsonl"), metavar="FILE", help="(%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure what --results has already")
    parser.add_argument("--threads", default=",".join(map(str, THREADS)), metavar="N,…", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each comparison (%(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    threads = tuple(map(int, options.threads.split(",")))
    exporters = tuple(options.exporters.split(","))
    if unknown := sorted(set(exporters) - set(EXPORTERS)):
        parser.error(f"there is no exporter '{unknown[0]}'; there are {', '.join(EXPORTERS)}")
    chosen: list[Entry | Wheel | Path] = [*options.files] or [*zoo_networks.entries(exporters), *WHEELS]
    parts = options.only.split(",") if options.only else [""]
    chosen = [entry for entry in chosen if any(part in str(entry) for part in parts)]
    if not chosen:
        parser.error(f"no network has one of {options.only} in its name")

    found, rows, console = rows_in(options.results), [], Console(highlight=False, soft_wrap=True)
    with bar() as show:
        for done, entry in enumerate(chosen):
            show(str(entry), done, len(chosen))
            row = found.get(str(entry))
            if row is None or options.again:
                row = row_of(entry, options.models, options.seconds, threads)
                with options.results.open("a") as file:
                    file.write(json.dumps(row.__dict__) + "\n")
                console.print(line(row), markup=False)
            rows.append(row)
    print(summary(rows))
    if options.markdown is not None:
        write_file(options.markdown, PAGE + markdown(rows))
    return 1 if any(row.reason for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
