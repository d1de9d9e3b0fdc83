"""Functions of one byte: which operators between DequantizeLinear and QuantizeLinear docs/quantised.md defines in
float64, rounded once.

The page's conditions once more, from the ONNX graph alone; what they allow is evaluated element by element.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx

from tvmcnn.check.reference.model import plain_domain
from tvmcnn.check.reference.operate import operate
from tvmcnn.check.reference.order import reads
from tvmcnn.check.reference.words import Held
from tvmcnn.check.reference_ops import Array
from tvmcnn.check.reference_ops.quantised import MICROSOFT, Target

if TYPE_CHECKING:
    from tvmcnn.check.reference.integers import Patterns

FLOAT32 = np.dtype(np.float32)
SMOOTH = frozenset(  # without jumps; a Dropout that does not train is an Identity
    """
    Abs Add Celu Clip Div Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max Min Mish Mul Neg
    PRelu Pow Reciprocal Relu Selu Sigmoid Softplus Softsign Sqrt Sub Sum Swish Tanh
    """.split()  # noqa: SIM905
)
FOREIGN = frozenset({"Gelu", "QuickGelu"})  # of com.microsoft


def function_of_one_byte(graph: Patterns, last: onnx.NodeProto, y: Target) -> Array | None:
    """What a QuantizeLinear makes of floats that depend on one tensor of bytes alone, which have a single scale."""
    between = _between(graph, last.input[0])
    if not between or not _read_by(graph, between, last):
        return None
    floats = [name for name in between if _is_source(graph, name)]
    sources = {graph.makers[name].input[0] if _is_dequantised(graph, name) else name for name in floats}
    if len(sources) != 1:
        return None
    shape = graph.values[floats[0]].array.shape  # type: ignore[union-attr]
    made: dict[str, Held] = {}
    for name in graph.makers:  # in order
        if name in between:
            found = _value(graph, name, made)
            if found is None or found.array.shape != shape:
                return None
            made[name] = found
    return y.quotient(made[last.input[0]].array)


def _is_source(graph: Patterns, name: str) -> bool:
    """True for floats that are dequantised, and may be moved then."""
    if name not in graph.fed or name not in graph.makers:
        return False
    return _is_dequantised(graph, name) or (
        graph.makers[name].op_type not in SMOOTH and graph.integers(name) is not None
    )


def _is_dequantised(graph: Patterns, name: str) -> bool:
    return graph.makers[name].op_type == "DequantizeLinear"


def _between(graph: Patterns, first: str) -> set[str]:
    """The floats from one back to those that a DequantizeLinear makes; none where another operator is among them."""
    found, left = set[str](), [first]
    while left:
        name = left.pop()
        if name in found or name not in graph.fed:
            continue
        found.add(name)
        node = graph.makers.get(name)
        if node is None:
            return set()
        if _is_source(graph, name):
            if graph.one_scale(name) is None:
                return set()
        elif _is_smooth(node):
            left += [each for each in node.input if each]
        else:
            return set()
    return found if first in graph.makers and not _is_source(graph, first) else set()


def _is_smooth(node: onnx.NodeProto) -> bool:
    domain = plain_domain(node.domain)
    return node.op_type in SMOOTH if not domain else domain == MICROSOFT and node.op_type in FOREIGN


def _read_by(graph: Patterns, between: Collection[str], last: onnx.NodeProto) -> bool:
    """Whether nobody else reads what is made between; others may read what is dequantised."""
    nodes = [last, *(graph.makers[name] for name in between if not _is_source(graph, name))]
    for name in between:
        if _is_source(graph, name):
            continue
        if name in graph.outputs or graph.read[name] != sum(name in reads(node) for node in nodes):
            return False
    return True


def _value(graph: Patterns, name: str, made: dict[str, Held]) -> Held | None:
    """What a node between makes, a float in float64."""
    if _is_source(graph, name):
        scaled = graph.one_scale(name)
        return None if scaled is None else Held(scaled.reals().astype(np.float64), FLOAT32)
    node = graph.makers[name]
    given = [made.get(each) or _one_value(graph, each) if each else None for each in node.input]
    if any(each and held is None for each, held in zip(node.input, given, strict=True)):
        return None
    found, *_ = operate(node, given, graph.context)
    return found


def _one_value(graph: Patterns, name: str) -> Held | None:
    """A constant of float32, all of whose elements are alike: one behind a DequantizeLinear, too, or NaN as a bound."""
    held = graph.values.get(name)
    if held is None or name in graph.fed or held.dtype != FLOAT32 or not held.array.size:
        return None
    rounded = held.array.astype(np.float32).astype(np.float64)
    alike = np.array_equal(rounded, np.full_like(rounded, rounded.flat[0]), equal_nan=True)
    return Held(rounded, FLOAT32) if alike else None
