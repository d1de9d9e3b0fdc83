"""Kernels: a job declared, scheduled and compiled. The one place where TVM runs."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from tvm import tirx

from tvmcnn.codegen.cpu.live_taps import with_live_taps
from tvmcnn.codegen.cpu.llvm import compile_kernels
from tvmcnn.codegen.jobs import Job
from tvmcnn.codegen.over_time import over_time
from tvmcnn.network import FLOAT32, Step
from tvmcnn.ops import declare, declare_open
from tvmcnn.schedule.x86 import schedule
from tvmcnn.targets import Target


def scheduled(step: Step, machine: Target, *, opened: bool = False) -> tirx.PrimFunc:
    """The PrimFunc of a step after its rule; unfused it has the fallback's schedule and stores every tensor."""
    lanes = machine.lanes(FLOAT32)  # in which all rules count: vectors of other types are left to LLVM
    if not opened:
        made = over_time(schedule(declare(step), step.choice, lanes))
        return with_live_taps(made, step) if step.choice.skips_padding else made
    plain = dataclasses.replace(step.choice, rule="fallback", config=None, tasks=1)
    return schedule(declare_open(step), plain, lanes)


def object_code(job: Job) -> bytes:
    """The ELF object file of a job: one function, its symbol."""
    func = scheduled(job.step, job.machine, opened=job.opened)
    with tempfile.TemporaryDirectory(prefix="tvmcnn-") as folder:
        path = Path(folder) / "kernel.o"
        scratch = {job.symbol: 0 if job.opened else job.step.choice.scratch_bytes}
        compile_kernels({job.symbol: func}, job.machine, scratch).write_to_file(str(path))
        return path.read_bytes()
