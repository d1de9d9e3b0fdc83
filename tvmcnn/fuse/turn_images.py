"""Images that become rows of tokens and back, as in hybrids of convolution and attention."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator

from tvmcnn.network import TO_FIRST, TO_LAST, Network, Node, Shape, Tensor

REASON = "flat only between an image and rows of tokens, which is turned as a whole"


def turn_images(network: Network) -> Network:
    """The network with each Transpose between channels and flat pixels as one of the image.

    t (N, C, H·W) = Reshape(x (N, C, H, W)); y (N, H·W, C) = Transpose(t, perm=(0, 2, 1))
      -->
    y' (N, H, W, C) = Transpose(x, perm=(0, 2, 3, 1)); y = Reshape(y')

    t (N, C, H·W) = Transpose(x (N, H·W, C), perm=(0, 2, 1)); y (N, C, H, W) = Reshape(t)
      -->
    x' (N, H, W, C) = Reshape(x); y = Transpose(x', perm=(0, 3, 1, 2))

    A Reshape costs nothing, and a Transpose of an image reads or writes blocks of channels, sixteen at a time. With H·W
    as one axis there are no blocks: the image would be copied out of them first and turned one element at a time. An
    output stays as it is, since a Reshape into the caller's memory is a copy.
    """
    makers, tensors = network.makers, dict(network.tensors)
    readers = Counter(name for node in network.nodes for name in {*node.inputs})
    kept = {tensor.name for tensor in network.outputs}
    pairs = {node.output: makers[node.inputs[0]] for node in network.nodes if _turns(network, node)}
    turned = {name: first for name, first in pairs.items() if name not in kept}
    left_out = {first.output for first in turned.values() if readers[first.output] == 1} - kept
    nodes: list[Node] = []
    for node in network.nodes:
        if node.output in turned:
            nodes += _of_image(turned[node.output].inputs[0], node, tensors)
        elif node.output not in left_out:
            nodes.append(node)
    folded = {**network.folded, **dict.fromkeys(left_out, REASON)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    return dataclasses.replace(network, nodes=tuple(nodes), tensors=tensors, folded=folded)


def _turns(network: Network, node: Node) -> bool:
    """True for the second of a Reshape and a Transpose that together turn an image into rows, or rows into one."""
    first = network.makers.get(node.inputs[0]) if node.inputs else None
    if first is None or {node.op, first.op} != {"Reshape", "Transpose"} or first.inputs[0] not in network.tensors:
        return False
    flat, transpose = network.tensors[node.inputs[0]].shape, node if node.op == "Transpose" else first
    image = network.tensors[first.inputs[0] if transpose is node else node.output].shape
    if transpose["perm"] != (0, 2, 1) or len(image) != 4 or not math.prod(image):
        return False
    return flat == (*image[:2], math.prod(image[2:]))


def _of_image(source: str, node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    """The Transpose of an image and the Reshape of its rows that make the output of `node` from `source`."""
    output = tensors[node.output]
    if node.op == "Transpose":
        rows = _rows(tensors[source].shape, output, tensors)
        yield Node("Transpose", node.name, (source,), rows.name, {"perm": TO_LAST})
        yield Node("Reshape", node.name, (rows.name,), output.name)
    else:
        rows = _rows(output.shape, output, tensors)
        yield Node("Reshape", node.name, (source,), rows.name)
        yield Node("Transpose", node.name, (rows.name,), output.name, {"perm": TO_FIRST})


def _rows(image: Shape, output: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """A new tensor N x H x W x C."""
    name = f"{output.name}.rows"
    while name in tensors:
        name += "'"
    tensors[name] = Tensor(name, tuple(image[axis] for axis in TO_LAST), output.dtype)
    return tensors[name]
