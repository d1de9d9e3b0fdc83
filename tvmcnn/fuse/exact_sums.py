"""Sums of products of integers by the kernels of float32, where these are exact.

y = QLinearConv(x, w, m, b)       -->    y = Requantised(Conv(Centred(x), w in float32), m, b)
y = ConvInteger(x, w, zx, zw)     -->    y = Summed(Conv(Centred(x, zx), w - zw in float32))

A float32 holds every integer up to 2^24, so that a sum of products whose magnitudes add up to less is exact in whatever
order, with or without FMA: direct convolutions and matrix products of float32 compute it, ten times as fast as plain
loops over integers. What may be larger is several such sums, of some of the channels each, which are added in int32.
Winograd's sums have fractions, and are not for these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.fuse.bytes_convolved import multiplies_bytes, rounds_in_int32
from tvmcnn.fuse.bytes_in_words import convolves_words, multiplies_words
from tvmcnn.fuse.bytes_multiplied import multiplies_rows
from tvmcnn.fuse.dequantised import less_zeros, reach_of
from tvmcnn.network import IN_BYTES, Array, Network, Node

EXACT = 2**24  # below which a float32 holds every integer
LEAST = 200_000  # products of a kernel: with fewer the copies cost more than loops over integers do
MOST_PARTS = 8
FARTHEST = 255  # from any zero point
OF_INTEGERS = ("zero", "other", "to", "low", "high")  # attributes of QLinearConv that Conv has not


def exact_sums(network: Network, *, in_bytes: bool, in_words: bool = False) -> Network:
    """The network with the large sums of products of 8 bits as sums in float32; `in_bytes` those that no kernel for
    convolutions or products of bytes takes, or none for words of four; the convolutions that one does are marked.
    """
    sums = _Sums(network if in_bytes else None, in_words)
    return replaced(network, ("QLinearConv", "QLinearMatMul", "ConvInteger"), sums.instead)


@dataclasses.dataclass
class _Sums:
    """What is centred so far: by tensor, zero point and channels the name of it in float32."""

    with_bytes: Network | None  # of which some convolutions and products stay
    in_words: bool
    centred: dict[tuple[object, ...], str] = dataclasses.field(default_factory=dict)

    def instead(self, added: Additions, node: Node) -> list[Node]:
        """The nodes for one, which is itself where there are no others."""
        if self.with_bytes is not None and self.convolves_bytes(self.with_bytes, node):
            return [
                dataclasses.replace(
                    node, attributes={**node.attributes, IN_BYTES: rounds_in_int32(self.with_bytes, node)}
                )
            ]
        if self.with_bytes is not None and self.multiplies_rows(self.with_bytes, node):
            return [node]
        weight, shape = _weight(added, node), added.shape(node.output)
        is_conv = node.op != "QLinearMatMul"
        if weight is None or weight.ndim != (4 if is_conv else 2) or len(shape) < 2:
            return [node]
        terms = math.prod(weight.shape[1:]) if is_conv else weight.shape[0]
        zero = node.attributes.get("zero")  # at run time, of a ConvInteger, it may be any
        reach = FARTHEST if zero is None else reach_of(added.tensors[node.inputs[0]].dtype, int(zero))
        whole = is_conv and node["group"] > 1
        few = math.prod(shape) * terms < max(LEAST, 1)
        if few or not (parts := _parts(weight, reach, 1 if is_conv else 0, whole=whole)):
            return [node]
        nodes, sums = list[Node](), list[str]()
        window = {key: value for key, value in node.attributes.items() if key not in OF_INTEGERS}
        for first, last in parts:
            x, made = self.floats(added, node, first, last, 1 if is_conv else len(added.shape(node.inputs[0])) - 1)
            of = weight if whole else weight[:, first:last] if is_conv else weight[first:last]
            w = added.constant(f"{node.output}.weight", np.ascontiguousarray(of, np.float32))
            sums.append(added.tensor(f"{node.output}.sum", shape, "float32"))
            product = Node("Conv", node.name, (x, w), sums[-1], {**window, "exact": True})
            nodes += [*made, product if is_conv else Node("Gemm", node.name, (x, w), sums[-1])]
        if node.op == "ConvInteger":
            return [*nodes, Node("Summed", node.name, tuple(sums), node.output)]
        bounds = {word: node[word] for word in ("to", "low", "high")}
        attributes = {**bounds, "axis": 1 if is_conv else len(shape) - 1, "sums": len(sums)}
        return [*nodes, Node("Requantised", node.name, (*sums, *node.inputs[2:]), node.output, attributes)]

    def convolves_bytes(self, network: Network, node: Node) -> bool:
        """Whether the machine has a kernel for a convolution of bytes,"""
        return (convolves_words if self.in_words else multiplies_bytes)(network, node)

    def multiplies_rows(self, network: Network, node: Node) -> bool:
        """and whether it has one for a product of rows of them."""
        return (multiplies_words if self.in_words else multiplies_rows)(network, node)

    def floats(self, added: Additions, node: Node, first: int, last: int, axis: int) -> tuple[str, list[Node]]:
        """Some channels less the zero point in float32, and the node that makes them unless another has."""
        source = added.tensors[node.inputs[0]]
        last = min(last, source.shape[axis])
        zero = node.attributes.get("zero")
        given = (source.name,) if zero is not None else (source.name, node.inputs[2])
        key = (*given, zero, first, last)
        if key in self.centred:
            return self.centred[key], []
        shape = (*source.shape[:axis], last - first, *source.shape[axis + 1 :])
        name = self.centred[key] = added.tensor(f"{source.name}.centred", shape, "float32")
        return name, [Node("Centred", node.name, given, name, {"zero": zero, "first": first, "axis": axis})]


def _weight(added: Additions, node: Node) -> Array | None:
    """The constant weight less its zero points; None for one that arrives."""
    weight = added.constants.get(node.inputs[1])
    if node.op != "ConvInteger" or weight is None:
        return weight
    zero = added.constants.get(node.inputs[3])
    if zero is None:
        return None
    return less_zeros(weight, zero.reshape(-1, *(1,) * (weight.ndim - 1)))


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
