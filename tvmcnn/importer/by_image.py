"""By image: whether a network makes of each image of a batch what it makes of that image alone.

Then a library that is compiled for one batch size runs any, in parts. It is proved of a network that was imported at
two batch sizes:

1. In the larger every tensor has an axis along which the images lie one behind the other, and no node mixes them.
2. Both have the same nodes and constants, and tensors that differ along these axes alone.
3. Whatever is computed of the number of images shapes what is theirs, in proportion: see image_counts.py.

    x  8x3x32x32       axis 0: a graph input
    y  8x16x8x8        axis 0: Conv keeps the axis of its image
    z  8x1024          axis 0: Reshape has as many elements before it
    t  1024x8          axis 1: Transpose moves it
    m  8x1024          none:   Softmax along axis 0 would mix images
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvmcnn.errors import TvmcnnError
from tvmcnn.importer import image_counts
from tvmcnn.importer.operators import OPERATORS
from tvmcnn.importer.operators import elementwise as elementwise_operators
from tvmcnn.importer.shapes import bound_batch
from tvmcnn.network import Array, Network, Node, Shape, dims
from tvmcnn.onnx_file import Opened

Imported = tuple[Network, Opened]


def with_open_batch(network: Network, imported: Callable[[int], Imported]) -> Network:
    """The network whose leading dimensions stay open where the file leaves them so and images are proved to be apart.

    Others are bound to 1, and a note says why. `imported` gives the network for another batch, and its graph.
    """
    if {tensor.name for tensor in network.inputs} != network.open_batch.keys():
        return dataclasses.replace(network, open_batch={})
    try:
        why = obstacle(network, *imported(2))
    except TvmcnnError as error:
        why = f"with 2 it is no network: {error}"
    notes = {
        bound_batch(name, symbol): f"{bound_batch(name, symbol)}: {why}" if why else _open(name, symbol)
        for name, symbol in network.open_batch.items()
    }
    told = tuple(notes.get(note, note) for note in network.notes)
    return dataclasses.replace(network, notes=told, open_batch={} if why else network.open_batch)


def _open(name: str, symbol: str) -> str:
    return (
        f"input '{name}': its leading dimension '{symbol}' stays open: batches run image by image"
        " (--batch 1,8,64 adds kernels for several at once)"
    )


def obstacle(small: Network, large: Network, graph: Opened) -> str:
    """Why images cannot be computed one by one, empty where they can.

    Both are one model, imported at two batch sizes: the leading extent of every input. `graph` is the model before
    anything folds, at the second.
    """
    sizes = [{tensor.shape[:1] for tensor in network.inputs} for network in (small, large)]
    if any(len(each) != 1 or () in each for each in sizes):
        return "its inputs have no batch in common"
    (few,), (many,) = (each.pop() for each in sizes)
    axes = {tensor.name: 0 for tensor in large.inputs}
    for node in large.nodes:
        axis = _axis_of(_Reader(large, axes, node))
        if axis is None:
            return f"node '{node.name}' ({node.op}) is not known to keep the images of a batch apart"
        axes[node.output] = axis
    for tensor in large.outputs:
        if axes[tensor.name]:
            return f"output '{tensor.name}' has the images of a batch along axis {axes[tensor.name]}, not 0"
    counts = image_counts.obstacle(graph.proto.graph, graph.weights, large, axes)
    return counts or _difference(small, large, axes, few, many)


@dataclass(frozen=True)
class _Reader:
    """A node with what is known of its operands; an operand without an axis is constant."""

    network: Network
    axes: Mapping[str, int]
    node: Node

    @property
    def shape(self) -> Shape:
        """The output's."""
        return self.network.tensors[self.node.output].shape

    def operands(self, places: Sequence[int] | None = None) -> list[tuple[Shape, int]]:
        """Shape and axis of the operands that have images, of those at some places or of all."""
        names = self.node.inputs if places is None else [self.node.inputs[i] for i in places]
        return [(self.network.shape(name), self.axes[name]) for name in names if name in self.axes]

    def only(self, *places: int) -> bool:
        """Whether no operand but those at these places has images."""
        others = [place for place in range(len(self.node.inputs)) if place not in places]
        return bool(self.operands()) and not self.operands(others)


