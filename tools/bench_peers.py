"""Latency beside other runtimes: same inputs, outputs compared first, one process, interleaved rounds, medians.

    python tools/bench_peers.py --models lenet5:1,lenet5:256,resnet50:1,resnet18@192x256:1,path/to/model.onnx:2
                                [--threads 1] [--target native] [--precision int8|bf16]
                                [--peers onnxruntime,openvino,relax] [--rounds 31] [--seconds 20] [--size 224]
                                [--layers] [--json FILE] [--markdown FILE]

Absolute times on a shared machine mean little; the ratios and the share of the FMA peak, measured in the same rounds,
do. Each network is timed by its plain call, net(x) beside the peers' plain calls, and with inputs and outputs bound to
arrays that exist. A ratio is to the better peer. Exit status 1 if a network could not be timed, or if outputs differ.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_models import Entry, closed, in_integers, parse, parse_size
from bench_tables import Layer, PeerTimes, Row, Table, Time, Times, cells, header_lines, heads, layer_lines, markdown
from models import SIZE
from peers import DEFAULT, PEERS, Peer, Task, difference, find, loaded

import tvmcnn
from tvmcnn.errors import InputError, TvmcnnError
from tvmcnn.files import write_file
from tvmcnn.machine import cpu_name, usable_cpus
from tvmcnn.network import Array
from tvmcnn.progress import Progress, bar
from tvmcnn.run import bench as timing
from tvmcnn.run.arrays import random_array
from tvmcnn.run.runner import Runner
from tvmcnn.targets import TARGETS, Target, resolve
from tvmcnn.tuning.machine_peak import CopyBandwidth, FmaPeak, Limit, Limits

# Of the largest output. Both sides round, in different orders; between integers by whole steps, each 1/255 of a
# tensor's range, which the layers behind carry on, and the largest of a Softmax may be three of them: which bytes are
# right `verify` tells, here only gross errors show. So of bfloat16, in which OpenVINO stores its tensors too.
TOLERANCES = {"fp32": 1e-4, "int8": 0.5, "bf16": 0.1}
HINTS = {"bf16": "bf16"}  # OpenVINO's of products, float32 otherwise
BATCH_SECONDS = 0.01  # of each call in each round
FEWEST_ROUNDS = 5
LOOK = 0.002  # seconds between two looks at what the process's threads use
LONGEST_WAIT = 0.5  # seconds
ISA = "ONEDNN_MAX_CPU_ISA"


def compare(entry: Entry, names: Sequence[str], options: argparse.Namespace, progress: Progress) -> Row:
    """Compile a model, check it against each peer, and time all in turn.

    Raises TvmcnnError or ValueError for a model that cannot be compiled, or outputs that differ.
    """
    target = resolve(options.target)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress(f"{entry}: making the model", 0, 0)
        model, library = entry.file(folder), folder / "network.so"
        if options.precision == "int8":
            progress(f"{entry}: quantising it", 0, 0)
            model = in_integers(model, folder)
        extra: dict[str, Any] = {"exact": True} if options.exact and exact_is_known() else {}
        extra |= {"precision": options.precision} if options.precision in HINTS else {}
        tvmcnn.compile(model, options.target, library, batch=entry.batch, verify=False, progress=progress, **extra)
        net = tvmcnn.load(library, threads=options.threads)
        assert isinstance(net, Runner), "one batch, one program"
        feeds = {info.name: random_array(info, seed) for seed, info in enumerate(net.inputs)}
        shapes = {info.name: info.shape for info in (*net.inputs, *net.outputs)}
        hint = HINTS.get(options.precision, "f32")
        task = Task(closed(model, shapes, folder), feeds, net.outputs, options.threads, target, hint)
        peers, reasons = loaded(names, task, lambda name: progress(f"{entry}: loading it into {name}", 0, 0))
        failed = {name: PeerTimes(reason=reason) for name, reason in reasons.items()}

    arrays = list(feeds.values())
    outputs = tuple(np.empty(info.shape, info.dtype) for info in net.outputs)
    bind = getattr(net, "bind", None)  # which not every version has
    bound = bind(*arrays, out=outputs) if bind else lambda: net(*arrays, out=outputs)
    bound()
    allowed = TOLERANCES[options.precision]
    found = net.run(None, feeds)
    differences = {name: check(str(entry), name, found, outputs, peer, allowed) for name, peer in peers.items()}

    calls: dict[tuple[str, str], Callable[[], object]] = {("", "plain"): lambda: net(*arrays)}
    calls |= {(name, "plain"): peer.plain for name, peer in peers.items()}
    calls |= {("", "bound"): bound}
    calls |= {(name, "bound"): peer.bound for name, peer in peers.items()}
    samples, peak, copied = measure(calls, target, options, lambda done: progress(f"{entry}", done, options.rounds))
    times = {name: Times(Time.of(samples[name, "plain"]), Time.of(samples[name, "bound"])) for name in ("", *peers)}
    return Row(
        model=str(entry),
        batch=entry.batch,
        inputs={info.name: info.shape for info in net.inputs},
        kernels=len(net.manifest["kernels"]),
        rounds=len(samples["", "plain"]),
        ours=times[""],
        peers={n: failed[n] if n in failed else PeerTimes(times[n], differences[n]) for n in names},
        gflops=2 * sum(kernel["macs"] for kernel in net.manifest["kernels"]) / times[""].bound.median / 1e3,
        peak=peak,
        copy_gbs=copied,
        layers=roofline(net, arrays, limits_of(net, target, peak, copied)) if options.layers else (),
    )


def check(label: str, name: str, found: Sequence[Array], bound: Sequence[Array], peer: Peer, allowed: float) -> float:
    """The difference of our outputs to the peer's, by both calls. Raises TvmcnnError if it is too large."""
    theirs = peer.plain()
    peer.bound()
    worst = max(difference(found, theirs), difference(bound, theirs), difference(peer.read(), theirs))
    if worst > allowed:
        raise TvmcnnError(
            f"{label}: outputs differ from those of {name} by {worst:.1e} of the largest;"
            f" allowed is {allowed:.0e}; it is not timed"
        )
    return worst


