"""Follow: the oracle, made to decide as the library did wherever both decisions are right."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tvmcnn.check.bounds import Bounds, half_spacing
from tvmcnn.check.jumps import CHOSEN, admissible, also_rounds, chosen, is_step, of_stored
from tvmcnn.check.reference.narrow import bfloat16
from tvmcnn.network import Array, Network, Node, Shape


@dataclass(frozen=True)
class Follower:
    """What the oracle expects of each tensor, given what the library `found`; `excused` counts where that is its own.

    To be given to the oracle as its `follow`: at each step it puts the library's answer in the place of the oracle's
    where that answer is admissible (jumps.py), so that what comes after is computed from it. A factor that is rounded
    to bfloat16 is the library's own where its error alone makes it another, and a tensor that is stored so where it is
    one of the neighbours of what it may be.
    """

    network: Network
    bounds: Bounds
    found: Mapping[str, Array]
    narrow: frozenset[str] = frozenset()  # tensors that are rounded to bfloat16 where they are multiplied,
    stored: frozenset[str] = frozenset()  # and those that are as they are stored
    excused: dict[str, int] = field(default_factory=dict)
    followed: dict[str, Array] = field(default_factory=dict)

    def differs(self) -> bool:
        """Whether some step gave another answer than the oracle's, or a stored rounding did: else nothing is to be
        followed."""
        return any(
            not np.array_equal(self.found[name], self.bounds.values[name], equal_nan=True)
            for name, node in self.network.known_makers.items()
            if name in self.bounds.values and self._chooses(name, node)
        )

    def expected(self, name: str) -> Array:
        """The oracle's value of a tensor, or what it followed."""
        return self.followed.get(name, self.bounds.values[name])

    def __call__(self, name: str, value: Array) -> Array:
        """Bounds' Follow: the tensor that later nodes read."""
        node = self.network.known_makers.get(name)
        if node is None or not self._chooses(name, node):
            self.followed[name] = value
            return value
        answer = self._followed(name, node, value)
        self.followed[name] = self._as_stored(name, answer) if name in self.stored else answer
        # An output in float16 is a copy: what computes with it has its float32 value, which no rounding has changed.
        return self.followed[name] if name in self._read or is_step(node) else value

    @functools.cached_property
    def _read(self) -> frozenset[str]:
        """Tensors that the network reads under their own names."""
        return frozenset(name for node in self.network.nodes for name in node.inputs)

    def _chooses(self, name: str, node: Node) -> bool:
        """True for a tensor that the library shows and whose elements are the library's own decision."""
        return name in self.found and (
            is_step(node)
            or self.found[name].dtype == np.float16
            or name in self.stored
            or self._is_factor(name, self.found[name])
        )

    def _as_stored(self, name: str, value: Array) -> Array:
        """What the library has in bfloat16, where that may be the value rounded."""
        found = self.found[name]
        if found.shape != value.shape:
            return value
        return np.where(self._apart(name, found, value, self._error(name)), value, found.astype(np.float64))

    def _is_factor(self, name: str, found: Array) -> bool:
        return name in self.narrow and found.dtype == np.float32

    def _followed(self, name: str, node: Node, value: Array) -> Array:
        found = self.found[name]
        if node.op in CHOSEN:
            operands = self._own(node)
            rows = value if operands is None else chosen(node, operands)
            self.excused[name] = int(not np.array_equal(rows, value))
            return rows
        if found.shape != value.shape:
            return value
        if not is_step(node) and self._is_factor(name, found):
            other = bfloat16(found) != bfloat16(value)
            apart = self._apart(name, found, value, self._error(name))
            return np.where(other & ~apart, found.astype(np.float64), value)
        if not is_step(node):  # stored in float16: of two neighbours either may be right
            source = self._value(node.inputs[0]) if node.op == "Cast" else None  # before the oracle rounds it
            error = self._error(name if source is None else node.inputs[0])
            apart = self._apart(name, found, value if source is None else source, error)
            return np.where(apart, value, found.astype(np.float64))
        error = self._error(name)
        other = self._apart(name, found, value, error) if value.dtype.kind == "f" else found != value
        if not other.any():
            return value
        given = [known for operand in node.inputs if (known := self._value(operand)) is not None]
        if len(given) < len(node.inputs):
            return value
        errors = [self._error(operand) for operand in node.inputs]
        excused = other & admissible(node, given, errors, value, found, error)
        counted = excused
        stored = of_stored(node, given, [self._dtype(operand) for operand in node.inputs], found.shape)
        for answer in (stored, self._answer(node, found.shape)):
            if answer is not None:
                apart = self._apart(name, found, answer, error) if also_rounds(node) else answer != found
                counted = counted & apart
        self.excused[name] = int(counted.sum())
        return np.where(excused, found, value).astype(value.dtype)

    def _answer(self, node: Node, shape: Shape) -> Array | None:
        """What a step answers to the library's own operands; None where it does not show them all.

        (1 + x) − 1 ≥ x is a tie of every element: no chance decides it, but how float32 rounds 1 + x.
        """
        own = self._own(node)
        return None if own is None else of_stored(node, own, [str(operand.dtype) for operand in own], shape)

    def _own(self, node: Node) -> list[Array] | None:
        """The library's own operands of a node; None where it does not show them all."""
        given = [operand for name in node.inputs if (operand := self._shown(name)) is not None]
        return given if len(given) == len(node.inputs) else None

    def _shown(self, name: str) -> Array | None:
        """The library's own value of an operand, which of an input of the network is the one that it was given."""
        if (constant := self.network.known_constant(name)) is not None:
            return constant
        known = self.network.known_name(name)
        return self.bounds.values[known] if known in self._inputs else self.found.get(known)

    @functools.cached_property
    def _inputs(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.network.inputs)

    def reach(self, name: str, found: Array, value: Array, error: float) -> Array:
        """How far each element of a tensor may be from `value`: by its error, and by what storing it costs."""
        return error + half_spacing(np.abs(value) + error, found.dtype, narrow=name in self.stored)

    def _apart(self, name: str, found: Array, value: Array, error: float) -> Array:
        """Where a float tensor is farther from `value` than that."""
        with np.errstate(invalid="ignore"):
            near = np.abs(found.astype(np.float64) - value) <= self.reach(name, found, value, error)
        return np.asarray(~near & (found != value) & ~(np.isnan(found) & np.isnan(value)))

    def _value(self, name: str) -> Array | None:
        """The oracle's value of an operand; a copy that import made in another type has that of its source."""
        known = self.network.known_name(name)
        if known in self.followed:
            return self.followed[known]
        if known in self.bounds.values:
            return self.bounds.values[known]
        if (constant := self.network.known_constant(name)) is not None:
            return constant
        node = self.network.makers.get(name)
        return self._value(node.inputs[0]) if node is not None and node.op == "Cast" else None

    def _dtype(self, name: str) -> str:
        constant = self.network.constants.get(name)
        return str(constant.dtype) if constant is not None else self.network.tensors[name].dtype

    def _error(self, name: str) -> float:
        name = self.network.known_name(name)
        if name in self.bounds.values:
            return self.bounds.errors[name]
        node = self.network.makers.get(name)
        return self._error(node.inputs[0]) if node is not None and node.op == "Cast" else 0.0
