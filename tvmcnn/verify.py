"""Verify: a library against the NumPy reference, tensor by tensor, with tolerances from the reduction lengths."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer import import_model
from tvmcnn.network import Array, Network
from tvmcnn.onnx_file import Model
from tvmcnn.reference import reference
from tvmcnn.runner import ArrayInfo, Runner, load, random_array

UNIT = 2.0**-24  # unit roundoff of float32
SAFETY = 8.0  # standard deviations that the bound allows
SQUASHING = ("Softmax", "Sigmoid", "Tanh")
ARITHMETIC = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from the reference: max |difference| and its bound, both absolute, and max |reference|."""

    name: str
    difference: float
    bound: float
    scale: float

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


def verify_library(library: str | os.PathLike[str], model: Model, seed: int = 0) -> tuple[Verdict, ...]:
    """Compare a library with the ONNX model that it was compiled from, on seeded input with outliers.

    One verdict for each batch size that the library has.
    """
    programs = load(Path(library).resolve()).programs
    return tuple(_verify_program(runner, library, model, seed) for runner in programs)


def _verify_program(runner: Runner, library: str | os.PathLike[str], model: Model, seed: int) -> Verdict:
    network = import_model(model, {info.name: info.shape for info in runner.inputs})
    ours, theirs = ([tensor.name for tensor in outputs] for outputs in (runner.outputs, network.outputs))
    if ours != theirs:
        found, wanted = ", ".join(theirs), ", ".join(ours)
        raise ModelError(f"the model has the outputs {found}; {library} was compiled from one with {wanted}")
    inputs = {info.name: seeded_input(info, seed + i) for i, info in enumerate(runner.inputs)}
    return compare(runner, network, model, inputs, seed)


def compare(runner: Runner, network: Network, model: Model, inputs: Mapping[str, Array], seed: int) -> Verdict:
    """Every tensor that the library can show, then the outputs of its single native call."""
    expected = reference(model, inputs, every_tensor=True)
    bounds = relative_bounds(network, {**expected, **inputs})

    def error(name: str, found: Array) -> TensorError:
        wanted, ours = expected[name].astype(np.float64), found.astype(np.float64)
        same = (ours == wanted) | (np.isnan(ours) & np.isnan(wanted))  # infinities too, whose difference is NaN
        worst = float(np.max(np.abs(ours - wanted), initial=0.0, where=~same))
        scale = _largest(wanted[np.isfinite(wanted)])
        return TensorError(name, worst, bounds.get(name, SAFETY * UNIT) * scale, scale)

    arrays = [inputs[info.name] for info in runner.inputs]
    shown = runner.activations(*arrays) if runner.manifest["activations"] else {}
    tensors = tuple(error(name, found) for name, found in shown.items() if name in expected)
    found = runner.run(None, dict(inputs))
    outputs = tuple(error(info.name, array) for info, array in zip(runner.outputs, found, strict=True))
    return Verdict(tensors, outputs, seed)


def seeded_input(info: ArrayInfo, seed: int) -> Array:
    """Random floats with one outlier of ±10 in about 64: near-uniform data would hide a misplaced tap."""
    values = random_array(info, seed)
    if values.dtype.kind != "f":
        return values
    outliers = np.random.default_rng(seed + 1000).random(info.shape) < 1 / 64
    return np.where(outliers, 10 * np.sign(values), values).astype(info.dtype)


def relative_bounds(network: Network, values: Mapping[str, Array]) -> dict[str, float]:
    """The allowed error of each tensor, relative to its largest value; `values` are the reference's tensors by name.

    Rounding errors of a sum of K products behave like a random walk: with high probability the error stays within
    λ·√K·u of the size of the terms (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019).
    Along a path the variances add, each operand's times the square of what its relative error is worth in the output.
    """
    squares: dict[str, float] = {tensor.name: 0.0 for tensor in network.inputs}
    for node in network.nodes:
        own = (SAFETY * UNIT) ** 2 * _terms(network, node.op, node.inputs, node.attributes)
        operands = [values[name] if name in values else network.constants.get(name) for name in node.inputs]
        passed_on = [
            squares[name] * _gain(node.op, position, operands, values.get(node.output)) ** 2
            for position, name in enumerate(node.inputs)
            if name in squares
        ]
        squares[node.output] = own + (sum(passed_on) if node.op in ARITHMETIC else max(passed_on, default=0.0))
    return {name: math.sqrt(square) for name, square in squares.items()}


def _gain(op: str, position: int, operands: Sequence[Array | None], output: Array | None) -> float:
    """How much a relative error of one operand may be worth in the output, both relative to the largest value.

    Layers keep it (1). A sum that cancels, a product of values that are large at different places and a division by
    small ones enlarge it, and so does what squashes large values into [-1, 1].
    """
    if output is None or any(operand is None for operand in operands):
        return 1.0
    sizes = [_largest(operand) for operand in operands if operand is not None]
    result = _largest(output) or 1.0
    if op in SQUASHING:
        return max(1.0, 2 * sizes[0] / result)
    if op in ("Add", "Sub"):
        return sizes[position] / result
    if op == "Mul":
        return math.prod(sizes) / result
    if op == "Div":
        a, b = (np.asarray(operand, np.float64) for operand in operands)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slopes = np.abs(1 / b) if position == 0 else np.abs(a / b**2)
        return _largest(slopes) * sizes[position] / result
    return 1.0


def _largest(values: Array) -> float:
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def _terms(network: Network, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> int:
    """Roundings that one element of a node's output suffers."""
    if op == "Conv":
        return 1 + int(math.prod(network.constants[inputs[1]].shape[1:]))
    if op == "Gemm":
        return 1 + int(network.constants[inputs[1]].shape[0])
    if op == "AveragePool":
        return 1 + int(math.prod(attributes["kernel_shape"]))
    if op == "GlobalAveragePool":
        return 1 + math.prod(network.tensors[inputs[0]].shape[2:])
    if op == "Softmax":
        return 8 + int(network.tensors[inputs[0]].shape[attributes["axis"]])  # 8: e^x of libm and the division
    return 4