Rule = Callable[[_Reader], int | None]  # the axis of the images in the output, None where they mix


def _axis_of(reader: _Reader) -> int | None:
    rule = RULES.get(reader.node.op)
    if rule is None or not reader.operands():
        return None
    return rule(reader)


# ---- rules ----------------------------------------------------------------------------------------------------------


def _broadcast(reader: _Reader) -> int | None:
    """Element by element, operands aligned at their last axes."""
    rank = len(reader.shape)
    found = {axis + rank - len(shape) for shape, axis in reader.operands()}
    axis = found.pop()
    whole = all(shape[own] == reader.shape[axis] for shape, own in reader.operands())
    return axis if not found and whole else None


def _at_front(*places: int) -> Rule:
    """Windows, and whatever else has N first: the operands at these places are images, and others have none."""

    def rule(reader: _Reader) -> int | None:
        present = [place for place in places if place < len(reader.node.inputs)]
        operands = reader.operands(present)
        return 0 if reader.only(*present) and all(axis == 0 for _, axis in operands) else None

    return rule


def _deformed(reader: _Reader) -> int | None:
    """DeformConv: image, offsets and, in the last place, the mask."""
    mask = [len(reader.node.inputs) - 1] if reader.node["masked"] else []
    return _at_front(0, 2, *mask)(reader)


def _seen(reader: _Reader) -> int | None:
    """Reshape: the axis with as many elements before it, and whole images along it."""
    return _same_place(reader, *reader.operands()[0])


def _same_place(reader: _Reader, shape: Shape, axis: int) -> int | None:
    before, images = math.prod(shape[:axis]), _images(reader)
    places = range(len(reader.shape))
    found = (
        place
        for place in places
        if math.prod(reader.shape[:place]) == before and reader.shape[place] and reader.shape[place] % images == 0
    )
    return next(found, None)


def _images(reader: _Reader) -> int:
    return reader.network.inputs[0].shape[0]


def _kept_whole(reader: _Reader) -> int | None:
    """Slice: the axis that stays whole, where the result is then seen in another shape."""
    ((shape, axis),) = reader.operands()
    sizes, steps = reader.node["sizes"], reader.node["steps"]
    return _same_place(reader, sizes, axis) if sizes[axis] == shape[axis] and steps[axis] == 1 else None


def _permuted(reader: _Reader) -> int | None:
    ((_, axis),) = reader.operands()
    return int(reader.node["perm"].index(axis))


def _as_long(reader: _Reader) -> int | None:
    """Pad and Resize: an axis that stays as long, and as it is."""
    (shape, axis), node = reader.operands()[0], reader.node
    touched = axis in node.attributes.get("axes", ()) or bool(node.attributes.get("begins", [0] * len(shape))[axis])
    return axis if reader.only(0) and shape[axis] == reader.shape[axis] and not touched else None


def _repeated(reader: _Reader) -> int | None:
    """Expand and Tile: along other axes."""
    ((shape, axis),) = reader.operands()
    place = axis + len(reader.shape) - len(shape)
    return place if reader.shape[place] == shape[axis] else None


def _concatenated(reader: _Reader) -> int | None:
    found = {axis for _, axis in reader.operands()}
    return found.pop() if len(found) == 1 and reader.node["axis"] not in found else None


def _reduced(reader: _Reader) -> int | None:
    """Reductions along other axes, with or without these left as 1."""
    (shape, axis), gone = reader.operands()[0], reader.node.attributes.get("axes", ())
    if axis in gone or not gone:
        return None
    return axis - (0 if len(shape) == len(reader.shape) else sum(other < axis for other in gone))


def _along_another(reader: _Reader) -> int | None:
    """Softmax, TopK and others along one axis, where all operands are as long along that of the images."""
    node, found = reader.node, {axis for _, axis in reader.operands()}
    along = range(*node["along"]) if "along" in node.attributes else (node["axis"],)
    axis = found.pop()
    whole = {reader.network.shape(name)[axis] for name in node.inputs} == {reader.shape[axis]}
    return axis if not found and whole and axis not in along else None


