"""Large windows of MaxPool, as those of spatial pyramids, are pooled along columns, then along rows."""

from __future__ import annotations

from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.network import Network, Node

STORE = 2  # as many pixels as may be read while one is stored and read again
GAIN = 1.5  # times fewer, at least: below it the kernel more costs what it saves


def separate_pools(network: Network) -> Network:
    """The network with each MaxPool of images by a large window as one by its rows and one by its columns.

    y = MaxPool(x, kernel_shape=(13, 13), pads=(6, 6, 6, 6))
      -->
    t = MaxPool(x, kernel_shape=(13, 1), pads=(6, 0, 6, 0)); y = MaxPool(t, kernel_shape=(1, 13), pads=(0, 6, 0, 6))

    The largest of the largest is the same number, and 26 pixels are read for one, not 169. (YOLOv3's pyramid, 256
    channels of 20 x 20 pixels: by 13 x 13 340 to 60 µs, by 5 x 5 50 to 25.)
    """
    return replaced(network, ("MaxPool",), lambda added, node: _parts(network, added, node))


def _parts(network: Network, added: Additions, node: Node) -> list[Node]:
    """The two pools, or the one where they would not pay."""
    output = network.tensors[node.output]
    if len(output.shape) != 4 or len(node["kernel_shape"]) != 2 or output.counts or not _pays(node):
        return [node]
    (n, c, height, _), width = output.shape, network.shape(node.inputs[0])[3]
    columns = added.tensor(f"{node.output}.columns", (n, c, height, width), output.dtype)
    return [
        Node("MaxPool", node.name, node.inputs, columns, _along(node, 0)),
        Node("MaxPool", node.name, (columns,), node.output, _along(node, 1)),
    ]


def _pays(node: Node) -> bool:
    """True where so many fewer pixels are read: the rows of a window for each column between two windows too."""
    (rows, columns), stride = node["kernel_shape"], node["strides"][1]
    return bool(rows * columns >= GAIN * ((rows + STORE) * stride + columns))


def _along(node: Node, axis: int) -> dict[str, object]:
    """The attributes of the pool along one axis."""
    words = {word: tuple(node[word][i] if i == axis else 1 for i in (0, 1)) for word in ("kernel_shape", "strides")}
    dilations = tuple(node["dilations"][i] if i == axis else 1 for i in (0, 1))
    pads = tuple(pad if i % 2 == axis else 0 for i, pad in enumerate(node["pads"]))
    return {**node.attributes, **words, "dilations": dilations, "pads": pads}
