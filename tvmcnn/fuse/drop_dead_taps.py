"""Filters without the taps that meet nothing but padding, as dilated ones have on small maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.network import Network, Node


def drop_dead_taps(network: Network) -> Network:
    """The network with the rows and columns of each constant filter that some pixel of the image meets.

    y (N, M, 16, 20) = Conv(x (N, C, 16, 20), w (M, C, 3, 3), dilations=(12, 24), pads=(12, 24, 12, 24))
      -->
    y = Conv(x, w[:, :, :, 1:2], dilations=(12, 24), pads=(12, 0, 12, 0))

    The products left out are of zeros. Not where a tap that would go is no number: times zero it is NaN. (DeepLabV3's
    dilations of 24 and 36 on 16 x 20 pixels leave one tap of nine, as do filters of 3 x 3 on maps of one pixel.)
    """
    if not any(_cropped(network, node) for node in network.nodes):
        return network
    return replaced(network, ("Conv",), lambda added, node: [_with_live_taps(network, added, node)])


def _with_live_taps(network: Network, added: Additions, node: Node) -> Node:
    along = _cropped(network, node)
    if not along:
        return node
    taps: tuple[Any, ...] = tuple(slice(first, last) for first, last, _, _ in along)
    weight = network.constants[node.inputs[1]][:, :, *taps]
    name = added.constant(f"{node.inputs[1]}.live", np.ascontiguousarray(weight))
    words = {
        "kernel_shape": weight.shape[2:],
        "pads": (*(begin for _, _, begin, _ in along), *(end for _, _, _, end in along)),
    }
    inputs = (node.inputs[0], name, *node.inputs[2:])
    return Node(node.op, node.name, inputs, node.output, {**node.attributes, **words})


Along = tuple[int, int, int, int]  # the first tap that stays, the one behind the last, and both pads


def _cropped(network: Network, node: Node) -> list[Along]:
    """What stays along each axis of the image; empty where all does, and for a node that is no such convolution."""
    if node.op != "Conv" or node.inputs[1] not in network.constants or network.tensors[node.output].size == 0:
        return []
    weight, axes = network.constants[node.inputs[1]], len(node["kernel_shape"])
    words = (node["kernel_shape"], node["strides"], node["dilations"], node["pads"][:axes], node["pads"][axes:])
    extents = zip(network.shape(node.inputs[0])[2:], network.shape(node.output)[2:], *words, strict=True)
    along = [_along(*each) for each in extents]
    live = np.zeros(weight.shape[2:], bool)
    live[tuple(slice(first, last) for first, last, _, _ in along)] = True
    return along if not live.all() and np.isfinite(weight[..., ~live]).all() else []


def _along(extent: int, made: int, taps: int, stride: int, dilation: int, begin: int, end: int) -> Along:
    """The taps from the first to the last that meet a pixel of `extent`, with pads for as many outputs as were made."""
    offsets = [tap * dilation - begin for tap in range(taps)]  # of its pixel for the first output
    # The first output for which it is not in front of the image; extents are not counted through, pads may be huge.
    reached = [max(0, -(offset // stride)) for offset in offsets]
    live = [
        tap
        for tap, (at, offset) in enumerate(zip(reached, offsets, strict=True))
        if at < made and at * stride + offset < extent
    ]
    whole = (0, taps, begin, end)
    if not live:
        return whole
    first, last = live[0], live[-1] + 1
    reach, before = (last - 1 - first) * dilation + 1, begin - first * dilation
    after = (made - 1) * stride + reach - extent - before
    # Pads are not negative: a window that starts inside of the image stays whole, and one that ends there may leave
    # less than a stride unread.
    return whole if before < 0 or after <= -stride else (first, last, before, max(0, after))
