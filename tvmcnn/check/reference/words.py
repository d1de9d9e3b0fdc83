"""What the parts of the walk hand one another."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from tvmcnn.check.reference.model import Source
from tvmcnn.check.reference.narrow import Narrow
from tvmcnn.check.reference_ops import Array
from tvmcnn.errors import ModelError

Nodes = Sequence[onnx.NodeProto]

Follow = Callable[[str, Array], Array]
"""Shown a tensor that a node makes, by its name, it answers with the one that later nodes read."""

DEEPEST = 100  # calls of functions and subgraphs inside one another


@dataclass(frozen=True)
class Held:
    """A tensor: its elements, those of a float in float64 as soon as they are computed, and its ONNX type."""

    array: Array
    dtype: np.dtype[Any]


Values = ChainMap[str, Held | None]
"""The tensors by name, a subgraph's before those around it. None is an input that the call of a function leaves out."""


@dataclass(frozen=True)
class Context:
    """What holds for all nodes of a graph or of a function."""

    source: Source
    opsets: Mapping[str, int]  # the versions of the operator sets by domain
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]  # the model's own, by domain, name and overload
    attributes: Mapping[str, onnx.AttributeProto]  # what the call gives for those that nodes of a function refer to
    shown: dict[str, Held] | None = None  # every tensor that has one name and one value; None inside of a loop
    follow: Follow | None = None  # asked what later nodes read, of each such tensor
    twins: Nodes = ()  # what the nodes to be evaluated are, once functions are in place of their calls
    unclear: Collection[str] = ()  # names that several tensors have, of branches and around them
    narrow: Narrow = field(default_factory=dict)  # nodes whose factors are rounded, by the names of what they make
    half_weights: Mapping[str, str] = field(default_factory=dict)  # tensors of this graph and what they are rounded to
    in_function: bool = False
    depth: int = 0

    @property
    def label(self) -> str:
        """What to call the model in messages."""
        return self.source.label

    def with_twins(self, twins: Nodes) -> Context:
        """The context of one node."""
        return replace(self, twins=twins) if twins or self.twins else self

    def deeper(self, **changes: Any) -> Context:
        """The context inside a node."""
        if self.depth >= DEEPEST:
            raise ModelError(f"{self.label} calls functions and subgraphs more than {DEEPEST} deep.")
        return replace(self, depth=self.depth + 1, half_weights={}, **changes)
