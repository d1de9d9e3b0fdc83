"""Bounds: how far a right library may be from the oracle, for each tensor.

The oracle is evaluated three times: as it is, and twice with every tensor disturbed as float32 would disturb it. How
far the disturbed results lie from the others is what rounding errors are worth there: through sums that cancel,
divisions by little, a Clip that cuts, whatever the network does (Parker, Monte Carlo Arithmetic, UCLA, 1997).

Rounding errors of a sum of K products behave like a random walk: with high probability the error stays within λ·√K·u
of the size of the terms (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019). So each
tensor is disturbed by normal numbers of √K·u times its size; what moves elements, or chooses among them, disturbs
nothing, and is compared to the bit.

Operators that jump, such as Floor, Greater or a Cast to an integer, answer as in the undisturbed run: jumps.py decides
element by element which answers may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmcnn.check.jumps import PLACES, also_rounds, is_step, same_side
from tvmcnn.check.renamed import renamed, under_known_names
from tvmcnn.fuse import RECURRENT
from tvmcnn.network import Array, Network, Node, Shape

UNITS = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}  # unit roundoff
SAFETY = 8.0  # standard deviations that a bound allows
RUNS = 2  # disturbed ones
# Operators that compute nothing: their elements are elements of their operands, or exact functions of them.
EXACT = frozenset(
    """
    Reshape Transpose Slice Concat Pad Expand Tile DepthToSpace SpaceToDepth Gather GatherElements GatherND Where Trilu
    ReverseSequence OneHot Frames Shape ConstantOfShape MaxPool GlobalMaxPool ReduceMax ReduceMin Max Min Relu Clip Abs
    Neg Floor Ceil Round Sign Cast ScatterBox ScatterPlaces MaxUnpool EyeLike Compress
    UnfoldFrames
    """.split()  # noqa: SIM905
)
# Operators that round each element in proportion to it: a zero stays zero, and what is positive remains so.
PROPORTIONAL = frozenset("Add Sub Mul Div Pow Sqrt Reciprocal Exp Sum Mean LeakyRelu PRelu Sigmoid".split())  # noqa: SIM905

OTHER_ROUNDINGS = 8  # of an element besides those of its sum: a bias, e^x of libm, a division
CHOICES = ("none", "max", "min")  # reductions of a scatter that compute nothing either
SUMS, MEANS, PRODUCTS = ("ReduceSum", "CumSum"), ("ReduceMean", "GlobalAveragePool"), ("Conv", "Gemm", "MatMul")

Follow = Callable[[str, Array], Array]
"""Shown each tensor that the oracle makes, floats in float64, it answers with the one that later nodes read."""


@dataclass(frozen=True)
class Bounds:
    """The oracle's tensors by name, floats in float64, and the error that each may have, absolute."""

    values: Mapping[str, Array]
    errors: Mapping[str, float]
    names: Mapping[str, str] = field(default_factory=dict)  # the network's, of tensors that the oracle calls otherwise


def bounds_of(
    network: Network,
    inputs: Mapping[str, Array],
    evaluate: Callable[[Follow], object],
    growths: Mapping[str, float] | None = None,
) -> Bounds:
    """The bounds of `network` on `inputs`; `evaluate` runs the oracle on these.

    `growths` has how much larger a rounding error is in the output of some nodes: those that Winograd convolves
    (`winograd.error_growth`) or tensor cores multiply (`precision.error_growth`).
    """
    values = {name: _wide(array) for name, array in inputs.items()}

    def keep(name: str, value: Array) -> Array:
        values[name] = value
        return value

    evaluate(keep)
    names, shown = renamed(network, values), values
    values = {}
    for name, value in shown.items():  # the first of two that are one tensor
        values.setdefault(names.get(name, name), value)
    deviations = _deviations(network, values, growths or {})
    moved: dict[str, float] = {}
    for seed in range(RUNS):
        disturbance = _Disturbance(network, values, deviations, moved, np.random.default_rng(seed))
        evaluate(under_known_names(disturbance, names))
    errors = {
        name: max(SAFETY * deviations.get(name, 0.0) * largest(value), _reach(value.size) * moved.get(name, 0.0))
        for name, value in values.items()
    }
    return Bounds(values, errors, names)


def _reach(size: int) -> float:
    """How many times farther than any element of a tensor moved one may be from the oracle.

    The largest of m normal numbers is about √(2·ln m) standard deviations, of which a bound allows SAFETY.
    """
    return SAFETY / math.sqrt(2 * math.log(1 + RUNS * max(1, size)))


