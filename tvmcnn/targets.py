"""Target names and what they mean: instruction set, vector width, registers, caches. Needs neither TVM nor LLVM."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from tvmcnn.errors import TargetError

_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Target:
    """A class of CPUs. `features` are /proc/cpuinfo's flag names: all must be there before a library may run."""

    name: str
    lanes: int  # float32 lanes of one vector register
    registers: int  # architectural vector registers
    features: tuple[str, ...]
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    machine: str = ""  # the CPU's own name when the target is this machine, "" for a class of machines

    @property
    def isa(self) -> str:
        """What a record calls it."""
        return self.name

    @property
    def here(self) -> str:
        """The CPU's own name where this machine is of the class, "" elsewhere: only its records are of this machine."""
        return "" if self.missing() else self.machine or cpu_name()

    @property
    def facts(self) -> dict[str, object]:
        """What a manifest says of it."""
        return {"name": self.name, "features": list(self.features)}

    def missing(self) -> tuple[str, ...]:
        """The features that this machine's CPU lacks."""
        flags = cpu_flags()
        return tuple(feature for feature in self.features if feature not in flags)

    def __str__(self) -> str:
        return f"{self.name} ({self.lanes} float32 lanes, {self.registers} registers)"


@dataclass(frozen=True)
class Gpu:
    """NVIDIA GPUs of some architectures; a library has code for each, and PTX of the newest for those to come."""

    name: str  # cuda:sm_80,sm_90
    archs: tuple[str, ...]  # sm_80, …: ascending

    machine = here = ""  # a GPU is never this machine: libraries for it are made anywhere

    @property
    def isa(self) -> str:
        """What a record calls it: the newest, which the kernels are chosen for."""
        return f"cuda:{self.archs[-1]}"

    @property
    def facts(self) -> dict[str, object]:
        """What a manifest says of it."""
        return {"name": self.name, "features": [], "archs": list(self.archs)}

    def __str__(self) -> str:
        return f"{self.name} (NVIDIA GPUs: code for {', '.join(self.archs)}, PTX of {self.archs[-1]})"


Machine: TypeAlias = Target | Gpu

TARGETS = {
    "x86-64-v3": Target("x86-64-v3", lanes=8, registers=16, features=_V3),
    "x86-64-v4": Target("x86-64-v4", lanes=16, registers=32, features=_V4, l2_bytes=1 << 20),
}
NATIVE = ("native", "host")
OLDEST = 75  # compute capability: the oldest of CUDA 13


def cpu_flags() -> frozenset[str]:
    """The feature flags of this machine's CPU, from /proc/cpuinfo."""
    return frozenset(_cpuinfo("flags").split())


def cpu_name() -> str:
    """The CPU's own name, "AMD EPYC" say."""
    return _cpuinfo("model name") or platform.processor() or "unknown CPU"


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
        for candidate in sorted(TARGETS.values(), key=lambda target: -target.lanes):
            if not candidate.missing():
                return replace(candidate, machine=cpu_name())
        missing = ", ".join(TARGETS["x86-64-v3"].missing())
        raise TargetError(f"this CPU ({cpu_name()}) lacks {missing}: tvmcnn needs at least x86-64-v3")
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


def arch_number(arch: str) -> int:
    """sm_80 is 80, sm_100a 100."""
    return int(re.sub(r"\D", "", arch))


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
    return tuple(sorted((TARGETS[word] for word in words), key=lambda target: -target.lanes))


def known() -> str:
    """The allowed names, for a sentence."""
    return ", ".join([*NATIVE, *TARGETS])


def check_platform() -> None:
    """Raises TargetError anywhere but on Linux on x86-64."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine != "x86_64":
        raise TargetError(f"tvmcnn runs on Linux on x86-64; this is {system} on {machine}")


def usable_cpus(root: Path = Path("/")) -> int:
    """Processors that this process may use: its affinity, cut to the least CPU quota of its cgroups.

    A service or container has a quota of its own, its slice or pod another: 250 % are two processors, 50 % are one.
    `root` is the folder that has proc and sys.
    """
    allowed = [len(os.sched_getaffinity(0))]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        if controllers:  # version 1
            if "cpu" not in controllers.split(","):
                continue
            named = mounted / controllers
            mounted = named if named.is_dir() else mounted / "cpu"  # a link, whatever the controllers' order there
        inner = mounted / path.lstrip("/")
        groups = [group for group in (inner, *inner.parents) if group.is_relative_to(mounted)]
        allowed += [count for group in groups if (count := _quota(group)) is not None]
    return max(1, min(allowed))


def _quota(group: Path) -> int | None:
    """The whole processors that a cgroup may use, of version 2 or 1; None if it may use all."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) // int(period) if int(quota) >= 0 else None
    except (OSError, ValueError):  # no such controller, or "max"
        return None


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
