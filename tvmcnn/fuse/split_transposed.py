"""Transposed convolutions whose windows touch, as U-Nets enlarge their maps, become convolutions of one pixel."""

from __future__ import annotations

import dataclasses

import numpy as np

from tvmcnn.network import NO_PADS, Network, Node, Tensor


def split_transposed(network: Network) -> Network:
    """The network with each transposed convolution of b x b windows at stride b as a product and a move.

    y (N, M, bH, bW) = ConvTranspose(x (N, C, H, W), w (C, M, b, b))
      -->
    t (N, b²·M, H, W) = Conv(x, w' (b²·M, C, 1, 1)), y = DepthToSpace(t, blocksize=b, mode=DCR)

    Every output pixel has one tap, so that both compute the same sums; the product runs at the FMA peak, and the rest
    is a copy (U-Net's first, from 14x14 to 28x28 pixels: 43 to 3.4 ms), with the maps last a copy of whole blocks.
    """
    constants, tensors = dict(network.constants), dict(network.tensors)
    nodes: list[Node] = []
    for node in network.nodes:
        if not _touches(network, node):
            nodes.append(node)
            continue
        block, weight = node["kernel_shape"][0], constants[node.inputs[1]]
        depth, maps = weight.shape[:2]
        inner = Tensor(
            _fresh(network, f"{node.output}.pixels"), _pixels(network, node), network.tensors[node.output].dtype
        )
        tensors[inner.name] = inner
        names = [_fresh(network, f"{inner.name}.weight")]
        constants[names[0]] = weight.transpose(2, 3, 1, 0).reshape(block**2 * maps, depth, 1, 1)
        if len(node.inputs) > 2:
            names.append(_fresh(network, f"{inner.name}.bias"))
            constants[names[1]] = np.tile(constants[node.inputs[2]], block**2)
        one = {"kernel_shape": (1, 1), "strides": (1, 1), "pads": NO_PADS, "dilations": (1, 1), "group": 1}
        nodes.append(Node("Conv", node.name, (node.inputs[0], *names), inner.name, one))
        move = {"blocksize": block, "mode": "DCR"}
        nodes.append(Node("DepthToSpace", node.name, (inner.name,), node.output, move))
    read = {name for node in nodes for name in node.inputs}
    kept = {name: array for name, array in constants.items() if name in read}
    return dataclasses.replace(network, nodes=tuple(nodes), constants=kept, tensors=tensors)


def _touches(network: Network, node: Node) -> bool:
    """True for a transposed convolution of images with constant weights, windows side by side, in one group."""
    if node.op != "ConvTranspose" or any(name not in network.constants for name in node.inputs[1:]):
        return False
    tensor, kernel = network.tensors[node.output], node["kernel_shape"]
    plain = node["group"] == 1 and not any(node["pads"]) and set(node["dilations"]) == {1}
    square = len(kernel) == 2 and kernel == node["strides"] and kernel[0] == kernel[1] > 1
    if not (plain and square and tensor.dtype == "float32" and node.inputs[0] in network.tensors):
        return False
    n, m, h, w = _pixels(network, node)
    return (n, m // kernel[0] ** 2, h * kernel[0], w * kernel[0]) == tensor.shape  # no output_padding


def _pixels(network: Network, node: Node) -> tuple[int, int, int, int]:
    n, _, h, w = network.tensors[node.inputs[0]].shape
    return (n, network.tensors[node.output].shape[1] * node["kernel_shape"][0] ** 2, h, w)


def _fresh(network: Network, name: str) -> str:
    while name in network.tensors or name in network.constants:
        name += "'"
    return name