@dataclass(frozen=True)
class _Disturbance:
    """One disturbed run, as the oracle's `follow`; `moved` collects how far each tensor is from its value."""

    network: Network
    values: Mapping[str, Array]
    deviations: Mapping[str, float]  # of each tensor's rounding error, relative to its size
    moved: dict[str, float]
    rng: np.random.Generator

    def __call__(self, name: str, value: Array) -> Array:
        node, clean = self.network.known_makers.get(name), self.values[name]
        deviation = self.deviations.get(name, 0.0)
        if node is not None and is_step(node):
            value = same_side(node, self._operand(node, 1), value, clean, self._reach(node))
            if deviation and value.dtype.kind == "f":
                value = value + deviation * max(largest(value), self._sum_size(node)) * self.rng.standard_normal(
                    value.shape
                )
        elif value.dtype.kind != "f":
            return value
        elif name in self.network.constants:  # folded at import, and rounded there
            value = self.network.constants[name].astype(np.float64).reshape(value.shape)
        elif deviation:
            proportional = node is not None and node.op in PROPORTIONAL
            size = self._sizes(node, value) if proportional else max(largest(value), self._sum_size(node))
            value = value + deviation * size * self.rng.standard_normal(value.shape)
        if value.dtype.kind == "f":
            # Acosh of what was 1 and is disturbed below it: one NaN would leave nothing of the normalization behind it.
            value = np.where(np.isfinite(clean) & ~np.isfinite(value), clean, value)
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                self.moved[name] = max(self.moved.get(name, 0.0), largest(value - clean))
        return value

    def _sizes(self, node: Node | None, value: Array) -> Array:
        """The size of each element of a result that rounds in proportion to it.

        A Sum or a Mean of several adds them one by one: (1 + x) − 1 rounds as 1 does, however small it is.
        """
        if node is None or node.op not in ("Sum", "Mean"):
            return np.abs(value)
        terms = [operand for place in range(len(node.inputs)) if (operand := self._operand(node, place)) is not None]
        size = sum((np.abs(term.astype(np.float64)) for term in terms), start=np.zeros(()))
        return np.maximum(np.abs(value), size / (len(node.inputs) if node.op == "Mean" else 1))

    def _reach(self, node: Node) -> float:
        """How far what reads at places may move between its jumps: as its operand, and as that changes along the way.

        Between neighbours an image changes by twice its size a pixel at most, each way.
        """
        if node.op not in PLACES:
            return 0.0
        x, moved = self._operand(node, 0), [self._moved(name) for name in node.inputs[:2]]
        slope = 4 * largest(x) * abs(node["spatial_scale"]) if x is not None and node.op == "RoiAlign" else 0.0
        return 2 * moved[0] + slope * moved[1]

    def _moved(self, name: str) -> float:
        """How far a tensor has been moved; a copy that import made in another type, as its source."""
        name = self.network.known_name(name)
        node = self.network.makers.get(name)
        if name not in self.moved and node is not None and node.op == "Cast":
            return self._moved(node.inputs[0])
        return self.moved.get(name, 0.0)

    def _sum_size(self, node: Node | None) -> float:
        """The size of a sum as its terms would have it, √K times their root mean square; 0 for no sum.

        A sum that cancels is smaller, its rounding errors are not: where there is one alone, no other tells. So is
        x·(1 + erf(x / √2)) of Gelu below 0. What is read at computed places is off by as much of the image as a place
        is of a pixel.
        """
        x, weight = (self._operand(node, place) if node is not None else None for place in (0, 1))
        source = self.network.makers.get(node.inputs[0]) if node is not None and node.op == "Conv" else None
        if x is None and source is not None and source.op == "DeformColumns":
            x = self._operand(source, 0)  # of which samples are no larger
        if node is not None and x is not None and weight is not None and node.op in PLACES:
            return largest(x) * _pixels(node, x.shape, weight)
        if node is not None and x is not None and node.op == "Gelu":
            return largest(x)
        if node is None or x is None or node.op not in (*SUMS, *MEANS, *PRODUCTS):
            return 0.0
        terms = max(1, _terms(self.network, node.op, node.inputs, node.attributes) - OTHER_ROUNDINGS)
        if node.op in PRODUCTS:
            return math.sqrt(terms) * _rms(x) * _rms(weight) if weight is not None else 0.0
        return math.sqrt(terms) * _rms(x) / (terms if node.op in MEANS else 1)

    def _operand(self, node: Node, position: int) -> Array | None:
        name = node.inputs[position] if position < len(node.inputs) else ""
        return self.values.get(self.network.known_name(name), self.network.known_constant(name))


