"""Tune for GPUs. The machine with the GPU needs no compiler: candidates are made here, measured there, kept here.

tvmcnn tune MODEL --target cuda:sm_90 --emit-candidates DIR              a library a kernel, inputs, NumPy's outputs
python DIR/measure.py                                                    there: needs numpy alone
tvmcnn tune MODEL --target cuda:sm_90 --measured DIR -o my.jsonl         the fastest that agree become records
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.cuda.defaults import configs
from tvmcnn.choose.cuda.parts import in_parts
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import NONE, versions_here
from tvmcnn.codegen.cuda.generate import Kernels
from tvmcnn.codegen.cuda.nvcc import compile_object, link
from tvmcnn.errors import ToolError, caught
from tvmcnn.files import write_file
from tvmcnn.fuse import fuse, multiply_accumulates
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import FLOAT32, Asked, Network, Program
from tvmcnn.onnx_file import Model
from tvmcnn.progress import Progress, silent
from tvmcnn.targets import Gpu, resolve_gpu
from tvmcnn.tuning import measure_on_gpu
from tvmcnn.tuning.options import name, parse_budget, records_path
from tvmcnn.tuning.outcome import replaced, stamp
from tvmcnn.tuning.problem import Problem

MAX_CANDIDATES = 24  # candidates of a kernel, those estimated to be fastest


@dataclass(frozen=True)
class TunedForGpu:
    """The file of records, the GPU, and of each kernel its µs by the computed config and by the best."""

    records: Path
    machine: str
    kernels: Mapping[str, tuple[float, float]]
    wrong: int
    failed: int


@caught
def tune_gpu(
    model: Model,
    target: str,
    budget: str | float = "10m",
    records: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Asked] | None = None,
    *,
    batch: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> TunedForGpu:
    """All three steps on a machine that has the GPU and nvcc. Raises as `emit_candidates` and `collect` do."""
    seconds, path = parse_budget(budget), records_path(records)
    with tempfile.TemporaryDirectory(prefix="tvmcnn-") as folder:
        where = Path(folder) / "candidates"
        emit_candidates(model, target, where, input_shapes, batch=batch, report=report, progress=progress)
        done = subprocess.run([sys.executable, str(where / "measure.py"), "--seconds", str(seconds)], check=False)
        if done.returncode:
            raise ToolError(f"measuring ended with status {done.returncode}")
        return collect(where, path)


@caught
def emit_candidates(
    model: Model,
    target: str,
    folder: Path,
    input_shapes: Mapping[str, Asked] | None = None,
    *,
    batch: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> int:
    """Write the candidates of a model's kernels, and what measures them, to a new `folder`; returns how many.

    Raises ModelError, UnsupportedError, TargetError for a target that is not one kind of GPU, and ToolError where the
    folder is there already, or nvcc is missing or fails.
    """
    machine = resolve_gpu(target)
    if folder.exists():
        raise ToolError(f"{folder} is there already: name a new folder")
    network = import_model(model, input_shapes, batch=batch)
    network = simplified(network, in_bytes=machine.multiplies_bytes, in_words=machine.in_words)
    found = list(_problems(network))
    folder.mkdir(parents=True)
    plan: list[dict[str, Any]] = []
    for index, problem in enumerate(found):
        progress("compiling candidates", index, len(found))
        plan.append(_written(problem, machine, index, folder))
        problem.forget()
        report(f"{problem.words}: {len(plan[-1]['candidates'])} candidates")
    progress("compiling candidates", len(found), len(found))
    shutil.copy(measure_on_gpu.__file__, folder / "measure.py")
    facts = {"model": name(model), "target": machine.name, "versions": versions_here()}
    write_file(folder / "plan.json", json.dumps({**facts, "problems": plan}, indent=1) + "\n")
    return sum(len(each["candidates"]) for each in plan)


def _problems(network: Network) -> Iterator[Problem]:
    """The distinct kernels of float32, as on CPUs, that have more than one config."""
    decided = [each for each in gpu.decided(network, fuse(network), NONE) if each.kernel.dtype == FLOAT32]
    choices = [each for each in decided if len(configs(network, each)) > 1]
    words = [kernel_words(network, choice.kernel) for choice in choices]
    counts = Counter(words)
    for word, choice in zip(words, choices, strict=True):
        if count := counts.pop(word, 0):
            flops = 2 * multiply_accumulates(network, choice.kernel)
            yield Problem(word, network, choice, count, flops, banded=False)


def _written(problem: Problem, machine: Gpu, index: int, folder: Path) -> dict[str, Any]:
    """A kernel's candidates in one library, with its inputs and its output by NumPy; what measure.py has to know."""
    found = configs(problem.network, problem.choice)[:MAX_CANDIDATES]
    weights = Weights()
    programs = [_program(problem, config, f"c{i}", weights) for i, config in enumerate(found)]
    kernels = Kernels.of(programs, machine, silent)
    with tempfile.TemporaryDirectory(prefix="tvmcnn-") as temporary:
        code, _ = compile_object(Path(temporary), "c0", kernels.source(weights.bytes), machine)
        names = [program.network.name for program in programs]
        shutil.copy(link(Path(temporary), names, code, weights.path), folder / f"k{index}.so")
    files = [f"k{index}.x{i}.npy" for i, _ in enumerate(problem.inputs)]
    for file, array in zip(files, problem.inputs, strict=True):
        np.save(folder / file, np.ascontiguousarray(array, np.float32))
    np.save(folder / f"k{index}.y.npy", np.asarray(problem.expected, np.float64))
    return {
        "kernel": problem.words,
        "count": problem.count,
        "flops": problem.flops,
        "library": f"k{index}.so",
        "inputs": files,
        "expected": f"k{index}.y.npy",
        "scale": problem.scale,
        "candidates": [
            {
                "name": program.network.name,
                "rule": problem.choice.rule,
                "config": dataclasses.asdict(config),
                "steps": len(program.steps),
                "tolerance": problem.tolerance(dataclasses.replace(problem.choice, config=config)),
            }
            for program, config in zip(programs, found, strict=True)
        ],
    }