def measure(
    calls: Mapping[tuple[str, str], Callable[[], object]],
    target: Target,
    options: argparse.Namespace,
    show: Callable[[int], None],
) -> tuple[dict[tuple[str, str], list[float]], float, float]:
    """µs of each call in each round, and medians of the FMA peak and of the copy bandwidth in the same rounds."""
    peak, copy, threads = FmaPeak(target), CopyBandwidth(), options.threads
    peaks: list[float] = []
    copies: list[float] = []
    last = list(calls.values())[-1]

    def copied() -> None:
        copies.append(copy.measure(threads))
        last()  # so that the first call finds the caches as the others do: full of another runtime's data

    timed: list[tuple[tuple[str, str] | None, Callable[[], object]]] = []
    measured = [*calls.items(), (None, lambda: peaks.append(peak.measure(threads=threads))), (None, copied)]
    for name, call in measured:
        if threads > 1:
            timed.append((None, functools.partial(at_rest, call if name else int)))
        timed.append((name, call))

    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    end = None if options.seconds is None else time.perf_counter() + options.seconds
    for done, spent in enumerate(timing.rounds([call for _, call in timed], BATCH_SECONDS), 1):
        for (key, _), microseconds in zip(timed, spent, strict=True):
            if key is not None:
                samples[key].append(microseconds)
        late = end is not None and done >= FEWEST_ROUNDS and time.perf_counter() > end
        show(options.rounds if late else done)
        if late or done >= options.rounds:
            break
    return samples, float(np.median(peaks)), float(np.median(copies))


def at_rest(call: Callable[[], object]) -> None:
    """Wait until no thread of this process runs, then call long enough for the call's own to be awake.

    onnxruntime's look for work for 40 ms after a call, and take a core from whoever comes next; and threads that wake
    may share a CPU for 10 ms. At 2 threads of 2 cores the FMA peak read half of itself for either reason.
    """
    end = time.perf_counter() + LONGEST_WAIT
    while time.perf_counter() < end:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(LOOK)
        if time.process_time() - used < 0.1 * (time.perf_counter() - wall):
            break
    end = time.perf_counter() + BATCH_SECONDS
    while time.perf_counter() < end:
        call()


def limits_of(net: Runner, target: Target, peak: float, bandwidth: float) -> dict[int, Limit]:
    """The machine's limits by the number of threads that share a kernel; for all threads those of the rounds."""
    fewer = {min(net.threads, entry["tasks"]) for entry in net.manifest["kernels"]} - {net.threads}
    found = {net.threads: Limit(net.threads, peak, bandwidth)}
    if fewer:
        limits = Limits(target, fewer)
        limits.measure()
        found |= limits.found()
    return found


def roofline(net: Runner, arrays: Sequence[Array], limits: Mapping[int, Limit]) -> tuple[Layer, ...]:
    """Each kernel's rates, and the time that the limits of as many threads as it has leave it at least."""
    profiles = net.profile(*arrays, seconds=0.5)
    total = sum(profile.microseconds for profile in profiles)
    layers = []
    for profile, entry in zip(profiles, net.manifest["kernels"], strict=True):
        limit = limits[min(net.threads, entry["tasks"])]
        moved = 0 if entry["algorithm"] == "view" else profile.bytes  # whose inputs lie in its output already
        compute, memory = profile.flops / limit.gflops / 1e3, moved / limit.gigabytes / 1e3
        spent = profile.microseconds
        layers.append(
            Layer(
                kernel=profile.name,
                nodes=profile.ops,
                algorithm=profile.algorithm,
                rule=entry["rule"],
                tier=entry["tier"],
                microseconds=spent,
                share=spent / total,
                gflops=profile.gflops,
                threads=limit.threads,
                peak_share=profile.gflops / limit.gflops,
                gbs=moved / spent / 1e3,
                bound_microseconds=max(compute, memory),
                bound_by=bound_by(compute, memory, spent),
            )
        )
    return tuple(layers)


