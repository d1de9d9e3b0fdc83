"""Verify: a library against the NumPy reference, tensor by tensor, with tolerances from the reduction lengths."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.check.bounds import Follow, bounds_of, largest
from tvmcnn.check.factors import Factors, Rounding, factors_of
from tvmcnn.check.follow import Follower
from tvmcnn.check.observe import Observed, Subject, observe, subjects
from tvmcnn.check.random_inputs import drawn_inputs
from tvmcnn.check.reference import reference
from tvmcnn.check.renamed import under_known_names
from tvmcnn.errors import ModelError, caught
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Array, Network, Tensor, counted
from tvmcnn.onnx_file import Model, allowed_folder
from tvmcnn.run.runner import Runner

HISTOGRAM = np.arange(-4, 1.01, 0.25)  # edges of log10(|difference| / bound): at 0 the bound is
EXCUSED = 0.004  # of a tensor's elements may stand on the other side of a step: rounding puts no more there


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from the reference: |difference| and its bound, both absolute, of the element that is
    farthest beyond its bound, else of the one that differs most; and max |reference|. `excused` elements of `size`
    stand on the other side of a step."""

    name: str
    difference: float
    bound: float
    scale: float
    histogram: tuple[int, ...] = ()  # elements by |difference| / bound: equal ones, then by HISTOGRAM's edges
    excused: int = 0
    size: int = 0
    exact: bool = False  # of a type of which every byte must be equal

    @property
    def passed(self) -> bool:
        """False for a difference past the bound, for NaN, and where more was excused than chance explains."""
        return self.difference <= self.bound and self.excused <= max(1, EXCUSED * self.size)

    def __str__(self) -> str:
        if self.difference <= self.bound and not self.passed:
            return f"{self.name}: {self.excused} of {self.size} elements are on the other side of a step"
        if math.isinf(self.difference) and not self.scale:
            return f"{self.name}: it is of another shape or type"
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
        found = {"passed": self.passed, "seed": self.seed, "tensors": len(self.tensors), "error": worst, "wrong": wrong}
        return found | {"excused": self.excused}

    @property
    def excused(self) -> int:
        """Elements that stand on the other side of a step than the oracle's, each shown once."""
        return sum({error.name: error.excused for error in (*self.tensors, *self.outputs)}.values())

    def __str__(self) -> str:
        if self.first_wrong is not None:
            return f"the first tensor that differs from NumPy is {self.first_wrong}"
        worst = self.as_json()["error"] or 0.0
        agree = f"{len(self.tensors)} tensors and the outputs agree"
        excused = f"; {self.excused} elements stand at a step, on its other side" if self.excused else ""
        exact = len({error.name for error in (*self.tensors, *self.outputs) if error.exact and not error.excused})
        agree += f", {exact} of them integers and equal in every byte" if exact else ""
        return f"verified against NumPy: {agree} (outputs within {worst:.1e} of max{excused})"


@caught
def verify_library(
    library: str | os.PathLike[str],
    model: Model,
    seed: int = 0,
    *,
    target: str | None = None,
    histograms: bool = False,
    networks: Mapping[str, Network] | None = None,
) -> tuple[Verdict, ...]:
    """Compare a library with the ONNX model that it was compiled from, on seeded input with outliers.

    One verdict for each size that the library has; of several classes of CPUs for `target`, or the best.
    `networks` has what import made of the model for some programs, by their symbols: else it is imported again. Raises
    VerifyError for a library that crashes, hangs, or writes outside of its memory; this process lives.
    """
    programs = subjects(Path(library).resolve(), target)
    known = networks or {}
    return tuple(
        verify_program(program, library, model, seed, histograms=histograms, imported=known.get(program.symbol))
        for program in programs
    )


@caught
def verify_program(
    program: Runner | Subject,
    library: str | os.PathLike[str],
    model: Model,
    seed: int,
    *,
    histograms: bool = False,
    imported: Network | None = None,
) -> Verdict:
    """`verify_library` of one program."""
    program = program if isinstance(program, Subject) else Subject.of(program)
    half = program.manifest.get("weights", {"kind": "fp32", "type": "float32", "rounded": {}})
    shapes = {info.name: info.shape for info in program.inputs}
    network = simplified(imported or import_model(model, shapes, weights=half["kind"]))
    ours, theirs = ([tensor.name for tensor in outputs] for outputs in (program.outputs, network.outputs))
    if ours != theirs:
        found, wanted = ", ".join(theirs), ", ".join(ours)
        raise ModelError(f"the model has the outputs {found}; {library} was compiled from one with {wanted}")
    rounded = dict.fromkeys(half["rounded"], half["type"])
    inputs = _taken(network, model, seed)
    observed = observe(program, [inputs[info.name] for info in program.inputs])
    factors = factors_of(program.manifest, network, model)
    return compare(observed, network, model, inputs, factors, seed, rounded, histograms=histograms)


def _taken(network: Network, model: Model, seed: int) -> dict[str, Array]:
    """Drawn inputs that the oracle takes: tamer ones where a computed index would be out of range."""
    inputs = drawn_inputs(network, seed)
    for tame in (1, 2) if any(np.dtype(tensor.dtype).kind in "iu" for tensor in network.inputs) else ():
        try:
            reference(model, inputs, external_data=allowed_folder(model))
        except ModelError:
            inputs = drawn_inputs(network, seed, tame=tame)
        else:
            break
    return inputs


