"""Bytes convolved: which convolutions of integers of 8 bits have kernels that multiply them in blocks of channels."""

from __future__ import annotations

import numpy as np

from tvmcnn.blocks import BLOCK
from tvmcnn.network import BYTES, Network, Node

IN_BYTES = "in_bytes"  # the attribute that marks them
LIMIT = 2**31  # of a sum in int32
SHIFTED = 2**8  # a byte less a zero point, or of another sign, and any partial sum of such, is less


def multiplies_bytes(network: Network, node: Node) -> bool:
    """True for a convolution of images by a constant weight, of one group, of groups that are whole blocks of channels,
    or of one channel a group; none of whose sums can leave int32, however they are taken apart.
    """
    if node.op != "QLinearConv" or node.inputs[1] not in network.constants or node["other"] != 0:
        return False
    image = network.tensors.get(node.inputs[0])
    if image is None or image.dtype not in BYTES or len(image.shape) != 4:
        return False
    weight, group = network.constants[node.inputs[1]], int(node["group"])
    maps, depth = weight.shape[:2]
    if not (group == 1 or depth % BLOCK == maps // group % BLOCK == 0 or group == maps == image.shape[1]):
        return False
    bias = network.constants[node.inputs[3]] if len(node.inputs) > 3 else np.zeros(1)
    sums = np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) * 2 * SHIFTED + np.abs(bias.astype(np.int64))
    return bool(sums.max(initial=0) < LIMIT)
