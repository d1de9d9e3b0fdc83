"""Worker: compiles one model, runs it between guards and compares: the part that may crash, in a process of its own."""

from __future__ import annotations

import os
import random
import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx

import tvmcnn
from graphs import quick
from graphs.judge import Fault, Judge
from tvmcnn import half_weights, layout
from tvmcnn.artifact import weights as weights_said
from tvmcnn.check.verify import verify_library
from tvmcnn.choose import cpu as choose_for_cpus
from tvmcnn.choose.cpu import bf16, tasks
from tvmcnn.choose.cpu.row_bands import in_one_band
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import Record, Records
from tvmcnn.compiler import Compiled
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.fuse import exact_sums
from tvmcnn.importer import half_weights as importer_half_weights
from tvmcnn.network import ALIGNMENT
from tvmcnn.precision import WORDS
from tvmcnn.targets import resolve
from tvmcnn.tuning.space import SPACES, candidates

Array = np.ndarray[Any, Any]
Report = dict[str, Any]
GUARD = 4096  # bytes before and behind what a library may write
PATTERN = 0xA5
MOST_THREADS = 2
CANDIDATES = 500  # of a kernel
LIMITS = (  # below which something would not pay
    *((tasks, "MIN_MICROSECONDS"), (exact_sums, "LEAST"), (bf16, "FEW_WEIGHTS")),
    *((module, "LEAST") for module in (half_weights, importer_half_weights, layout, weights_said)),
)


def check(
    model: bytes,
    inputs: Mapping[str, Array],
    target: str,
    activations: bool,
    split: bool,
    tuned: int,
    precision: str,
    weights: str,
) -> Report:
    """What became of a model: "ok", "refused" with the reason, or "failed" with the kind of failure and a text."""
    os.environ["TVMCNN_CACHE"] = os.environ["TVMCNN_RECORDS"] = "off"
    quick.install()
    proto = onnx.load_model_from_string(model)
    if not resolve(target).bf16_pairs:
        precision = "fp32"
    report: Report = {"end": "ok", "times": {}}
    with tempfile.TemporaryDirectory(prefix="tvmcnn-graphs-") as folder, shared_out(split), any_config(tuned):
        began = time.perf_counter()
        try:
            path = Path(folder) / "g.so"
            compiled = tvmcnn.compile(
                proto, target, path, input_shapes=empty(inputs), verify=False, activations=activations, jobs=1,
                precision=precision, weights=weights,
            )  # fmt: skip
        except (UnsupportedError, ModelError) as error:
            return report | {"end": "refused", "text": str(error)}
        except Exception as error:
            if tuned and "does not fit it" in str(error):
                return report | {"end": "refused", "text": "a config that the tuner would try and drop does not fit"}
            return report | failed(f"compile raises {named(error)}", f"{error}\n{traceback.format_exc()}")
        report["times"]["compile"] = time.perf_counter() - began
        report["seen"] = seen(compiled)
        began = time.perf_counter()
        try:
            wrong = computed(compiled, proto, inputs, report)
        except Exception as error:
            wrong = f"running raises {named(error)}", f"{error}\n{traceback.format_exc()}"
        report["times"]["run"] = time.perf_counter() - began
        began = time.perf_counter()
        refused = verified(compiled, proto)
        report["times"]["verify"] = time.perf_counter() - began
    if wrong is not None:
        kind, text = wrong
        return report | failed(kind if refused else f"{kind}, unseen by verify", text)
    return report | failed(*refused) if refused else report


