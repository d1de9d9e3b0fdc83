"""Facts: every figure about a library in one value, from its manifest, from measuring it here, and from its model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmcnn.algorithms import ALGORITHMS, Makes
from tvmcnn.artifact.container import Manifest, read_manifest
from tvmcnn.artifact.manifest import tensors_of
from tvmcnn.check.verify import Verdict
from tvmcnn.errors import ArtifactError
from tvmcnn.machine import cpu_name
from tvmcnn.network import Layout, dims
from tvmcnn.progress import Progress, silent
from tvmcnn.report.quantities import counted, spent
from tvmcnn.run import load
from tvmcnn.run.bench import bench
from tvmcnn.run.runner import Runner
from tvmcnn.targets import TARGETS
from tvmcnn.tuning.machine_peak import Limit, Limits


@dataclass(frozen=True)
class ErrorFact:
    """How far one ONNX tensor is from NumPy's, and how far it may be; both relative to its largest value."""

    tensor: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Within the bound."""
        return self.error <= self.bound


@dataclass(frozen=True)
class KernelFact:
    """One kernel: what it is, what it costs (None where that was not measured), and how exact it is."""

    index: int
    name: str
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    reads: tuple[str, ...]  # stored tensors by name
    writes: str
    shape: str
    layout: str
    algorithm: str
    rule: str
    tier: str
    config: Mapping[str, Any]
    tasks: int
    flop: int
    bytes: int
    microseconds: float | None = None
    threads: int | None = None  # that share its tasks, where it was measured; the limits below are of as many
    # Of the FMA peak, or for integers of what instructions that add several products reach; Winograd does fewer
    # operations than it is credited for
    peak_share: float | None = None
    bandwidth_share: float | None = None  # of copying what no cache holds: above 1 where a cache does
    errors: tuple[ErrorFact, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)  # by form, see codegen/listing.py

    @property
    def makes(self) -> Makes:
        """What its output is to the network."""
        return ALGORITHMS[self.algorithm].makes

    @property
    def gflops(self) -> float | None:
        """GFLOP/s."""
        return self.flop / self.microseconds / 1e3 if self.microseconds else None

    @property
    def worst(self) -> ErrorFact | None:
        """The error that comes closest to its bound, or exceeds it most."""
        return max(self.errors, key=lambda each: each.error / each.bound if each.bound else 0.0, default=None)


@dataclass(frozen=True)
class Facts:
    """All of a library, at the first size that it has."""

    name: str
    target: str
    precision: str
    machine: str
    threads: int | None
    not_measured: str  # why there are no times; empty if there are
    not_compared: str  # why there are no errors
    versions: Mapping[str, str]
    sha256: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernels: tuple[KernelFact, ...]
    held: tuple[tuple[str, int, int, int, int], ...]  # of the arena: tensor, offset, bytes, first and last kernel
    arena_bytes: int
    arena_lower_bound: int
    thread_bytes: int
    weights_bytes: int
    library_bytes: int
    folded: Mapping[str, str]
    notes: tuple[str, ...]
    metadata: Mapping[str, str]
    sizes: tuple[str, ...]  # of the first input, where there are several
    winograd: str = ""  # what it means for the results, where convolutions go by it
    limits: tuple[Limit, ...] = ()  # of the machine, for every number of threads that a kernel has
    peak_gflops: float | None = None  # those of all threads
    copy_gigabytes: float | None = None
    call_microseconds: float | None = None  # net(x), outputs allocated
    bound_microseconds: float | None = None  # net.bind(x, out=y)()

    @property
    def flop(self) -> int:
        """Floating-point operations of all kernels."""
        return sum(kernel.flop for kernel in self.kernels)

    @property
    def measured(self) -> float | None:
        """µs of all kernels, one by one; None if they were not measured."""
        times = [kernel.microseconds for kernel in self.kernels if kernel.microseconds is not None]
        return sum(times) if times else None

    def lines(self) -> list[str]:
        """In words: totals, then a row a kernel."""
        threads = f", {counted(self.threads)}" if self.threads else ""
        lines = [f"{self.name} for {self.target} on {self.machine}{threads}"]
        if self.not_measured:
            lines.append(f"not measured: {self.not_measured}")
        for limit in self.limits:
            reached = f"FMA peak {limit.gflops:.0f} GFLOP/s, copying {limit.gigabytes:.0f} GB/s"
            lines.append(f"{reached} with {counted(limit.threads)}")
        if self.bound_microseconds is not None:
            lines.append(f"a bound call takes {spent(self.bound_microseconds)}")
        lines.append(f"{'kernel':<14} {'nodes':<22} {'algorithm':<10} {'µs':>8} {'peak':>5} {'GB/s':>5} {'error':>7}")
        for kernel in self.kernels:
            cells = [
                "" if value is None else text.format(value)
                for text, value in (("{:.3g}", kernel.microseconds), ("{:.0%}", kernel.peak_share))
            ]
            cells.append(f"{kernel.bytes / kernel.microseconds / 1e3:.3g}" if kernel.microseconds else "")
            cells.append(f"{kernel.worst.error:.1e}" if kernel.worst is not None else "")
            names = f"{kernel.name[:14]:<14} {'+'.join(kernel.ops)[:22]:<22} {kernel.algorithm[:10]:<10}"
            lines.append(f"{names} {cells[0]:>8} {cells[1]:>5} {cells[2]:>5} {cells[3]:>7}".rstrip())
        return lines

    def as_json(self) -> dict[str, Any]:
        """For programs: the same figures that the page has."""
        return dataclasses.asdict(self)


def _arithmetic(manifest: Mapping[str, Any]) -> str:
    """float32, weights in float16"""
    weights = manifest.get("weights", {}).get("type", "float32")
    return f"{manifest['precision']}{'' if weights == 'float32' else f', weights in {weights}'}"


def collect(
    library: str | os.PathLike[str],
    *,
    threads: int | None = None,
    seconds: float = 2.0,
    verdict: Verdict | None = None,
    code: Mapping[str, Mapping[str, str]] | None = None,
    progress: Progress = silent,
) -> Facts:
    """The facts of a library: measured for about `seconds` if this machine can run it.

    `verdict` is verify.py's on its first program, `code` has the texts of each kernel by its name. Raises ArtifactError
    for what is no library.
    """
    whole = read_manifest(library)
    try:
        net: Runner | None = load(library, threads).programs[0]
        reason = ""
    except ArtifactError as error:
        net, reason = None, str(error)
    manifest = whole if net is None else net.manifest
    kernels = tuple(_kernel(index, entry) for index, entry in enumerate(manifest["kernels"]))
    facts = _unmeasured(Path(library), manifest, kernels, reason, verdict)
    if net is not None:
        progress("measuring", 0, 0)
        facts = _measured(facts, net, seconds)
        progress("measuring", 1, 1)
    by_tensor = {} if verdict is None else _errors(verdict)
    changed = []
    for kernel, entry in zip(facts.kernels, manifest["kernels"], strict=True):
        names = (tensor["name"] for tensor in tensors_of(manifest, entry))
        errors = tuple(by_tensor[name] for name in names if name in by_tensor)
        changed.append(dataclasses.replace(kernel, errors=errors, code=dict((code or {}).get(kernel.name, {}))))
    return dataclasses.replace(facts, kernels=tuple(changed))


def _unmeasured(
    library: Path, manifest: Manifest, kernels: tuple[KernelFact, ...], reason: str, verdict: Verdict | None
) -> Facts:
    entries = [entry["inputs"][0]["shape"] for entry in (manifest, *manifest["specialisations"]) if entry["inputs"]]
    return Facts(
        name=manifest["name"],
        target=manifest["target"]["name"],
        precision=_arithmetic(manifest),
        machine=cpu_name(),
        threads=None,
        not_measured=reason,
        not_compared="" if verdict is not None else reason or "the model was not given",
        versions=manifest["versions"],
        sha256={**manifest["made_of"], "image": manifest["sha256"]},
        inputs=tuple(_array(entry) for entry in manifest["inputs"]),
        outputs=tuple(_array(entry) for entry in manifest["outputs"]),
        kernels=kernels,
        held=tuple((n, o, b, f, la) for n, o, b, f, la in manifest["arena"]),
        arena_bytes=manifest["arena_bytes"],
        arena_lower_bound=manifest["arena_lower_bound"],
        thread_bytes=manifest["thread_bytes"],
        weights_bytes=manifest["weights_bytes"],
        library_bytes=library.stat().st_size,
        folded=manifest["folded"],
        notes=tuple(manifest["notes"]),
        metadata=manifest["metadata"],
        winograd=manifest.get("winograd", ""),
        sizes=tuple(map(dims, entries)) if len(entries) > 1 else (),
    )


def _measured(facts: Facts, net: Runner, seconds: float) -> Facts:
    """With times, and the machine's limits of the same run, for as many threads as share each kernel's tasks."""
    threads, target = net.threads, TARGETS.get(net.target)
    shared = {kernel.name: min(threads, kernel.tasks) for kernel in facts.kernels}
    limits: dict[int, Limit] = {}
    if target is None:  # a GPU, whose limits nobody has measured here
        found = bench(net, seconds)
    else:
        measured = Limits(target, [threads, *shared.values()])
        measured.measure()
        found = bench(net, seconds)
        measured.measure()  # the clock drifts
        limits = measured.found()
    times = {profile.name: profile.microseconds for profile in found.kernels}
    kernels = (_timed(kernel, times[kernel.name], limits.get(shared[kernel.name])) for kernel in facts.kernels)
    return dataclasses.replace(
        facts,
        threads=threads,
        kernels=tuple(kernels),
        limits=tuple(limits.values()),
        peak_gflops=limits[threads].gflops if limits else None,
        copy_gigabytes=limits[threads].gigabytes if limits else None,
        call_microseconds=found.call.median,
        bound_microseconds=found.bound.median,
    )


def _timed(kernel: KernelFact, time: float, limit: Limit | None) -> KernelFact:
    if limit is None:
        return dataclasses.replace(kernel, microseconds=time)
    rate = limit.gflops * ALGORITHMS[kernel.algorithm].rate(kernel.config)
    of_peak = kernel.flop / time / 1e3 / rate if kernel.flop else None
    of_copy = kernel.bytes / time / 1e3 / limit.gigabytes
    return dataclasses.replace(
        kernel, microseconds=time, threads=limit.threads, peak_share=of_peak, bandwidth_share=of_copy
    )


def _kernel(index: int, entry: Mapping[str, Any]) -> KernelFact:
    output = entry["output"]
    layout = Layout.of(output)
    return KernelFact(
        index=index,
        name=entry["name"],
        ops=tuple(entry["ops"]),
        nodes=tuple(entry["nodes"]),
        reads=tuple(entry["reads"]),
        writes=output["name"],
        shape=dims(tuple(output["shape"])),
        layout=str(layout),
        algorithm=entry["algorithm"],
        rule=entry["rule"],
        tier=entry["tier"],
        config=entry["config"],
        tasks=entry["tasks"],
        flop=2 * entry["macs"],
        bytes=entry["bytes"],
    )


def _errors(verdict: Verdict) -> dict[str, ErrorFact]:
    found = {}
    for each in (*verdict.tensors, *verdict.outputs):
        scale = each.scale or 1.0
        found[each.name] = ErrorFact(each.name, each.difference / scale, each.bound / scale)
    return found


def _array(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']} {entry['dtype']} {dims(tuple(entry['shape']))}"
