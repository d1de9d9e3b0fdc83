"""Listing: the code of each kernel as text, in the forms that it goes through."""

from __future__ import annotations

import re

from tvmcnn.codegen.cpu.kernels import scheduled
from tvmcnn.codegen.cpu.llvm import compile_kernels
from tvmcnn.codegen.jobs import Job, without_names
from tvmcnn.network import Program
from tvmcnn.ops import declare
from tvmcnn.progress import Progress, silent
from tvmcnn.targets import Target

# For the assembler and the debugger: directives but those of constants, labels that no instruction names, comments
_NOISE = re.compile(r"\s*\.(?!long|quad|zero|byte|LCPI|LBB)\S*.*|\s*#.*")


EXPRESSION, SCHEDULE, LLVM, ASSEMBLY = "tensor expression", "schedule", "LLVM IR", "assembly"


def texts(
    program: Program, machine: Target, progress: Progress = silent, kernel: str | None = None
) -> dict[str, dict[str, str]]:
    """Forms of each kernel, or of the one named: tensor expression and schedule, both as TVMScript, LLVM IR, and the
    assembly without what is for the assembler alone.

    Kernels that differ in nothing but names are one function, and have the same texts.
    """
    steps = [step for step in program.steps if not step.choice.is_view and kernel in (None, step.choice.name)]
    made: dict[str, dict[str, str]] = {}
    found = {}
    for done, step in enumerate(steps):
        progress("showing code", done, len(steps))
        job = Job(without_names(step), False, machine)
        if job.symbol not in made:
            function = scheduled(step, machine)
            module = compile_kernels({job.symbol: function}, machine, {job.symbol: step.choice.scratch_bytes})
            made[job.symbol] = {
                EXPRESSION: declare(step).script(),
                SCHEDULE: function.script(),
                LLVM: module.inspect_source("ll"),
                ASSEMBLY: _instructions(module.inspect_source("asm")),
            }
        found[step.choice.name] = made[job.symbol]
    progress("showing code", len(steps), len(steps))
    return found


def _instructions(text: str) -> str:
    code = text.split(".Lfunc_end", 1)[0]
    return "\n".join(line for line in code.splitlines() if line.strip() and not _NOISE.fullmatch(line)) + "\n"
