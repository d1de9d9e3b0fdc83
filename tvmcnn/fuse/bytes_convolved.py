"""Bytes convolved: which convolutions of integers of 8 bits have kernels that multiply them in blocks of channels."""

from __future__ import annotations

import numpy as np

from tvmcnn.blocks import BLOCK
from tvmcnn.fuse.dequantised import LIMIT
from tvmcnn.network import BYTES, Array, Network, Node

SHIFTED = 2**8  # a byte less a zero point, or of another sign, and any partial sum of such, is less


def multiplies_bytes(network: Network, node: Node) -> bool:
    """True for a convolution of images by a constant weight, of one group, of groups that are whole blocks of channels,
    or of one channel a group; none of whose sums can leave int32, however they are taken apart.
    """
    if not convolves_within_int32(network, node):
        return False
    maps, depth = network.constants[node.inputs[1]].shape[:2]
    group, channels = int(node["group"]), network.tensors[node.inputs[0]].shape[1]
    return bool(group == 1 or depth % BLOCK == maps // group % BLOCK == 0 or group == maps == channels)


def convolves_within_int32(network: Network, node: Node) -> bool:
    """True for a convolution of images by a constant weight, in whatever groups, none of whose sums can leave int32."""
    if node.op != "QLinearConv" or node.inputs[1] not in network.constants or node["other"] != 0:
        return False
    image = network.tensors.get(node.inputs[0])
    if image is None or image.dtype not in BYTES or len(image.shape) != 4:
        return False
    return bool(_largest(network, node).max(initial=0) < LIMIT)


def rounds_in_int32(network: Network, node: Node) -> bool:
    """True where no sum times its factor leaves int32, so that it may be rounded before it is kept within bounds."""
    factor = network.constants[node.inputs[2]].astype(np.float64)
    return bool((_largest(network, node) * np.abs(factor)).max(initial=0) < LIMIT / 2)


def _largest(network: Network, node: Node) -> Array:
    bias = network.constants[node.inputs[3]] if len(node.inputs) > 3 else None
    return largest_sums(network.constants[node.inputs[1]], (1, 2, 3), bias)


def largest_sums(weight: Array, terms: tuple[int, ...], bias: Array | None) -> Array:
    """The largest magnitude of a weight's sums of products with bytes over the axes `terms`, or of a part of one."""
    sums: Array = np.abs(weight.astype(np.int64)).sum(axis=terms) * 2 * SHIFTED
    return sums if bias is None else sums + np.abs(bias.astype(np.int64))
