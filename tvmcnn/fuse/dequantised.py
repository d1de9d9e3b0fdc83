"""What stands behind a float tensor of a quantised network: integers, with a scale and a zero point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tvmcnn.fuse.added import Additions
from tvmcnn.network import Array, Network, Node

LIMIT = 2**31  # of a sum in int32, which none may reach


def reach_of(dtype: str, zero: int) -> int:
    """The largest distance of an integer of a type from the zero point."""
    limits = np.iinfo(dtype)
    return max(int(limits.max) - zero, zero - int(limits.min))


def less_zeros(integers: Array, zeros: Array) -> Array:
    """Integers of 8 bits less their zero points, which broadcast with them: int8 where all fit, else int16."""
    centred: Array = integers.astype(np.int16) - zeros.astype(np.int16)
    fits = not centred.size or (centred.min() >= -128 and centred.max() <= 127)
    return centred.astype(np.int8) if fits else centred


class NoForm(Exception):  # noqa: N818 (a reason, not an error)
    """There is no form in integers; the text says why."""


@dataclass(frozen=True)
class Integers:
    """Integers by name, with scale and zero point: one each, or in a form that broadcasts with them."""

    name: str
    dtype: str
    scale: Array  # float32
    zero: Array  # int64

    @property
    def one_scale(self) -> bool:
        """True for one scale and one zero point of all elements."""
        return self.scale.size == self.zero.size == 1

    @property
    def shift(self) -> int:
        """The zero point."""
        return int(self.zero.reshape(()))

    @property
    def step(self) -> np.float32:
        """The scale."""
        return np.float32(self.scale.reshape(()))

    @property
    def reach(self) -> int:
        """The largest distance that an integer of the type has from the zero point."""
        return max(reach_of(self.dtype, int(zero)) for zero in (self.zero.min(), self.zero.max()))

    def like(self, other: Integers) -> bool:
        """True if both mean the same by the same integer."""
        alone = self.one_scale and other.one_scale and self.dtype == other.dtype
        return alone and self.step == other.step and self.shift == other.shift


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization behind a convolution: y·scale + shift, in float32, one of each a map."""

    scale: Array
    shift: Array


@dataclass
class Form:
    """Nodes in integers that replace float ones, with what they add, and the tensors between that go."""

    added: Additions
    nodes: list[Node] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    norm: Norm | None = None

    def keep(self, name: str, array: Array) -> str:
        """The name of a new constant, which is like `name`."""
        return self.added.constant(name, np.ascontiguousarray(array))


class Finder:
    """Looks from a tensor back to what makes it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.makers: Mapping[str, Node] = network.makers
        self.readers = Counter(name for node in network.nodes for name in {*node.inputs})
        self.outputs = {tensor.name for tensor in network.outputs}
        self.places = {node.output: place for place, node in enumerate(network.nodes)}

    def alone(self, name: str) -> Node | None:
        """The node that makes a tensor which one node reads and nobody else."""
        node = self.makers.get(name)
        return node if node is not None and self.readers[name] == 1 and name not in self.outputs else None

    def integers(self, name: str) -> Integers | None:
        """The integers behind what a DequantizeLinear with a constant scale makes."""
        node = self.makers.get(name)
        if node is None or node.op != "DequantizeLinear":
            return None
        return self.described(node, node.inputs[0])

    def described(self, node: Node, name: str) -> Integers | None:
        """Integers with the scale and zero point of a node; None where these come at run time."""
        constants = self.network.constants
        if any(operand not in constants for operand in node.inputs[1:]):
            return None
        scale, zero = (constants[operand] for operand in node.inputs[1:])
        dtype = constants[name].dtype if name in constants else self.network.tensors[name].dtype
        return Integers(name, str(dtype), scale, zero.astype(np.int64))

    def array(self, found: Integers | None) -> Array | None:
        """Constant integers."""
        return None if found is None else self.network.constants.get(found.name)


def nearest(value: float, to: Integers) -> int:
    """The integer that QuantizeLinear makes of a number."""
    limits = np.iinfo(to.dtype)
    with np.errstate(over="ignore"):
        quotient = np.float32(value) / to.step
    return int(np.clip(np.rint(quotient).astype(np.float64) + to.shift, limits.min, limits.max))


def bounds(activation: Node | None, to: Integers) -> tuple[int, int]:
    """The integers between which a Relu or Clip keeps what is quantised behind it: rounding reverses no order."""
    limits = np.iinfo(to.dtype)
    low, high = int(limits.min), int(limits.max)
    if activation is None:
        return low, high
    if activation.op == "Relu":
        return nearest(0.0, to), high
    least, most = activation["min"], activation["max"]
    return (low if least is None else nearest(least, to)), (high if most is None else nearest(most, to))