def empty(inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """The shapes that a user has to give: a 0 in a file stands for an open extent."""
    return {name: array.shape for name, array in inputs.items() if array.size == 0}


def failed(kind: str, text: str) -> Report:
    return {"end": "failed", "kind": kind, "text": text}


@contextmanager
def shared_out(split: bool) -> Iterator[None]:
    """With `split` threads share even what is too small for that to pay, float32 adds up few integers too, and small
    weights are rounded."""
    with ExitStack() as patched:
        for module, name in LIMITS if split else ():
            patched.enter_context(mock.patch.object(module, name, 0))
        yield


@contextmanager
def any_config(seed: int) -> Iterator[None]:
    """With a seed every kernel takes some config, and algorithm, of those that the tuner would try."""
    right = choose_for_cpus.choose

    def chosen(network: Any, kernels: Any, target: Any, records: Any, precision: str = "fp32", *, exact: bool) -> Any:
        rng, found = random.Random(seed), {}
        for choice in map(in_one_band, right(network, kernels, target, records, precision, exact=exact)):
            tried = list(islice(candidates(choice, network, target), CANDIDATES))
            if tried and type(choice.config) in SPACES:
                taken, words = rng.choice(tried), kernel_words(network, choice.kernel)
                record = Record(words, taken.rule, taken.config, 1.0, target.name, "", ("", ""), {}, 0)
                found[words] = {taken.rule: (record, "given record")}
        return right(network, kernels, target, Records(found), precision, exact=exact)

    choose_for_cpus.choose = chosen if seed else right  # type: ignore[assignment]
    try:
        yield
    finally:
        choose_for_cpus.choose = right


# ---- running --------------------------------------------------------------------------------------------------------


class Guarded:
    """Memory between patterns, which whoever writes outside of it destroys."""

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self.memory = np.full(size + 2 * GUARD + ALIGNMENT, PATTERN, np.uint8)
        address = self.memory.ctypes.data
        self.start = GUARD + -(address + GUARD) % ALIGNMENT
        self.address = address + self.start

    def array(self, dtype: str, shape: tuple[int, ...]) -> Array:
        return self.memory[self.start : self.start + self.size].view(dtype).reshape(shape)

    @property
    def broken(self) -> str:
        before = self.memory[: self.start] != PATTERN
        behind = self.memory[self.start + self.size :] != PATTERN
        if not before.any() and not behind.any():
            return ""
        where = "before" if before.any() else "behind"
        return f"{int(before.sum() + behind.sum())} bytes written {where} {self.name} of {self.size} bytes"


def run(net: Any, inputs: Mapping[str, Array]) -> tuple[list[Array], str]:
    """The outputs, and what was written outside of them and of the arena."""
    guards, outputs = [], []
    for info in net.outputs:
        size = int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize
        guards.append(Guarded(size, f"output '{info.name}'"))
        outputs.append(guards[-1].array(info.dtype, tuple(info.shape)))
    size = net.manifest["arena_bytes"] + net.threads * net.manifest["thread_bytes"]
    arena = Guarded(size, "the arena")
    arena.memory[arena.start : arena.start + size] = 0xFF  # NaN: what reads before it writes is seen
    net._arenas[:] = [(arena.address, arena.memory)]
    found = net(*(inputs[info.name] for info in net.inputs), out=tuple(outputs))
    net._arenas.clear()
    return list(found) if isinstance(found, tuple) else [found], "; ".join(
        filter(None, (guard.broken for guard in (*guards, arena)))
    )


def computed(
    compiled: Compiled, proto: onnx.ModelProto, inputs: Mapping[str, Array], report: Report
) -> tuple[str, str] | None:
    """The first thing that is wrong with what the library computes: its kind and a text."""
    manifest = tvmcnn.load(compiled.path).manifest
    stored = manifest["precision"] != WORDS["fp32"]
    judge = Judge(proto, inputs, narrow=stored or manifest["weights"]["kind"] != "fp32", stored=stored)
    first: list[Array] = []
    for threads in range(1, MOST_THREADS + 1):
        net = tvmcnn.load(compiled.path, threads=threads)
        outputs, broken = run(net, inputs)
        if broken:
            return f"guard broken {_makers(compiled)}", broken
        if first and any(a.tobytes() != b.tobytes() for a, b in zip(first, outputs, strict=True)):
            return "threads disagree", f"{threads} threads compute other bits than one"
        first = first or outputs
    faults = [judge.fault(info.name, found) for info, found in zip(net.outputs, first, strict=True)]
    report["excused"] = judge.excused
    for fault in filter(None, faults):
        return f"wrong {_maker(compiled, fault)}", f"{fault.name}: {fault.text}"
    if net.manifest["activations"]:
        shown = net.activations(*(inputs[info.name] for info in net.inputs))
        for name, found in shown.items():
            if name in judge.expected and (fault := judge.fault(name, found)) is not None:
                return f"wrong activation {_maker(compiled, fault)}", f"{fault.name}: {fault.text}"
    return None


def verified(compiled: Compiled, proto: onnx.ModelProto) -> tuple[str, str] | None:
    """What tvmcnn's own check has against the library."""
    try:
        verdicts = verify_library(compiled.path, proto, target=compiled.targets[0].name)
    except Exception as error:
        return f"verify raises {named(error)}", f"{error}\n{traceback.format_exc()}"
    for verdict in verdicts:
        for error in (*verdict.tensors, *verdict.outputs):
            if error.bound == float("inf"):
                return "verify is blind", f"it allows anything of {error.name}"
        if not verdict.passed:
            name = verdict.first_wrong.name if verdict.first_wrong is not None else ""
            return f"verify refuses what is right, {_op(proto, name)}", str(verdict)
    return None


# ---- words ----------------------------------------------------------------------------------------------------------


def named(error: Exception) -> str:
    """The type of an exception and what it begins with, without names and numbers."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\S*\d\S*", "…", str(error).splitlines()[0] if str(error) else "")
    return f"{type(error).__name__}: {' '.join(text.split()[:8])}"


def _op(proto: onnx.ModelProto, name: str) -> str:
    return next((node.op_type for node in proto.graph.node if name in node.output), "?")


def _maker(compiled: Compiled, fault: Fault) -> str:
    """The algorithm and the last operator of the kernel that makes a tensor."""
    for step in compiled.program.steps:
        kernel = step.choice.kernel
        if kernel.output.name == fault.name or any(node.output == fault.name for node in kernel.all_nodes):
            source = step.choice.sources[0].dtype if step.choice.sources else "nothing"
            return f"{step.choice.algorithm} {kernel.nodes[-1].op} of {source}"
    return "nobody"


def _makers(compiled: Compiled) -> str:
    return "+".join(sorted({step.choice.algorithm for step in compiled.program.steps}))


def seen(compiled: Compiled) -> dict[str, Counter[str]]:
    """What the compiler did with it: algorithms, layouts, forms."""
    algorithms, layouts, forms = Counter[str](), Counter[str](), Counter[str]()
    for step in compiled.program.steps:
        choice = step.choice
        algorithms[choice.algorithm] += 1
        forms["config of a record"] += choice.tier == "given record"
        written = choice.writes
        kind = "plain" if written.block == written.images == 1 else "blocks" if written.block > 1 else "images"
        layouts[kind + ("+halo" if any(written.halo) else "") + ("/pitch" if written.pitch else "")] += 1
        forms["prologue"] += bool(choice.kernel.prologue)
        forms["epilogue"] += len(choice.kernel.nodes) > 1
        forms["residual"] += len(choice.kernel.inputs) > 1 and len(choice.kernel.nodes) > 1
        forms["home"] += choice.within is not None
        forms["tasks"] += choice.tasks > 1
        forms["reshaped"] += any(s.shape != t.shape for s, t in zip(choice.sources, choice.kernel.inputs, strict=False))
        forms[f"output {choice.kernel.output.dtype}"] += 1
    return {"algorithms": algorithms, "layouts": layouts, "forms": +forms}