def bound_by(compute: float, memory: float, spent: float) -> str:
    """The word for a kernel that takes `spent` µs where the roofline leaves it `compute` and `memory` µs at least."""
    if not compute and not memory:
        return ""
    if compute >= memory:
        return "compute"
    return "memory" if spent >= memory else "cache"


def exact_is_known() -> bool:
    """Whether this compiler has a choice of algorithms that round more than a plain sum does."""
    return "exact" in inspect.signature(tvmcnn.compile).parameters


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """What the rows are measured with: versions, machine, and notes in sentences."""
    target = resolve(options.target)
    peers, notes = find(options.peers.split(",") if options.peers else ())
    isa = os.environ.get(ISA)
    if not peers:
        notes.append("There is no peer: outputs are not compared")
    if options.exact and not exact_is_known():
        notes.append("--exact changes nothing: this compiler has no algorithm that needs it")
    if options.precision in HINTS and "onnxruntime" in peers:
        notes.append("onnxruntime multiplies in float32: it has no products of bfloat16 on CPUs")
    if target.name == "x86-64-v3" and not TARGETS["x86-64-v4"].missing():
        if "openvino" in peers and not isa:
            notes.append(f"OpenVINO uses AVX-512; set {ISA}=AVX2 before the process starts to restrict it")
        if "onnxruntime" in peers:
            notes.append("onnxruntime is unrestricted: it uses AVX-512, and has no setting against it")
    return {
        "tvmcnn": tvmcnn.__version__,
        "target": target.name,
        "bound_call": "net.bind" if hasattr(Runner, "bind") else "net(x, out=y)",
        "threads": options.threads,
        "exact": options.exact,
        "precision": options.precision,
        "peers": peers,
        "cpu": cpu_name(),
        "cores": usable_cpus(),
        "onednn_max_cpu_isa": isa,
        "notes": notes,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models",
        default="lenet5:1",
        metavar="NAME[@SIZE][:BATCH],…",
        help="a name is lenet5, one that make_models.py lists, or the path of an ONNX file (%(default)s)",
    )
    parser.add_argument("--size", default=str(SIZE), help="of made networks: 224, or rows x columns as 192x256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="native")
    parser.add_argument(
        "--precision",
        choices=[*TOLERANCES],
        default="fp32",
        help="int8: quantised, the same file for all; bf16: so are factors of products, but onnxruntime's",
    )
    parser.add_argument("--exact", action="store_true", help="only algorithms that round as a plain sum does")
    parser.add_argument("--peers", default=",".join(DEFAULT), metavar="NAME,…", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=31, help="at most, for each model (%(default)s)")
    parser.add_argument("--seconds", type=float, help=f"for each model, after at least {FEWEST_ROUNDS} rounds")
    parser.add_argument("--layers", action="store_true", help="each kernel beside the roofline")
    parser.add_argument("--json", metavar="FILE", help="write what was found here; - is standard output, and only it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    options = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is at least 1")
    return options


def bench(options: argparse.Namespace) -> int:
    """Print one line a model as it is done, then the kernels; with --json and --markdown write them too."""
    for path in (options.json, options.markdown):
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise InputError(f"cannot write {path}: there is no such folder")
    entries, header = parse(options.models, parse_size(options.size)), describe(options)
    people = sys.stderr if options.json == "-" else sys.stdout
    print("\n".join(header_lines(header)), end="\n\n", file=people)
    names = list(header["peers"])
    columns = heads(names)
    table = Table(columns, 1, [max(len(str(entry)) for entry in entries), *[8] * (len(columns) - 1)])
    print(table.heading(), file=people, flush=True)
    rows, status = [], 0
    for entry in entries:
        try:
            with bar() as progress:
                row = compare(entry, names, options, progress)
        except (TvmcnnError, ValueError) as error:  # the other models still have their turn
            complain(error)
            status = 1
            continue
        rows.append(row)
        reasons = [f"  {name} failed: {peer.reason}" for name, peer in row.peers.items() if peer.reason]
        print("\n".join([table.line(cells(row, names)), *reasons]), file=people, flush=True)
    for row in rows:
        if row.layers:
            print("\n".join(["", *layer_lines(row)]), file=people)
    found = json.dumps({**header, "rows": [row.as_json() for row in rows]}, indent=2)
    if options.json == "-":
        print(found)
    elif options.json:
        write_file(Path(options.json), found + "\n")
    if options.markdown is not None:
        write_file(options.markdown, markdown(header, rows))
    return status


def complain(error: Exception) -> None:
    """One sentence on standard error."""
    print(f"bench_peers: {' '.join(str(error).split())}", file=sys.stderr)


def main() -> int:
    """The exit status."""
    options = arguments()
    try:
        return bench(options)
    except TvmcnnError as error:
        complain(error)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
