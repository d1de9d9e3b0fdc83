"""Fuzz what reads files of others: the importer by mutated models, and by coverage; libraries by damage. And the
compiler, by random graphs.

    python tools/fuzz.py mutate MODEL.onnx… --count 80000     fields and bytes of valid models changed, by processes
    python tools/fuzz.py guided FOLDER --count 20000          atheris, whose inputs grow to new lines; FOLDER has seeds
    python tools/fuzz.py libraries LIBRARY.so --count 10000   bytes changed, runs moved, ends cut: no code may run
    python tools/fuzz.py graphs --count 20000 --keep DIR      valid models of all operators and types, against NumPy

A crash, a hang of more than 10 seconds, a traceback and 6 GB of memory are told with what brings them back: exit status
1. Whatever else an importer does with an input, it refuses it in a sentence or accepts it. A graph must compile to what
the NumPy reference computes, on one thread and on two, or be refused for a reason, which is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
HANG = 10.0  # seconds
BATCH = 250  # seeds of a process
TOLD = 5000  # inputs
SHOWN = 20  # of what broke


# ---- mutated models -------------------------------------------------------------------------------------------------


def batch(model: Path, kind: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """What became of so many seeds, and those that broke something: the process goes on behind a seed that ends it."""
    counts: Counter[str] = Counter()
    broken: list[str] = []
    while count > 0:
        command = [sys.executable, str(ROOT / "tests" / "mutate_models.py"), str(model), kind, str(first), str(count)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            seed, end = json.JSONDecoder().raw_decode(line)
            first, count = first + 1, count - 1
            if not line[end:].strip():
                broken.append(f"{model.name} {kind} seed {seed['seed']}: ended by status {done.returncode}")
                counts["crash or hang"] += 1
                continue
            found = json.loads(line[end:])
            counts["inputs"] += 1
            counts["parse as ONNX"] += found["parses"]
            counts["accepted" if "accepted" in found else "broke" if "broke" in found else found["refused"]] += 1
            if "broke" in found:
                broken.append(f"{model.name} {kind} seed {seed['seed']}: {found['broke']}")
        if not done.stdout:
            raise RuntimeError(done.stderr[-500:])
    return counts, broken


def mutate(models: list[Path], count: int, jobs: int, first: int) -> tuple[Counter[str], list[str]]:
    """Both kinds of mutation of each model, shared out evenly."""
    each = count // (2 * len(models))
    work = [
        (model, kind, first + start, min(BATCH, each - start))
        for start in range(0, each, BATCH)
        for model in models
        for kind in ("fields", "bytes")
    ]
    total: Counter[str] = Counter()
    broken: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for counts, bad in pool.map(lambda given: batch(*given), work):
            total += counts
            broken += bad
            progress(total["inputs"], count)
    return total, broken


# ---- guided by coverage ---------------------------------------------------------------------------------------------


def guided(folder: Path, count: int, seed: int) -> None:
    """Atheris' loop, in this process; it ends the process itself, with its own figures on standard error."""
    import atheris  # type: ignore

    with atheris.instrument_imports(include=["tvmcnn", "mutate_models"]):
        import mutate_models as mutations  # type: ignore

        import tvmcnn.importer
        import tvmcnn.importer.operators  # noqa: F401 (imported under atheris' eyes)

    mutations.keep_rehearsals()
    counts: Counter[str] = Counter()

    def one(data: bytes) -> None:
        began = time.process_time()  # on a busy machine a clock on the wall sees hangs that are none
        found = mutations.outcome(data)
        counts.update(["inputs", *["parse as ONNX"] * found["parses"], *["accepted"] * ("accepted" in found)])
        if counts["inputs"] % TOLD == 0:
            print(json.dumps(counts), flush=True)
        if "broke" in found:
            raise RuntimeError(found["broke"])
        if (spent := time.process_time() - began) > HANG:
            raise RuntimeError(f"a hang of {spent:.0f} s")

    def changed(data: bytes, limit: int, number: int) -> bytes:
        rng = random.Random(number)
        kinds = [mutations.mutate_fields, mutations.mutate_bytes]
        for mutation in kinds if rng.random() < 0.8 else kinds[1:]:
            try:
                return bytes(mutation(data, rng)[:limit])
            except Exception:  # it is no model, or no byte of it is left
                continue
        return data + rng.randbytes(4)

    options = [f"-runs={count}", f"-seed={seed}", "-max_len=60000", f"-timeout={12 * HANG:.0f}", "-rss_limit_mb=6144"]
    atheris.Setup([sys.argv[0], *options, str(folder)], one, custom_mutator=changed)
    atheris.Fuzz()


