"""Plants: faults that the random graphs must find, each put into a worker before its first model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import te, tirx

from tvmcnn import compiler, ops, packing
from tvmcnn.check import verify
from tvmcnn.check.bounds import Bounds
from tvmcnn.choose.cpu import operators
from tvmcnn.choose.cpu.state import State
from tvmcnn.network import Kernel, Layout, Network, Tensor
from tvmcnn.ops import quantised


def dropped_type() -> None:
    """What is stored in blocks of channels, and what a copy in another layout is, counts as float32 whatever it is."""

    def reorder(self: State, tensor: Tensor, have: Layout, output: Tensor, layout: Layout) -> None:
        right(self, tensor, have, Tensor(output.name, output.shape, "float32"), layout)

    right = State.reorder
    State.reorder = reorder  # type: ignore[method-assign]
    operators._all_float32 = lambda kernel: True


def padded_constant() -> None:
    """A constant of one value, which is that of all channels, is no literal, and padded with zeros to a block."""
    right = compiler.fuse

    def fuse(network: Network) -> tuple[Kernel, ...]:
        return tuple(
            replace(kernel, constants=(*kernel.constants, *kernel.scalars), scalars={}) for kernel in right(network)
        )

    def channels(array: Any, channels: int, block: int) -> Any:
        values = array.reshape(-1)
        return values if block == 1 else np.pad(values, (0, -values.size % block)).reshape(-1, block)

    packing.channels = channels
    compiler.fuse = fuse  # type: ignore[assignment]


def short_halo() -> None:
    """A halo that is one row or column short passes for the one that is wanted."""

    def covers(self: Layout, other: Layout) -> bool:
        same = (self.block, self.images) == (other.block, other.images)
        return same and all(a >= b - 1 for a, b in zip(self.halo, other.halo, strict=True))

    Layout.covers = covers  # type: ignore[method-assign]


def infinite_bound() -> None:
    """The check allows anything of each tensor."""
    right = verify.bounds_of

    def bounds(*given: Any) -> Bounds:
        found = right(*given)
        return Bounds(found.values, dict.fromkeys(found.errors, float("inf")))

    verify.bounds_of = bounds


def larger_factor() -> None:
    """The factor of a sum of integers is a tenth larger."""
    right = quantised.stored
    quantised.stored = lambda value, node, dtype: right(value * 1.1, node, dtype)


def next_entry() -> None:
    """A table has the second entry of each pair of bytes twice."""

    def table(node: Any, output: Any, x: Any, entries: Any) -> Any:
        def element(*i: Any) -> Any:
            return entries[tirx.bitwise_or(tirx.reinterpret("uint8", x[i]).astype("int32"), 1)]

        return te.compute(output.shape, element, name="out")

    ops.PLAIN["Table"] = quantised.EXPRESSIONS["Table"] = table


PLANTS = ("larger_factor", "next_entry", "dropped_type", "padded_constant", "short_halo", "infinite_bound")
