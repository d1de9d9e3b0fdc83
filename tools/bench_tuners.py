"""What a budget buys: a network's latency after 0, 1, 5 and 15 minutes of tuning, beside MetaSchedule's after as many.

    python tools/bench_tuners.py lenet5 resnet18 mobilenet_v2 --work build/tuners --markdown docs/tuning.md

Both start from nothing and have the machine alone, one after the other. Times of kernels are on one thread, in one
process, ours interleaved: with weights as cold as in the network, and, to compare with MetaSchedule's, in the cache. A
folder that has them already is not tuned again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import metaschedule
import numpy as np
from bench_models import Entry, parse
from models import SIZE

import tvmcnn
from tvmcnn.choose.records import Records, load_records
from tvmcnn.codegen.cpu.candidates import Linker
from tvmcnn.configs import CONFIGS
from tvmcnn.errors import TvmcnnError
from tvmcnn.files import scratch_folder, write_file
from tvmcnn.machine import cpu_name, usable_cpus
from tvmcnn.network import Program
from tvmcnn.run.arrays import random_array
from tvmcnn.run.bench import rounds
from tvmcnn.targets import Target, resolve
from tvmcnn.tuning import space
from tvmcnn.tuning.build import Builder
from tvmcnn.tuning.candidate import Preparer
from tvmcnn.tuning.measure import Measurer
from tvmcnn.tuning.problem import Problem, problems, weights_bytes

WARM = "warm"  # ours after the longest search, with weights in the cache
ROUNDS = 40  # of the networks' latencies
REPEATS = 5  # of MetaSchedule's kernels, before and after ours


def tuned(entry: Entry, model: Path, minutes: Sequence[float], work: Path, target: str) -> dict[float, Path]:
    """Our records after each of so many minutes; the same journal all along."""
    found = {}
    for before, after in itertools.pairwise((0.0, *minutes)):
        records = work / f"{entry.name}-{after:g}m.jsonl"
        if not records.exists():
            running = work / f"{entry.name}.jsonl"
            budget = 60 * (after - before)
            done = tvmcnn.tune(
                model, target, budget, running, batch=entry.batch, known_records=False, measure=False,
                plot=work / f"{entry.name}.png",
            )  # fmt: skip
            shutil.copy(running, records)
            print(f"{entry} at {after:g} min: {done.measured} trials in {done.seconds:.0f} s", flush=True)
        found[after] = records
    return found


def kernel_times(
    program: Program, target: Target, known: Mapping[str, Records], work: Path
) -> dict[str, dict[str, float]]:
    """µs a call by kernel, with each of the `known` records, the last but one also warm, and with MetaSchedule's;
    `peak` is GFLOP/s then."""
    todo = metaschedule.tunable(program, target)
    theirs = metaschedule.best(todo, target, work)
    times: dict[str, dict[str, float]] = {}
    with scratch_folder() as folder:
        builder, measurer, linker = Builder(usable_cpus()), Measurer(None), Linker(folder, target)
        try:
            for problem in todo:
                times[problem.words] = _times(
                    problem, program, target, known, theirs.get(problem.words), folder, (builder, measurer, linker)
                )
        finally:
            builder.close()
            measurer.close()
    return times


def _times(
    problem: Problem,
    program: Program,
    target: Target,
    known: Mapping[str, Records],
    theirs: Any,
    folder: Path,
    tools: tuple[Builder, Measurer, Linker],
) -> dict[str, float]:
    builder, measurer, linker = tools
    keys = {}
    for name, records in known.items():
        rule = records.fastest(problem.words, [rule for rule, config in CONFIGS.items() if config in space.SPACES])
        found = None if rule is None else records.find(problem.words, rule)
        keys[name] = space.key_of(problem.choice) if rule is None or found is None else (rule, found[0])
    weights = weights_bytes(program)
    cold, warm = (Preparer(problem, target, folder, weights, cold=each) for each in (True, False))
    unique = list(dict.fromkeys(keys.values()))
    choices = {key: space.made(problem.network, problem.choice, key, target) for key in unique}
    longest = list(keys.values())[-2]
    ready = [*(cold.prepare(choice) for choice in choices.values()), warm.prepare(choices[longest])]
    made = builder.build({symbol: job for each in ready for symbol, job in each.jobs.items()})
    objects = {symbol: data for symbol, data in made.items() if isinstance(data, bytes)}
    library = linker.link(f"k{len(list(folder.iterdir()))}", [each.calls for each in ready], objects)
    other = [theirs() for _ in range(REPEATS)] if theirs else []
    samples, peak = measurer.final(library, ready)
    other += [theirs() for _ in range(REPEATS)] if theirs else []
    *medians, in_cache = (float(np.median(values)) for values in samples)
    times = {name: medians[unique.index(key)] for name, key in keys.items()} | {WARM: in_cache, "peak": peak}
    return times | ({"MetaSchedule": float(np.median(other))} if other else {})


def latencies(
    entry: Entry, model: Path, target: str, known: Mapping[str, Path | None], folder: Path
) -> dict[str, float]:
    """µs a call of the whole network with each file of records, interleaved; None stands for the shipped ones."""
    nets = {}
    for name, records in known.items():
        given: dict[str, Any] = {"own_records": False, "shipped_records": records is None, "activations": False}
        files = [records] if records is not None and records.exists() else []
        output = folder / f"{name.replace(' ', '_')}.so"
        compiled = tvmcnn.compile(model, target, output, batch=entry.batch, records=files, **given)
        nets[name] = tvmcnn.load(compiled.path, threads=1)
    calls = [net.bind(*(random_array(info, i) for i, info in enumerate(net.inputs))) for net in nets.values()]
    samples = zip(*itertools.islice(rounds(calls, 0.02), ROUNDS), strict=True)
    return {name: float(np.median(values)) for name, values in zip(nets, samples, strict=True)}


def measured(entry: Entry, minutes: Sequence[float], work: Path, target: str, *, peer: bool) -> dict[str, Any]:
    """All figures of one network, for JSON."""
    machine = resolve(target)
    model = entry.file(work)
    program = metaschedule.program_of(model, entry.batch, machine)
    ours = tuned(entry, model, minutes, work, target)
    theirs = work / f"{entry.name}-metaschedule"
    if peer and not theirs.exists():
        theirs.mkdir()
        metaschedule.tune(model, entry.batch, target, theirs, 60 * max(minutes))
        print(f"{entry}: MetaSchedule, {metaschedule.trials(theirs)} trials", flush=True)
    files: dict[str, Path | None] = {"0": work / "none.jsonl"}
    files |= {f"{each:g}": path for each, path in ours.items()} | {"shipped": None}
    known = {
        name: load_records(machine, [path] if path and path.exists() else [], own=False, shipped=path is None)
        for name, path in files.items()
    }
    times = kernel_times(program, machine, known, theirs)
    counts = {problem.words: problem.count for problem in problems(program)}
    sums = {name: sum(counts[words] * each[name] for words, each in times.items()) for name in known}
    whole = all("MetaSchedule" in each for each in times.values())
    both = [words for words, each in times.items() if "MetaSchedule" in each]
    peers: dict[str, Any] = {"kernels": len(both), "of": len(times), "trials": metaschedule.trials(theirs)}
    peers |= {"sum": sum(counts[words] * times[words]["MetaSchedule"] for words in both) if both else None}
    peers |= {"ours": sum(counts[words] * times[words][WARM] for words in (both or times)), "whole": whole}
    with scratch_folder() as folder:
        network = latencies(entry, model, target, files, folder)
    peak = float(np.median([each["peak"] for each in times.values()]))
    return {
        "network": str(entry),
        "latency": network,
        "sums": sums,
        "metaschedule": peers,
        "kernels": times,
        "peak": peak,
    }


def page(results: Sequence[Mapping[str, Any]], minutes: Sequence[float], target: Target) -> str:
    """The figures as a page."""
    columns = ["0", *(f"{each:g}" for each in minutes), "shipped"]
    heads = [f"{name} min" if name != "shipped" else name for name in columns]
    lines = [
        "# What a budget buys",
        "",
        f"`tvmcnn tune --from-scratch` on {cpu_name()}, {usable_cpus()} CPUs, {target.name}, one thread, float32.",
        "Columns are minutes of tuning; a search that has tried everything ends before. Written by",
        "`tools/bench_tuners.py`.",
        "",
        "Latency of the network in µs, bound tensors, medians of interleaved rounds:",
        "",
        f"| network | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for r in results:
        lines.append(f"| {r['network']} | {' | '.join(format(r['latency'][name], '.1f') for name in columns)} |")
    lines += [
        "",
        "Its tuned kernels one by one, µs in all, interleaved, weights as cold as in the network; then ours of",
        f"{max(minutes):g} minutes and MetaSchedule's of as many, both with weights in the cache:",
        "",
        f"| network | {' | '.join(heads)} | warm: ours | MetaSchedule | its trials | FMA peak, GFLOP/s |",
        f"|---|{'---|' * (len(heads) + 4)}",
    ]
    for r in results:
        peers = r["metaschedule"]
        note = "" if peers["whole"] else f" ({peers['kernels']} of {peers['of']} kernels)"
        shown = "none" if peers["sum"] is None else f"{peers['sum']:.1f}"
        sums = " | ".join(f"{r['sums'][c]:.1f}" for c in columns)
        theirs = f"{peers['ours']:.1f}{note} | {shown} | {peers['trials']}"
        lines.append(f"| {r['network']} | {sums} | {theirs} | {r['peak']:.0f} |")
    lines += ["", "Kernels for which MetaSchedule found something faster than the whole search of ours, both warm:", ""]
    faster = [
        f"- {r['network']}: `{words}` {each['MetaSchedule']:.2f} µs, ours {each[WARM]:.2f}"
        for r in results
        for words, each in r["kernels"].items()
        if each.get("MetaSchedule", np.inf) < each[WARM]
    ]
    return "\n".join([*lines, *(faster or ["none."]), ""])


def main() -> int:
    """Tune, measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NETWORK[:BATCH]")
    parser.add_argument("--minutes", default="1,5,15", help="budgets, ascending (%(default)s)")
    parser.add_argument("--target", default="native")
    parser.add_argument("--work", type=Path, default=Path("build/tuners"), help="keeps what is measured (%(default)s)")
    parser.add_argument("--no-metaschedule", action="store_true")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md")
    options = parser.parse_args()
    minutes = [float(each) for each in options.minutes.split(",")]
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        entries = parse(",".join(options.networks), SIZE)
        peer = not options.no_metaschedule
        results = [measured(entry, minutes, options.work, options.target, peer=peer) for entry in entries]
        text = page(results, minutes, resolve(options.target))
        print(text)
        if options.json is not None:
            write_file(options.json, json.dumps(results, indent=2) + "\n")
        if options.markdown is not None:
            write_file(options.markdown, text)
    except (TvmcnnError, ValueError) as error:
        print(f"bench_tuners: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
