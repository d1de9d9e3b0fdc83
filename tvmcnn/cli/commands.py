"""One function a command, but for those that look into libraries: inspect.py has these."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmcnn import machine, targets
from tvmcnn.artifact.container import read_manifest
from tvmcnn.cli.options import one_size, permitted, read_feeds, read_labels, shapes_of
from tvmcnn.cli.output import answers_ctrl_c, best_of, fail, print_json, print_line, reporter
from tvmcnn.errors import ToolError
from tvmcnn.files import write_file
from tvmcnn.progress import bar
from tvmcnn.run import load
from tvmcnn.run.inputs import write_arrays

if TYPE_CHECKING:
    from tvmcnn.compiler import Compiled

SUFFIXES = {"header": ".h", "tir": ".tir.py", "asm": ".s", "c": ".c", "cuda": ".cu"}
ELSEWHERE = {True: ("asm", "c"), False: ("cuda",)}  # what there is not, for GPUs or not


def do_demo(options: argparse.Namespace) -> int:
    """LeNet-5 compiled, checked, reading digits, timed."""
    from tvmcnn.demo import run_demo

    result = run_demo(options.data, reporter(options))
    if options.json:
        print_json(dataclasses.asdict(result))
    return 0


def do_compile(options: argparse.Namespace) -> int:
    """A model becomes a library, and what else is to be emitted."""
    import tvmcnn

    for_gpus = targets.is_gpu(options.target)
    if missing := [kind for kind in options.emit if kind in ELSEWHERE[for_gpus]]:
        raise ToolError(f"--emit {missing[0]} is for {'CPUs' if for_gpus else 'GPUs'}, the target is {options.target}")
    with bar() as progress:
        compiled = tvmcnn.compile(
            options.model,
            options.target,
            options.output,
            shapes_of(options),
            batch=options.batch,
            records=options.records,
            verify=not options.no_verify,
            activations=not options.no_activations,
            exact=options.exact,
            precision=options.precision,
            weights=options.weights,
            report=reporter(options),
            progress=progress,
            jobs=options.jobs,
            locked=options.locked,
            external_data=options.external_data,
        )
    written = [str(compiled.path), *(str(_emit(kind, compiled)) for kind in options.emit)]
    size = compiled.path.stat().st_size
    if options.json:
        manifest = read_manifest(compiled.path) if compiled.path.suffix == ".so" else compiled.manifest
        print_json({"written": written, "bytes": size, "fallbacks": compiled.fallbacks, "manifest": manifest})
    else:
        count = sum(len(program.steps) for program in compiled.programs)
        print(
            f"{count} kernels, {compiled.fallbacks} of them by the fallback rule;"
            f" wrote {', '.join(written)} ({size:,} bytes)"
        )
    return 0


def _emit(kind: str, compiled: Compiled) -> Path:
    from tvmcnn.artifact.package import write_package

    name = compiled.name
    if kind == "package":
        return write_package(compiled.path, compiled.header, compiled.path.parent / name)
    path = compiled.path.with_name(f"{name}{SUFFIXES[kind]}")
    write_file(path, compiled.header if kind == "header" else compiled.code[kind]())
    return path


def _tune_gpu(options: argparse.Namespace) -> int:
    """For a GPU: all steps here, or the one that is asked for."""
    from tvmcnn.tuning.gpu import collect, emit_candidates, tune_gpu
    from tvmcnn.tuning.options import records_path

    say, shapes, model = reporter(options), one_size(options), permitted(options.model, options)
    if options.measured is not None:
        tuned = collect(options.measured, records_path(options.output))
    else:
        with bar() as progress:
            given: dict[str, Any] = {"batch": options.batch, "report": say, "progress": progress}
            if (folder := options.emit_candidates) is not None:
                count = emit_candidates(model, options.target, folder, shapes, **given)
                say(f"wrote {count} candidates; on the machine with the GPU: python {folder}/measure.py")
                return 0
            tuned = tune_gpu(model, options.target, options.budget, options.output, shapes, **given)
    if options.json:
        print_json({**dataclasses.asdict(tuned), "records": str(tuned.records)})
        return 0
    for words, (default, best) in tuned.kernels.items():
        print(f"{words}: {best:.2f} µs, default {default:.2f}")
    print(f"{len(tuned.kernels)} records in {tuned.records}; {tuned.wrong} candidates wrong, {tuned.failed} failed")
    return 0


@answers_ctrl_c()
def do_tune(options: argparse.Namespace) -> int:
    """Search configs; a table shows how far it is."""
    from tvmcnn.tuning import tune
    from tvmcnn.tuning.table import closing, watcher

    if targets.is_gpu(options.target):
        return _tune_gpu(options)
    if options.emit_candidates is not None or options.measured is not None:
        raise ToolError(f"--emit-candidates and --measured are for GPUs, the target is {options.target}")
    say = reporter(options)
    try:
        tuned = tune(
            options.model,
            options.target,
            options.budget,
            options.output,
            one_size(options),
            batch=options.batch,
            seed=options.seed,
            cold=options.cache == "cold",
            known_records=not options.from_scratch,
            plot=options.plot,
            rpc_tracker=options.rpc_tracker,
            rpc_key=options.rpc_key,
            jobs=options.jobs,
            precision=options.precision,
            report=say,
            event=print_line if options.json else lambda entry: None,
            watch=watcher(say, live=not options.json),
            external_data=options.external_data,
        )
    except KeyboardInterrupt:
        say("stopped; what was measured is kept, and the same command goes on")
        return 130
    if options.json:
        print_line({"event": "end", **tuned.as_json()})
        return 0
    for line in closing(tuned, options.model, options.precision, own=options.output is None):
        say(line)
    if options.plot is not None:
        print(f"wrote {options.plot}")
    return 0


def do_records(options: argparse.Namespace) -> int:
    """List, merge or prune files of records."""
    from tvmcnn.tuning import records_file

    if options.action != "list" and not options.files:
        return fail(f"records {options.action} takes at least one file")
    if options.action == "merge" and options.output is None:
        return fail("records merge writes a new file: name it with -o OUT.jsonl")
    isa = targets.resolve(options.target).isa if options.target else None
    if options.action == "list":
        shelf = records_file.listed(options.files, isa)
    elif options.action == "merge":
        shelf = records_file.merged(options.files, options.output)
    else:
        shelf = records_file.pruned(options.files, isa, options.output)
    if options.json:
        print_json(shelf.as_json())
    else:
        print(shelf)
    return 0


def do_run(options: argparse.Namespace) -> int:
    """Outputs for arrays or an image, the highest scores shown."""
    net = load(options.library, threads=options.threads)
    feeds = read_feeds(net, options.input, options)
    outputs = dict(zip([info.name for info in net.outputs], net.run(None, feeds), strict=True))
    labels = read_labels(options.labels)
    top = {name: best_of(array, options.top, labels) for name, array in outputs.items()}
    if options.output is not None:
        write_arrays(options.output, outputs)
    if options.json:
        print_json({name: {"shape": array.shape, "top": top[name]} for name, array in outputs.items()})
        return 0
    for name, array in outputs.items():
        print(f"{name} {'x'.join(map(str, array.shape))}")
        for row in top[name]:
            print("\n".join(f"  {entry['score']:>12.6g}  {entry['label']}" for entry in row))
    if options.output is not None:
        print(f"wrote {options.output}")
    return 0


def do_bench(options: argparse.Namespace) -> int:
    """Latency, whole and kernel by kernel."""
    from tvmcnn.run.bench import bench

    net = load(options.library, threads=options.threads)
    result = bench(net, options.seconds, options.batch, one_size(options))
    if options.json:
        print_json(result.as_json())
    else:
        print(result)
    return 0


def do_reweight(options: argparse.Namespace) -> int:
    """Other weights in a library."""
    import tvmcnn

    verdicts = tvmcnn.reweight(
        options.library,
        options.model,
        options.output,
        verify=not options.no_verify,
        report=reporter(options),
        external_data=options.external_data,
    )
    if options.json:
        print_json({"written": str(options.output), "verification": [verdict.as_json() for verdict in verdicts]})
    else:
        print(f"wrote {options.output}")
    return 0


def do_ops(options: argparse.Namespace) -> int:
    """The operators, or what a model needs beyond them."""
    from tvmcnn.importer.operators import OPERATORS, operators_page, schema

    if options.check is not None:
        return _check(options)
    rows = [schema(name) for name in sorted(OPERATORS)]
    if options.markdown:
        print(operators_page(rows))
    elif options.json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print("\n".join(f"{row.name:<20} {row.attributes:<72} {row.summary}".rstrip() for row in rows))
    return 0


def _check(options: argparse.Namespace) -> int:
    from tvmcnn.errors import UnsupportedError
    from tvmcnn.importer import import_model

    reasons: tuple[str, ...] = ()
    try:
        network = import_model(permitted(options.check, options), one_size(options))
        count = len(network.nodes)
    except UnsupportedError as error:
        reasons, count = error.reasons, 0
    if options.json:
        print_json({"model": str(options.check), "unsupported": reasons})
    elif reasons:
        print("\n".join(reasons))
        return fail(f"{options.check} has {len(reasons)} unsupported node{'s' if len(reasons) > 1 else ''}")
    else:
        print(f"{options.check}: every node is supported ({count} after folding)")
    return 1 if reasons else 0


def do_cache(options: argparse.Namespace) -> int:
    """What is kept of earlier compiles."""
    from tvmcnn.cache import LIMIT, Cache

    cache = Cache.default()
    dropped = cache.clear() if options.clear else 0
    entries = cache.entries()
    size = sum(size for _, size, _ in entries)
    folder = None if cache.folder is None else str(cache.folder)
    if options.json:
        print_json({"folder": folder, "entries": len(entries), "bytes": size, "limit": LIMIT, "dropped": dropped})
    elif folder is None:
        print("the cache is off (TVMCNN_CACHE=off)")
    else:
        cleared = f"{dropped} entries dropped; " if options.clear else ""
        print(f"{cleared}{folder}: {len(entries)} entries, {size:,} bytes of at most {LIMIT:,}")
    return 0


def _nvcc() -> tuple[str | None, str]:
    """The CUDA compiler, or None, and a sentence about it."""
    from tvmcnn.codegen.cuda.nvcc import nvcc

    try:
        command = " ".join(nvcc())
    except ToolError as error:
        return None, str(error)
    return command, f"compiled by {command}"


def _facts(target: targets.Target) -> dict[str, Any]:
    """What `tvmcnn targets --json` says of one."""
    names = ("name", "registers", "features", "l1_bytes", "l2_bytes", "machine")
    facts = {name: getattr(target, name) for name in names}
    return facts | {"lanes": target.lanes("float32"), "missing": target.missing()}


def do_targets(options: argparse.Namespace) -> int:
    """The targets, and what this machine is."""
    from tvmcnn.choose.records import own_records, read_records

    native = targets.resolve("native")
    cpus = machine.usable_cpus()
    own = own_records()
    count = len(read_records(own)[0]) if own is not None and own.exists() else 0
    if options.json:
        names = {name: _facts(target) for name, target in targets.TARGETS.items()}
        book = {"records": None if own is None else str(own), "own_records": count}
        book |= {"nvcc": _nvcc()[0]}
        print_json({"native": native.name, "machine": native.machine, "cpus": cpus, "targets": names, **book})
        return 0
    plural = "s" if cpus > 1 else ""
    print(f"this machine: {native.machine}, {cpus} usable CPU{plural}; native (or host) resolves to {native.name}")
    for target in targets.TARGETS.values():
        missing = target.missing()
        print(
            f"{target.name:<12} {target.lanes('float32'):>2} float32 lanes, {target.registers} vector registers;",
            end=" ",
        )
        print(f"cannot run here: this CPU lacks {', '.join(missing)}" if missing else "runs here")
    print(f"cuda:sm_80,…  NVIDIA GPUs of these architectures; {_nvcc()[1]}")
    where = "no place for them" if own is None else f"{count} in {own}"
    print(f"your own records, which tune writes and compile reads: {where}")
    return 0
