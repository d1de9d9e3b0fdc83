"""The machine at hand: its system, its CPU's name and features, the processors that this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from tvmcnn.errors import TargetError


def check_platform() -> None:
    """Raises TargetError anywhere but on Linux on x86-64."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine != "x86_64":
        raise TargetError(f"tvmcnn runs on Linux on x86-64; this is {system} on {machine}")


def cpu_flags() -> frozenset[str]:
    """The feature flags of this machine's CPU, from /proc/cpuinfo."""
    return frozenset(_cpuinfo("flags").split())


def cpu_name() -> str:
    """The CPU's own name, "AMD EPYC" say."""
    return _cpuinfo("model name") or platform.processor() or "unknown CPU"


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
