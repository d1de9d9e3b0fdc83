"""Budget: how much folding may make. The optimizer computes a constant first and looks at its size then."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from tvmcnn.errors import ModelError
from tvmcnn.importer.shapes import infer_shapes
from tvmcnn.network import Array, Shape, dims

FOLD_LIMIT = 64 << 20  # bytes of one folded constant; more is a bomb, not a weight
FOLD_TOTAL = 1 << 30  # and of all of them

UNFOLDED = ("ConstantOfShape", "DequantizeLinear", "QuantizeLinear")  # the optimizer would not fold them by itself
WITH_INTEGERS = ("Add", "Conv", "Gemm", "MatMul", "Mul")  # operators that fuse/integers.py computes in integers
MOVERS = frozenset(  # what fuse/moved_integers.py moves in integers, as files call it
    """
    Concat DepthToSpace Dropout Flatten Identity MaxPool Reshape Slice SpaceToDepth Split Squeeze Transpose Unsqueeze
    """.split()  # noqa: SIM905
)
DRAWN = ("Bernoulli", "ImageDecoder", "Multinomial")  # random, or of a size that only decoding tells: never folded


def refuse_bombs(proto: onnx.ModelProto, label: str, weights: Mapping[str, Array]) -> None:
    """Refuse a constant larger than FOLD_LIMIT before anything folds."""
    sizes = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
    sizes |= {name: array.nbytes for name, array in weights.items()}
    known = set(sizes)
    graph = infer_shapes(proto, label, values=False).graph
    inferred = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    for node in proto.graph.node:
        if not known.issuperset(name for name in node.input if name):
            continue
        known.update(node.output)
        given = _given(node.op_type, sum(sizes.get(name, 0) for name in node.input))
        for name in node.output:
            shape = tuple(d.dim_value for d in inferred[name].shape.dim) if name in inferred else ()
            if 4 * math.prod(shape) > max(FOLD_LIMIT, given):  # a large weight may still be reshaped or transposed
                raise _too_large(label, node.name or name, node.op_type, shape)


@dataclass
class Budget:
    """What folding may still make. An output of the graph comes from a kernel, whatever its operands are."""

    label: str
    left: int = FOLD_TOTAL

    def allows(self, node: ir.Node) -> bool | None:
        """True or False, None to let the optimizer decide. Raises ModelError for too large a constant."""
        if any(value.is_graph_output() for value in node.outputs) or node.op_type in DRAWN:
            return False
        if node.op_type == "DequantizeLinear" and _meets_quantised(node):
            return False
        given = _given(node.op_type, sum(value.const_value.nbytes for value in _constants(node)))
        for value in node.outputs:
            shape = _made(node) if node.op_type in MADE else _inferred(value)
            if shape is None:
                if node.op_type in GROWING:  # much of little, and nobody can tell how much: the importer will
                    return False
                continue
            size = 4 * math.prod(shape)
            self.left -= max(0, size - given)  # a reshaped weight is no more than it was
            if size > max(FOLD_LIMIT, given) or self.left < 0:
                raise _too_large(self.label, node.name or value.name or "", node.op_type, shape)
        return True if node.op_type in UNFOLDED else None


def _meets_quantised(node: ir.Node) -> bool:
    """True for integers that are computed with others, which come at run time: they are wanted as they are.

    y = Conv(DequantizeLinear(x), DequantizeLinear(w))    of which the second stays though w is constant
    """
    return any(
        other is not None and other is not node.outputs[0] and _arrives_quantised(other)
        for reader, _ in node.outputs[0].uses()
        if reader.op_type in WITH_INTEGERS
        for other in reader.inputs
    )


def _arrives_quantised(value: ir.Value) -> bool:
    """True for integers of run time, dequantised and perhaps moved then."""
    maker = value.producer()
    while maker is not None and maker.op_type in MOVERS and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return False
    return maker.inputs[0] is not None and maker.inputs[0].const_value is None


def _too_large(label: str, name: str, op: str, shape: Shape) -> ModelError:
    return ModelError(
        f"{label}: node '{name}' ({op}) makes a constant of {dims(shape)}:"
        f" allowed are {FOLD_LIMIT >> 20} MB, and {FOLD_TOTAL >> 20} MB of all constants"
    )


def _given(op: str, size: int) -> int:
    """The bytes that a node is given, at the width of floats: weights of 4 bits and more become floats."""
    return 8 * size if op == "DequantizeLinear" else size


def _constants(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and value.const_value is not None]


def _inferred(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    extents = tuple(extent for extent in value.shape if isinstance(extent, int))
    return extents if len(extents) == len(value.shape) else None


# ---- operators that make much of little: how much, by the values of their operands ----------------------------------


def _made(node: ir.Node) -> Shape | None:
    """The shape of a node's output as the values of its operands say, else as inference does."""
    try:
        shape = MADE[node.op_type](node)
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return _inferred(node.outputs[0])  # operands that contradict each other: the importer says how
    return tuple(max(0, extent) for extent in shape)


def _numbers(node: ir.Node, place: int) -> list[int | float]:
    """The elements of a constant operand. Raises AttributeError or IndexError where it is left out."""
    value = node.inputs[place]
    found: list[int | float] = value.const_value.numpy().reshape(-1).tolist()
    return found


def _integers(node: ir.Node, place: int) -> list[int]:
    return [int(number) for number in _numbers(node, place)]


def _extents(node: ir.Node, place: int = 0) -> list[int]:
    """The shape of a constant operand."""
    value = node.inputs[place]
    return [int(extent) for extent in value.const_value.shape]


def _along(node: ir.Node, place: int, count: int) -> list[int]:
    """The axes that the operand at `place` names, all of them where it is left out."""
    rank = len(_extents(node))
    left_out = len(node.inputs) <= place or node.inputs[place] is None
    return list(range(rank)) if left_out else [axis % rank for axis in _integers(node, place)][:count]


def _expand(node: ir.Node) -> Shape:
    pairs = itertools.zip_longest(reversed(_extents(node)), reversed(_integers(node, 1)), fillvalue=1)
    return tuple(reversed([one if other == 1 else other if one == 1 else max(one, other) for one, other in pairs]))


def _range(node: ir.Node) -> Shape:
    (start,), (limit,), (delta,) = (_numbers(node, place) for place in range(3))
    return (math.ceil((limit - start) / delta),)


def _one_hot(node: ir.Node) -> Shape:
    (depth,) = _integers(node, 1)
    return (*_extents(node), depth)  # in whatever order: only how many


def _tile(node: ir.Node) -> Shape:
    return tuple(extent * times for extent, times in zip(_extents(node), _integers(node, 1), strict=True))


def _pad(node: ir.Node) -> Shape:
    shape, pads = _extents(node), _integers(node, 1)
    half = len(pads) // 2
    for axis, begin, end in zip(_along(node, 3, half), pads[:half], pads[half:], strict=True):
        shape[axis] += begin + end
    return tuple(shape)


def _resize(node: ir.Node) -> Shape:
    shape = _extents(node)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise ValueError("sizes, which a policy may change")
    scales = _numbers(node, 2)
    return tuple(math.ceil(extent * scale) for extent, scale in zip(shape, scales, strict=True))


MADE: dict[str, Callable[[ir.Node], Shape]] = {
    "ConstantOfShape": lambda node: tuple(_integers(node, 0)),
    "Expand": _expand,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Resize": _resize,
    "Tile": _tile,
}
GROWING = (
    *MADE,
    *("AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "DFT", "Einsum", "HammingWindow", "HannWindow"),
    *("MaxUnpool", "MelWeightMatrix", "STFT", "Upsample"),
)
