"""The command line: one function a command. Exit status 0 on success, 1 with one sentence for a mistake, 2 for
usage."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcnn import targets
from tvmcnn.arrays import read_inputs, write_arrays
from tvmcnn.artifact import read_manifest, write_file
from tvmcnn.errors import InputError, ToolError, TvmcnnError, VerifyError
from tvmcnn.network import Array, Shape
from tvmcnn.precision import PRECISIONS
from tvmcnn.progress import bar
from tvmcnn.runner import load
from tvmcnn.version import __version__

if TYPE_CHECKING:
    from tvmcnn.compiler import Compiled
    from tvmcnn.runner import Net

SUFFIXES = {"header": ".h", "tir": ".tir.py", "asm": ".s", "c": ".c", "cuda": ".cu"}
EMITS = ("header", "package", "tir", "asm", "c", "cuda")
ELSEWHERE = {True: ("asm", "c"), False: ("cuda",)}  # what there is not, for GPUs or not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of `tvmcnn`."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except TvmcnnError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "tvmcnn":
            raise
        return _fail(f"this command needs {error.name}: install it by pip install 'tvmcnn[compiler]'")
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _fail(sentence: str) -> int:
    print(f"tvmcnn: {sentence}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tvmcnn", description="Compiles a CNN to one small native library, and runs it."
    )
    parser.add_argument("--version", action="version", version=f"tvmcnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        return sub

    def input_shape(sub: argparse.ArgumentParser) -> None:
        text = "bind open dimensions or override fixed ones; may be repeated"
        metavar = "NAME:1x3x224x224"
        sub.add_argument("--input-shape", action="append", default=[], metavar=metavar, type=_input_shape, help=text)

    demo = command("demo", _demo, "compile the shipped LeNet-5, check it, let it read digits, time it")
    demo.add_argument(
        "--data", type=Path, metavar="FOLDER", help="the four MNIST IDX files, for handwritten digits too"
    )

    build = command("compile", _compile, "compile an ONNX model into a native library, checked against NumPy")
    build.add_argument("model", type=Path, metavar="MODEL.onnx")
    build.add_argument("-o", "--output", type=Path, metavar="OUT.so", help="default: the model's name with .so")
    build.add_argument(
        "--target",
        default="native",
        help=f"{targets.known()}, both classes as x86-64-v3,x86-64-v4, or GPUs as cuda:sm_80,sm_90 (default: native)",
    )
    input_shape(build)
    build.add_argument(
        "--batch",
        type=_batches,
        metavar="N[,N…]",
        help="the leading dimension of every input (default: 1); several make one library that takes any batch",
    )
    build.add_argument(
        "--records",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.jsonl",
        help="measured configs that win over the shipped ones; may be repeated",
    )
    build.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="tf32, fp16: round what a GPU's tensor cores multiply; sums stay float32 (default: fp32)",
    )
    build.add_argument("--exact", action="store_true", help="convolve as the formula is written: no Winograd")
    build.add_argument(
        "--locked", type=Path, metavar="FILE", help="refuse to make what differs from a lockfile of `inspect --lock`"
    )
    build.add_argument("--jobs", type=_positive, metavar="N", help="processes that compile (default: one a CPU)")
    build.add_argument("--no-verify", action="store_true", help="do not compare the library with NumPy")
    build.add_argument("--no-activations", action="store_true", help="leave out what shows tensors that fusion hides")
    build.add_argument(
        "--emit", type=_emits, default=(), metavar=",".join(EMITS), help="write these beside the library too"
    )

    tune = command("tune", _tune, "search the fastest configs of a model's kernels, each checked against NumPy")
    tune.add_argument("model", type=Path, metavar="MODEL.onnx")
    tune.add_argument("--target", default="native", help=f"one of {targets.known()} (default: native, this machine)")
    tune.add_argument("--budget", default="10m", metavar="TIME", help="90s, 10m, 2h (default: 10m)")
    tune.add_argument(
        "-o", "--output", type=Path, metavar="RECORDS.jsonl", help="default: your own records, which compile reads"
    )
    input_shape(tune)
    tune.add_argument("--batch", type=_positive, metavar="N", help="the leading dimension of every input (default: 1)")
    tune.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the order of candidates (default: 0)")
    tune.add_argument(
        "--cache",
        choices=["cold", "warm"],
        default="cold",
        help="weights as cold as in the network, or in cache (default: cold)",
    )
    tune.add_argument("--from-scratch", action="store_true", help="start from computed configs, not from known records")
    tune.add_argument("--plot", type=Path, metavar="BEST.png", help="draw the best so far of each kernel over time")
    tune.add_argument("--jobs", type=_positive, metavar="N", help="processes that compile (default: one a CPU)")
    tune.add_argument(
        "--rpc-tracker", metavar="HOST:PORT", help="measure on the machines of a TVM RPC tracker; trusted networks only"
    )
    tune.add_argument("--rpc-key", metavar="KEY", help="the key of the servers to measure on")
    tune.add_argument(
        "--emit-candidates",
        type=Path,
        metavar="DIR",
        help="for a GPU elsewhere: write what DIR/measure.py measures there",
    )
    tune.add_argument("--measured", type=Path, metavar="DIR", help="and make records of what it measured")

    book = command("records", _records, "list, merge or prune files of records")
    book.add_argument("action", choices=["list", "merge", "prune"])
    book.add_argument("files", nargs="*", type=Path, metavar="FILE.jsonl", help="list: default: yours and the shipped")
    book.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", help="merge: what to write; prune: in place")
    book.add_argument("--target", metavar="T", help="list and prune: only records for this target")

    run = command("run", _run, "run a compiled library on arrays or an image")
    run.add_argument("library", type=Path, metavar="OUT.so")
    run.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help=".npy, .npz (by input name), .pb or an image"
    )
    run.add_argument(
        "--mean",
        type=_floats,
        metavar="M[,M,M]",
        help="image: (pixel/255 - mean) / std; default: the model's own, or 0",
    )
    run.add_argument("--std", type=_floats, metavar="S[,S,S]", help="default: the model's own, or 1")
    run.add_argument("--bgr", action="store_true", help="image: channels in the order blue, green, red")
    run.add_argument(
        "-o", "--output", type=Path, metavar="OUT.npz", help="write all outputs by name (.npy for a lone one)"
    )
    run.add_argument("--top", type=_positive, default=5, metavar="K", help="show the K highest scores (default: 5)")
    run.add_argument(
        "--threads", type=_positive, default=None, metavar="N", help="default: the CPUs that this process may use"
    )
    run.add_argument("--labels", type=Path, metavar="FILE", help="a text file with one class name a line")

    bench = command("bench", _bench, "time a compiled library, whole and kernel by kernel")
    bench.add_argument("library", type=Path, metavar="OUT.so")
    bench.add_argument(
        "--threads", type=_positive, default=None, metavar="N", help="default: the CPUs that this process may use"
    )
    bench.add_argument("--batch", type=_positive, metavar="N", help="refuse a library compiled for another batch size")
    bench.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help="time to spend (default: 2)")

    verify = command("verify", _verify, "compare a library with NumPy, tensor by tensor")
    verify.add_argument("library", type=Path, metavar="OUT.so")
    verify.add_argument("--model", type=Path, required=True, metavar="MODEL.onnx", help="what it was compiled from")
    verify.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the random input (default: 0)")

    ops = command("ops", _ops, "list the supported operators, or what a model needs beyond them")
    ops.add_argument("--markdown", action="store_true", help="the table as docs/operators.md has it")
    ops.add_argument(
        "--input-shape",
        action="append",
        default=[],
        type=_input_shape,
        metavar="NAME:1x1x32x32",
        help="with --check: binds open dimensions of an input, or overrides fixed ones",
    )
    ops.add_argument(
        "--check", type=Path, metavar="MODEL.onnx", help="list every node that cannot be compiled, with the reason"
    )
    again = command(
        "reweight", _reweight, "a library with the weights of a model that was trained again, its code kept"
    )
    again.add_argument("library", type=Path, metavar="MODEL.so")
    again.add_argument("model", type=Path, metavar="RETRAINED.onnx")
    again.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.so")
    again.add_argument("--no-verify", action="store_true", help="do not compare the library with NumPy")
    inspect = command("inspect", _inspect, "what a library is, kernel by kernel, and the hashes of what it was made of")
    inspect.add_argument("library", type=Path, metavar="MODEL.so")
    inspect.add_argument("--lock", type=Path, metavar="FILE", help="write these as a lockfile for `compile --locked`")
    cache = command("cache", _cache, "show what is kept of earlier compiles, or drop it")
    cache.add_argument("--clear", action="store_true", help="drop everything")
    command("targets", _targets, "list the targets and what this machine resolves to")
    return parser


# ---- commands -------------------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    from tvmcnn.demo import run_demo

    result = run_demo(options.data, _progress(options))
    if options.json:
        _print_json(dataclasses.asdict(result))
    return 0


def _compile(options: argparse.Namespace) -> int:
    import tvmcnn

    for_gpus = targets.is_gpu(options.target)
    if missing := [kind for kind in options.emit if kind in ELSEWHERE[for_gpus]]:
        raise ToolError(f"--emit {missing[0]} is for {'CPUs' if for_gpus else 'GPUs'}, the target is {options.target}")
    with bar() as progress:
        compiled = tvmcnn.compile(
            options.model,
            options.target,
            options.output,
            dict(options.input_shape),
            batch=options.batch,
            records=options.records,
            verify=not options.no_verify,
            activations=not options.no_activations,
            exact=options.exact,
            precision=options.precision,
            report=_progress(options),
            progress=progress,
            jobs=options.jobs,
            locked=options.locked,
        )
    written = [str(compiled.path), *(str(_emit(kind, compiled)) for kind in options.emit)]
    size = compiled.path.stat().st_size
    if options.json:
        manifest = read_manifest(compiled.path) if compiled.path.suffix == ".so" else compiled.manifest
        _print_json({"written": written, "bytes": size, "fallbacks": compiled.fallbacks, "manifest": manifest})
    else:
        count = sum(len(program.steps) for program in compiled.programs)
        print(
            f"{count} kernels, {compiled.fallbacks} of them by the fallback rule;"
            f" wrote {', '.join(written)} ({size:,} bytes)"
        )
    return 0


def _emit(kind: str, compiled: Compiled) -> Path:
    from tvmcnn.package import write_package

    name = compiled.name
    if kind == "package":
        return write_package(compiled.path, compiled.header, compiled.path.parent / name)
    path = compiled.path.with_name(f"{name}{SUFFIXES[kind]}")
    write_file(path, compiled.header if kind == "header" else compiled.code[kind]())
    return path


def _tune_gpu(options: argparse.Namespace) -> int:
    """For a GPU: all steps here, or the one that is asked for."""
    from tvmcnn.tuning.given import records_path
    from tvmcnn.tuning.gpu import collect, emit_candidates, tune_gpu

    say, shapes = _progress(options), dict(options.input_shape)
    if options.measured is not None:
        tuned = collect(options.measured, records_path(options.output))
    else:
        with bar() as progress:
            given: dict[str, Any] = {"batch": options.batch, "report": say, "progress": progress}
            if (folder := options.emit_candidates) is not None:
                count = emit_candidates(options.model, options.target, folder, shapes, **given)
                say(f"wrote {count} candidates; on the machine with the GPU: python {folder}/measure.py")
                return 0
            tuned = tune_gpu(options.model, options.target, options.budget, options.output, shapes, **given)
    if options.json:
        _print_json({**dataclasses.asdict(tuned), "records": str(tuned.records)})
        return 0
    for words, (default, best) in tuned.kernels.items():
        print(f"{words}: {best:.2f} µs, default {default:.2f}")
    print(f"{len(tuned.kernels)} records in {tuned.records}; {tuned.wrong} candidates wrong, {tuned.failed} failed")
    return 0


def _tune(options: argparse.Namespace) -> int:
    from tvmcnn.tuning import tune
    from tvmcnn.tuning.table import closing, watcher

    if targets.is_gpu(options.target):
        return _tune_gpu(options)
    if options.emit_candidates is not None or options.measured is not None:
        raise ToolError(f"--emit-candidates and --measured are for GPUs, the target is {options.target}")
    say = _progress(options)
    try:
        tuned = tune(
            options.model,
            options.target,
            options.budget,
            options.output,
            dict(options.input_shape),
            batch=options.batch,
            seed=options.seed,
            cold=options.cache == "cold",
            known_records=not options.from_scratch,
            plot=options.plot,
            rpc_tracker=options.rpc_tracker,
            rpc_key=options.rpc_key,
            jobs=options.jobs,
            report=say,
            event=_print_line if options.json else lambda entry: None,
            watch=watcher(say, live=not options.json),
        )
    except KeyboardInterrupt:
        say("stopped; what was measured is kept, and the same command goes on")
        return 130
    if options.json:
        _print_line({"event": "end", **tuned.as_json()})
        return 0
    for line in closing(tuned, options.model, own=options.output is None):
        print(line)
    if options.plot is not None:
        print(f"wrote {options.plot}")
    return 0


def _records(options: argparse.Namespace) -> int:
    from tvmcnn import bookkeeping

    if options.action != "list" and not options.files:
        return _fail(f"records {options.action} takes at least one file")
    if options.action == "merge" and options.output is None:
        return _fail("records merge writes a new file: name it with -o OUT.jsonl")
    isa = targets.resolve(options.target).name if options.target else None
    if options.action == "list":
        shelf = bookkeeping.listed(options.files, isa)
    elif options.action == "merge":
        shelf = bookkeeping.merged(options.files, options.output)
    else:
        shelf = bookkeeping.pruned(options.files, isa, options.output)
    if options.json:
        _print_json(shelf.as_json())
    else:
        print(shelf)
    return 0


def _run(options: argparse.Namespace) -> int:
    net = load(options.library, threads=options.threads)
    mean = options.mean or _fact(net, "mean", "0")
    std = options.std or _fact(net, "std", "1")
    feeds = read_inputs(options.input, net.inputs, mean, std, options.bgr)
    outputs = dict(zip([info.name for info in net.outputs], net.run(None, feeds), strict=True))
    labels = _labels(options.labels)
    top = {name: _top(array, options.top, labels) for name, array in outputs.items()}
    if options.output is not None:
        write_arrays(options.output, outputs)
    if options.json:
        _print_json({name: {"shape": array.shape, "top": top[name]} for name, array in outputs.items()})
        return 0
    for name, array in outputs.items():
        print(f"{name} {'x'.join(map(str, array.shape))}")
        for row in top[name]:
            print("\n".join(f"  {entry['score']:>12.6g}  {entry['label']}" for entry in row))
    if options.output is not None:
        print(f"wrote {options.output}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from tvmcnn.timing import bench

    result = bench(load(options.library, threads=options.threads), options.seconds, options.batch)
    if options.json:
        _print_json(result.as_json())
    else:
        print(result)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from tvmcnn.verify import verify_library

    verdicts = verify_library(options.library, options.model, options.seed)
    passed = all(verdict.passed for verdict in verdicts)
    if options.json:
        entries = [verdict.as_json() for verdict in verdicts]
        _print_json(entries[0] if len(entries) == 1 else {"passed": passed, "batches": entries})
        return 0 if passed else 1
    for verdict in verdicts:
        for error in verdict.tensors:
            print(f"{'ok   ' if error.passed else 'WRONG'} {error}")
        print(verdict)
    if not passed:
        raise VerifyError(f"{options.library} does not agree with {options.model}")
    return 0


def _reweight(options: argparse.Namespace) -> int:
    import tvmcnn

    verdicts = tvmcnn.reweight(
        options.library, options.model, options.output, verify=not options.no_verify, report=_progress(options)
    )
    if options.json:
        _print_json({"written": str(options.output), "verification": [verdict.as_json() for verdict in verdicts]})
    else:
        print(f"wrote {options.output}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from tvmcnn.lock import lock_of
    from tvmcnn.manifest import described

    manifest = read_manifest(options.library)
    if options.lock is not None:
        write_file(options.lock, json.dumps(lock_of(manifest), indent=2) + "\n")
    if options.json:
        _print_json(manifest)
        return 0
    print("\n".join(described(manifest)))
    if options.lock is not None:
        print(f"wrote {options.lock}")
    return 0


def _ops(options: argparse.Namespace) -> int:
    from tvmcnn.operators import OPERATORS, operators_page, schema

    if options.check is not None:
        return _check(options)
    rows = [schema(name) for name in sorted(OPERATORS)]
    if options.markdown:
        print(operators_page(rows))
    elif options.json:
        _print_json([dataclasses.asdict(row) for row in rows])
    else:
        print("\n".join(f"{row.name:<20} {row.attributes:<72} {row.summary}".rstrip() for row in rows))
    return 0


def _check(options: argparse.Namespace) -> int:
    from tvmcnn.errors import UnsupportedError
    from tvmcnn.importer import import_model

    reasons: tuple[str, ...] = ()
    try:
        network = import_model(options.check, dict(options.input_shape))
        count = len(network.nodes)
    except UnsupportedError as error:
        reasons, count = error.reasons, 0
    if options.json:
        _print_json({"model": str(options.check), "unsupported": reasons})
    elif reasons:
        print("\n".join(reasons))
        return _fail(f"{options.check} has {len(reasons)} unsupported node{'s' if len(reasons) > 1 else ''}")
    else:
        print(f"{options.check}: every node is supported ({count} after folding)")
    return 1 if reasons else 0


def _cache(options: argparse.Namespace) -> int:
    from tvmcnn.cache import LIMIT, Cache

    cache = Cache.default()
    dropped = cache.clear() if options.clear else 0
    entries = cache.entries()
    size = sum(size for _, size, _ in entries)
    folder = None if cache.folder is None else str(cache.folder)
    if options.json:
        _print_json({"folder": folder, "entries": len(entries), "bytes": size, "limit": LIMIT, "dropped": dropped})
    elif folder is None:
        print("the cache is off (TVMCNN_CACHE=off)")
    else:
        cleared = f"{dropped} entries dropped; " if options.clear else ""
        print(f"{cleared}{folder}: {len(entries)} entries, {size:,} bytes of at most {LIMIT:,}")
    return 0


def _nvcc() -> tuple[str | None, str]:
    """The CUDA compiler, or None, and a sentence about it."""
    from tvmcnn.codegen.nvcc import nvcc

    try:
        command = " ".join(nvcc())
    except ToolError as error:
        return None, str(error)
    return command, f"compiled by {command}"


def _targets(options: argparse.Namespace) -> int:
    from tvmcnn.records import own_records, read_records

    native = targets.resolve("native")
    cpus = targets.usable_cpus()
    own = own_records()
    count = len(read_records(own)[0]) if own is not None and own.exists() else 0
    if options.json:
        names = {name: {**dataclasses.asdict(t), "missing": t.missing()} for name, t in targets.TARGETS.items()}
        book = {"records": None if own is None else str(own), "own_records": count}
        book |= {"nvcc": _nvcc()[0]}
        _print_json({"native": native.name, "machine": native.machine, "cpus": cpus, "targets": names, **book})
        return 0
    plural = "s" if cpus > 1 else ""
    print(f"this machine: {native.machine}, {cpus} usable CPU{plural}; native (or host) resolves to {native.name}")
    for target in targets.TARGETS.values():
        missing = target.missing()
        print(f"{target.name:<12} {target.lanes:>2} float32 lanes, {target.registers} vector registers;", end=" ")
        print(f"cannot run here: this CPU lacks {', '.join(missing)}" if missing else "runs here")
    print(f"cuda:sm_80,…  NVIDIA GPUs of these architectures; {_nvcc()[1]}")
    where = "no place for them" if own is None else f"{count} in {own}"
    print(f"your own records, which tune writes and compile reads: {where}")
    return 0


# ---- words and numbers ----------------------------------------------------------------------------------------------


def _progress(options: argparse.Namespace) -> Callable[[str], None]:
    """Lines for a person: on standard output, or on standard error where that belongs to JSON."""
    stream = sys.stderr if options.json else sys.stdout

    def say(line: str) -> None:
        try:
            print(line, file=stream, flush=True)
        except BrokenPipeError:  # the reader, `head` say, has seen enough; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    return say


def _print_line(value: Any) -> None:
    """One JSON object a line, as it happens."""
    print(json.dumps(value, default=list), flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=list))


def _top(scores: Array, count: int, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The highest scores of each row (each leading index), best first, with index and label."""
    rows = scores.reshape(scores.shape[0] if scores.ndim > 1 else 1, -1)
    found = []
    for row in rows:
        best = np.argsort(-row, kind="stable")[:count]
        found.append(
            [
                {"index": int(i), "score": float(row[i]), "label": labels[i] if i < len(labels) else str(int(i))}
                for i in best
            ]
        )
    return found


def _fact(net: Net, key: str, default: str) -> tuple[float, ...]:
    text = net.manifest["metadata"].get(key, default)
    try:
        return _floats(text)
    except argparse.ArgumentTypeError:
        raise InputError(f"the model's metadata says {key} = '{text}', which is not numbers: give --{key}") from None


def _labels(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"cannot read the labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the labels {path}: it is not UTF-8 text") from error


def _input_shape(text: str) -> tuple[str, Shape]:
    name, colon, extents = text.rpartition(":")
    try:
        shape = tuple(int(extent) for extent in extents.split("x"))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME:1x3x224x224")
    return name, shape


def _emits(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := [kind for kind in kinds if kind not in EMITS]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' cannot be emitted; allowed are {', '.join(EMITS)}")
    return kinds


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number or numbers separated by commas") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def _batches(text: str) -> int | tuple[int, ...]:
    sizes = tuple(_positive(word) for word in text.split(","))
    return sizes if len(sizes) > 1 else sizes[0]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
