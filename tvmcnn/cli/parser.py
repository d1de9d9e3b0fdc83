"""The options of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from tvmcnn import targets
from tvmcnn.cli.commands import (
    do_bench,
    do_cache,
    do_compile,
    do_demo,
    do_ops,
    do_records,
    do_reweight,
    do_run,
    do_targets,
    do_tune,
)
from tvmcnn.cli.inspect import do_inspect, do_verify
from tvmcnn.cli.words import EMITS, FORMS, batches, code, emits, floats, named_shape, natural, positive, seconds
from tvmcnn.precision import PRECISIONS
from tvmcnn.version import __version__


def parser() -> argparse.ArgumentParser:
    """All commands with their options; `command` of the parsed ones is what to call with them."""
    whole = argparse.ArgumentParser(
        prog="tvmcnn", description="Compiles a CNN to one small native library, and runs it."
    )
    whole.add_argument("--version", action="version", version=f"tvmcnn {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        return sub

    def takes_shapes(sub: argparse.ArgumentParser) -> None:
        text = "bind open dimensions or override fixed ones; may be repeated"
        metavar = "NAME:1x3x224x224"
        sub.add_argument("--input-shape", action="append", default=[], metavar=metavar, type=named_shape, help=text)

    def takes_external_data(sub: argparse.ArgumentParser) -> None:
        text = "a folder, besides the model's own, that its data may lie in, as behind the links of a hub's cache"
        sub.add_argument("--external-data", type=Path, metavar="DIR", help=text)

    def takes_threads(sub: argparse.ArgumentParser) -> None:
        text = "default: the CPUs that this process may use"
        sub.add_argument("--threads", type=positive, default=None, metavar="N", help=text)

    def takes_image(sub: argparse.ArgumentParser) -> None:
        text = "image: (pixel/255 - mean) / std; default: the model's own, or 0"
        sub.add_argument("--mean", type=floats, metavar="M[,M,M]", help=text)
        sub.add_argument("--std", type=floats, metavar="S[,S,S]", help="default: the model's own, or 1")
        sub.add_argument("--bgr", action="store_true", help="image: channels in the order blue, green, red")
        sub.add_argument("--labels", type=Path, metavar="FILE", help="a text file with one class name a line")

    demo = command("demo", do_demo, "compile the shipped LeNet-5, check it, let it read digits, time it")
    demo.add_argument(
        "--data", type=Path, metavar="FOLDER", help="the four MNIST IDX files, for handwritten digits too"
    )

    build = command("compile", do_compile, "compile an ONNX model into a native library, checked against NumPy")
    build.add_argument("model", type=Path, metavar="MODEL.onnx")
    build.add_argument("-o", "--output", type=Path, metavar="OUT.so", help="default: the model's name with .so")
    build.add_argument(
        "--target",
        default="native",
        help=f"{targets.known()}, both classes as x86-64-v3,x86-64-v4, or GPUs as cuda:sm_80,sm_90 (default: native)",
    )
    takes_shapes(build)
    takes_external_data(build)
    build.add_argument(
        "--batch",
        type=batches,
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
    build.add_argument("--jobs", type=positive, metavar="N", help="processes that compile (default: one a CPU)")
    build.add_argument("--no-verify", action="store_true", help="do not compare the library with NumPy")
    build.add_argument("--no-activations", action="store_true", help="leave out what shows tensors that fusion hides")
    build.add_argument(
        "--emit", type=emits, default=(), metavar=",".join(EMITS), help="write these beside the library too"
    )

    tune = command("tune", do_tune, "search the fastest configs of a model's kernels, each checked against NumPy")
    tune.add_argument("model", type=Path, metavar="MODEL.onnx")
    tune.add_argument("--target", default="native", help=f"one of {targets.known()} (default: native, this machine)")
    tune.add_argument("--budget", default="10m", metavar="TIME", help="90s, 10m, 2h (default: 10m)")
    tune.add_argument(
        "-o", "--output", type=Path, metavar="RECORDS.jsonl", help="default: your own records, which compile reads"
    )
    takes_shapes(tune)
    takes_external_data(tune)
    tune.add_argument("--batch", type=positive, metavar="N", help="the leading dimension of every input (default: 1)")
    tune.add_argument("--seed", type=natural, default=0, metavar="N", help="of the order of candidates (default: 0)")
    tune.add_argument(
        "--cache",
        choices=["cold", "warm"],
        default="cold",
        help="weights as cold as in the network, or in cache (default: cold)",
    )
    tune.add_argument("--from-scratch", action="store_true", help="start from computed configs, not from known records")
    tune.add_argument("--plot", type=Path, metavar="BEST.png", help="draw the best so far of each kernel over time")
    tune.add_argument("--jobs", type=positive, metavar="N", help="processes that compile (default: one a CPU)")
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

    book = command("records", do_records, "list, merge or prune files of records")
    book.add_argument("action", choices=["list", "merge", "prune"])
    book.add_argument("files", nargs="*", type=Path, metavar="FILE.jsonl", help="list: default: yours and the shipped")
    book.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", help="merge: what to write; prune: in place")
    book.add_argument("--target", metavar="T", help="list and prune: only records for this target")

    run = command("run", do_run, "run a compiled library on arrays or an image")
    run.add_argument("library", type=Path, metavar="OUT.so")
    run.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help=".npy, .npz (by input name), .pb or an image"
    )
    takes_image(run)
    run.add_argument(
        "-o", "--output", type=Path, metavar="OUT.npz", help="write all outputs by name (.npy for a lone one)"
    )
    run.add_argument("--top", type=positive, default=5, metavar="K", help="show the K highest scores (default: 5)")
    takes_threads(run)

    bench = command("bench", do_bench, "time a compiled library, whole and kernel by kernel")
    bench.add_argument("library", type=Path, metavar="OUT.so")
    takes_threads(bench)
    bench.add_argument("--batch", type=positive, metavar="N", help="refuse a library compiled for another batch size")
    bench.add_argument("--seconds", type=seconds, default=2.0, metavar="S", help="time to spend (default: 2)")

    verify = command("verify", do_verify, "compare a library with NumPy, tensor by tensor")
    verify.add_argument("library", type=Path, metavar="OUT.so")
    verify.add_argument("--model", type=Path, required=True, metavar="MODEL.onnx", help="what it was compiled from")
    takes_external_data(verify)
    verify.add_argument("--seed", type=natural, default=0, metavar="N", help="of the random input (default: 0)")
    verify.add_argument("--html", type=Path, metavar="FILE.html", help="each tensor's errors as histograms")
    verify.add_argument(
        "--bisect",
        action="store_true",
        help="find the choice that brings an error in, by switching them off",
    )

    ops = command("ops", do_ops, "list the supported operators, or what a model needs beyond them")
    ops.add_argument("--markdown", action="store_true", help="the table as docs/operators.md has it")
    ops.add_argument(
        "--input-shape",
        action="append",
        default=[],
        type=named_shape,
        metavar="NAME:1x1x32x32",
        help="with --check: binds open dimensions of an input, or overrides fixed ones",
    )
    ops.add_argument(
        "--check", type=Path, metavar="MODEL.onnx", help="list every node that cannot be compiled, with the reason"
    )
    takes_external_data(ops)
    again = command(
        "reweight", do_reweight, "a library with the weights of a model that was trained again, its code kept"
    )
    again.add_argument("library", type=Path, metavar="MODEL.so")
    again.add_argument("model", type=Path, metavar="RETRAINED.onnx")
    again.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.so")
    takes_external_data(again)
    again.add_argument("--no-verify", action="store_true", help="do not compare the library with NumPy")
    inspect = command("inspect", do_inspect, "what a library is, kernel by kernel: in words, pages and pictures")
    inspect.add_argument(
        "file", type=Path, metavar="OUT.so|MODEL.onnx", help="a model is compiled for this machine, and not kept"
    )
    inspect.add_argument("--model", type=Path, metavar="MODEL.onnx", help="of a library: to compare, and to show code")
    inspect.add_argument("--html", type=Path, metavar="REPORT.html", help="a page: graph, times, roofline, arena, code")
    inspect.add_argument(
        "--code",
        type=code,
        metavar="KERNEL[:FORM]",
        help=f"print a kernel's code in all forms, or one of {', '.join(FORMS)}",
    )
    inspect.add_argument("--measure", action="store_true", help="the page's figures in words, or with --json as JSON")
    inspect.add_argument("--image", type=Path, metavar="IMAGE", help="what --activations shows the way of")
    inspect.add_argument(
        "--activations", type=Path, metavar="MAPS.png", help="draw each layer's filters and maps for an --image"
    )
    inspect.add_argument(
        "--annotate", type=Path, metavar="OUT.onnx", help="the model with figures on its nodes, for Netron"
    )
    inspect.add_argument(
        "--trace", type=Path, metavar="TRACE.json", help="a run, thread by thread, for ui.perfetto.dev"
    )
    inspect.add_argument("--lock", type=Path, metavar="FILE", help="the hashes as a lockfile for `compile --locked`")
    takes_threads(inspect)
    inspect.add_argument("--seconds", type=seconds, default=2.0, metavar="S", help="time to measure (default: 2)")
    takes_image(inspect)
    inspect.add_argument("--verbose", action="store_true", help="of a model: what compile says")
    takes_shapes(inspect)
    takes_external_data(inspect)
    cache = command("cache", do_cache, "show what is kept of earlier compiles, or drop it")
    cache.add_argument("--clear", action="store_true", help="drop everything")
    command("targets", do_targets, "list the targets and what this machine resolves to")
    return whole
