"""TVM's MetaSchedule on the kernels of a network: what bench_tuners.py compares the tuner with.

Each kernel is the tensor expression of its direct form on the layouts that ours have, without a schedule. The space is
MetaSchedule's own; its evolutionary search with a boosted cost model and its gradient task scheduler do the rest, until
the time is up. (Given Winograd's expression, its best of 3x3 on 56 x 56 pixels of 64 channels was no faster in as many
trials, 2190 µs and 1940, and its candidates took minutes to compile.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule

from tvmcnn.configs import DirectConfig
from tvmcnn.layout import pack
from tvmcnn.network import Choice, Step, Tensor
from tvmcnn.ops import declare
from tvmcnn.targets import Target
from tvmcnn.tuning.problem import Problem
from tvmcnn.variants import as_direct, without_data

ENDLESS = 1_000_000  # trials: the time ends the search
ROUND = 16  # trials of a task before the next: every kernel of MobileNetV2 shall have its turn in 15 minutes


def plain_choice(problem: Problem) -> Choice:
    """The kernel in its direct form, its output without a halo, which MetaSchedule's runner cannot allocate."""
    choice = problem.choice
    if choice.rule == "streamed":
        choice = without_data(choice)
    if choice.rule in ("winograd", "streamed"):
        choice = as_direct(choice, DirectConfig())
    reads = tuple(dataclasses.replace(layout, pitch=0) for layout in choice.reads)
    return dataclasses.replace(choice, reads=reads, writes=choice.makes, within=None, turns=None)


def function(problem: Problem, name: str) -> tirx.PrimFunc:
    """The unscheduled PrimFunc of a kernel."""
    choice = plain_choice(problem)
    packed = {n: Tensor(n, a.shape, str(a.dtype)) for n, a in pack(choice, problem.network.constants)}
    return declare(Step(choice, packed, ())).with_attr("global_symbol", name)


def llvm(target: Target) -> tvm.target.Target:
    """One core of the target."""
    return tvm.target.Target({"kind": "llvm", "mcpu": target.name, "num-cores": 1})


def tune(problems: Sequence[Problem], target: Target, folder: Path, seconds: float, seed: int = 0) -> None:
    """Search for so many seconds in a process of its own, which is killed then; `folder` has what it measured."""
    process = multiprocessing.get_context("fork").Process(target=_search, args=(problems, target, folder, seed))
    process.start()
    process.join(seconds)
    if process.is_alive():
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and its builders and runners
        process.join()


def _search(problems: Sequence[Problem], target: Target, folder: Path, seed: int) -> None:
    os.setsid()
    os.environ["TVM_NUM_THREADS"] = "1"
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    contexts, weights = [], []
    for index, problem in enumerate(problems):
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
        num_trials_per_iter=ROUND,
    )


def trials(folder: Path) -> int:
    """How many it has measured."""
    path = folder / "database_tuning_record.json"
    return len(path.read_text().splitlines()) if path.exists() else 0


def best(problems: Sequence[Problem], target: Target, folder: Path) -> Mapping[str, Callable[[], float]]:
    """By kernel in words a function that times its best schedule, in µs a call; none for one that has no schedule.

    Its constants stay in the cache, where those of ours are as cold as in the network.
    """
    database = meta_schedule.database.JSONDatabase(work_dir=str(folder))
    found: dict[str, Callable[[], float]] = {}
    for problem in problems:
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
