"""Image axes: where the images of a batch lie in what a node makes, if it keeps them apart.

A tensor has its images along one axis, as many elements each, one image behind the other. A rule tells the axis in a
node's output from those of its operands, and gives None where the node may mix images; operands without an axis are
constants. In these three x is N x 3 x 7:

    Transpose(x), perm 1, 0, 2       3 x N x 7: along axis 1
    Reshape(x) to -1 x 7             3·N x 7: along axis 0, three rows an image
    Softmax(x) along axis 0          none
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tvmcnn.importer.operators import OPERATORS
from tvmcnn.importer.operators import elementwise as elementwise_operators
from tvmcnn.network import Network, Node, Shape


@dataclass(frozen=True)
class Reader:
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


Rule = Callable[[Reader], int | None]  # the axis of the images in the output, None where they mix


# ---- rules ----------------------------------------------------------------------------------------------------------


def _broadcast(reader: Reader) -> int | None:
    """Element by element, operands aligned at their last axes."""
    rank = len(reader.shape)
    found = {axis + rank - len(shape) for shape, axis in reader.operands()}
    axis = found.pop()
    whole = all(shape[own] == reader.shape[axis] for shape, own in reader.operands())
    return axis if not found and whole else None


def _at_front(*places: int) -> Rule:
    """Windows, and whatever else has N first: the operands at these places are images, and others have none."""

    def rule(reader: Reader) -> int | None:
        present = [place for place in places if place < len(reader.node.inputs)]
        operands = reader.operands(present)
        return 0 if reader.only(*present) and all(axis == 0 for _, axis in operands) else None

    return rule


def _before_windows(reader: Reader) -> int | None:
    """Pools: N, or what stands for the channels, each of which is pooled by itself."""
    ((_, axis),) = reader.operands()
    return axis if axis < 2 else None


def _deformed(reader: Reader) -> int | None:
    """DeformConv: image, offsets and, in the last place, the mask."""
    mask = [len(reader.node.inputs) - 1] if reader.node["masked"] else []
    return _at_front(0, 2, *mask)(reader)


def _seen(reader: Reader) -> int | None:
    """Reshape: the axis with as many elements before it, and whole images along it."""
    return _same_place(reader, *reader.operands()[0])


def _same_place(reader: Reader, shape: Shape, axis: int) -> int | None:
    before, images = math.prod(shape[:axis]), _images(reader)
    places = range(len(reader.shape))
    found = (
        place
        for place in places
        if math.prod(reader.shape[:place]) == before and reader.shape[place] and reader.shape[place] % images == 0
    )
    return next(found, None)


def _images(reader: Reader) -> int:
    return reader.network.inputs[0].shape[0]


def _kept_whole(reader: Reader) -> int | None:
    """Slice: the axis that stays whole, where the result is then seen in another shape."""
    ((shape, axis),) = reader.operands()
    sizes, steps = reader.node["sizes"], reader.node["steps"]
    return _same_place(reader, sizes, axis) if sizes[axis] == shape[axis] and steps[axis] == 1 else None


def _written(reader: Reader) -> int | None:
    """ScatterBox: a part that is written over, of the same images."""
    found = {axis for _, axis in reader.operands()}
    axis = found.pop()
    whole = reader.node["begins"][axis] == 0 and reader.node["sizes"][axis] == reader.shape[axis]
    return axis if not found and whole else None


def _permuted(reader: Reader) -> int | None:
    ((_, axis),) = reader.operands()
    return int(reader.node["perm"].index(axis))


def _as_long(reader: Reader) -> int | None:
    """Pad and Resize: an axis that stays as long, and as it is."""
    (shape, axis), node = reader.operands()[0], reader.node
    touched = axis in node.attributes.get("axes", ()) or bool(node.attributes.get("begins", [0] * len(shape))[axis])
    return axis if reader.only(0) and shape[axis] == reader.shape[axis] and not touched else None


def _repeated(reader: Reader) -> int | None:
    """Expand and Tile: along other axes."""
    ((shape, axis),) = reader.operands()
    place = axis + len(reader.shape) - len(shape)
    return place if reader.shape[place] == shape[axis] else None


def _concatenated(reader: Reader) -> int | None:
    found = {axis for _, axis in reader.operands()}
    return found.pop() if len(found) == 1 and reader.node["axis"] not in found else None


def _reduced(reader: Reader) -> int | None:
    """Reductions along other axes, with or without these left as 1."""
    (shape, axis), gone = reader.operands()[0], reader.node.attributes.get("axes", ())
    if axis in gone or not gone:
        return None
    return axis - (0 if len(shape) == len(reader.shape) else sum(other < axis for other in gone))


def _along_another(reader: Reader) -> int | None:
    """Softmax, TopK and others along one axis, where all operands are as long along that of the images."""
    node, found = reader.node, {axis for _, axis in reader.operands()}
    along = range(*node["along"]) if "along" in node.attributes else (node["axis"],)
    axis = found.pop()
    whole = {reader.network.shape(name)[axis] for name in node.inputs} == {reader.shape[axis]}
    return axis if not found and whole and axis not in along else None


def _transformed(reader: Reader) -> int | None:
    """DFT along another axis; the last has the parts of a complex number."""
    axis = reader.axes.get(reader.node.inputs[0])
    if axis is None or not reader.only(0):
        return None
    return axis if axis not in (reader.node["axis"], len(reader.shape) - 1) else None


def _normalised(reader: Reader) -> int | None:
    """LayerNormalization: over all axes from `axis` on."""
    axis = reader.axes.get(reader.node.inputs[0])
    return axis if axis is not None and reader.only(0) and axis < reader.node["axis"] else None


def _gathered(reader: Reader) -> int | None:
    """Gather by constant indices from along another axis, or by computed ones from a constant."""
    (data, indices), along = reader.node.inputs, reader.node["axis"]
    wider = len(reader.network.shape(indices)) - 1
    if reader.only(0):
        axis = reader.axes[data]
        return None if axis == along else axis + (wider if axis > along else 0)
    return along + reader.axes[indices] if reader.only(1) else None


def _gathered_by_tuples(reader: Reader) -> int | None:
    """GatherND: by computed tuples from a constant, or both along a batch axis."""
    found = {axis for _, axis in reader.operands()}
    axis = found.pop()
    if reader.only(1) and not reader.node["batch_dims"]:
        return axis if axis < len(reader.network.shape(reader.node.inputs[1])) - 1 else None
    return axis if not found and axis < reader.node["batch_dims"] else None


def _one_hot(reader: Reader) -> int | None:
    if not reader.only(0):
        return None
    ((_, axis),) = reader.operands()
    return axis + 1 if axis >= reader.node["axis"] else axis


def _matrices(reader: Reader) -> int | None:
    """Trilu: of all matrices, the last two axes, in the same way."""
    ((shape, axis),) = reader.operands()
    return axis if reader.only(0) and axis < len(shape) - 2 else None


def _multiplied(reader: Reader) -> int | None:
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


def _rows(reader: Reader) -> int | None:
    """Gemm: the rows of A, transposed or not; of what was a MatMul by a constant any axis but the last."""
    if not reader.only(0):
        return None
    ((shape, axis),) = reader.operands()
    if reader.node.attributes.get("transA"):
        return 0 if axis == 1 else None
    return axis if axis < len(shape) - 1 else None


def _over_time(reader: Reader) -> int | None:
    """LSTM, GRU and RNN: gates T x N x G, states D x N x H, lengths N  -->  T x D x N x H."""
    return 2 if all(axis == len(shape) // 2 for shape, axis in reader.operands()) and not reader.operands([1]) else None


POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
FRONT = (
    "Conv ConvTranspose ConvInteger LRN InstanceNormalization GroupNormalization DepthToSpace SpaceToDepth Col2Im STFT"
)
ELEMENTWISE = {name for name, function in OPERATORS.items() if function.__module__ == elementwise_operators.__name__}
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE | {"BatchNormalization", "QuantizeLinear", "DequantizeLinear"}, _broadcast),
    **dict.fromkeys(FRONT.split(), _at_front(0)),
    **dict.fromkeys(POOLS, _before_windows),
    **{"GridSample": _at_front(0, 1), "DeformConv": _deformed, "DFT": _transformed},
    **{"Reshape": _seen, "Slice": _kept_whole, "Transpose": _permuted, "Pad": _as_long, "Resize": _as_long},
    **{"Expand": _repeated, "Tile": _repeated, "Concat": _concatenated, "ScatterBox": _written},
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