def _normalised(reader: _Reader) -> int | None:
    """LayerNormalization: over all axes from `axis` on."""
    axis = reader.axes.get(reader.node.inputs[0])
    return axis if axis is not None and reader.only(0) and axis < reader.node["axis"] else None


def _gathered(reader: _Reader) -> int | None:
    """Gather by constant indices from along another axis, or by computed ones from a constant."""
    (data, indices), along = reader.node.inputs, reader.node["axis"]
    wider = len(reader.network.shape(indices)) - 1
    if reader.only(0):
        axis = reader.axes[data]
        return None if axis == along else axis + (wider if axis > along else 0)
    return along + reader.axes[indices] if reader.only(1) else None


def _gathered_by_tuples(reader: _Reader) -> int | None:
    """GatherND: by computed tuples from a constant, or both along a batch axis."""
    found = {axis for _, axis in reader.operands()}
    axis = found.pop()
    if reader.only(1) and not reader.node["batch_dims"]:
        return axis if axis < len(reader.network.shape(reader.node.inputs[1])) - 1 else None
    return axis if not found and axis < reader.node["batch_dims"] else None


def _one_hot(reader: _Reader) -> int | None:
    if not reader.only(0):
        return None
    ((_, axis),) = reader.operands()
    return axis + 1 if axis >= reader.node["axis"] else axis


def _matrices(reader: _Reader) -> int | None:
    """Trilu: of all matrices, the last two axes, in the same way."""
    ((shape, axis),) = reader.operands()
    return axis if reader.only(0) and axis < len(shape) - 2 else None


def _multiplied(reader: _Reader) -> int | None:
    """MatMul: the rows of the first matrix, the columns of the second, or axes before both."""
    found = set()
    first, second = (len(reader.network.shape(name)) for name in reader.node.inputs[:2])
    if first == 1:
        return None
    for place, name in enumerate(reader.node.inputs):
        if name not in reader.axes:
            continue
        shape, axis = reader.network.shape(name), reader.axes[name]
        from_end = len(shape) - axis  # 1: the last axis
        if place > 1 or len(shape) < 2 or from_end == (1 if place == 0 else 2):
            return None
        if from_end <= 2 and not reader.only(place):
            return None
        found.add(len(reader.shape) + (second == 1) - from_end)  # a vector's product has no columns
    return found.pop() if len(found) == 1 else None


def _rows(reader: _Reader) -> int | None:
    """Gemm: the rows of A, transposed or not; of what was a MatMul by a constant any axis but the last."""
    if not reader.only(0):
        return None
    ((shape, axis),) = reader.operands()
    if reader.node.attributes.get("transA"):
        return 0 if axis == 1 else None
    return axis if axis < len(shape) - 1 else None


def _over_time(reader: _Reader) -> int | None:
    """LSTM, GRU and RNN: gates T x N x G, states D x N x H, lengths N  -->  T x D x N x H."""
    return 2 if all(axis == len(shape) // 2 for shape, axis in reader.operands()) and not reader.operands([1]) else None


WINDOWS = [
    "Conv",
    "ConvTranspose",
    "ConvInteger",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
]
ELEMENTWISE = {name for name, function in OPERATORS.items() if function.__module__ == elementwise_operators.__name__}
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE | {"BatchNormalization", "QuantizeLinear", "DequantizeLinear"}, _broadcast),
    **dict.fromkeys((*WINDOWS, "LRN", "InstanceNormalization", "GroupNormalization"), _at_front(0)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "Col2Im"), _at_front(0)),
    **{"GridSample": _at_front(0, 1), "DeformConv": _deformed},
    **{"Reshape": _seen, "Slice": _kept_whole, "Transpose": _permuted, "Pad": _as_long, "Resize": _as_long},
    **{"Expand": _repeated, "Tile": _repeated, "Concat": _concatenated},
    **dict.fromkeys((name for name in OPERATORS if name.startswith(("Reduce", "Arg"))), _reduced),
    **dict.fromkeys(
        ("Softmax", "LogSoftmax", "CumSum", "TopK", "GatherElements", "ScatterElements"),
        _along_another,
    ),
    **dict.fromkeys(("LayerNormalization", "LayerNormalizationMean", "LayerNormalizationInvStdDev"), _normalised),
    **{"Gather": _gathered, "GatherND": _gathered_by_tuples, "OneHot": _one_hot, "Trilu": _matrices},
    **{"MatMul": _multiplied, "MatMulInteger": _multiplied, "Gemm": _rows},
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _over_time),
}


