"""Deformable convolutions become the pixels that their windows read, and a convolution of those by 1 x 1."""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.network import Network, Node, Shape

WINDOW = ("kernel_shape", "strides", "pads", "dilations", "group", "offset_group")


def sample_deformed(network: Network) -> Network:
    """The network with each deformable convolution as its samples and a convolution.

    y (N, M, …) = DeformConv(x (N, C, …), w (M, C/G, k…), offset, b, mask, group=G)
      -->
    t (N, G·k·C/G, …) = DeformColumns(x, offset, mask)
    y = Conv(t, w' (M, k·C/G, 1…), b, group=G)

    The channels of t are those of a group for each tap, so that whole blocks of them are read at one place. A sample
    costs as much as some products, and is the same for all maps; the convolution runs at the FMA peak, with all that
    fuses into one.
    """
    return replaced(network, ("DeformConv",), _split)


def _split(added: Additions, node: Node) -> list[Node]:
    x, w, offset, *others = node.inputs
    mask = others[-1:] if node["masked"] else []
    output, ones = added.tensors[node.output], (1,) * len(node["kernel_shape"])
    depth = added.shape(w)[1] * math.prod(node["kernel_shape"])
    shape = (output.shape[0], node["group"] * depth, *output.shape[2:])
    columns = added.tensor(f"{node.output}.columns", shape, output.dtype)
    weight, turned = _turned(added, node, w, (output.shape[1], depth, *ones))
    product = {"kernel_shape": ones, "strides": ones, "dilations": ones, "group": node["group"]}
    product["pads"] = (0,) * 2 * len(ones)
    return [
        Node("DeformColumns", node.name, (x, offset, *mask), columns, {word: node[word] for word in WINDOW}),
        *turned,
        Node("Conv", node.name, (columns, weight, *others[: node["biased"]]), node.output, product),
    ]


def _turned(added: Additions, node: Node, w: str, shape: Shape) -> tuple[str, list[Node]]:
    """The weight (M, C/G, k…) as (M, k·C/G, 1…): a constant, or made by nodes."""
    maps, channels, *window = added.shape(w)
    perm = (0, *range(2, 2 + len(window)), 1)
    constant = added.constants.get(w)
    if constant is not None:
        data = np.ascontiguousarray(constant.transpose(perm)).reshape(shape)
        return added.constant(f"{node.output}.weight", data), []
    dtype = added.tensors[node.output].dtype
    turned = added.tensor(f"{node.output}.turned", (maps, *window, channels), dtype)
    weight = added.tensor(f"{node.output}.weight", shape, dtype)
    return weight, [
        Node("Transpose", node.name, (w,), turned, {"perm": perm}),
        Node("Reshape", node.name, (turned,), weight),
    ]
