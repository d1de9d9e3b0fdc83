"""Image counts: whether a graph computes with the number of its images other than to shape what is theirs.

Two batch sizes do not tell how a network depends on a third: x[:4], Div(Shape(x)[0], 3) and If(N > 2) are alike for 1
image and for 2. So each number that comes of the batch is followed from Shape on, in the graph before anything folds,
as a multiple of N (multiples.py):

    s = Shape(x)               N, 8, 7                        x: N x 8 x 7
    n = Gather(s, 0)           N
    m = Mul(n, 8)              8·N
    r = Reshape(x, (m, 7))     what such numbers are for, as in Expand, ConstantOfShape, Tile, Resize and a Slice's end
    h = Div(Gather(s, 2), 2)   nothing of N: any arithmetic may follow
    q = Div(n, 3)              refused: no multiple of N
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from tvmcnn.importer.multiples import END, RULES, Multiples
from tvmcnn.network import Array, Network, Shape

MOST = 64  # elements of a constant that may be an operand of such arithmetic
# Operands that may be multiples of N: they shape the result
SHAPES = {"Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Tile": (1,), "Resize": (3,), "Slice": (2,)}
# Operators that make of constants that are the same for each image others of this kind
ALIKE = "Concat Unsqueeze Squeeze Reshape Transpose Expand Cast Identity Where Equal Not".split()  # noqa: SIM905
BOUNDED = ("Slice", "Resize", "Squeeze")  # whose bounds some batches may reach and others not


class Found(Exception):  # noqa: N818 (an answer)
    """A node that does something else with the number of images; the text says what."""


@dataclass
class _Graph:
    """What is known of the names of a graph, node after node."""

    large: Network
    axes: Mapping[str, int]  # of the images, of each tensor of that network
    values: dict[str, Array]  # small constants
    fixed: set[str]  # what has nothing of the batch: constants, and what is made of them and of other extents
    multiples: dict[str, Multiples] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)  # made of constants, again for each image
    same: dict[str, str] = field(default_factory=dict)  # outputs of Identity and Dropout, with what they are

    @property
    def images(self) -> int:
        """How many there are in the network."""
        return self.large.inputs[0].shape[0]

    def tensor(self, name: str) -> tuple[Shape, int] | None:
        """The shape of a tensor that has images, and their axis; None where that is not known."""
        while name not in self.axes and name in self.same:
            name = self.same[name]
        return (self.large.tensors[name].shape, self.axes[name]) if name in self.axes else None

    def of(self, name: str) -> Multiples | None:
        """A small tensor of integers as multiples of N, None where it is not known as such."""
        if name in self.multiples:
            return self.multiples[name]
        return np.zeros(self.values[name].shape, np.int64) if name in self.values else None

    def counts(self, name: str) -> bool:
        """Whether some number in it comes of the batch."""
        return name in self.multiples and bool(self.multiples[name].any())

    def is_fixed(self, name: str) -> bool:
        """Whether nothing of it comes of the batch."""
        return name in self.fixed or (name in self.multiples and not self.counts(name))


def obstacle(graph: onnx.GraphProto, weights: Mapping[str, Array], large: Network, axes: Mapping[str, int]) -> str:
    """What in a graph depends on the number of images otherwise, empty for nothing.

    `large` is the network that became of it, and `axes` has the axis of the images of each of its tensors; `weights`
    are those that the graph has as inputs.
    """
    small = [tensor for tensor in graph.initializer if np.prod(tensor.dims, dtype=np.int64) <= MOST]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in small}
    known = _Graph(large, axes, values, {*weights, *(tensor.name for tensor in graph.initializer)})
    try:
        for node in graph.node:
            _follow(known, node)
        for value in graph.output:
            if known.counts(value.name):
                raise Found(f"output '{value.name}' is the number of images")
    except Found as found:
        return str(found)
    return ""


def _refusal(node: onnx.NodeProto, what: str) -> Found:
    return Found(f"node '{node.name}' ({node.op_type}) {what}")


def _images_in(known: _Graph, node: onnx.NodeProto, does: str) -> tuple[Shape, int]:
    """The shape of a node's first operand, and the axis of its images."""
    found = known.tensor(node.input[0])
    if found is None:
        raise _refusal(node, f"{does} '{node.input[0]}', in which no images are known")
    return found


def _computed(known: _Graph, node: onnx.NodeProto) -> Multiples | None:
    """What a node makes of small tensors of integers, None where an operand is none or no rule tells."""
    rule, operands = RULES.get(node.op_type), [known.of(name) for name in node.input if name]
    given = [each for each in operands if each is not None]
    return rule(node, given, known.values) if rule is not None and given and len(given) == len(operands) else None


def _follow(known: _Graph, node: onnx.NodeProto) -> None:
    names = [name for name in node.input if name]
    inner = any(attribute.HasField("g") for attribute in node.attribute)  # which may read what is no input
    if inner:
        _check_inner(known, node)
    if node.op_type == "Constant":
        _keep_constant(known, node)
    elif node.op_type in ("Shape", "Size"):
        _count(known, node)
    elif any(known.counts(name) for name in names):
        _with_counts(known, node)
    elif any(name in known.repeated for name in names):
        _with_repeated(known, node)
    elif not inner and all(known.is_fixed(name) for name in names):
        _without_counts(known, node)
    elif node.op_type in ("Identity", "Dropout"):
        known.same[node.output[0]] = node.input[0]
    if node.op_type in BOUNDED:
        _check_bounds(known, node)


