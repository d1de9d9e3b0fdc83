"""Sequences (N, C, L), as networks for sound and other signals have them, become images of one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvmcnn.fuse import ELEMENTWISE, POOLS
from tvmcnn.fuse.added import Additions
from tvmcnn.network import FLOAT32, Network, Node, Original, Shape, Tensor

CONVOLUTIONS = ("Conv", "ConvTranspose")
WINDOWED = (*POOLS, "LpPool")
WHOLE = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
WORDS = ("kernel_shape", "strides", "dilations")  # of a window, with one number an axis


def rows_as_images(network: Network) -> Network:
    """The network with what convolutions make of sequences as images of one row, and what is made of these.

    y (N, M, L') = Conv(x (N, C, L), w (M, C/g, k), strides=s, pads=(p, q)); z = Relu(y); t = Transpose(z)
      -->
    x.image (N, C, 1, L) = Reshape(x)
    y (N, M, 1, L') = Conv(x.image, w.image (M, C/g, 1, k), strides=(1, s), pads=(0, p, 0, q)); z = Relu(y)
    z.flat (N, M, L') = Reshape(z); t = Transpose(z.flat)

    Both compute the same sums, and a Reshape costs nothing. An image lies in blocks of channels, has register tiles and
    fuses with what follows; a sequence is convolved by plain loops. An image keeps the name of its sequence, which
    `originals` describes: that is what the user sees. Outputs do not change. (256 to 256 maps by 3 taps at 500
    positions: 22.3 to 2.9 ms; 512 maps by 512 taps at stride 256, as of a spectrogram: 15.3 to 0.8; AVX2, AMD EPYC.)
    """
    if not any(_convolves(network, node) for node in network.nodes):
        return network
    rows = _Rows(network)
    for node in network.nodes:
        rows.add(node)
    return rows.network()


def _convolves(network: Network, node: Node) -> bool:
    """True for a convolution of sequences by constant windows, transposed or not."""
    if node.op not in CONVOLUTIONS or node.inputs[0] not in network.tensors:
        return False
    output = network.tensors[node.output]
    fixed = all(name in network.constants for name in node.inputs[1:])
    return fixed and len(output.shape) == 3 and output.dtype == FLOAT32 and output.size > 0


class _Rows:
    """The walk over the nodes, from the first to the last."""

    def __init__(self, network: Network) -> None:
        self.before = network
        self.added = Additions(network)
        self.nodes: list[Node] = []
        self.originals: dict[str, Original] = {}  # of the names that are images, or views of them
        self.images: set[str] = set()  # under the names of their sequences
        self.views: dict[str, Node] = {}  # what sees a tensor in the other rank, by its name
        self.constants: dict[str, str] = {}  # those that images read

    def network(self) -> Network:
        """What has become of the network: each view directly behind its source, so that an epilogue finds it."""
        first = [self.views[tensor.name] for tensor in self.before.inputs if tensor.name in self.views]
        behind = ((node, self.views.get(node.output)) for node in self.nodes)
        nodes = (*first, *(each for pair in behind for each in pair if each is not None))
        return self.added.applied(self.before, nodes, self.originals)

    def add(self, node: Node) -> None:
        """The node as one on images if it makes one, else reading flat what it read."""
        if not self.makes_image(node):
            self.nodes.append(dataclasses.replace(node, inputs=tuple(map(self.flat, node.inputs))))
            return
        self.nodes.append(
            dataclasses.replace(
                node, inputs=tuple(map(self.operand, node.inputs)), attributes=_attributes(node.op)(node.attributes)
            )
        )
        sequence = self.before.tensors[node.output]
        self.originals[node.output] = Original(sequence)
        self.images.add(node.output)
        self.added.tensors[node.output] = dataclasses.replace(sequence, shape=_image(sequence.shape))

    def makes_image(self, node: Node) -> bool:
        """True for a convolution, and for what has an image and keeps it one."""
        output = self.before.tensors[node.output]
        if _convolves(self.before, node):
            return True
        if output.dtype != FLOAT32 or len(output.shape) != 3:
            return False
        if node.op in (*WINDOWED, *WHOLE, "Concat"):
            return all(name in self.images for name in node.inputs)
        whole = (name for name in node.inputs if name in self.images)
        return node.op in ELEMENTWISE and any(self.before.shape(name) == output.shape for name in whole)

    def operand(self, name: str) -> str:
        """What a node on images reads: with a row before the last axis, unless that axis is all there is."""
        shape = self.before.shape(name)
        if name in self.images or len(shape) < 2:
            return name
        if name not in self.before.constants:
            return self.view(name, f"{name}.image", _image(shape))
        if name not in self.constants:
            array = self.before.constants[name]
            made = self.added.constant(f"{name}.image", array.reshape(_image(shape)))
            self.constants[name], self.originals[made] = made, Original(Tensor(name, shape, str(array.dtype)))
        return self.constants[name]

    def flat(self, name: str) -> str:
        """What any other node reads."""
        return self.view(name, f"{name}.flat", self.before.shape(name)) if name in self.images else name

    def view(self, name: str, called: str, shape: Shape) -> str:
        """The tensor in another rank, made once."""
        if name not in self.views:
            original = self.before.tensors[name]
            made = self.added.tensor(called, shape, original.dtype)
            self.views[name], self.originals[made] = Node("Reshape", made, (name,), made), Original(original)
        return self.views[name].output


def _image(shape: Shape) -> Shape:
    """N x C x L --> N x C x 1 x L"""
    return (*shape[:-1], 1, shape[-1])


def _attributes(op: str) -> Callable[[Any], dict[str, Any]]:
    """What makes an operator's attributes those of images."""
    return {**dict.fromkeys((*CONVOLUTIONS, *WINDOWED), _window), "Concat": _axis}.get(op, dict)


def _window(attributes: Any) -> dict[str, Any]:
    """The attributes of a window of one row."""
    begin, end = attributes["pads"]
    two = {word: (1, *attributes[word]) for word in WORDS if word in attributes}
    return {**attributes, **two, "pads": (0, begin, 0, end)}


def _axis(attributes: Any) -> dict[str, Any]:
    """The attributes of a concatenation, whose positions are the fourth axis."""
    return {**attributes, "axis": 3 if attributes["axis"] == 2 else attributes["axis"]}
