"""Bytes in words: which convolutions and products of integers of 8 bits have kernels that multiply words of four bytes,
images in plain layout. A weight that its zero point has moved beyond a byte is the sum of two, unless it is 255."""

from __future__ import annotations

from tvmcnn.fuse.bytes_convolved import convolves_within_int32
from tvmcnn.fuse.bytes_multiplied import matrix_less_zero, multiplies_rows
from tvmcnn.network import Network, Node

NARROW_GROUP = 8  # channels or maps of a group that fill no tile
MOST = 2 * 127  # of two bytes


def convolves_words(network: Network, node: Node) -> bool:
    """True for a convolution of images by a constant weight, whose groups fill tiles."""
    if not convolves_within_int32(network, node):
        return False
    weight, group = network.constants[node.inputs[1]], int(node["group"])
    wide = group == 1 or min(weight.shape[1], weight.shape[0] // group) >= NARROW_GROUP
    return wide and bool(weight.max(initial=0) <= MOST)


def multiplies_words(network: Network, node: Node) -> bool:
    """True for the product of rows by a constant matrix."""
    weight = matrix_less_zero(network, node) if multiplies_rows(network, node) else None
    return weight is not None and bool(weight.max(initial=0) <= MOST)
