"""Random graphs by the thousand: `python tools/fuzz.py graphs`, whose models tests/graphs draws, checks and shrinks."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from graphs.explore import Explored, Failing  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from tvmcnn.progress import bar
from tvmcnn.worker_process import Isolated

EACH = 40  # models of one seed
EXPLORE = "graphs.explore:explore"


def graphs(count: int, seed: int, jobs: int, keep: Path | None, known: list[str]) -> Explored:
    """So many models by so many processes, each with a worker of its own. Failures are told as they come.

    A kind of failure is shrunk once; those that begin with a text in `known` are only counted.
    """
    total, lock = Explored(), Lock()
    seeds = iter(range(seed, seed + 1_000_000))
    console = Console(highlight=False, soft_wrap=True)

    def drive() -> None:
        process = Isolated()
        try:
            while True:
                with lock:
                    left, number = count - total.graphs, next(seeds)
                    told = [*known, *(failure.kind for failure in total.failures)]
                if left <= 0:
                    return
                found = process.call(EXPLORE, number, min(EACH, left), told)
                with lock:
                    new = {failure.kind for failure in found.failures} - set(told)
                    total.add(found)
                    for failure in total.failures:
                        if failure.kind in new:
                            new.discard(failure.kind)
                            told_of(failure, number, len(total.failures), keep, console)
                    show("graphs", min(total.graphs, count), count)
        finally:
            process.close()

    with bar() as show:
        show("graphs", 0, count)
        with ThreadPoolExecutor(jobs) as threads:
            for done in [threads.submit(drive) for _ in range(jobs)]:
                done.result()  # raises what a worker has raised: fewer graphs than asked for are no success
    return total


def told_of(failure: Failing, seed: int, number: int, keep: Path | None, console: Console) -> None:
    """Print a failure, and keep its model and inputs."""
    console.print(f"\n[bold]seed {seed}: {failure.kind}[/]")
    console.print(failure.text, markup=False)
    console.print(repr(failure.drawn), markup=False)
    if keep is not None:
        import numpy as np
        import onnx

        keep.mkdir(parents=True, exist_ok=True)
        stem = keep / f"{seed}-{number}"
        onnx.save(failure.drawn.model, f"{stem}.onnx")
        np.savez(f"{stem}.npz", **failure.drawn.inputs)
        Path(f"{stem}.txt").write_text(f"{failure.kind}\n{failure.text}\n{failure.drawn!r}\n")


def tables(found: Explored, seconds: float) -> None:
    """What was drawn, and what became of it."""
    console = Console(highlight=False)
    ends = Counter({"compiled and right": found.ends["ok"], "refused": found.ends["refused"]})
    for kind, count in found.kinds.items():
        ends["crashed" if kind.startswith("crash") else "hung" if kind == "hang" else "wrong"] += count
    head = Table(title=f"{found.graphs:,} graphs in {seconds:.0f} s, {found.excused} with elements at a tie excused")
    head.add_column("end")
    head.add_column("graphs", justify="right")
    for name in ("compiled and right", "refused", "wrong", "crashed", "hung"):
        head.add_row(name, f"{ends[name]:,}")
    console.print(head)
    counts = [("refused because", found.refusals), ("failed by", found.kinds), ("operator", found.operators)]
    counts += [("input type", found.types), *((name, found.seen.get(name, Counter())) for name in sorted(found.seen))]
    for title, values in counts:
        words = ", ".join(f"{name} {count:,}" for name, count in values.most_common())
        console.print(f"{title} ({len(values)}): {words}\n", markup=False)


def as_json(found: Explored, seconds: float) -> dict[str, Any]:
    """The same for programs."""
    names = ("graphs", "excused", "ends", "refusals", "kinds", "operators", "types", "seen", "times")
    failures = [{"kind": each.kind, "text": each.text, "model": repr(each.drawn)} for each in found.failures]
    return {name: getattr(found, name) for name in names} | {"failures": failures, "seconds": round(seconds)}


def run(options: Any) -> int:
    """The command; exit status 1 if a graph failed."""
    began = time.monotonic()
    found = graphs(options.count, options.seed, options.jobs, options.keep, options.known)
    seconds = time.monotonic() - began
    tables(found, seconds)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(found, seconds), indent=2))
    return 1 if found.kinds else 0
