"""Transposed convolutions, as U-Nets and generators enlarge their maps, become convolutions of the small image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from tvmcnn.blocks import BLOCK
from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.network import FLOAT32, Array, Network, Node, Shape, round_up

MOST_APART = 27  # convolutions that may stand for one: strides of 3 along three axes
MOST_PHASES = 1024  # of one convolution: strides of 32 along two, as FCN-32s has


def split_transposed(network: Network) -> Network:
    """The network with each transposed convolution of images or volumes as convolutions and a move.

    y (N, M, H', W') = ConvTranspose(x (N, C, H, W), w (C, M, n·s, m·t), strides=(s, t), pads=p)
      -->
    u (N, s·t·M, I, J) = Conv(x, w' (s·t·M, C, n, m), pads=(n−1, m−1, …))
    y = DepthToSpace(u, blocksize=(s, t), mode=DCR), from row and column p on

    Output row o is u's row (o + p) // s, of the maps for (o + p) mod s: those have every s-th tap of the window, turned
    round. Both compute the same sums, with no product more but of the border's zeros. The convolution runs at the FMA
    peak, and the rest is a copy, with the maps last one of whole blocks; at stride 1 there is none. (U-Net's first, 2 x
    2 at stride 2 from 14 x 14 to 28 x 28 pixels: 43 to 3.4 ms; LowFormer-B0, 4 x 4 at stride 2: 21.4 to 9.0 ms.)

    A window that is not of whole strides has fewer taps for some phases than for others: of 3 at stride 2 they are 2
    and 1. Then, and in groups, each phase is a convolution of its own, and u is their concatenation. (Zeros for the
    taps that some lack would make an infinite pixel NaN, and 3 x 3 at stride 2 take 16 products where 9 are. 64 to 32
    maps of 56 x 54 pixels so: 29.3 to 5.8 ms; of 8 x 28 x 30, by 3 x 3 x 3: 294 to 16.4.)
    """
    return replaced(network, ("ConvTranspose",), lambda added, node: _parts(network, added, node))


def _parts(network: Network, added: Additions, node: Node) -> list[Node]:
    """The convolutions and the move that stand for a transposed convolution, or itself where it does not split."""
    if not _splits(network, node):
        return [node]
    strides, output = node["strides"], network.tensors[node.output]
    if _is_dense(node):
        return list(_convolutions(network, added, node, node.output))
    maps = math.prod(strides) * _maps(network, node)
    made = added.tensor(f"{node.output}.pixels", (output.shape[0], maps, *_rows(network, node)), FLOAT32)
    move = {"blocksize": strides, "mode": "DCR", "begin": node["pads"][: len(strides)]}
    return [*_convolutions(network, added, node, made), Node("DepthToSpace", node.name, (made,), node.output, move)]


def _splits(network: Network, node: Node) -> bool:
    """True for a transposed convolution by constant windows, which have a tap for each phase."""
    if node.op != "ConvTranspose" or any(name not in network.constants for name in node.inputs[1:]):
        return False
    output, strides = network.tensors[node.output], node["strides"]
    if len(output.shape) not in (4, 5) or output.dtype != FLOAT32 or output.counts or not output.size:
        return False
    if node.inputs[0] not in network.tensors or set(node["dilations"]) != {1}:
        return False
    if math.prod(strides) > (MOST_APART if _apart(node) else MOST_PHASES):
        return False
    if _is_dense(node):
        return min(_pads(network, node, (0,) * len(strides))) >= 0
    return all(size >= stride for size, stride in zip(node["kernel_shape"], strides, strict=True))


def _is_dense(node: Node) -> bool:
    """True at stride 1, where the convolution makes the pixels in order."""
    return set(node["strides"]) == {1}


def _convolutions(network: Network, added: Additions, node: Node, made: str) -> Iterator[Node]:
    """The convolution of all phases, or one of each and their concatenation."""
    weight, strides = network.constants[node.inputs[1]], node["strides"]
    phases = list(itertools.product(*map(range, strides)))
    beyond = _maps(network, node) - network.tensors[node.output].shape[1]
    filters = [_filters(weight, node, phase, beyond) for phase in phases]
    if not _apart(node):
        yield _convolution(network, added, node, made, np.concatenate(filters), phases[0])
        return
    n, _, *extents = added.shape(made)
    parts = []
    for number, (phase, each) in enumerate(zip(phases, filters, strict=True)):
        parts.append(added.tensor(f"{made}{number}", (n, each.shape[0], *extents), FLOAT32))
        yield _convolution(network, added, node, parts[-1], each, phase)
    yield Node("Concat", node.name, tuple(parts), made, {"axis": 1})


def _convolution(
    network: Network, added: Additions, node: Node, made: str, filters: Array, phase: tuple[int, ...]
) -> Node:
    """A convolution by filters of one phase, or of all that have such windows."""
    names = [added.constant(f"{made}.weight", filters)]
    if len(node.inputs) > 2:
        bias = network.constants[node.inputs[2]]
        bias = np.pad(bias, (0, _maps(network, node) - len(bias)))
        names.append(added.constant(f"{made}.bias", np.tile(bias, len(filters) // len(bias))))
    axes = len(node["strides"])
    words = {
        "kernel_shape": filters.shape[2:],
        "strides": (1,) * axes,
        "pads": _pads(network, node, phase),
        "dilations": (1,) * axes,
        "group": node["group"],
    }
    return Node("Conv", node.name, (node.inputs[0], *names), made, words)


def _pads(network: Network, node: Node, phase: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's pads: the reach of its windows, and behind the image as far as the rows that are wanted. At
    stride 1 what the transposed convolution leaves of both."""
    along = zip(node["kernel_shape"], node["strides"], phase, strict=True)
    reach = [-(-(size - first) // stride) - 1 for size, stride, first in along]
    if _is_dense(node):
        return tuple(r - pad for r, pad in zip(reach * 2, node["pads"], strict=True))
    extents = network.shape(node.inputs[0])[2:]
    return (*reach, *(rows - extent for rows, extent in zip(_rows(network, node), extents, strict=True)))


def _rows(network: Network, node: Node) -> Shape:
    """The extents of each phase's image: as many rows as have one that is wanted, and at least those of x."""
    x, y = network.shape(node.inputs[0])[2:], network.shape(node.output)[2:]
    along = zip(node["pads"], y, node["strides"], x, strict=False)
    return tuple(max(extent, -(-(begin + size) // stride)) for begin, size, stride, extent in along)


def _apart(node: Node) -> bool:
    """True where each phase is a convolution of its own: their windows differ, or there are groups."""
    differ = any(size % stride for size, stride in zip(node["kernel_shape"], node["strides"], strict=True))
    return not _is_dense(node) and (node["group"] > 1 or differ)


def _maps(network: Network, node: Node) -> int:
    """The maps of each phase, with some of zeros where whole blocks pay: those move without being taken apart. (A layer
    of 24 maps by 3 x 3 at stride 2 from 32 x 30 pixels: 0.63 to 0.49 ms; FCN-8s's last, 21 by 16 x 16: 1.98 to 1.56.)
    """
    maps = network.tensors[node.output].shape[1]
    if _is_dense(node) or node["group"] > 1:
        return maps
    return round_up(maps, BLOCK) if maps >= (BLOCK // 2 if _apart(node) else BLOCK) else maps


def _filters(weight: Array, node: Node, phase: tuple[int, ...], beyond: int) -> Array:
    """(C, M/g, n·s, m·t) --> (M, C/g, n, m): a phase's taps of each axis, the last first. `beyond` maps are zero."""
    taps = tuple(slice(first, None, stride) for first, stride in zip(phase, node["strides"], strict=True))
    group, (depth, maps, *_) = node["group"], weight.shape
    split = np.flip(weight[:, :, *taps], tuple(range(2, weight.ndim)))
    split = split.reshape(group, depth // group, *split.shape[1:]).swapaxes(1, 2)
    filters = split.reshape(group * maps, *split.shape[2:])
    return np.pad(filters, ((0, beyond), *((0, 0),) * (filters.ndim - 1)))