def _deviations(network: Network, visible: Mapping[str, Array], growths: Mapping[str, float]) -> dict[str, float]:
    """The standard deviation of the rounding error that a node adds to each tensor, relative to its size.

    Nodes that import made of one, such as the two of a transposed convolution, add theirs to the tensor that the oracle
    knows.
    """
    found: dict[str, float] = {}
    carried: dict[str, float] = {}  # the squares, of tensors that the oracle does not know
    for node in network.nodes:
        dtype = network.tensors[node.output].dtype
        square = sum(carried.get(name, 0.0) for name in node.inputs)
        exact = node.op in EXACT or node.attributes.get("reduction") in CHOICES
        if not exact and dtype in UNITS and (also_rounds(node) or not is_step(node)):
            terms = _terms(network, node.op, node.inputs, node.attributes)
            square += (UNITS[dtype] * growths.get(node.output, 1.0)) ** 2 * terms
        known = network.known_name(node.output)
        if known in visible:  # a copy in another form adds nothing
            exact_sums = node.op in ("Requantised", "Summed")
            found.setdefault(known, 0.0 if exact_sums else math.sqrt(square))
        else:
            carried[node.output] = square
    return found


def largest(values: Array) -> float:
    """max |x| of the finite elements; 0 of none."""
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def _rms(values: Array) -> float:
    """The root mean square of the finite elements; 0 of none."""
    finite = values[np.isfinite(values)].astype(np.float64)
    return math.sqrt(float(np.mean(finite**2))) if finite.size else 0.0


def _pixels(node: Node, shape: Shape, places: Array) -> float:
    """How many pixels from the image's first the places lie that read it: each is rounded as such a number is.

    A mirrored image is read as far as the places reach, another no farther than its extent.
    """
    extent = max(shape[2:], default=1)
    if node.op == "GridSample":
        farthest = largest(places) if node["padding_mode"] == "reflection" else 2.0
        return extent * (1 + farthest) / 2 * (3 if node["mode"] == "cubic" else 1)
    return largest(places[:, -4:]) * abs(float(node["spatial_scale"])) + extent


def half_spacing(sizes: Array, dtype: np.dtype[Any], *, narrow: bool = False) -> Array:
    """Half the distance between neighbours of a float type at `sizes`: what storing a value in it may cost. `narrow` is
    bfloat16, with 16 bits of mantissa less than float32, in which it is shown."""
    if dtype.kind != "f":
        return np.zeros(sizes.shape)
    if narrow:
        return half_spacing(sizes, np.dtype(np.float32)) * 2.0**16
    top = np.nextafter(np.finfo(dtype).max, dtype.type(0))  # whose neighbour is finite
    finite = np.where(np.isfinite(sizes), np.minimum(np.abs(sizes), float(top)), 0.0)
    return np.asarray(np.spacing(finite.astype(dtype)).astype(np.float64) / 2)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _terms(network: Network, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> int:
    """Roundings that one element of a node's output suffers."""
    shapes: list[Shape] = [network.shape(name) for name in inputs]
    if op == "Conv":
        weight = network.known_constant(inputs[1])  # as ONNX has it, without the zeros of channels that nothing is in
        terms = math.prod((shapes[1] if weight is None else weight.shape)[1:])
    elif op == "ConvTranspose":
        terms = math.prod((shapes[1][0], *shapes[1][2:])) // attributes["group"]
    elif op in ("Gemm", "MatMul"):
        terms = shapes[0][0 if attributes.get("transA") else -1]
    elif op in ("AveragePool", "LpPool", "Col2Im"):
        terms = math.prod(attributes["kernel_shape"])
    elif op in ("GlobalAveragePool", "GlobalLpPool", "InstanceNormalization", "GroupNormalization"):
        terms = math.prod(shapes[0][1:]) // attributes.get("num_groups", shapes[0][1])
    elif op in RECURRENT:  # at each step those of a product, which the states hand on to the next
        terms = shapes[1][1] * attributes["times"]
    elif op.startswith("LayerNormalization"):
        terms = math.prod(shapes[0][attributes["axis"] :])
    elif op.startswith("Reduce"):
        terms = math.prod(shapes[0][axis] for axis in attributes["axes"])
    elif op == "ScatterND":
        terms = 1 + math.prod(shapes[1][:-1])
    elif op in ("CumSum", "ScatterElements"):
        terms = 1 + shapes[-1][attributes["along"][0]]
    elif op == "GridSample":
        terms = {"nearest": 1, "linear": 2, "cubic": 4}[attributes["mode"]] ** (len(shapes[0]) - 2)
    elif op == "DeformColumns":  # of a place, and of the sum there
        terms = 2 ** (len(shapes[0]) - 2) + max(shapes[0][2:]) ** 2
    elif op == "RoiAlign":
        terms = 4 * max(1, attributes["sampling_ratio"]) ** 2
    elif op in ("Softmax", "LogSoftmax"):
        terms = shapes[0][attributes["axis"]]
    else:
        terms = len(shapes)
    return OTHER_ROUNDINGS + int(terms)