# ---- two batch sizes ------------------------------------------------------------------------------------------------


def _difference(small: Network, large: Network, axes: Mapping[str, int], few: int, many: int) -> str:
    """What else than the number of images differs, empty for nothing."""
    unlike = f"the network is another for a batch of {few} than for one of {many}"
    if len(small.nodes) != len(large.nodes):
        return unlike
    for one, other in zip(small.nodes, large.nodes, strict=True):
        if one.inputs != other.inputs or one.output != other.output:
            return f"{unlike}: node '{one.name}' ({one.op}) reads or makes other tensors"
        if _is_turned_view(one, other, small):
            continue
        if one.op != other.op:
            return f"{unlike}: node '{one.name}' is {one.op} and {other.op}"
        if _attributes(one, axes) != _attributes(other, axes):
            return f"{unlike}: the attributes of node '{one.name}' ({one.op}) differ"
    for name, axis in axes.items():
        found, wanted = small.tensors[name].shape, list(large.tensors[name].shape)
        wanted[axis] = wanted[axis] // many * few
        if found != tuple(wanted):
            return f"{unlike}: '{name}' is {dims(found)} and {dims(large.tensors[name].shape)}"
    used = {name for node in large.nodes for name in node.inputs if name in large.constants}
    for name in sorted(used):
        if not _same_for_each(small.constants[name], large.constants[name], few, many):
            return f"{unlike}: the constant '{name}' differs"
    return ""


def _is_turned_view(one: Node, other: Node, small: Network) -> bool:
    """Whether the first is the second, a Transpose, of an image whose axes with several elements stay in order."""
    if (one.op, other.op) != ("Reshape", "Transpose"):
        return False
    shape = small.shape(one.inputs[0])
    long = [axis for axis in other["perm"] if shape[axis] != 1]
    return long == sorted(long)


def _attributes(node: Node, axes: Mapping[str, int]) -> dict[str, object]:
    """The attributes that do not count images."""
    found = dict(node.attributes)
    if node.op == "Slice":
        axis = axes[node.inputs[0]]
        found["sizes"] = (*node["sizes"][:axis], *node["sizes"][axis + 1 :])
    return {
        name: np.asarray(value).tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()
    }


def _same_for_each(small: Array, large: Array, few: int, many: int) -> bool:
    """Whether both hold the same for each image: once, or again for each along one axis."""
    if small.dtype != large.dtype or small.ndim != large.ndim:
        return False
    longer = [axis for axis in range(small.ndim) if small.shape[axis] != large.shape[axis]]
    if len(longer) > 1:
        return False
    if not longer:
        return _same_bytes(small, large)
    (axis,) = longer
    parts = [_by_image(each, axis, count) for each, count in ((small, few), (large, many))]
    first = parts[0][:1] if parts[0] is not None else None
    return first is not None and all(part is not None and _all_equal(part, first) for part in parts)


def _by_image(array: Array, axis: int, images: int) -> Array | None:
    """The array with an axis of images in front; None where they do not divide it."""
    whole, rest = divmod(array.shape[axis], images)
    if rest:
        return None
    return np.moveaxis(array.reshape(*array.shape[:axis], images, whole, *array.shape[axis + 1 :]), axis, 0)


def _all_equal(parts: Array, first: Array) -> bool:
    return parts.shape[1:] == first.shape[1:] and all(_same_bytes(part, first[0]) for part in parts)


def _same_bytes(one: Array, other: Array) -> bool:
    """Whether arrays of one shape and type have the same bits, NaN among them."""
    if one.__array_interface__ == other.__array_interface__:  # the same weights, which may be hundreds of MB
        return True
    bits = f"u{one.dtype.itemsize}"
    return bool(np.array_equal(np.ascontiguousarray(one).view(bits), np.ascontiguousarray(other).view(bits)))
