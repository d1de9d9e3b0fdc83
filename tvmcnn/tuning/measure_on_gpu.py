"""Measure the candidates in this script's folder on this machine's GPU. Needs Python and numpy, and nothing else.

    python measure.py [--seconds 600]

Each candidate must agree with NumPy's output, which lies beside it; the fastest of a kernel are timed again, in turn,
by the GPU's clock. results.jsonl has every result at once, so that the same command goes on where it was ended. Each
kernel has a process of its own: a candidate that ends it, or takes too long, is noted and left out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results.jsonl"
BEST, ROUNDS = 4, 7  # candidates that are timed again, and how often
SAMPLE = 2000.0  # µs
CANDIDATE_SECONDS = 60.0  # seconds for one candidate


def known(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The whole lines that there are."""
    found = []
    for line in results.read_text().splitlines() if results.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # the last one, of a run that was ended as it wrote
            continue
    return found


def write(**entry: Any) -> None:
    """Another line, on disk when this returns."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def timer(library: ctypes.CDLL, candidate: Mapping[str, Any]) -> Callable[[float], float]:
    """A function of µs to spend that says how many µs the candidate's kernels take one after the other."""
    step = library[f"{candidate['name']}_step"]

    def once(index: int, repeat: int) -> float:
        spent = ctypes.c_float()
        if status := step(ctypes.c_int32(index), ctypes.c_int32(repeat), ctypes.byref(spent)):
            raise RuntimeError(f"status {status}")
        return spent.value

    def measured(sample: float) -> float:
        total = 0.0
        for index in range(candidate["steps"]):
            repeat = max(1, min(1000, int(sample / max(once(index, 3), 0.5))))
            total += once(index, repeat)
        return total

    return measured


def check(library: ctypes.CDLL, candidate: Mapping[str, Any], problem: Mapping[str, Any]) -> float:
    """The error of the candidate's output, relative to the largest value."""
    inputs = [np.load(FOLDER / file) for file in problem["inputs"]]
    expected = np.load(FOLDER / problem["expected"])
    output = np.full(expected.shape, np.nan, np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, output)]
    if status := library[f"{candidate['name']}_run"](*pointers, None):
        raise RuntimeError(f"status {status}")
    return float(np.abs(output - expected).max() / problem["scale"])


def measure(problem: Mapping[str, Any]) -> None:
    """Try the candidates of a kernel that no line tells of, then time the best again."""
    words, done = problem["kernel"], {entry["candidate"] for entry in known() if entry["kernel"] == problem["kernel"]}
    library = ctypes.CDLL(str(FOLDER / problem["library"]))
    for candidate in problem["candidates"]:
        name = candidate["name"]
        if name in done:
            continue
        write(kernel=words, candidate=name, outcome="started")
        try:
            error = check(library, candidate, problem)
            right = error <= candidate["tolerance"]
            spent = timer(library, candidate)(SAMPLE) if right else None
        except RuntimeError as failure:
            write(kernel=words, candidate=name, outcome="failed", reason=str(failure))
            continue
        outcome = "ok" if right else "wrong"
        write(kernel=words, candidate=name, outcome=outcome, error=error, time_us=spent)
    times = {e["candidate"]: e["time_us"] for e in known() if e["kernel"] == words and e["outcome"] == "ok"}
    first = problem["candidates"][0]["name"]  # the computed one
    names = sorted(times, key=lambda name: times[name])[:BEST]
    names += [first] if first in times and first not in names else []
    timers = {c["name"]: timer(library, c) for c in problem["candidates"] if c["name"] in names}
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(ROUNDS):
        for name, spent_by in timers.items():
            samples[name].append(spent_by(SAMPLE))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    write(kernel=words, candidate="", outcome="final", times_us=medians)


def gpu_name() -> str:
    """What the driver calls the first GPU; "" where it does not say."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return (subprocess.run(command, capture_output=True, text=True).stdout.splitlines() or [""])[0].strip()
    except OSError:
        return ""


def main() -> int:
    """Measure every kernel, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="to spend (%(default)s)")
    parser.add_argument("--kernel", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan = json.loads((FOLDER / "plan.json").read_text())
    if options.kernel is not None:
        measure(plan["problems"][options.kernel])
        return 0
    end = time.monotonic() + options.seconds
    write(kernel="", candidate="", outcome="machine", name=gpu_name())
    for index, problem in enumerate(plan["problems"]):
        while time.monotonic() < end:
            lines = [entry for entry in known() if entry["kernel"] == problem["kernel"]]
            if any(entry["outcome"] == "final" for entry in lines):
                break
            command = [sys.executable, __file__, "--kernel", str(index)]
            try:
                allowed = CANDIDATE_SECONDS * (len(problem["candidates"]) + 1)
                status = subprocess.run(command, timeout=allowed).returncode
            except subprocess.TimeoutExpired:
                status = -1
            if status:
                after = [entry for entry in known() if entry["kernel"] == problem["kernel"]]
                if not after or after[-1]["outcome"] != "started":
                    print(f"{problem['kernel']}: cannot be measured (status {status})", file=sys.stderr)
                    break
                last = after[-1]["candidate"]
                write(kernel=problem["kernel"], candidate=last, outcome="failed", reason=f"ended by status {status}")
        print(f"{index + 1} of {len(plan['problems'])} kernels: {problem['kernel']}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
