"""The options of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

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
from tvmcnn.cli.options import (
    EMITS,
    FORMS,
    batches,
    code,
    emits,
    floats,
    named_shape,
    natural,
    positive,
    seconds,
    words,
)
from tvmcnn.cli.quantize import do_quantize
from tvmcnn.half_weights import WEIGHTS
from tvmcnn.precision import PRECISIONS
from tvmcnn.version import __version__

Parser: TypeAlias = argparse.ArgumentParser
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser() -> argparse.ArgumentParser:
    """All commands with their options; `command` of the parsed ones is what to call with them."""
    whole = argparse.ArgumentParser(
        prog="tvmcnn", description="Compiles a CNN to one small native library, and runs it."
    )
    whole.add_argument("--version", action="version", version=f"tvmcnn {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_demo,
        add_compile,
        add_quantize,
        add_tune,
        add_records,
        add_run,
        add_bench,
        add_verify,
        add_ops,
        add_reweight,
        add_inspect,
        add_cache,
        add_targets,
    ):
        add(commands)
    return whole


def command(commands: Commands, name: str, function: Callable[[argparse.Namespace], int], text: str) -> Parser:
    """One command, with the option that all have."""
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=function)
    sub.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    return sub


# ---- options of several commands ------------------------------------------------------------------------------------


def takes_shapes(sub: Parser) -> None:
    """--input-shape"""
    text = "bind open dimensions or override fixed ones; compile takes several shapes of one input"
    metavar = "NAME:1x3x224x224"
    sub.add_argument("--input-shape", action="append", default=[], metavar=metavar, type=named_shape, help=text)


def takes_external_data(sub: Parser) -> None:
    """--external-data"""
    text = "a folder, besides the model's own, that its data may lie in, as behind the links of a hub's cache"
    sub.add_argument("--external-data", type=Path, metavar="DIR", help=text)


def takes_threads(sub: Parser) -> None:
    """--threads"""
    text = "default: the CPUs that this process may use"
    sub.add_argument("--threads", type=positive, default=None, metavar="N", help=text)


def takes_pixels(sub: Parser) -> None:
    """--mean, --std, --bgr"""
    text = "image: (pixel/255 - mean) / std; default: the model's own, or 0"
    sub.add_argument("--mean", type=floats, metavar="M[,M,M]", help=text)
    sub.add_argument("--std", type=floats, metavar="S[,S,S]", help="default: the model's own, or 1")
    sub.add_argument("--bgr", action="store_true", help="image: channels in the order blue, green, red")


def takes_image(sub: Parser) -> None:
    """--mean, --std, --bgr, --labels"""
    takes_pixels(sub)
    sub.add_argument("--labels", type=Path, metavar="FILE", help="a text file with one class name a line")


# ---- one function a command -----------------------------------------------------------------------------------------


def add_demo(commands: Commands) -> None:
    """tvmcnn demo"""
    sub = command(commands, "demo", do_demo, "compile the shipped LeNet-5, check it, let it read digits, time it")
    sub.add_argument("--data", type=Path, metavar="FOLDER", help="the four MNIST IDX files, for handwritten digits too")


def add_compile(commands: Commands) -> None:
    """tvmcnn compile"""
    sub = command(commands, "compile", do_compile, "compile an ONNX model into a native library, checked against NumPy")
    sub.add_argument("model", type=Path, metavar="MODEL.onnx")
    sub.add_argument("-o", "--output", type=Path, metavar="OUT.so", help="default: the model's name with .so")
    sub.add_argument(
        "--target",
        default="native",
        help=f"{targets.known()}, both classes as x86-64-v3,x86-64-v4, or GPUs as cuda:sm_80,sm_90 (default: native)",
    )
    takes_shapes(sub)
    takes_external_data(sub)
    sub.add_argument(
        "--batch",
        type=batches,
        metavar="N[,N…]",
        help="the leading dimension of every input; of several sizes any batch runs in parts (default: the file's, an"
        " open one stays open)",
    )
    sub.add_argument(
        "--records",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.jsonl",
        help="measured configs that win over the shipped ones; may be repeated",
    )
    sub.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="tf32, fp16: round what a GPU's tensor cores multiply; bf16: what convolutions on CPUs with AVX512-BF16"
        " do; sums stay float32 (default: fp32)",
    )
    sub.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="fp32",
        help="fp16, bf16: store weights of large products in half the bytes, rounded once; CPUs (default: fp32)",
    )
    sub.add_argument("--exact", action="store_true", help="convolve as the formula is written: no Winograd")
    sub.add_argument(
        "--locked", type=Path, metavar="FILE", help="refuse to make what differs from a lockfile of `inspect --lock`"
    )
    sub.add_argument("--jobs", type=positive, metavar="N", help="processes that compile (default: one a CPU)")
    sub.add_argument("--no-verify", action="store_true", help="do not compare the library with NumPy")
    sub.add_argument("--no-activations", action="store_true", help="leave out what shows tensors that fusion hides")
    sub.add_argument(
        "--emit", type=emits, default=(), metavar=",".join(EMITS), help="write these beside the library too"
    )


def add_quantize(commands: Commands) -> None:
    """tvmcnn quantize"""
    text = "turn a float32 model into one of 8-bit integers, and measure what that costs"
    sub = command(commands, "quantize", do_quantize, text)
    sub.add_argument("model", type=Path, metavar="MODEL.onnx")
    text = "images, .npy, .npz (by input name) or .pb; in folders by class, accuracy is measured"
    sub.add_argument("--data", type=Path, required=True, metavar="FOLDER", help=text)
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    text = "the number of each sample's class: lines of FILE,NUMBER, or of NUMBER in the order of the samples"
    sub.add_argument("--labels", type=Path, metavar="FILE", help=text)
    text = "samples that give the ranges of activations (default: 128)"
    sub.add_argument("--calibrate", type=positive, default=128, metavar="N", help=text)
    text = "samples to compare both networks on, others if there are as many (default: 1000)"
    sub.add_argument("--evaluate", type=positive, default=1000, metavar="N", help=text)
    text = "how ranges are found: all that was seen, or without rare extremes (default: minmax)"
    sub.add_argument("--method", choices=["minmax", "entropy", "percentile"], default="minmax", help=text)
    sub.add_argument("--activations", choices=["u8", "s8"], default="u8", help="their type (default: u8)")
    text = "one scale for each weight, not one for each of its output channels"
    sub.add_argument("--per-tensor", action="store_true", help=text)
    text = "nodes that stay in float32, by their names or by what they make"
    sub.add_argument("--keep", type=words, default=(), metavar="NODE[,NODE…]", help=text)
    takes_pixels(sub)
    takes_shapes(sub)
    takes_external_data(sub)


def add_tune(commands: Commands) -> None:
    """tvmcnn tune"""
    sub = command(
        commands, "tune", do_tune, "search the fastest configs of a model's kernels, each checked against NumPy"
    )
    sub.add_argument("model", type=Path, metavar="MODEL.onnx")
    sub.add_argument("--target", default="native", help=f"one of {targets.known()} (default: native, this machine)")
    sub.add_argument("--budget", default="10m", metavar="TIME", help="90s, 10m, 2h (default: 10m)")
    sub.add_argument(
        "-o", "--output", type=Path, metavar="RECORDS.jsonl", help="default: your own records, which compile reads"
    )
    takes_shapes(sub)
    takes_external_data(sub)
    sub.add_argument("--batch", type=positive, metavar="N", help="the leading dimension of every input (default: 1)")
    sub.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="as of compile (default: fp32)")
    sub.add_argument("--seed", type=natural, default=0, metavar="N", help="of the order of candidates (default: 0)")
    sub.add_argument(
        "--cache",
        choices=["cold", "warm"],
        default="cold",
        help="weights as cold as in the network, or in cache (default: cold)",
    )
    sub.add_argument("--from-scratch", action="store_true", help="start from computed configs, not from known records")
    sub.add_argument("--plot", type=Path, metavar="BEST.png", help="draw the best so far of each kernel over time")
    sub.add_argument("--jobs", type=positive, metavar="N", help="processes that compile (default: one a CPU)")
    sub.add_argument(
        "--rpc-tracker", metavar="HOST:PORT", help="measure on the machines of a TVM RPC tracker; trusted networks only"
    )
    sub.add_argument("--rpc-key", metavar="KEY", help="the key of the servers to measure on")
    sub.add_argument(
        "--emit-candidates",
        type=Path,
        metavar="DIR",
        help="for a GPU elsewhere: write what DIR/measure.py measures there",
    )
    sub.add_argument("--measured", type=Path, metavar="DIR", help="and make records of what it measured")


def add_records(commands: Commands) -> None:
    """tvmcnn records"""
    sub = command(commands, "records", do_records, "list, merge or prune files of records")
    sub.add_argument("action", choices=["list", "merge", "prune"])
    sub.add_argument("files", nargs="*", type=Path, metavar="FILE.jsonl", help="list: default: yours and the shipped")
    sub.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", help="merge: what to write; prune: in place")
    sub.add_argument("--target", metavar="T", help="list and prune: only records for this target")


def add_run(commands: Commands) -> None:
    """tvmcnn run"""
    sub = command(commands, "run", do_run, "run a compiled library on arrays or an image")
    sub.add_argument("library", type=Path, metavar="OUT.so")
    sub.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help=".npy, .npz (by input name), .pb or an image"
    )
    takes_image(sub)
    sub.add_argument(
        "-o", "--output", type=Path, metavar="OUT.npz", help="write all outputs by name (.npy for a lone one)"
    )
    sub.add_argument("--top", type=positive, default=5, metavar="K", help="show the K highest scores (default: 5)")
    takes_threads(sub)


def add_bench(commands: Commands) -> None:
    """tvmcnn bench"""
    sub = command(commands, "bench", do_bench, "time a compiled library, whole and kernel by kernel")
    sub.add_argument("library", type=Path, metavar="OUT.so")
    takes_threads(sub)
    takes_shapes(sub)
    sub.add_argument("--batch", type=positive, metavar="N", help="images in a call (default: as compiled)")
    sub.add_argument("--seconds", type=seconds, default=2.0, metavar="S", help="time to spend (default: 2)")


def add_verify(commands: Commands) -> None:
    """tvmcnn verify"""
    sub = command(commands, "verify", do_verify, "compare a library with NumPy, tensor by tensor")
    sub.add_argument("library", type=Path, metavar="OUT.so")
    sub.add_argument("--model", type=Path, required=True, metavar="MODEL.onnx", help="what it was compiled from")
    takes_external_data(sub)
    sub.add_argument("--seed", type=natural, default=0, metavar="N", help="of the random input (default: 0)")
    sub.add_argument("--html", type=Path, metavar="FILE.html", help="each tensor's errors as histograms")
    sub.add_argument(
        "--bisect",
        action="store_true",
        help="find the choice that brings an error in, by switching them off",
    )


def add_ops(commands: Commands) -> None:
    """tvmcnn ops"""
    sub = command(commands, "ops", do_ops, "list the supported operators, or what a model needs beyond them")
    sub.add_argument("--markdown", action="store_true", help="the table as docs/operators.md has it")
    sub.add_argument(
        "--input-shape",
        action="append",
        default=[],
        type=named_shape,
        metavar="NAME:1x1x32x32",
        help="with --check: binds open dimensions of an input, or overrides fixed ones",
    )
    sub.add_argument(
        "--check", type=Path, metavar="MODEL.onnx", help="list every node that cannot be compiled, with the reason"
    )
    takes_external_data(sub)


def add_reweight(commands: Commands) -> None:
    """tvmcnn reweight"""
    sub = command(
        commands, "reweight", do_reweight, "a library with the weights of a model that was trained again, its code kept"
    )
    sub.add_argument("library", type=Path, metavar="MODEL.so")
    sub.add_argument("model", type=Path, metavar="RETRAINED.onnx")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.so")
    takes_external_data(sub)
    sub.add_argument("--no-verify", action="store_true", help="do not compare the library with NumPy")


def add_inspect(commands: Commands) -> None:
    """tvmcnn inspect"""
    sub = command(commands, "inspect", do_inspect, "what a library is, kernel by kernel: in words, pages and pictures")
    sub.add_argument(
        "file", type=Path, metavar="OUT.so|MODEL.onnx", help="a model is compiled for this machine, and not kept"
    )
    sub.add_argument("--model", type=Path, metavar="MODEL.onnx", help="of a library: to compare, and to show code")
    sub.add_argument("--html", type=Path, metavar="REPORT.html", help="a page: graph, times, roofline, arena, code")
    sub.add_argument(
        "--code",
        type=code,
        metavar="KERNEL[:FORM]",
        help=f"print a kernel's code in all forms, or one of {', '.join(FORMS)}",
    )
    sub.add_argument("--measure", action="store_true", help="the page's figures in words, or with --json as JSON")
    sub.add_argument("--image", type=Path, metavar="IMAGE", help="what --activations shows the way of")
    sub.add_argument(
        "--activations", type=Path, metavar="MAPS.png", help="draw each layer's filters and maps for an --image"
    )
    sub.add_argument(
        "--annotate", type=Path, metavar="OUT.onnx", help="the model with figures on its nodes, for Netron"
    )
    sub.add_argument("--trace", type=Path, metavar="TRACE.json", help="a run, thread by thread, for ui.perfetto.dev")
    sub.add_argument("--lock", type=Path, metavar="FILE", help="the hashes as a lockfile for `compile --locked`")
    takes_threads(sub)
    sub.add_argument("--seconds", type=seconds, default=2.0, metavar="S", help="time to measure (default: 2)")
    takes_image(sub)
    sub.add_argument("--verbose", action="store_true", help="of a model: what compile says")
    takes_shapes(sub)
    takes_external_data(sub)


def add_cache(commands: Commands) -> None:
    """tvmcnn cache"""
    sub = command(commands, "cache", do_cache, "show what is kept of earlier compiles, or drop it")
    sub.add_argument("--clear", action="store_true", help="drop everything")


def add_targets(commands: Commands) -> None:
    """tvmcnn targets"""
    command(commands, "targets", do_targets, "list the targets and what this machine resolves to")
