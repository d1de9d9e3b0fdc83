"""TVM's MetaSchedule on the kernels of a network: what bench_tuners.py compares the tuner with.

Each kernel is the tensor expression of its direct form on the layouts that ours have, without a schedule. The space is
MetaSchedule's own; its evolutionary search with a boosted cost model and its gradient task scheduler do the rest, until
the time is up. (Given Winograd's expression, its best of 3x3 on 56 x 56 pixels of 64 channels was no faster in as many
trials, 2190 µs and 1940, and its candidates took minutes to compile.)
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule

from tvmcnn.choose.cpu import choose
from tvmcnn.choose.cpu.winograd_choice import as_direct, without_data
from tvmcnn.choose.records import NONE
from tvmcnn.configs import DirectConfig
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out, pack
from tvmcnn.network import Choice, Program, Step, Tensor
from tvmcnn.ops import declare
from tvmcnn.targets import Target, resolve
from tvmcnn.tuning import space
from tvmcnn.tuning.problem import Problem, problems

ENDLESS = 1_000_000  # trials: the time ends the search
# Trials of a kernel before the next one's, and of all kernels in the first pass, before which nothing is stored: 16 for
# each of MobileNetV2's 31 kernels took more than 15 minutes.
ROUND, PASS = 16, 180


def plain_choice(problem: Problem) -> Choice:
    """The kernel in its direct form, its output without a halo, which MetaSchedule's runner cannot allocate."""
    choice = problem.choice
    if choice.rule == "streamed":
        choice = without_data(choice)
    if choice.rule in ("winograd", "streamed"):
        choice = as_direct(choice, DirectConfig())
    reads = tuple(dataclasses.replace(layout, pitch=0) for layout in choice.reads)
    return dataclasses.replace(choice, reads=reads, writes=choice.makes, within=None)


def function(problem: Problem, name: str) -> tirx.PrimFunc:
    """The unscheduled PrimFunc of a kernel."""
    choice = plain_choice(problem)
    packed = {n: Tensor(n, a.shape, str(a.dtype)) for n, a in pack(choice, problem.network.constants)}
    return declare(Step(choice, packed, ())).with_attr("global_symbol", name)


def llvm(target: Target) -> tvm.target.Target:
    """One core of the target."""
    return tvm.target.Target({"kind": "llvm", "mcpu": target.name, "num-cores": 1})


def tune(model: Path, batch: int, target: str, folder: Path, seconds: float) -> None:
    """Search for so many seconds in a process of its own, which is killed then; `folder` has what it measured.

    Started by name: a fork of a process that has run TVM may wait for ever for a thread that it lost.
    """
    command = [sys.executable, __file__, str(model), str(batch), target, str(folder)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "TVM_NUM_THREADS": "1"}
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and its builders and runners
            process.wait()


def tunable(program: Program, target: Target) -> list[Problem]:
    """The kernels that ours has candidates for, too."""
    found = problems(program)
    return [each for each in found if len(space.ordered(each.network, each.choice, target)) > 1]


def program_of(model: Path, batch: int, target: Target) -> Program:
    """The network with computed configs, whose kernels are tuned."""
    network = simplified(import_model(model, batch=batch))
    return lay_out(network, choose(network, fuse(network), target, NONE), Weights())


def _search(todo: Sequence[Problem], target: Target, folder: Path, seed: int) -> None:
    contexts, weights = [], []
    for index, problem in enumerate(todo):
        context = meta_schedule.TuneContext(
            mod=function(problem, "main"),
            target=llvm(target),
            space_generator="post-order-apply",
            search_strategy="evolutionary",
            task_name=f"k{index}",
            rand_state=seed + index + 1,
            num_threads=os.cpu_count(),
        )
        try:
            context.generate_design_space()
        except Exception as error:  # of LeNet-5's second convolution, with its pool: a check of TVM's fails
            print(f"no space for {problem.words}: {error}", flush=True)
            continue
        contexts.append(context.clone())
        weights.append(float(problem.count))
    meta_schedule.tune.tune_tasks(
        tasks=contexts,
        task_weights=weights,
        work_dir=str(folder),
        max_trials_global=ENDLESS,
        num_trials_per_iter=min(ROUND, PASS // len(contexts)),
    )


def trials(folder: Path) -> int:
    """How many it has measured."""
    path = folder / "database_tuning_record.json"
    return len(path.read_text().splitlines()) if path.exists() else 0


def best(todo: Sequence[Problem], target: Target, folder: Path) -> Mapping[str, Callable[[], float]]:
    """Functions that time each kernel's best schedule, in µs a call; a kernel without a schedule has none.

    Its constants stay in the cache, where those of ours are as cold as in the network.
    """
    database = meta_schedule.database.JSONDatabase(work_dir=str(folder))
    found: dict[str, Callable[[], float]] = {}
    for problem in todo:
        module = tvm.IRModule({"main": function(problem, "main")})
        schedule = database.query_schedule(module, llvm(target), "main")
        if schedule is not None:
            found[problem.words] = _timer(schedule.mod, llvm(target))
    return found


def _timer(module: tvm.IRModule, target: tvm.target.Target) -> Callable[[], float]:
    executable = tvm.compile(module, target=target)
    shapes = [[int(n) for n in buffer.ty.shape] for buffer in module["main"].params]
    draw = np.random.default_rng(0).standard_normal
    arrays: list[Any] = [tvm.runtime.tensor(draw(shape, np.float32)) for shape in shapes]
    evaluate = executable.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=5)
    return lambda: float(evaluate(*arrays).mean) * 1e6


def main() -> int:
    """Search until somebody ends it: MODEL BATCH TARGET FOLDER."""
    model, batch, name, folder = sys.argv[1:]
    target = resolve(name)
    _search(tunable(program_of(Path(model), int(batch), target), target), target, Path(folder), seed=0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