# ---- damaged libraries ----------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a file with one thing wrong, and what."""
    kind = rng.choice(("bit", "byte", "run of zeros", "cut", "dropped", "inserted", "swapped", "longer"))
    place, changed = rng.randrange(len(data)), bytearray(data)
    length = min(rng.choice((1, 16, 4096)), len(data) - place)
    if kind == "bit":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        changed[place] = (changed[place] + rng.randrange(1, 256)) % 256
    elif kind == "run of zeros":
        changed[place : place + length] = bytes(length)
    elif kind == "cut":
        del changed[place:]
    elif kind == "dropped":
        del changed[place : place + length]
    elif kind == "inserted":
        changed[place:place] = rng.randbytes(length)
    elif kind == "swapped":
        other = rng.randrange(len(data))
        changed[place], changed[other] = changed[other], changed[place]
    else:
        changed += rng.randbytes(length)
    return bytes(changed), f"{kind} at {place}"


def libraries(library: Path, count: int, first: int, check: str) -> tuple[Counter[str], list[str]]:
    """Every damaged copy must be refused, and nothing of it opened as code."""
    import ctypes

    import tvm_ffi

    import tvmcnn.run.runner  # which opens the process itself
    from tvmcnn.artifact.container import read_manifest

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("its code was opened")

    ctypes.CDLL, tvm_ffi.load_module = opened, opened  # type: ignore[assignment, misc]
    data, counts, broken = library.read_bytes(), Counter[str](), list[str]()
    first_weight, last_weight = read_manifest(library)["code"]["weights_at"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / library.name
        for seed in range(first, first + count):
            changed, what = damaged(data, random.Random(seed))
            if changed == data:  # two equal bytes swapped, zeros over zeros
                counts["not damaged at all"] += 1
                continue
            code, other = (each[:first_weight] + each[last_weight:] for each in (data, changed))
            if check == "code" and code == other:
                counts["only weights damaged"] += 1  # which this check leaves unread
                continue
            copy.write_bytes(changed)
            began = time.monotonic()
            try:
                tvmcnn.load(copy, check=check)
                broken.append(f"seed {seed} ({what}): accepted")
            except tvmcnn.ArtifactError:
                counts["refused"] += 1
            except BaseException as error:  # an assertion of ours among them
                broken.append(f"seed {seed} ({what}): {type(error).__name__}: {error}")
            if time.monotonic() - began > HANG:
                broken.append(f"seed {seed} ({what}): a hang")
            progress(seed - first + 1, count)
    return counts, broken


# ---- the command ----------------------------------------------------------------------------------------------------


def progress(done: int, count: int) -> None:
    """How far it is, where a person looks."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {count:,}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Fuzz, and print what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["mutate", "guided", "libraries", "graphs"])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="none for graphs")
    parser.add_argument("--count", type=int, default=10_000, help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first (%(default)s)")
    parser.add_argument("--check", choices=["all", "code"], default="all", help="as of tvmcnn.load (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="graphs: the counts and failures")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="graphs: the shrunk models and inputs that fail")
    parser.add_argument(
        "--known", action="append", default=[], metavar="KIND", help="graphs: failures to count and not to shrink"
    )
    options = parser.parse_args()
    if options.what == "graphs":
        from fuzz_graphs import run

        return int(run(options))
    if not options.files:
        parser.error(f"{options.what} needs a FILE")
    if options.what == "guided":
        guided(options.files[0], options.count, options.seed)
    began = time.monotonic()
    if options.what == "mutate":
        counts, broken = mutate(options.files, options.count, options.jobs, options.seed)
    else:
        counts, broken = libraries(options.files[0], options.count, options.seed, options.check)
    print(json.dumps({**counts, "seconds": round(time.monotonic() - began), "broken": broken[:SHOWN]}, indent=2))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
