"""Sums of products of integers by the kernels of float32, where these are exact.

y = QLinearConv(x, w, m, b)    -->    y = Requantised(Conv(Centred(x), w in float32), m, b)

A float32 holds every integer up to 2^24, so that a sum of products whose magnitudes add up to less is exact in whatever
order, with or without FMA: direct convolutions and matrix products of float32 compute it, ten times as fast as plain
loops over integers. What may be larger is several such sums, of some of the channels each, which are added in int32.
Winograd's sums have fractions, and are not for these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from tvmcnn.network import Array, Network, Node, Tensor

EXACT = 2**24  # below which a float32 holds every integer
LEAST = 200_000  # products of a kernel: with fewer the copies cost more than loops over integers do
MOST_PARTS = 8


def exact_sums(network: Network) -> Network:
    """The network with the large sums of products of 8 bits as sums in float32."""
    made = _Made(network)
    nodes = [each for node in network.nodes for each in made.instead(node)]
    read = {name for node in nodes for name in node.inputs}
    constants = {**network.constants, **made.constants}
    return dataclasses.replace(
        network,
        nodes=tuple(nodes),
        tensors={**network.tensors, **made.tensors},
        constants={name: array for name, array in constants.items() if name in read},
    )


@dataclasses.dataclass
class _Made:
    """What is put in the place of nodes so far."""

    network: Network
    constants: dict[str, Array] = dataclasses.field(default_factory=dict)
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    centred: dict[tuple[object, ...], str] = dataclasses.field(default_factory=dict)

    def instead(self, node: Node) -> Iterator[Node]:
        """The nodes for one, which is itself where there are no others."""
        weight = self.network.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        is_conv, shape = node.op == "QLinearConv", self.network.tensors[node.output].shape
        fits = (is_conv and len(shape) == 4) or (node.op == "QLinearMatMul" and len(shape) > 1)
        if weight is None or not fits or weight.ndim != (4 if is_conv else 2):
            yield node
            return
        terms = math.prod(weight.shape[1:]) if is_conv else weight.shape[0]
        parts = _parts(weight, self.reach(node), 1 if is_conv else 0, whole=is_conv and node["group"] > 1)
        if math.prod(shape) * terms < LEAST or not parts:
            yield node
            return
        sums = []
        for place, (first, last) in enumerate(parts):
            yield from self.centre(node, first, last, 1 if is_conv else len(self.network.shape(node.inputs[0])) - 1)
            key = f"{node.output}.sum{place}"
            part = (
                weight[:, first:last] if is_conv and node["group"] == 1 else weight if is_conv else weight[first:last]
            )
            self.constants[f"{key}.weight"] = part.astype(np.float32)
            window = {k: v for k, v in node.attributes.items() if k not in ("zero", "other", "to", "low", "high")}
            attributes = {**window, "exact": True} if is_conv else {}
            operands = (self.centred[self.key(node, first, last)], f"{key}.weight")
            self.tensors[key] = Tensor(key, shape, "float32")
            yield Node("Conv" if is_conv else "Gemm", node.name, operands, key, attributes)
            sums.append(key)
        bounds = {word: node[word] for word in ("to", "low", "high")}
        axis = 1 if is_conv else len(shape) - 1
        rest = node.inputs[2:]
        attributes = {**bounds, "axis": axis, "sums": len(sums)}
        yield Node("Requantised", node.name, (*sums, *rest), node.output, attributes)

    def reach(self, node: Node) -> int:
        """The largest distance of an integer of the first operand from its zero point."""
        limits = np.iinfo(self.network.tensors[node.inputs[0]].dtype)
        zero = int(node["zero"])
        return max(int(limits.max) - zero, zero - int(limits.min))

    def key(self, node: Node, first: int, last: int) -> tuple[object, ...]:
        return node.inputs[0], node["zero"], first, last

    def centre(self, node: Node, first: int, last: int, axis: int) -> Iterator[Node]:
        """The node that makes float32 of some channels less the zero point, unless there is one."""
        key = self.key(node, first, last)
        if key in self.centred:
            return
        source = self.network.tensors[node.inputs[0]]
        shape = (*source.shape[:axis], min(last, source.shape[axis]) - first, *source.shape[axis + 1 :])
        name = f"{source.name}.centred{first}at{node['zero']}" + (f"to{last}" if shape != source.shape else "")
        self.centred[key] = name
        self.tensors[name] = Tensor(name, shape, "float32")
        attributes = {"zero": node["zero"], "first": first, "axis": axis}
        yield Node("Centred", node.name, (source.name,), name, attributes)


def _parts(weight: Array, reach: int, axis: int, *, whole: bool) -> list[tuple[int, int]]:
    """The ranges of channels whose sums a float32 holds, the fewest; none where too many would be."""
    sizes = np.abs(weight.astype(np.int64)) * reach
    channels = weight.shape[axis]
    if whole:
        held = int(sizes.sum(axis=(1, 2, 3)).max(initial=0)) < EXACT
        return [(0, 2**31)] if held else []
    each = sizes.sum(axis=tuple(range(2, weight.ndim))) if axis else sizes.T  # (maps, channels)
    for count in range(1, MOST_PARTS + 1):
        edges = [channels * place // count for place in range(count + 1)]
        pairs = list(itertools.pairwise(edges))
        if all(first < last and int(each[:, first:last].sum(axis=1).max()) < EXACT for first, last in pairs):
            return pairs
    return []
