"""One network of the zoo: compiled, compared with onnxruntime, timed beside it and OpenVINO.

Runs in a process of its own, which may die: see zoo.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from bench_models import closed
from bench_peers import measure
from check_networks import CACHE, one_sentence
from peers import DEFAULT, Peer, Task, difference, loaded

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.files import write_file
from tvmcnn.importer.shapes import bind_values
from tvmcnn.machine import cpu_name
from tvmcnn.network import Array, Shape
from tvmcnn.run.arrays import random_array
from tvmcnn.run.runner import Runner
from tvmcnn.targets import resolve

TOLERANCE = 1e-4  # of the largest output: both sides round, in different orders
EXACT_TOLERANCE = 1e-5  # the same to float64, where onnxruntime is further off than TOLERANCE allows
ROUNDS = 31  # at most, of each comparison
THREADS = (1, 2)


@dataclass(frozen=True)
class Row:
    """What was found of one network."""

    network: str
    cpu: str = ""
    reason: str = ""  # why it failed, in one sentence
    nodes: int = 0
    kernels: int = 0
    inputs: str = ""
    cold_seconds: float = 0.0
    cached_seconds: float = 0.0
    library_bytes: int = 0
    difference: float = 0.0  # to onnxruntime, of the largest output
    exact_difference: float | None = None  # to float64, where that was asked
    microseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # by threads, by runtime: "" is tvmcnn
    peak: dict[str, float] = field(default_factory=dict)  # GFLOP/s in the same rounds, by threads
    missing: dict[str, str] = field(default_factory=dict)  # peers that fail, each with its reason

    def ratio(self, threads: int) -> float | None:
        """The time of the better peer to ours."""
        times = dict(self.microseconds.get(str(threads), {}))
        ours = times.pop("", None)
        return min(times.values()) / ours if ours and times else None


def measured(
    name: str,
    path: str,
    seconds: float,
    threads: tuple[int, ...] = THREADS,
    shapes: Mapping[str, Shape] | None = None,
    values: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The row of a network's file as a dictionary; a failure is a row with its reason.

    `shapes` and `values` are those of inputs that the file leaves open.
    """
    row = Row(name, cpu_name())
    try:
        row = dataclasses.replace(row, nodes=len(onnx.load(path, load_external_data=False).graph.node))
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            given = _Given(
                Path(path), shapes or {}, {name: np.asarray(value) for name, value in (values or {}).items()}
            )
            row = _found(row, given, Path(folder), seconds, threads)
    except Exception as error:  # whatever it is, it is this network's row
        row = dataclasses.replace(row, reason=one_sentence(error))
    return dataclasses.asdict(row)


@dataclass(frozen=True)
class _Given:
    """A network's file, and what is bound of its inputs."""

    path: Path
    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]

    def bound(self, folder: Path) -> Path:
        """The file with its values as constants, as peers take it."""
        if not self.values:
            return self.path
        proto = onnx.load(self.path)
        bind_values(proto, str(self.path), self.values, ())
        write_file(folder / "bound.onnx", proto.SerializeToString())
        return folder / "bound.onnx"


def _found(row: Row, given: _Given, folder: Path, seconds: float, threads: tuple[int, ...]) -> Row:
    library, spent = folder / "network.so", []
    with tempfile.TemporaryDirectory(dir=folder) as cache, mock.patch.dict(os.environ, {CACHE: cache}):
        for _ in range(2):
            start = time.perf_counter()
            tvmcnn.compile(
                given.path, output=library, input_shapes=given.shapes, input_values=given.values or None, verify=False
            )
            spent.append(time.perf_counter() - start)
    net = tvmcnn.load(library)
    assert isinstance(net, Runner), "one batch, one program"
    row = dataclasses.replace(
        row,
        kernels=len(net.manifest["kernels"]),
        inputs=", ".join("x".join(map(str, info.shape)) for info in net.inputs),
        cold_seconds=round(spent[0], 2),
        cached_seconds=round(spent[1], 2),
        library_bytes=library.stat().st_size,
    )
    feeds = {info.name: random_array(info, seed) for seed, info in enumerate(net.inputs)}
    shapes = {info.name: info.shape for info in (*net.inputs, *net.outputs)}
    model = closed(given.bound(folder), shapes, folder)
    for count in threads:
        row = _timed(row, model, library, feeds, count, seconds)
    return row


def _timed(row: Row, model: Path, library: Path, feeds: Mapping[str, Array], threads: int, seconds: float) -> Row:
    """The row with the times on so many threads, after the outputs were compared."""
    net = tvmcnn.load(library, threads=threads)
    assert isinstance(net, Runner), "one batch, one program"
    task = Task(model, feeds, net.outputs, threads, resolve("native"))
    peers, missing = loaded(DEFAULT, task)
    if "onnxruntime" in peers:
        row = _compared(row, net, peers["onnxruntime"], model, feeds)
    arrays = list(feeds.values())
    outputs = tuple(np.empty(info.shape, info.dtype) for info in net.outputs)
    calls: dict[tuple[str, str], Callable[[], object]] = {("", "bound"): net.bind(*arrays, out=outputs)}
    calls |= {(name, "bound"): peer.bound for name, peer in peers.items()}
    options = argparse.Namespace(threads=threads, rounds=ROUNDS, seconds=seconds)
    samples, peak, _ = measure(calls, resolve("native"), options, lambda done: None)
    times = {name: float(np.median(found)) for (name, _), found in samples.items()}
    return dataclasses.replace(
        row,
        microseconds={**row.microseconds, str(threads): times},
        peak={**row.peak, str(threads): round(peak, 1)},
        missing={**row.missing, **missing},
    )


def _compared(row: Row, net: Runner, peer: Peer, model: Path, feeds: Mapping[str, Array]) -> Row:
    """The row with the differences; its reason says where they are too large."""
    ours, theirs = net.run(None, dict(feeds)), peer.plain()
    found = max(row.difference, difference(ours, theirs))
    row = dataclasses.replace(row, difference=found)
    if found <= TOLERANCE or row.exact_difference is not None:
        return row
    exact = reference(onnx.load(str(model)), dict(feeds))
    wanted = [exact[info.name] for info in net.outputs]
    ours_off, theirs_off = difference(ours, wanted), difference(theirs, wanted)
    row = dataclasses.replace(row, exact_difference=ours_off)
    if ours_off <= EXACT_TOLERANCE or (theirs_off > TOLERANCE and ours_off < theirs_off):
        return row
    return dataclasses.replace(
        row, reason=f"it differs from onnxruntime by {found:.1e} and from float64 by {ours_off:.1e} of the largest"
    )
