"""Target names and what they mean: instruction set, vector width, registers, caches. Needs neither TVM nor LLVM."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

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

    def missing(self) -> tuple[str, ...]:
        """The features that this machine's CPU lacks."""
        flags = cpu_flags()
        return tuple(feature for feature in self.features if feature not in flags)

    def __str__(self) -> str:
        return f"{self.name} ({self.lanes} float32 lanes, {self.registers} registers)"


TARGETS = {
    "x86-64-v3": Target("x86-64-v3", lanes=8, registers=16, features=_V3),
    "x86-64-v4": Target("x86-64-v4", lanes=16, registers=32, features=_V4, l2_bytes=1 << 20),
}
NATIVE = ("native", "host")


def cpu_flags() -> frozenset[str]:
    """The feature flags of this machine's CPU, from /proc/cpuinfo."""
    return frozenset(_cpuinfo("flags").split())


def cpu_name() -> str:
    """The CPU's own name, "AMD EPYC" say."""
    return _cpuinfo("model name") or platform.processor() or "unknown CPU"


def resolve(name: str) -> Target:
    """The target that a user's word means; `native` (or `host`) is the best class that this machine supports.

    Raises TargetError for an unknown name, for a machine that is no x86-64 Linux, and for one older than AVX2.
    """
    check_platform()
    if name in TARGETS:
        return TARGETS[name]
    if name in NATIVE:
        for candidate in sorted(TARGETS.values(), key=lambda target: -target.lanes):
            if not candidate.missing():
                return replace(candidate, machine=cpu_name())
        missing = ", ".join(TARGETS["x86-64-v3"].missing())
        raise TargetError(f"this CPU ({cpu_name()}) lacks {missing}: tvmcnn needs at least x86-64-v3")
    if "," in name:
        raise TargetError(f"target '{name}': one library holds one target for now; choose one of {known()}")
    raise TargetError(f"unknown target '{name}'; allowed are {known()}")


def known() -> str:
    """The allowed names, for a sentence."""
    return ", ".join([*NATIVE, *TARGETS])


def check_platform() -> None:
    """Raises TargetError anywhere but on Linux on x86-64."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine != "x86_64":
        raise TargetError(f"tvmcnn runs on Linux on x86-64; this is {system} on {machine}")


def usable_cpus() -> int:
    """Processors that this process may use: its affinity, cut to the cgroup's CPU quota."""
    affinity = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or its quota is "max"
        return affinity


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
