"""Run: a compiled library becomes a callable. Needs numpy and apache-tvm-ffi; imports neither tvm nor onnx."""

from __future__ import annotations

import copyreg
import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tvmcnn.artifact.container import CHECKS, Manifest, read_manifest
from tvmcnn.errors import ArtifactError, InputError, caught
from tvmcnn.machine import check_platform, cpu_flags, cpu_name, usable_cpus
from tvmcnn.network import Shape
from tvmcnn.run.batched import BatchedRunner
from tvmcnn.run.dlopen import Mapped
from tvmcnn.run.gpu_runner import GpuRunner
from tvmcnn.run.runner import Runner
from tvmcnn.run.sized import SizedRunner

Net: TypeAlias = Runner | BatchedRunner | SizedRunner

MAX_THREADS = 64  # of the native pool


@caught
def load(
    path: str | os.PathLike[str], threads: int | None = None, *, target: str | None = None, check: str = "all"
) -> Net:
    """The runner of a compiled library; a BatchedRunner of several batch sizes, a SizedRunner of several others.

    Checked before any of its code runs: the file is ours, whole, of a format that this version reads, and made for
    instructions that this CPU has. Of several classes of CPUs in it the best that this one is of is taken, or the
    `target` named. Raises ArtifactError where there is none, TargetError anywhere but on Linux on x86-64, InputError
    for a `threads` that is not positive. By default it has as many as this process may use CPUs: by its affinity, cut
    to its cgroup's quota. `check` "code" leaves the weights unread, which may then be damaged; see `read_manifest`.
    """
    label, place = os.fspath(path), Path(os.path.abspath(path))
    before = _identity(place)
    if check not in CHECKS:
        raise InputError(f"check={check!r}; allowed are {', '.join(map(repr, CHECKS))}")
    whole = read_manifest(path, check)
    check_platform()
    if threads is None:
        threads = usable_cpus()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads={threads!r}; allowed are 1 to {MAX_THREADS}")
    try:
        manifest = _variant(label, place, whole, target)
        kind: type[Runner] = Runner
        if "archs" in manifest["target"]:
            kind = GpuRunner
        entries = ({}, *manifest["specialisations"])
        runner = _of_sizes([kind(place, manifest | entry, threads) for entry in entries], manifest)
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{label} cannot be loaded: {str(error).splitlines()[0]}") from error
    if _identity(place) != before:
        raise ArtifactError(f"{label} was replaced while it was being loaded: load it again")
    return runner


def _of_sizes(programs: Sequence[Runner], manifest: Manifest) -> Net:
    """What runs whichever program fits; those of one image are batches of it."""
    images: dict[tuple[Shape, ...], list[Runner]] = {}
    for program in programs:
        images.setdefault(tuple(info.shape[1:] for info in program.inputs), []).append(program)
    nets = [same[0] if len(same) == 1 else BatchedRunner(same, manifest) for same in images.values()]
    return nets[0] if len(nets) == 1 else SizedRunner(nets, manifest)


def _variant(label: str, path: Path, whole: Manifest, target: str | None) -> Manifest:
    """The manifest of the best class of CPUs that this one is of, or of `target`. Raises ArtifactError.

    /proc/cpuinfo decides, and then the library's own code, which asks the CPU: under an emulator the former is the
    host's.
    """
    variants: list[Manifest] = [whole, *(variant | {"sha256": whole["sha256"]} for variant in whole["variants"])]
    names = [variant["target"]["name"] for variant in variants]
    if target is not None and target not in names:
        raise ArtifactError(f"{label} is made for {', '.join(names)}; it has no code for {target}")
    missing: list[str] = []
    flags = cpu_flags()
    for variant, name in zip(variants, names, strict=True):
        if target in (None, name):
            features = variant["target"]["features"]
            missing = [feature for feature in features if feature not in flags]
            missing = missing or _denied(path, variant)
            if not missing:
                return variant
    raise ArtifactError(
        f"{label} is made for {target or names[-1]}; this CPU ({cpu_name()}) lacks {', '.join(missing)}"
    )


def _denied(path: Path, manifest: Manifest) -> list[str]:
    """The features that the CPU itself says it lacks."""
    features = manifest["target"]["features"]
    if not features:  # a GPU's
        return []
    library = Mapped(path, manifest["sha256"])
    asked = library.symbols[f"{manifest['symbol']}_missing"]
    asked.restype = ctypes.c_uint32
    bits = asked()
    return [feature for bit, feature in enumerate(features) if bits >> bit & 1]


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or rewritten; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _pickled(net: Any) -> tuple[Callable[..., Net], tuple[Any, ...]]:
    """A runner as its path and hash: who unpickles it loads the same library, or is told that it is another."""
    return again, (str(net.path), net.manifest["sha256"], net.threads, net.target)


def again(path: str, sha256: str, threads: int, target: str) -> Net:
    """The runner of a library that was pickled. Raises ArtifactError as `load`, and for another library there."""
    net = load(path, threads, target=target)
    if net.manifest["sha256"] != sha256:
        found, wanted = net.manifest["sha256"][:12], sha256[:12]
        raise ArtifactError(
            f"{path} is another library than the one that was pickled: its hash is {found}…, not {wanted}…"
        )
    return net


for _kind in (Runner, GpuRunner, BatchedRunner, SizedRunner):
    copyreg.pickle(_kind, _pickled)
