"""Images that become rows of tokens and back, as in hybrids of convolution and attention."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator

from tvmcnn.fuse.added import Additions
from tvmcnn.network import TO_FIRST, TO_LAST, Network, Node, Shape

REASON = "flat only between an image and rows of tokens, which is turned as a whole"
MOVES = ("Reshape", "Transpose")


def turn_images(network: Network) -> Network:
    """The network with each Transpose between channels and flat pixels as one of the image.

    t (N, C, H·W) = Reshape(x (N, C, H, W)); y (N, H·W, C) = Transpose(t, perm=(0, 2, 1))
      -->
    y' (N, H, W, C) = Transpose(x, perm=(0, 2, 3, 1)); y = Reshape(y')

    t (N, C, H·W) = Transpose(x (N, H·W, C), perm=(0, 2, 1)); y (N, C, H, W) = Reshape(t)
      -->
    x' (N, H, W, C) = Reshape(x); y = Transpose(x', perm=(0, 3, 1, 2))

    The channels may be several axes, heads and their channels, of which the last stays last among the tokens; tokens of
    one head after the other are then a second Transpose, of whole rows.

    A Reshape costs nothing, and a Transpose of an image reads or writes blocks of channels, sixteen at a time. With H·W
    as one axis there are no blocks: the image would be copied out of them first and turned one element at a time. An
    output stays as it is, since a Reshape into the caller's memory is a copy.
    """
    readers = Counter(name for node in network.nodes for name in {*node.inputs})
    kept = {tensor.name for tensor in network.outputs}
    pairs = {node.output: pair for node in network.nodes if (pair := _pair(network, node)) and node.output not in kept}
    left_out = {pair.first.output for pair in pairs.values() if readers[pair.first.output] == 1} - kept
    added = Additions(network)
    nodes: list[Node] = []
    for node in network.nodes:
        if node.output in pairs:
            nodes += pairs[node.output].turned(added)
        elif node.output not in left_out:
            nodes.append(node)
    tensors = {name: tensor for name, tensor in added.tensors.items() if name not in left_out}
    folded = {**network.folded, **dict.fromkeys(left_out - network.originals.keys(), REASON)}
    return dataclasses.replace(network, nodes=tuple(nodes), tensors=tensors, folded=folded)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A Reshape and a Transpose, in either order, that turn an image into tokens, or tokens into an image."""

    first: Node
    last: Node
    image: Shape  # N x C x H x W
    channels: Shape  # C as the axes that the Reshape makes of it, or makes C of
    perm: tuple[int, ...]  # makes the tokens of N x H·W x channels, or that of the tokens

    def turned(self, added: Additions) -> Iterator[Node]:
        """The nodes that stand for both; what lies between them is `added`."""
        source, name = self.first.inputs[0], self.last.output
        n, _, height, width = self.image
        rows, heads = (n, height, width, self.image[1]), (n, height * width, *self.channels)
        steps: list[tuple[str, Shape, tuple[int, ...]]]
        if self.last.op == "Transpose":
            steps = [
                ("Transpose", rows, TO_LAST),
                ("Reshape", heads, ()),
                ("Transpose", added.shape(name), self.perm),
            ]
        else:
            steps = [("Transpose", heads, self.perm), ("Reshape", rows, ()), ("Transpose", self.image, TO_FIRST)]
        steps = [step for step in steps if step[2] != tuple(range(len(self.perm)))]
        for op, shape, perm in steps[:-1]:
            between = added.tensor(f"{name}.rows", shape, added.tensors[name].dtype)
            yield Node(op, self.last.name, (source,), between, {"perm": perm} if perm else {})
            source = between
        op, _, perm = steps[-1]
        yield Node(op, self.last.name, (source,), name, {"perm": perm} if perm else {})


def _pair(network: Network, node: Node) -> _Pair | None:
    """The pair whose second is `node`, if it is one."""
    first = network.makers.get(node.inputs[0]) if node.op in MOVES else None
    if first is None or {node.op, first.op} != {*MOVES} or first.inputs[0] not in network.tensors:
        return None
    source, flat, made = (network.tensors[name].shape for name in (first.inputs[0], node.inputs[0], node.output))
    image, perm = (source, node["perm"]) if node.op == "Transpose" else (made, first["perm"])
    if len(image) != 4 or not math.prod(image) or len(flat) < 3:
        return None
    channels = flat[1:-1]
    if (flat[0], math.prod(channels), flat[-1]) != (image[0], image[1], math.prod(image[2:])):
        return None
    last = len(flat) - 1  # the axis of the pixels in N x channels x pixels
    order = (0, last, *range(1, last))
    if node.op == "Transpose":
        if perm[-1] != last - 1:
            return None
        moved = tuple(order.index(axis) for axis in perm)
    else:
        if perm[last - 1] != last:
            return None
        moved = tuple(perm[axis] for axis in order)
    whole = moved == tuple(range(len(moved)))
    return _Pair(first, node, image, channels, moved) if whole or _is_in_blocks(network, node, first) else None


def _is_in_blocks(network: Network, node: Node, first: Node) -> bool:
    """True where a convolution makes or reads the image: a second Transpose pays where the first is one of blocks."""
    if node.op == "Transpose":
        maker = network.makers.get(first.inputs[0])
        return maker is not None and maker.op == "Conv"
    return any(other.op == "Conv" and other.inputs[0] == node.output for other in network.nodes)