def _program(problem: Problem, config: Any, label: str, weights: Weights) -> Program:
    """The kernel with a config as a network of its own."""
    choice = dataclasses.replace(problem.choice, sources=problem.choice.kernel.inputs, config=config)
    return lay_out(problem.alone(label), gpu.named(in_parts(choice)), weights)


@caught
def collect(folder: Path, records: Path) -> TunedForGpu:
    """The fastest candidate of each kernel that was measured, as records in a file; every other line of it stays.

    Raises ToolError for a folder that has no results.
    """
    try:
        plan = json.loads((folder / "plan.json").read_text())
    except (OSError, ValueError) as error:
        raise ToolError(f"{folder} has no results of measure.py: {error}") from error
    if not (lines := measure_on_gpu.known(folder / measure_on_gpu.RESULTS.name)):
        raise ToolError(f"{folder} has no results of measure.py")
    finals = {entry["kernel"]: entry["times_us"] for entry in lines if entry["outcome"] == "final"}
    errors = {(e["kernel"], e["candidate"]): e["error"] for e in lines if e["outcome"] == "ok"}
    made, kernels = [], {}
    names = [entry["name"] for entry in lines if entry["outcome"] == "machine"]
    target = {"isa": plan["target"], "machine": names[-1] if names else ""}
    facts = stamp(plan["versions"], f"tvmcnn tune {plan['model']} --target {plan['target']}")
    for problem in plan["problems"]:
        if not (times := finals.get(problem["kernel"])):
            continue
        best = min(times, key=lambda candidate: times[candidate])
        candidate = next(each for each in problem["candidates"] if each["name"] == best)
        default = times.get(problem["candidates"][0]["name"])
        kernels[problem["kernel"]] = (default or times[best], times[best])
        entry = {"kernel": problem["kernel"], "rule": candidate["rule"], "config": candidate["config"]}
        entry |= {"time_us": round(times[best], 3), "default_time_us": default and round(default, 3)}
        entry |= {"gflops": round(problem["flops"] / times[best] / 1e3, 1)}
        made.append(entry | {"max_rel_error": errors[problem["kernel"], best], "target": target, **facts})
    write_file(records, replaced(records, made))
    outcomes = Counter(entry["outcome"] for entry in lines)
    return TunedForGpu(records, target["machine"], kernels, outcomes["wrong"], outcomes["failed"])
