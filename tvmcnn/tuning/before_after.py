"""Before and after: the latency of the whole network with the records that there were and with the new ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcnn.choose.records import own_records
from tvmcnn.compiler import compile as compile_model
from tvmcnn.network import Asked
from tvmcnn.onnx_file import Model
from tvmcnn.run import Net, load
from tvmcnn.run.arrays import random_array
from tvmcnn.run.bench import rounds

if TYPE_CHECKING:
    from tvmcnn.run import Net

ROUNDS = 30
BATCH = 0.01  # seconds of one measurement


@dataclass(frozen=True)
class Latency:
    """µs a call on one thread, bound tensors: medians of interleaved rounds."""

    before: float
    after: float


def latency(
    model: Model,
    target: str,
    input_shapes: Mapping[str, Asked] | None,
    batch: int | None,
    before: Sequence[Path],
    after: Path,
    folder: Path,
    precision: str,
    *,
    known: bool,
) -> Latency:
    """The network compiled with both, side by side. Not `known`, before are computed configs alone.

    Raises VerifyError if the network with the new records does not agree with NumPy.
    """
    own = known and after != own_records()
    shared: dict[str, Any] = {"batch": batch, "own_records": own, "shipped_records": known, "activations": False}
    shared |= {"precision": precision}
    old = compile_model(model, target, folder / "before.so", input_shapes, records=before, verify=False, **shared)
    new = compile_model(model, target, folder / "after.so", input_shapes, records=[after], **shared)
    calls = [_call(load(each.path, threads=1)) for each in (old, new)]
    samples = list(itertools.islice(rounds(calls, BATCH), ROUNDS))
    return Latency(*(float(np.median(values)) for values in zip(*samples, strict=True)))


def _call(net: Net) -> Callable[[], Any]:
    inputs = [random_array(info, seed) for seed, info in enumerate(net.inputs)]
    return net.bind(*inputs)