# ---- where numbers come from ----------------------------------------------------------------------------------------


def _keep_constant(known: _Graph, node: onnx.NodeProto) -> None:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    known.fixed.add(node.output[0])
    if array.size <= MOST:
        known.values[node.output[0]] = array


def _count(known: _Graph, node: onnx.NodeProto) -> None:
    """Shape and Size: N as often as an image has rows along the axis of the images."""
    name, output = node.input[0], node.output[0]
    if known.is_fixed(name):
        known.fixed.add(output)
        return
    shape, axis = _images_in(known, node, "asks for the shape of")
    if node.op_type == "Size":
        known.multiples[output] = np.array(int(np.prod(shape, dtype=np.int64)) // known.images)
        return
    words = {attribute.name: attribute.i for attribute in node.attribute}
    every = np.array([n // known.images if place == axis else 0 for place, n in enumerate(shape)], np.int64)
    known.multiples[output] = every[slice(words.get("start", 0), words.get("end", len(every)))]


def _check_inner(known: _Graph, node: onnx.NodeProto) -> None:
    """Refuse graphs inside a node that could see the number of images."""
    for graph in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
        for each in graph.node:
            _check_inner(known, each)
            counts = any(known.counts(name) or name in known.repeated for name in each.input)
            if counts or each.op_type in ("Shape", "Size", *BOUNDED):
                raise _refusal(node, "has a graph inside that may depend on the number of images")


# ---- what becomes of them -------------------------------------------------------------------------------------------


def _with_counts(known: _Graph, node: onnx.NodeProto) -> None:
    places = {place for place, name in enumerate(node.input) if name and known.counts(name)}
    if places <= {*SHAPES.get(node.op_type, ())}:
        data = [] if node.op_type == "ConstantOfShape" else node.input[:1]
        if all(known.is_fixed(name) or name in known.repeated for name in data):
            known.repeated.update(node.output)
        return
    made = _computed(known, node)
    if made is None:
        raise _refusal(node, "computes with the number of images")
    known.multiples[node.output[0]] = made


def _without_counts(known: _Graph, node: onnx.NodeProto) -> None:
    """What has nothing of the batch; of small tensors the shape is kept, for they may join others that have."""
    known.fixed.update(node.output)
    made = _computed(known, node)
    if made is not None and made.size <= MOST:
        known.multiples[node.output[0]] = np.zeros_like(made)


def _with_repeated(known: _Graph, node: onnx.NodeProto) -> None:
    """Constants that each image has again: read by what images are computed of, or made into others of their kind."""
    if any(name in known.axes for name in node.output):
        return
    if node.op_type not in ALIKE:
        raise _refusal(node, "computes with constants that are as many as the images")
    known.repeated.update(node.output)


def _check_bounds(known: _Graph, node: onnx.NodeProto) -> None:
    """Refuse bounds along the axis of the images, of which a network of few images may have nothing left."""
    name = node.input[0]
    if known.is_fixed(name) or name in known.multiples or name in known.repeated:
        return
    shape, axis = _images_in(known, node, "reads")
    if node.op_type == "Slice":
        _check_slice(known, node, axis, len(shape))
    elif node.op_type == "Resize":
        _check_resize(known, node, axis, len(shape))
    elif len(node.input) < 2 and shape[axis] == known.images:
        raise _refusal(node, "names no axes, and that of a single image would go")


def _check_slice(known: _Graph, node: onnx.NodeProto, axis: int, rank: int) -> None:
    starts, stops, axes = (known.values.get(name) if name else None for name in (*node.input[1:], "", "")[:3])
    ends = known.of(node.input[2])
    chosen = range(rank) if len(node.input) < 4 or not node.input[3] else axes
    if chosen is None or (ends is None and not known.is_fixed(node.input[2])):
        raise _refusal(node, "has bounds that are computed")
    for place, each in enumerate(chosen):
        if int(each) % rank != axis or (ends is not None and place >= len(ends)):
            continue
        begins = starts is not None and int(starts[place]) == 0
        whole = ends is not None and ends[place] > 0
        if not begins or not (whole or (stops is not None and int(stops[place]) >= END)):
            raise _refusal(node, "takes a part of the images")


def _check_resize(known: _Graph, node: onnx.NodeProto, axis: int, rank: int) -> None:
    axes = next((list(each.ints) for each in node.attribute if each.name == "axes"), []) or range(rank)
    places = [place for place, each in enumerate(axes) if each % rank == axis]
    scales = known.values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scales is not None and scales.size and any(float(scales[place]) != 1 for place in places):
        raise _refusal(node, "scales the axis of the images")
    if scales is None and len(node.input) < 4:
        raise _refusal(node, "has scales that are computed")
