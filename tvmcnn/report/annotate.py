"""Annotate: the facts of each kernel written into the ONNX file, on the nodes that run in it, for Netron to show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tvmcnn.algorithms import Makes
from tvmcnn.errors import ToolError
from tvmcnn.files import written_whole
from tvmcnn.onnx_file import whole_model
from tvmcnn.report.facts import Facts, KernelFact
from tvmcnn.report.quantities import counted, number, spent

LARGEST = 2 << 30  # bytes of a protobuf


def annotate(model: str | os.PathLike[str], facts: Facts, output: Path) -> int:
    """Write `model` to `output` with metadata on its nodes and graph; returns how many nodes have some.

    Nodes that no kernel runs have the reason. Keys begin with "tvmcnn."; those of an earlier time are replaced.

    Raises ModelError for a model that cannot be read, ToolError for one of 2 GB, or where `output` cannot be written.
    """
    proto = whole_model(model)
    if proto.ByteSize() >= LARGEST:
        raise ToolError(f"{os.fspath(model)} has 2 GB or more, which one ONNX file cannot have")
    kernels = {name: kernel for kernel in facts.kernels for name in kernel.nodes if kernel.makes is not Makes.COPY}
    count = 0
    for node in proto.graph.node:
        kernel = kernels.get(node.name) or next((kernels[name] for name in node.output if name in kernels), None)
        reason = next((facts.folded[name] for name in node.output if name in facts.folded), None)
        entries = _of(kernel, facts) if kernel is not None else {"kernel": f"none: {reason}"} if reason else {}
        count += bool(entries)
        _write(node.metadata_props, entries)
    _write(proto.metadata_props, _whole(facts))
    with written_whole(output) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return count


def _of(kernel: KernelFact, facts: Facts) -> Mapping[str, str]:
    entries = {
        "kernel": f"{kernel.name}: {'+'.join(kernel.ops)}",
        "algorithm": f"{kernel.algorithm}, {kernel.layout}, rule {kernel.rule} ({kernel.tier})",
    }
    with_threads = f" with {counted(kernel.threads)}" if kernel.threads else ""
    if kernel.microseconds is not None:
        share = kernel.microseconds / facts.measured if facts.measured else 0.0
        entries["time"] = f"{number(kernel.microseconds)} µs, {share:.1%} of the network"
    if kernel.peak_share is not None:
        entries["peak"] = f"{kernel.peak_share:.0%} of the FMA peak{with_threads}"
    if kernel.bandwidth_share is not None:
        entries["bandwidth"] = f"{kernel.bandwidth_share:.0%} of copying{with_threads}"
    if kernel.worst is not None:
        entries["error"] = f"{kernel.worst.error:.2g} of the largest value of {kernel.worst.tensor}, allowed are"
        entries["error"] += f" {kernel.worst.bound:.2g}"
    return entries


def _whole(facts: Facts) -> Mapping[str, str]:
    entries = {"library": f"{facts.name} for {facts.target}, {facts.precision}, {len(facts.kernels)} kernels"}
    if facts.bound_microseconds is not None:
        entries["time"] = f"{spent(facts.bound_microseconds)} on {facts.machine}, {counted(facts.threads or 1)}"
    return entries


def _write(properties: object, entries: Mapping[str, str]) -> None:
    kept = [entry for entry in properties if not entry.key.startswith("tvmcnn.")]  # type: ignore[attr-defined]
    del properties[:]  # type: ignore[attr-defined]
    properties.extend(kept)  # type: ignore[attr-defined]
    for key, value in entries.items():
        properties.add(key=f"tvmcnn.{key}", value=value)  # type: ignore[attr-defined]
