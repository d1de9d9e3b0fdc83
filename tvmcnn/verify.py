"""Verify: a library against the NumPy reference, tensor by tensor, with tolerances from the reduction lengths."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn import precision, winograd
from tvmcnn.bounds import SAFETY, UNIT, largest, relative_bounds
from tvmcnn.errors import ModelError
from tvmcnn.importer import import_model
from tvmcnn.network import Array, Network
from tvmcnn.onnx_file import Model
from tvmcnn.reference import reference
from tvmcnn.runner import ArrayInfo, Runner, load, random_array

HISTOGRAM = np.arange(-4, 1.01, 0.25)  # edges of log10(|difference| / bound): at 0 the bound is
PRODUCTS = ("Conv", "Gemm", "MatMul")
WINOGRAD = ("winograd", "streamed", "winograd_out")  # algorithms whose config has its tile


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from the reference: max |difference| and its bound, both absolute, and max |reference|."""

    name: str
    difference: float
    bound: float
    scale: float
    histogram: tuple[int, ...] = ()  # elements by |difference| / bound: equal ones, then by HISTOGRAM's edges

    @property
    def passed(self) -> bool:
        """False for a difference past the bound, and for NaN."""
        return self.difference <= self.bound

    def __str__(self) -> str:
        relative = self.difference / self.scale if self.scale else self.difference
        found = f"max |difference| {self.difference:.3g} ({relative:.2g} of the largest value)"
        return f"{self.name}: {found}, bound {self.bound:.3g}"


@dataclass(frozen=True)
class Verdict:
    """The comparison of one library on seeded input, tensors in the order that they are computed."""

    tensors: tuple[TensorError, ...]
    outputs: tuple[TensorError, ...]
    seed: int

    @property
    def passed(self) -> bool:
        """True if every tensor is within its bound."""
        return self.first_wrong is None

    @property
    def first_wrong(self) -> TensorError | None:
        """The first tensor in computing order that exceeds its bound."""
        return next((error for error in (*self.tensors, *self.outputs) if not error.passed), None)

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Verdict:
        """The verdict that `dataclasses.asdict` made `entry` of."""
        tensors, outputs = (
            tuple(TensorError(**error | {"histogram": tuple(error["histogram"])}) for error in entry[name])
            for name in ("tensors", "outputs")
        )
        return Verdict(tensors, outputs, entry["seed"])

    def as_json(self) -> dict[str, Any]:
        """For the manifest and for --json."""
        errors = [e.difference / e.scale if e.scale else e.difference for e in self.outputs]
        worst = max(errors, default=0.0) if all(map(math.isfinite, errors)) else None  # JSON has no NaN
        wrong = self.first_wrong.name if self.first_wrong is not None else None
        return {"passed": self.passed, "seed": self.seed, "tensors": len(self.tensors), "error": worst, "wrong": wrong}

    def __str__(self) -> str:
        if self.first_wrong is not None:
            return f"the first tensor that differs from NumPy is {self.first_wrong}"
        worst = self.as_json()["error"] or 0.0
        agree = f"{len(self.tensors)} tensors and the outputs agree"
        return f"verified against NumPy: {agree} (outputs within {worst:.1e} of max)"


def verify_library(
    library: str | os.PathLike[str],
    model: Model,
    seed: int = 0,
    *,
    target: str | None = None,
    histograms: bool = False,
) -> tuple[Verdict, ...]:
    """Compare a library with the ONNX model that it was compiled from, on seeded input with outliers.

    One verdict for each batch size that the library has; of several classes of CPUs for `target`, or the best.
    """
    programs = load(Path(library).resolve(), target=target).programs
    return tuple(verify_program(runner, library, model, seed, histograms=histograms) for runner in programs)


def verify_program(
    runner: Runner, library: str | os.PathLike[str], model: Model, seed: int, *, histograms: bool = False
) -> Verdict:
    """`verify_library` of one program that is loaded."""
    network = import_model(model, {info.name: info.shape for info in runner.inputs})
    ours, theirs = ([tensor.name for tensor in outputs] for outputs in (runner.outputs, network.outputs))
    if ours != theirs:
        found, wanted = ", ".join(theirs), ", ".join(ours)
        raise ModelError(f"the model has the outputs {found}; {library} was compiled from one with {wanted}")
    inputs = {info.name: seeded_input(info, seed + i) for i, info in enumerate(runner.inputs)}
    return compare(runner, network, model, inputs, seed, histograms=histograms)


def compare(
    runner: Runner,
    network: Network,
    model: Model,
    inputs: Mapping[str, Array],
    seed: int,
    *,
    histograms: bool = False,
) -> Verdict:
    """Every tensor that the library can show, then the outputs of its single native call."""
    expected = reference(model, inputs, every_tensor=True)
    bounds = relative_bounds(network, {**expected, **inputs}, _growths(runner, network))

    def error(name: str, found: Array) -> TensorError:
        wanted, ours = expected[name].astype(np.float64), found.astype(np.float64)
        same = (ours == wanted) | (np.isnan(ours) & np.isnan(wanted))  # infinities too, whose difference is NaN
        differences = np.where(same, 0.0, np.abs(ours - wanted))
        worst, scale = float(np.max(differences, initial=0.0)), largest(wanted[np.isfinite(wanted)])
        bound = bounds.get(name, SAFETY * UNIT) * scale
        return TensorError(name, worst, bound, scale, _histogram(differences, bound) if histograms else ())

    arrays = [inputs[info.name] for info in runner.inputs]
    shown = runner.activations(*arrays) if runner.manifest["activations"] else {}
    tensors = tuple(error(name, found) for name, found in shown.items() if name in expected)
    found = runner.run(None, dict(inputs))
    outputs = tuple(error(info.name, array) for info, array in zip(runner.outputs, found, strict=True))
    return Verdict(tensors, outputs, seed)


def _histogram(differences: Array, bound: float) -> tuple[int, ...]:
    """How many are equal, less than the first edge, between two edges, and more than the last (NaN too)."""
    other = differences[differences != 0]  # NaN is not
    with np.errstate(divide="ignore", invalid="ignore"):
        places = np.searchsorted(HISTOGRAM, np.log10(other / bound) if bound else np.full(other.shape, np.inf))
    return (differences.size - other.size, *np.bincount(places, minlength=len(HISTOGRAM) + 1).tolist())


def _growths(runner: Runner, network: Network) -> dict[str, float]:
    """By the output of each node that the library convolves by Winograd, or gives to tensor cores, its `growths`."""
    found: dict[str, float] = {}
    for kernel in runner.manifest["kernels"]:
        growth = 1.0
        if kernel["algorithm"] in WINOGRAD:
            growth = winograd.error_growth(kernel["config"]["tile"])
        elif kernel["rule"] == "mma":
            growth = precision.error_growth(kernel["config"]["precision"])
        found |= {name.removesuffix("@parts"): growth for name in kernel["nodes"] if growth > 1}
    return {node.output: found[node.name] for node in network.nodes if node.op in PRODUCTS and node.name in found}


def seeded_input(info: ArrayInfo, seed: int) -> Array:
    """Random floats with one outlier of ±10 in about 64: near-uniform data would hide a misplaced tap."""
    values = random_array(info, seed)
    if values.dtype.kind != "f":
        return values
    outliers = np.random.default_rng(seed + 1000).random(info.shape) < 1 / 64
    return np.where(outliers, 10 * np.sign(values), values).astype(info.dtype)
