"""Run libraries for a long time, as hard as a service might: wrong answers, lost calls and memory that grows are told.

    python tools/soak.py --hours 1 --json soak.json

A steady process calls four models from eight threads with random batches, binds, forks now and then. Beside it another
does the same and is interrupted (Ctrl-C), killed or left to end by turns, and started again. Every answer is compared
with that of a lone thread; every call that begins must end, but for those of a killed process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tvmcnn

MODELS = ("lenet5", "squeezenet@48x48", "mobilenet_v2@32x32", "resnet18@32x32")
BATCHES = [1, 4]
LARGEST = 9  # images of a call
POOL = 24  # images whose answers are known, of each model
TOLERANCE = 1e-5  # of the largest answer: sizes of a batch have kernels of their own, which round differently
THREADS = 8
ENDS = ("interrupt", "kill", "leave")


def prepare(folder: Path) -> list[Path]:
    """The libraries, with the answers that a lone thread gives to each image."""
    from bench_models import parse

    libraries = []
    for entry in parse(",".join(MODELS), (224, 224)):
        library = folder / f"{str(entry).split('@')[0].split(':')[0]}.so"
        tvmcnn.compile(entry.file(folder), output=library, batch=BATCHES)
        net = tvmcnn.load(library, threads=1)
        x = np.random.default_rng(0).standard_normal((POOL, *net.inputs[0].shape[1:]), dtype=np.float32)
        np.savez(library.with_suffix(".npz"), x=x, y=np.concatenate([net(image[None]) for image in x]))
        libraries.append(library)
    return libraries


# ---- a process that works -------------------------------------------------------------------------------------------


class Worker:
    """Threads that call models until they are told to stop, and what they counted."""

    def __init__(self, libraries: list[Path], seed: int) -> None:
        self.nets = [(tvmcnn.load(path), np.load(path.with_suffix(".npz"))) for path in libraries]
        self.known = [(net, data["x"], data["y"]) for net, data in self.nets]
        self.seed, self.stop, self.lock = seed, threading.Event(), threading.Lock()
        self.counts: Counter[str] = Counter()

    def call(self, random_: random.Random) -> None:
        """One call of a random model with random images, compared."""
        net, x, y = random_.choice(self.known)
        chosen = [random_.randrange(POOL) for _ in range(random_.randint(1, LARGEST))]
        given, wanted = x[chosen], y[chosen]
        with self.lock:
            self.counts["begun"] += 1
        found = net.bind(given)() if random_.random() < 0.05 else net(given)
        right = np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
        with self.lock:
            self.counts["ended"] += 1
            self.counts["images"] += len(chosen)
            self.counts["wrong"] += not right

    def work(self, index: int) -> None:
        """A thread's life."""
        random_ = random.Random(1000 * self.seed + index)
        while not self.stop.is_set():
            self.call(random_)

    def fork(self) -> None:
        """A child that calls each model, as a server that forks does: its answers count."""
        child = os.fork()
        if child == 0:
            good = all(
                np.allclose(net(x[:3]), y[:3], rtol=0, atol=TOLERANCE * np.abs(y).max()) for net, x, y in self.known
            )
            os._exit(0 if good else 1)
        _, status = os.waitpid(child, 0)
        with self.lock:
            self.counts["forks"] += 1
            self.counts["wrong"] += status != 0

    def run(self, seconds: float, tell: Callable[[dict[str, int]], None]) -> None:
        """Work for a time, telling counts and memory once in a while; Ctrl-C ends it early, and in order."""
        threads = [threading.Thread(target=self.work, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        end, last = time.monotonic() + seconds, 0.0
        try:
            while time.monotonic() < end:
                time.sleep(0.2)
                if time.monotonic() > last + 10:
                    last = time.monotonic()
                    self.fork()
                    tell({**self.counts, "kilobytes": resident()})
        except KeyboardInterrupt:
            self.counts["interrupts"] += 1
        self.stop.set()
        for thread in threads:
            thread.join()
        tell({**self.counts, "kilobytes": resident(), "done": 1})


def resident() -> int:
    """Kilobytes of this process in memory that are its own: not the pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def told(line: dict[str, int]) -> None:
    """To the one that watches."""
    print(json.dumps(line), flush=True)


# ---- the one that watches -------------------------------------------------------------------------------------------


def start(libraries: list[Path], seconds: float, seed: int) -> subprocess.Popen[str]:
    """A process that works."""
    words = [sys.executable, __file__, "--work", str(seconds), "--seed", str(seed), *map(str, libraries)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def lines_of(process: subprocess.Popen[str], into: list[dict[str, int]]) -> threading.Thread:
    """A thread that keeps what a process tells."""

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            into.append(json.loads(line))

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def soak(hours: float, seed: int) -> dict[str, Any]:
    """All of it; the result says what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        libraries = prepare(Path(folder))
        seconds, steady = 3600 * hours, list[dict[str, int]]()
        first = start(libraries, seconds, seed)
        reader = lines_of(first, steady)
        total, ends, random_, turn = Counter[str](), Counter[str](), random.Random(seed), 0
        while first.poll() is None:
            turn += 1
            other, heard = start(libraries, 60, seed + turn), list[dict[str, int]]()
            listening = lines_of(other, heard)
            how = ENDS[turn % len(ENDS)]
            if how != "leave":
                time.sleep(random_.uniform(2, 15))
                other.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
            other.wait()
            listening.join()
            ends[how] += 1
            last = heard[-1] if heard else {}
            total.update({key: last.get(key, 0) for key in ("begun", "ended", "images", "wrong", "forks")})
            if how != "kill":
                ended = other.returncode == 0 and last.get("done") and last["begun"] == last["ended"]
                total["not in order"] += not ended
            bar(steady, total, ends, seconds)
        reader.join()
    memory = [line["kilobytes"] for line in steady]
    early = memory[min(len(memory) - 1, max(1, len(memory) // 10))]
    return {
        "seconds": seconds,
        "steady": steady[-1],
        "steady_memory_kilobytes": {"a_tenth_in": early, "at_the_end": memory[-2], "most": max(memory)},
        "others": dict(total),
        "ends": dict(ends),
        "machine": {"cpus": os.cpu_count(), "tvmcnn": tvmcnn.__version__},
    }


def bar(steady: list[dict[str, int]], total: Counter[str], ends: Counter[str], seconds: float) -> None:
    """How far it is, where a person looks."""
    if sys.stderr.isatty() and steady:
        counts = f"{steady[-1].get('ended', 0) + total['ended']:,} calls, {steady[-1].get('wrong', 0)} wrong"
        print(
            f"\r{counts}, {sum(ends.values())} processes ended, of {seconds:.0f} s", end="", file=sys.stderr, flush=True
        )


def verdict(result: dict[str, Any]) -> list[str]:
    """What went wrong, in words."""
    steady, memory = result["steady"], result["steady_memory_kilobytes"]
    wrong = steady["wrong"] + result["others"].get("wrong", 0)
    found = [f"{wrong} wrong answers"] if wrong else []
    found += ["the steady process did not end in order"] if not steady.get("done") else []
    found += [f"{steady['begun'] - steady['ended']} calls lost"] if steady["begun"] != steady["ended"] else []
    odd = result["others"].get("not in order", 0)
    found += [f"{odd} interrupted processes did not end in order"] if odd else []
    grown = memory["at_the_end"] / memory["a_tenth_in"]
    return found + ([f"memory grew by {grown - 1:.0%}"] if grown > 1.05 else [])


def main() -> int:
    """Soak, and print the result; exit status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    parser.add_argument("libraries", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        Worker(options.libraries, options.seed).run(options.work, told)
        return 0
    result = soak(options.hours, options.seed)
    result["wrong"] = verdict(result)
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
