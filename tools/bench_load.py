"""Measure what loading costs: time by size and check, memory of many libraries, what processes share, import.

    python tools/bench_load.py [--count 200] [--markdown docs/loading.md] [--json OUT.json]

Times are medians. Memory is the kernel's own count, of processes of their own: anonymous pages of /proc/self/status,
and the proportional share (PSS) of a mapped file, which counts a page that n processes have as 1/n of one in each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_models import parse

import tvmcnn
from tvmcnn.files import write_file
from tvmcnn.machine import cpu_name

LARGE = "resnet50@64"
SHARING = 4  # processes
PAGE = """# Loading

Made by `python tools/bench_load.py --markdown docs/loading.md` on {cpu}; medians, files in the page cache.

| what | time |
|---|---|
{times}

Loading reads the whole file once, to compare it with its SHA-256: that is {rate:.2f} s per 100 MB here. `check="code"`
leaves the weights out.

| memory | |
|---|---|
{memory}

Weights are pages of the file: processes share them, and the system may drop them and read them again. What a process
has of its own is the arenas, one for each call at once.
"""


def fresh(program: str, *arguments: Any) -> Any:
    """What a process of its own prints as JSON."""
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def median(call: Callable[[], Any], times: int) -> float:
    """Median seconds."""

    def one() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return statistics.median(one() for _ in range(times))


IMPORT = """
import json, sys, time
began = time.perf_counter()
import tvmcnn
first = time.perf_counter() - began
tvmcnn.load
print(json.dumps([first, time.perf_counter() - began]))
"""
COPIES = """
import json, re, sys, time
import numpy as np
import tvmcnn
def resident():
    status = open("/proc/self/status").read()
    return [int(re.search(rf"{name}:\\s*(\\d+)", status)[1]) for name in ("RssAnon", "RssFile")]
x = np.ones((1, 1, 32, 32), np.float32)
tvmcnn.load(sys.argv[1])(x)
before, began = resident(), time.perf_counter()
nets = [tvmcnn.load(path) for path in sys.argv[2:]]
seconds, loaded = time.perf_counter() - began, resident()
for net in nets:
    net(x)
called = resident()
del nets, net
def again():
    for _ in range(2):
        nets = [tvmcnn.load(path) for path in sys.argv[2:]]
        del nets
    return resident()
print(json.dumps([seconds, before, loaded, called, again(), again()]))
"""
SHARE = """
import json, re, sys
import numpy as np
import tvmcnn
net = tvmcnn.load(sys.argv[1], threads=1)
net(np.ones(net.inputs[0].shape, np.float32))
print("ready", flush=True)
sys.stdin.readline()
here, sums = False, {"Rss": 0, "Pss": 0}
for line in open("/proc/self/smaps"):
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        here = sys.argv[1] in line
    elif here and (found := re.match(r"(Rss|Pss):\\s*(\\d+)", line)):
        sums[found[1]] += int(found[2])
print(json.dumps(sums), flush=True)
sys.stdin.readline()
"""


def shared(library: Path) -> dict[str, int]:
    """Kilobytes of the library in one of SHARING processes that have all called it."""
    words = [sys.executable, "-c", SHARE, str(library)]
    others = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(SHARING)]
    for other in others:
        assert other.stdout is not None
        other.stdout.readline()
    first = others[0]
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write("\n")
    first.stdin.flush()
    found: dict[str, int] = json.loads(first.stdout.readline())
    for other in others:
        other.communicate("\n\n")
    return found


def measure(count: int, folder: Path) -> dict[str, Any]:
    """All figures: seconds, kilobytes, bytes."""
    small, large = folder / "lenet5.so", folder / "large.so"
    (lenet, other) = parse(f"lenet5,{LARGE}", (64, 64))
    tvmcnn.compile(lenet.file(folder), output=small, verify=False)
    tvmcnn.compile(other.file(folder), output=large, verify=False)
    copies = [folder / f"copy{index}.so" for index in range(count)]
    for copy in copies:
        shutil.copyfile(small, copy)
    imports = [fresh(IMPORT) for _ in range(9)]
    found: dict[str, Any] = {
        "import": statistics.median(each[0] for each in imports),
        "import_runner": statistics.median(each[1] for each in imports),
    }
    for name, path in (("small", small), ("large", large)):
        found[f"{name}_bytes"] = path.stat().st_size
        for check in ("all", "code"):
            found[f"{name}_{check}"] = median(lambda path=path, check=check: tvmcnn.load(path, check=check), 15)  # type: ignore[misc]
    found["copies"] = dict(
        zip(("seconds", "before", "loaded", "called", "once", "after"), fresh(COPIES, small, *copies), strict=True)
    )
    found["count"] = count
    found["shared"] = shared(large)
    return found


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    copies, sizes = found["copies"], {name: found[f"{name}_bytes"] / 1e6 for name in ("small", "large")}
    times = [
        ("`import tvmcnn`", f"{1e3 * found['import']:.0f} ms"),
        ("and numpy and tvm_ffi, when `tvmcnn.load` is first used", f"{1e3 * found['import_runner']:.0f} ms"),
    ]
    for name, title in (("small", "LeNet-5"), ("large", "ResNet-50")):
        size = f"{title}, {sizes[name]:.1f} MB"
        times.append((f"load of {size}", f"{1e3 * found[f'{name}_all']:.1f} ms"))
        times.append(('the same with `check="code"`', f"{1e3 * found[f'{name}_code']:.1f} ms"))
    times.append(
        (f"each of {found['count']} libraries in one process", f"{1e3 * copies['seconds'] / found['count']:.1f} ms")
    )
    each = {
        key: [(a - b) / found["count"] for a, b in zip(copies[key], copies["before"], strict=True)]
        for key in ("loaded", "called")
    }
    ours = found["shared"]
    memory = [
        (f"of its own, each of {found['count']} loaded libraries (LeNet-5)", f"{each['loaded'][0]:.0f} KB"),
        ("after a call", f"{each['called'][0]:.0f} KB"),
        (
            "more, when all were loaded and unloaded twice again",
            f"{copies['after'][0] - copies['once'][0]} KB for all",
        ),
        (f"ResNet-50 in each of {SHARING} processes: mapped", f"{ours['Rss'] / 1e3:.0f} MB"),
        ("its share (PSS)", f"{ours['Pss'] / 1e3:.0f} MB"),
    ]
    rate = (found["large_all"] - found["small_all"]) / (sizes["large"] - sizes["small"]) * 100

    def rows(pairs: list[tuple[str, str]]) -> str:
        return "\n".join(f"| {left} | {right} |" for left, right in pairs)

    return PAGE.format(cpu=f"{cpu_name()}, {os.cpu_count()} CPUs", times=rows(times), memory=rows(memory), rate=rate)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="libraries in one process (%(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.count, Path(folder))
    print(page(found))
    if options.markdown is not None:
        write_file(options.markdown, page(found).encode())
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
