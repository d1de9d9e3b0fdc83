"""Deformable convolutions become the pixels that their windows read, and a convolution of those by 1 x 1."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tvmcnn.network import Network, Node, Shape, Tensor


def sample_deformed(network: Network) -> Network:
    """The network with each deformable convolution as its samples and a convolution.

    y (N, M, …) = DeformConv(x (N, C, …), w (M, C/G, k…), offset, b, mask, group=G)
      -->
    t (N, G·k·C/G, …) = DeformColumns(x, offset, mask)
    y = Conv(t, w' (M, k·C/G, 1…), b, group=G)

    The channels of t are those of a group for each tap, so that whole blocks of them are read at one place. Samples
    cost about as much as a product with 16 maps, and are the same for all of them; the convolution runs at the FMA
    peak, with all that fuses into one.
    """
    if all(node.op != "DeformConv" for node in network.nodes):
        return network
    found = dataclasses.replace(network, constants=dict(network.constants), tensors=dict(network.tensors))
    nodes = [each for node in network.nodes for each in (_split(found, node) if node.op == "DeformConv" else [node])]
    read = {name for node in nodes for name in node.inputs}
    kept = {name: array for name, array in found.constants.items() if name in read}
    return dataclasses.replace(found, nodes=tuple(nodes), constants=kept)


def _split(network: Network, node: Node) -> list[Node]:
    """The nodes of one, whose tensors and constants join those of the network."""
    x, w, offset, *others = node.inputs
    mask = others[-1:] if node["masked"] else []
    output, rank = network.tensors[node.output], len(node["kernel_shape"])
    depth = _shape(network, w)[1] * math.prod(node["kernel_shape"])
    words = ("kernel_shape", "strides", "pads", "dilations", "group", "offset_group")
    columns = _made(
        network, f"{node.output}.columns", (output.shape[0], node["group"] * depth, *output.shape[2:]), output
    )
    weight, turned = _turned(network, node, w, (output.shape[1], depth, *(1,) * rank))
    ones = (1,) * rank
    product = {"kernel_shape": ones, "strides": ones, "pads": (0, 0) * rank, "dilations": ones, "group": node["group"]}
    return [
        Node("DeformColumns", node.name, (x, offset, *mask), columns, {word: node[word] for word in words}),
        *turned,
        Node("Conv", node.name, (columns, weight, *others[: node["biased"]]), node.output, product),
    ]


def _turned(network: Network, node: Node, w: str, shape: Shape) -> tuple[str, list[Node]]:
    """The weight (M, C/G, k…) as (M, k·C/G, 1…): a constant, or made by nodes."""
    maps, channels, *window = _shape(network, w)
    perm = (0, *range(2, 2 + len(window)), 1)
    if w in network.constants:
        name = _fresh(network, f"{node.output}.weight")
        network.constants[name] = np.ascontiguousarray(network.constants[w].transpose(perm)).reshape(shape)
        return name, []
    like = network.tensors[node.output]
    turned = _made(network, f"{node.output}.turned", (maps, *window, channels), like)
    weight = _made(network, f"{node.output}.weight", shape, like)
    return weight, [
        Node("Transpose", node.name, (w,), turned, {"perm": perm}),
        Node("Reshape", node.name, (turned,), weight),
    ]


def _made(network: Network, name: str, shape: Shape, like: Tensor) -> str:
    """A new tensor of the network."""
    name = _fresh(network, name)
    network.tensors[name] = Tensor(name, shape, like.dtype)
    return name


def _shape(network: Network, name: str) -> Shape:
    return network.constants[name].shape if name in network.constants else network.tensors[name].shape


def _fresh(network: Network, name: str) -> str:
    while name in network.tensors or name in network.constants:
        name += "'"
    return name