def compare(
    observed: Observed,
    network: Network,
    model: Model,
    inputs: Mapping[str, Array],
    factors: Factors,
    seed: int,
    rounded: Mapping[str, str] | None = None,
    *,
    histograms: bool = False,
) -> Verdict:
    """Every tensor that the library showed, then the outputs of its single native call.

    Where a step may fall on either side and the library's fell on the other than the oracle's, the oracle follows it:
    all that comes after is compared with what the library's own decision leads to. So it does where a factor may be
    rounded to either of two neighbours. The oracle rounds the weights of `rounded` to the types there, as the library
    says that it did.
    """
    folder = allowed_folder(model)
    written = {tensor.name: array for tensor, array in zip(network.outputs, observed.outputs, strict=True)}
    shown = _that_count(network, observed.tensors, written)
    images = factors.images({*shown, *inputs})
    rounding = Rounding(factors, images)
    declared: dict[str, np.dtype[Any]] = {}  # the types of the outputs

    def evaluate(follow: Follow) -> None:
        made: set[str] = set(inputs)

        def told(name: str, value: Array) -> Array:
            made.add(name)
            return follow(name, _in_range(value, network.tensors.get(name)))

        found = reference(
            model, inputs, external_data=folder, follow=told, narrow=rounding.narrow(), half_weights=rounded
        )
        for name in [name for name in found if name not in made]:  # an initializer that is an output
            follow(name, found[name].astype(np.float64) if found[name].dtype.kind == "f" else found[name])
        declared.update({name: array.dtype for name, array in found.items()})

    bounds = bounds_of(network, inputs, evaluate, factors.growths)
    outputs = {name: found for name, found in _that_count(network, written, written).items() if name in declared}
    follower = Follower(network, bounds, {**shown, **outputs}, images, factors.stored)
    if follower.differs():
        rounding.kept.clear()
        evaluate(under_known_names(follower, bounds.names))

    def error(name: str, found: Array) -> TensorError:
        return _error(name, found, follower, histograms=histograms)

    tensors = tuple(error(name, found) for name, found in shown.items() if name in bounds.values)
    typed = {name for name, found in outputs.items() if found.dtype == declared[name]}
    last = (error(name, found) if name in typed else _unlike(name, found) for name, found in outputs.items())
    return Verdict(tensors, tuple(last), seed)


def _that_count(network: Network, found: Mapping[str, Array], written: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors without what stands behind as many elements as the library itself counts."""
    counts = {name: tensor.counts for name, tensor in network.tensors.items()}
    return {name: counted(array, counts.get(name, ()), written) for name, array in found.items()}


def _in_range(value: Array, tensor: Tensor | None) -> Array:
    """The oracle's float64 values with infinities where the library's float32 has them: cosh(90) is 6e38, and what is
    computed from it is then computed from infinity. float16 is float32 inside the library."""
    if value.dtype.kind != "f" or (tensor is not None and tensor.dtype == "float64"):
        return value
    beyond = np.abs(value) > np.finfo(np.float32).max
    return np.where(beyond, np.copysign(np.inf, value), value) if beyond.any() else value


def _unlike(name: str, found: Array) -> TensorError:
    """A tensor of another shape or type than the oracle's: no element of it is right."""
    return TensorError(name, math.inf, 0.0, 0.0, size=found.size)


def _error(name: str, found: Array, follower: Follower, *, histograms: bool) -> TensorError:
    """What is told of a tensor: the element that is farthest beyond its bound, or else the one that differs most."""
    expected = follower.expected(name)
    wanted, ours = expected.astype(np.float64), found.astype(np.float64)
    if expected.shape != found.shape or (expected.dtype.kind == "f") != (found.dtype.kind == "f"):
        return _unlike(name, found)
    with np.errstate(invalid="ignore", over="ignore"):
        stored = wanted.astype(found.dtype).astype(np.float64)  # infinite past the largest number of the type
        same = (ours == wanted) | (ours == stored) | (np.isnan(ours) & np.isnan(wanted))
        differences = np.where(same, 0.0, np.abs(ours - wanted))
        if found.dtype.kind != "f":  # float64 holds no int64 beyond 2^53
            differences = np.where(found == expected, 0.0, np.maximum(np.abs(ours - wanted), 1.0))
        error = follower.bounds.errors.get(name, 0.0)
        bounds = follower.reach(name, found, wanted, error)
    beyond = np.where(np.isnan(differences), np.inf, differences - bounds)
    place = int(np.argmax(beyond if (beyond > 0).any() else differences)) if beyond.size else 0
    worst = np.unravel_index(place, beyond.shape) if beyond.size else None
    difference, bound = (float(differences[worst]), float(bounds[worst])) if worst is not None else (0.0, error)
    histogram = _histogram(differences, bounds) if histograms else ()
    return TensorError(
        name,
        difference,
        bound,
        largest(wanted),
        histogram,
        excused=follower.excused.get(name, 0),
        size=found.size,
        exact=found.dtype.kind in "iu",
    )


def _histogram(differences: Array, bounds: Array) -> tuple[int, ...]:
    """How many are equal, less than the first edge, between two edges, and more than the last (NaN too)."""
    apart = differences != 0  # NaN is
    other = differences[apart]
    with np.errstate(divide="ignore", invalid="ignore"):
        places = np.searchsorted(HISTOGRAM, np.log10(other / bounds[apart]))
    return (differences.size - other.size, *np.bincount(places, minlength=len(HISTOGRAM) + 1).tolist())
