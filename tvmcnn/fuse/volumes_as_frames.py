"""Volumes (N, C, D, H, W), as networks for video and for scans have them, become batches of D frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvmcnn.blocks import BLOCK
from tvmcnn.fuse import ELEMENTWISE, POOLS
from tvmcnn.fuse.added import Additions
from tvmcnn.network import FLOAT32, Network, Node, Original, Shape, Tensor, round_up

WHOLE = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}  # with what is left to do of the frames
BY_FRAMES = (0, 2, 1, 3, 4)  # the `perm` of N x C x D x H x W to N x D x C x H x W, and back


def volumes_as_frames(network: Network) -> Network:
    """The network with what convolutions make of volumes as batches of frames, and what is made of these.

    y (N, M, D', H', W') = Conv(x (N, C, D, H, W), w (M, C, kd, kh, kw)); z = Relu(y); t = Flatten(z)
      -->
    x.frames (N·D, C, H, W) = Reshape(Transpose(x))
    x.unfolded (N·D', kd·C, H, W) = UnfoldFrames(x.frames)
    y (N·D', M, H', W') = Conv(x.unfolded, w.frames (M, kd·C, kh, kw)); z = Relu(y)
    z.volume (N, M, D', H', W') = Transpose(Reshape(z)); t = Flatten(z.volume)

    Both compute the same sums. A frame is an image: it lies in blocks of channels, has register tiles, Winograd's too,
    and fuses with what follows; a volume is convolved by plain loops. The kd frames that a window meets follow each
    other in memory, so that they are channels of one image without a copy (choose/cpu/frames.py). In groups, which
    frames as channels would tear apart, each tap of kd is a convolution of its own, and they are added.

    Frames keep the name of their volume, which `originals` describes: that is what the user sees. An output of the
    network is a volume.
    """
    if not any(_convolves(network, node) for node in network.nodes):
        return network
    frames = _Frames(network)
    for node in network.nodes:
        frames.add(node)
    return frames.network()


def _convolves(network: Network, node: Node) -> bool:
    """True for a convolution of volumes by constant windows."""
    if node.op != "Conv" or node.inputs[0] not in network.tensors:
        return False
    output = network.tensors[node.output]
    fixed = all(name in network.constants for name in node.inputs[1:])
    counts = output.counts or network.tensors[node.inputs[0]].counts
    return fixed and not counts and len(output.shape) == 5 and output.dtype == FLOAT32 and output.size > 0


class _Frames:
    """The walk over the nodes, from the first to the last."""

    def __init__(self, network: Network) -> None:
        self.before = network
        self.added = Additions(network)
        self.outputs = {tensor.name for tensor in network.outputs}
        self.nodes: list[tuple[str, list[Node]]] = []  # by the tensor that they make, a volume
        self.behind: dict[str, list[Node]] = {}  # what sees a volume in other forms, by its name
        self.originals: dict[str, Original] = {}
        self.frames: dict[str, str] = {}  # the name of the frames that are made of a volume's kind, by the volume's
        self.views: dict[tuple[Any, ...], str] = {}  # made once: (name, form)

    def network(self) -> Network:
        """What has become of the network: each view directly behind its source, so that an epilogue finds it."""
        for name in self.outputs & self.frames.keys():
            self.volume(name)
        first = [node for tensor in self.before.inputs for node in self.behind.get(tensor.name, ())]
        rest = (node for name, nodes in self.nodes for node in (*nodes, *self.behind.get(name, ())))
        nodes = (*first, *rest)
        return self.added.applied(self.before, nodes, self.originals)

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def add(self, node: Node) -> None:
        """The node as one on frames if it makes some, else reading volumes as it did."""
        if not self.makes_frames(node):
            volumes = tuple(self.volume(name) if name in self.frames else name for name in node.inputs)
            self.nodes.append((node.output, [dataclasses.replace(node, inputs=volumes)]))
            return
        volume = self.before.tensors[node.output]
        n, c, d, h, w = volume.shape
        name = node.output
        if name in self.outputs:
            name = self.added.tensor(f"{name}.frames", (n * d, c, h, w), FLOAT32)
        else:
            self.added.tensors[name] = dataclasses.replace(volume, shape=(n * d, c, h, w))
        self.originals[name], self.frames[node.output] = Original(volume, BY_FRAMES), name
        self.nodes.append((node.output, list(self.on_frames(node, name))))

    def makes_frames(self, node: Node) -> bool:
        """True for a convolution, and for what has frames and keeps them some."""
        output = self.before.tensors[node.output]
        if _convolves(self.before, node):
            return True
        if output.dtype != FLOAT32 or len(output.shape) != 5 or output.counts or not output.size:
            return False
        if node.op in ("DepthToSpace", *POOLS, *WHOLE) or (node.op == "Concat" and node["axis"] not in (0, 2)):
            return all(name in self.frames for name in node.inputs)
        frames = (name for name in node.inputs if name in self.frames)
        return node.op in ELEMENTWISE and any(self.before.shape(name) == output.shape for name in frames)

    def on_frames(self, node: Node, name: str) -> Iterator[Node]:
        """The nodes that make the frames `name` of what `node` makes."""
        if node.op == "Conv":
            yield from self.convolution(node, name)
        elif node.op == "DepthToSpace":
            frames = (self.before.shape(node.inputs[0])[2], self.before.shape(node.output)[2])
            attributes = {**node.attributes, "frames": frames}
            yield Node(node.op, node.name, (self.frames[node.inputs[0]],), name, attributes)
        elif node.op in POOLS:
            yield self.pool(node, name)
        elif node.op in WHOLE:
            yield from self.whole(node, name)
        elif node.op == "Concat":
            axis = node["axis"] if node["axis"] == 1 else node["axis"] - 1
            inputs = tuple(self.frames[each] for each in node.inputs)
            yield dataclasses.replace(node, inputs=inputs, output=name, attributes={**node.attributes, "axis": axis})
        else:
            shape = self.before.shape(node.output)
            inputs = tuple(self.operand(each, shape) for each in node.inputs)
            yield dataclasses.replace(node, inputs=inputs, output=name)

    def convolution(self, node: Node, name: str) -> Iterator[Node]:
        """A convolution of all the frames that a window meets as one image."""
        x, weight, *bias = node.inputs
        array = self.before.constants[weight]
        taps = array.shape[2]
        if node["group"] > 1 and taps > 1:
            yield from self.by_taps(node, name)
            return
        words = (node[word][0] for word in ("strides", "dilations", "pads"))
        image = self.unfolded(x, self.before.shape(node.output)[2], taps, *words)
        if (weight, "frames") not in self.views:
            beyond = 0 if taps == 1 else _channels(array.shape[1]) - array.shape[1]
            rows = np.pad(array.transpose(BY_FRAMES), ((0, 0), (0, 0), (0, beyond), (0, 0), (0, 0)))
            made = self.added.constant(f"{weight}.frames", rows.reshape(rows.shape[0], -1, *rows.shape[3:]))
            self.views[weight, "frames"] = made
            self.originals[made] = Original(Tensor(weight, array.shape, str(array.dtype)), array=array)
        yield Node("Conv", node.name, (image, self.views[weight, "frames"], *bias), name, _of_frames(node.attributes))

    def by_taps(self, node: Node, name: str) -> Iterator[Node]:
        """A convolution for each of the frames that a window meets, and their sum."""
        x, weight, *bias = node.inputs
        array, shape = self.before.constants[weight], self.added.shape(name)
        made, taps = self.before.shape(node.output)[2], array.shape[2]
        stride, dilation, begin = (node[word][0] for word in ("strides", "dilations", "pads"))
        total = ""
        for tap in range(taps):
            if (weight, tap) not in self.views:
                part = np.ascontiguousarray(array[:, :, tap])
                self.views[weight, tap] = self.added.constant(f"{weight}.tap{tap}", part)
            image = self.unfolded(x, made, 1, stride, 1, begin - tap * dilation)
            operands = (image, self.views[weight, tap], *(() if total else bias))
            product = self.added.tensor(f"{name}.tap{tap}", shape, FLOAT32)
            yield Node("Conv", node.name, operands, product, _of_frames(node.attributes))
            if total:
                last = tap == taps - 1
                result = name if last else self.added.tensor(f"{name}.sum{tap}", shape, FLOAT32)
                yield Node("Add", node.name, (product, total), result)
                product = result
            total = product

    def pool(self, node: Node, name: str) -> Node:
        """A pool of frames, or along them too, with the number of `frames` of a volume."""
        x, made = node.inputs[0], self.before.shape(node.output)[2]
        if node["kernel_shape"][0] == 1:
            image = self.unfolded(x, made, 1, node["strides"][0], 1, node["pads"][0])
            return Node(node.op, node.name, (image,), name, _of_frames(node.attributes))
        attributes = {**node.attributes, "frames": (self.before.shape(x)[2], made)}
        return Node(node.op, node.name, (self.frames[x],), name, attributes)

    def whole(self, node: Node, name: str) -> Iterator[Node]:
        """A pool of whole frames, and what it makes of each reduced to one value a volume."""
        x = node.inputs[0]
        n, c, d = self.before.shape(x)[:3]
        if d == 1:
            yield dataclasses.replace(node, inputs=(self.frames[x],), output=name)
            return
        each = self.added.tensor(f"{name}.each", (n * d, c, 1, 1), FLOAT32)
        rows = self.added.tensor(f"{name}.rows", (n, d, c, 1, 1), FLOAT32)
        yield Node(node.op, node.name, (self.frames[x],), each, node.attributes)
        yield Node("Reshape", node.name, (each,), rows)
        yield Node(WHOLE[node.op], node.name, (rows,), name, {"axes": (1,)})

    # ---- other forms of a tensor ------------------------------------------------------------------------------------

    def operand(self, name: str, shape: Shape) -> str:
        """What an element-wise node on frames reads, one that makes a volume of `shape`."""
        own = self.before.shape(name)
        if len(own) <= 2 or (max(own) == 1 and len(own) < 5):
            return name  # broadcasts along the last axes, which frames have too
        n, c, d, h, w = (1,) * (5 - len(own)) + own
        if name in self.before.constants:
            return self.constant(name, (n, c, d, h, w), shape)
        if own == shape:
            return self.as_frames(name)
        key = (name, "spread", shape[0], shape[2])
        if key not in self.views:
            source, rows = self.volume(name) if name in self.frames else name, (n, d, c, h, w)
            if len(own) < 5 or c == 1 or d == 1:
                source = self.view(name, source, "rows", rows, "Reshape")
            else:
                source = self.view(name, source, "rows", rows, "Transpose", perm=BY_FRAMES)
            spread = (shape[0], shape[2], c, h, w)
            source = source if spread == rows else self.view(name, source, "spread", spread, "Expand")
            self.views[key] = self.view(name, source, "frames", (shape[0] * shape[2], c, h, w), "Reshape")
        return self.views[key]

    def constant(self, name: str, own: Shape, shape: Shape) -> str:
        """A constant that broadcasts to frames: repeated only where frames differ in it."""
        key = (name, "constant", *((shape[0], shape[2]) if own[0] > 1 or own[2] > 1 else ()))
        if key not in self.views:
            array = self.before.constants[name]
            rows = array.reshape(own).transpose(BY_FRAMES)
            if own[0] > 1 or own[2] > 1:
                rows = np.broadcast_to(rows, (shape[0], shape[2], *rows.shape[2:]))
            made = self.added.constant(f"{name}.frames", rows.reshape(-1, *rows.shape[2:]))
            self.originals[made] = Original(Tensor(name, array.shape, str(array.dtype)), array=array)
            self.views[key] = made
        return self.views[key]

    def as_frames(self, name: str) -> str:
        """The frames of a volume, made once of one that is none."""
        if name in self.frames:
            return self.frames[name]
        if (name, "frames") not in self.views:
            volume = self.before.tensors[name]
            n, c, d, h, w = volume.shape
            source = name
            if c > 1 and d > 1:
                source = self.view(name, source, "rows", (n, d, c, h, w), "Transpose", perm=BY_FRAMES)
                self.originals[source] = Original(volume, BY_FRAMES)
            made = self.view(name, source, "frames", (n * d, c, h, w), "Reshape")
            self.originals[made], self.views[name, "frames"] = Original(volume, BY_FRAMES), made
        return self.views[name, "frames"]

    def volume(self, name: str) -> str:
        """The volume of frames, made once: under its own name as an output of the network."""
        if (name, "volume") not in self.views:
            volume, source = self.before.tensors[name], self.frames[name]
            n, c, d, h, w = volume.shape
            made = name if name in self.outputs else self.added.tensor(f"{name}.volume", volume.shape, volume.dtype)
            if c == 1 or d == 1:
                node = Node("Reshape", made, (source,), made)
            else:
                source = self.view(name, source, "rows", (n, d, c, h, w), "Reshape")
                self.originals[source] = Original(volume, BY_FRAMES)
                node = Node("Transpose", made, (source,), made, {"perm": BY_FRAMES})
            self.behind.setdefault(name, []).append(node)
            if made != name:
                self.originals[made] = Original(volume)
            self.views[name, "volume"] = made
        return self.views[name, "volume"]

    def unfolded(self, name: str, made: int, taps: int, stride: int, dilation: int, begin: int) -> str:
        """`made` images for each volume, the channels of each those of the `taps` frames that a window meets.

        Several frames have whole blocks of channels each, so that blocks hold channels of one frame.
        """
        source = self.as_frames(name)
        n, c, d, h, w = self.before.shape(name)
        if (taps, begin, made) == (1, 0, d) and 1 in (stride, made):
            return source
        key = (name, made, taps, stride, dilation, begin)
        if key not in self.views:
            channels = c if taps == 1 else _channels(c)
            words = {"taps": taps, "stride": stride, "dilation": dilation, "begin": begin}
            view = self.view(
                name, source, "unfolded", (n * made, taps * channels, h, w), "UnfoldFrames", frames=(d, made), **words
            )
            self.originals[view] = dataclasses.replace(self.originals[source], shown=False)
            self.views[key] = view
        return self.views[key]

    def view(self, volume: str, source: str, called: str, shape: Shape, op: str, **attributes: Any) -> str:
        """A node directly behind a volume that has its elements, or those of `source`, in another form."""
        dtype = self.added.tensors[source].dtype
        made = self.added.tensor(f"{volume}.{called}", shape, dtype)
        self.behind.setdefault(volume, []).append(Node(op, made, (source,), made, attributes))
        return made


def _channels(count: int) -> int:
    """The channels of one frame beside another's: whole blocks, where there are as many as one."""
    return count if count < BLOCK else round_up(count, BLOCK)


def _of_frames(attributes: Any) -> dict[str, Any]:
    """The attributes of a window without the axis of the frames."""
    two = {word: attributes[word][1:] for word in ("kernel_shape", "strides", "dilations")}
    _, top, left, _, bottom, right = attributes["pads"]
    return {**attributes, **two, "pads": (top, left, bottom, right)}
