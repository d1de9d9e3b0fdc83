"""Targets: the words by which users name machines, and what they mean. One file an instruction set."""

from __future__ import annotations

import re
from dataclasses import replace

from tvmcnn.errors import TargetError
from tvmcnn.machine import check_platform, cpu_name
from tvmcnn.targets.kinds import Gpu, Machine, Target, arch_number
from tvmcnn.targets.x86_64_v3 import X86_64_V3, X86_64_V3_VNNI
from tvmcnn.targets.x86_64_v4 import X86_64_V4, X86_64_V4_AMX, X86_64_V4_BF16, X86_64_V4_VNNI

__all__ = [
    "TARGETS",
    "Gpu",
    "Machine",
    "Target",
    "is_gpu",
    "known",
    "resolve",
    "resolve_any",
    "resolve_gpu",
    "resolve_several",
]

# the best last
CLASSES = (X86_64_V3, X86_64_V3_VNNI, X86_64_V4, X86_64_V4_VNNI, X86_64_V4_BF16, X86_64_V4_AMX)
TARGETS = {target.name: target for target in CLASSES}
NATIVE = ("native", "host")
OLDEST = 75  # compute capability: the oldest of CUDA 13


def resolve(name: str) -> Target:
    """The CPUs that a user's word means; `native` (or `host`) is the best class that this machine supports.

    Raises TargetError for an unknown name, for a machine that is no x86-64 Linux, and for one older than AVX2.
    """
    check_platform()
    if is_gpu(name):
        raise TargetError(f"target '{name}' is for GPUs; allowed here are {known()}")
    if name in TARGETS:
        return TARGETS[name]
    if name in NATIVE:
        for candidate in reversed(TARGETS.values()):
            if not candidate.missing():
                return replace(candidate, machine=cpu_name())
        missing = ", ".join(X86_64_V3.missing())
        raise TargetError(f"this CPU ({cpu_name()}) lacks {missing}: tvmcnn needs at least {X86_64_V3.name}")
    raise TargetError(f"unknown target '{name}'; allowed are {known()}")


def is_gpu(name: str) -> bool:
    """Whether a user's word means GPUs, rightly spelt or not."""
    return name.startswith("cuda")


def resolve_any(name: str) -> Machine:
    """The CPUs or GPUs that a user's word means. Raises TargetError as `resolve`, and for no or an unknown arch."""
    if not is_gpu(name):
        return resolve(name)
    check_platform()
    words = name.removeprefix("cuda").removeprefix(":").split(",")
    if name == "cuda" or not all(re.fullmatch(r"sm_\d+a?", word) for word in words):
        raise TargetError(f"target '{name}': GPUs are named as in cuda:sm_80 or cuda:sm_80,sm_90")
    numbers = {arch_number(word): word for word in words}
    if min(numbers) < OLDEST:
        raise TargetError(f"target '{name}': the oldest GPU that tvmcnn compiles for is sm_{OLDEST}")
    archs = tuple(numbers[number] for number in sorted(numbers))
    return Gpu(f"cuda:{','.join(archs)}", archs)


def resolve_gpu(name: str) -> Gpu:
    """The GPUs of one architecture that a user's word means. Raises TargetError for any other."""
    machine = resolve_any(name)
    if not isinstance(machine, Gpu) or len(machine.archs) > 1:
        raise TargetError(f"target '{name}': candidates are measured on one kind of GPU, as in cuda:sm_90")
    return machine


def resolve_several(name: str) -> tuple[Machine, ...]:
    """The classes of CPUs of a list such as x86-64-v3,x86-64-v4, the best first, or what `resolve_any` finds.

    Raises TargetError as that does, and for a list with `native`, GPUs or one class twice.
    """
    words = name.split(",")
    if is_gpu(name) or len(words) == 1:
        return (resolve_any(name),)
    if odd := [word for word in words if word not in TARGETS]:
        classes = ", ".join(TARGETS)
        raise TargetError(f"target '{name}': '{odd[0]}' cannot be one of several; those that can are {classes}")
    if twice := [word for word in words if words.count(word) > 1]:
        raise TargetError(f"target '{name}' names {twice[0]} twice")
    check_platform()
    return tuple(target for name, target in reversed(TARGETS.items()) if name in words)


def known() -> str:
    """The allowed names, for a sentence."""
    return ", ".join([*NATIVE, *TARGETS])
