"""Transposed convolutions, as U-Nets and generators enlarge their maps, become convolutions of the small image."""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.network import Array, Network, Node, Shape


def split_transposed(network: Network) -> Network:
    """The network with each transposed convolution by n·s x m·t windows at strides s, t as a convolution and a move.

    y (N, M, H', W') = ConvTranspose(x (N, C, H, W), w (C, M, n·s, m·t), strides=(s, t), pads=p)
      -->
    u (N, s·t·M, H+n−1, W+m−1) = Conv(x, w' (s·t·M, C, n, m), pads=(n−1, m−1))
    y = DepthToSpace(u, blocksize=(s, t), mode=DCR), from row and column p on

    Output row o is u's row (o + p) // s, of the maps for (o + p) mod s: those have every s-th tap of the window, turned
    round. Both compute the same sums, with no product more but of the border's zeros. The convolution runs at the FMA
    peak, and the rest is a copy, with the maps last one of whole blocks; at stride 1 there is none. (U-Net's first, 2 x
    2 at stride 2 from 14 x 14 to 28 x 28 pixels: 43 to 3.4 ms; LowFormer-B0, 4 x 4 at stride 2: 21.4 to 9.0 ms.)
    """
    return replaced(network, ("ConvTranspose",), lambda added, node: _parts(network, added, node))


def _parts(network: Network, added: Additions, node: Node) -> list[Node]:
    """The convolution and the move that stand for a transposed convolution, or itself where it does not split."""
    if not _splits(network, node):
        return [node]
    strides, made = node["strides"], node.output
    weight = _phases(network.constants[node.inputs[1]], strides)
    if not _is_dense(node):
        made = added.tensor(f"{made}.pixels", _pixels(network, node), network.tensors[made].dtype)
    names = [added.constant(f"{made}.weight", weight)]
    if len(node.inputs) > 2:
        names.append(added.constant(f"{made}.bias", np.tile(network.constants[node.inputs[2]], math.prod(strides))))
    window = weight.shape[2:]
    words = {"kernel_shape": window, "strides": (1, 1), "pads": _pads(node), "dilations": (1, 1), "group": 1}
    conv = Node("Conv", node.name, (node.inputs[0], *names), made, words)
    if _is_dense(node):
        return [conv]
    move = {"blocksize": strides, "mode": "DCR", "begin": node["pads"][:2]}
    return [conv, Node("DepthToSpace", node.name, (made,), node.output, move)]


def _splits(network: Network, node: Node) -> bool:
    """True for a transposed convolution of images, in one group, by constant windows of whole strides."""
    if node.op != "ConvTranspose" or any(name not in network.constants for name in node.inputs[1:]):
        return False
    output, strides = network.tensors[node.output], node["strides"]
    plain = node["group"] == 1 and set(node["dilations"]) == {1}
    if len(output.shape) != 4 or not plain or output.dtype != "float32" or node.inputs[0] not in network.tensors:
        return False
    if any(size % stride for size, stride in zip(node["kernel_shape"], strides, strict=True)):
        return False  # some phases would have zeros for taps, times which an infinite pixel is NaN
    if _is_dense(node):
        return min(_pads(node)) >= 0
    # Also what output_padding adds is then among the pixels.
    along = zip(node["pads"], output.shape[2:], strides, _pixels(network, node)[2:], strict=False)
    return all(begin + size <= stride * made for begin, size, stride, made in along)


def _is_dense(node: Node) -> bool:
    """True at stride 1, where the convolution makes the pixels in order."""
    return set(node["strides"]) == {1}


def _pads(node: Node) -> tuple[int, ...]:
    """The convolution's pads: the whole reach of its windows, or at stride 1 what the transposed one leaves of it."""
    reach = [size // stride - 1 for size, stride in zip(node["kernel_shape"], node["strides"], strict=True)] * 2
    return tuple(r - (pad if _is_dense(node) else 0) for r, pad in zip(reach, node["pads"], strict=True))


def _phases(weight: Array, strides: Shape) -> Array:
    """(C, M, n·s, m·t) --> (s·t·M, C, n, m): for each phase of row and column its taps, the last first."""
    (depth, maps, rows, columns), (s, t) = weight.shape, strides
    split = weight.reshape(depth, maps, rows // s, s, columns // t, t)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4).reshape(-1, depth, *split.shape[2:5:2]))


def _pixels(network: Network, node: Node) -> Shape:
    """The shape of the convolution's output."""
    n, _, *extents = network.tensors[node.inputs[0]].shape
    maps = network.tensors[node.output].shape[1] * math.prod(node["strides"])
    along = zip(extents, node["kernel_shape"], node["strides"], strict=True)
    return (n, maps, *(extent + size // stride - 1 for extent, size, stride in along))
