"""What the operator functions speak in: Value in, Meaning out, Unsupported or ModelError where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.network import Array, Shape, dims

FLOATS = ("float32", "float64")  # float16 is computed in float32: no operator sees it
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = (*FLOATS, *INTEGERS)
DTYPES = (*NUMBERS, "bool")
CODES = {  # onnx.TensorProto.DataType
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
}
EXPORT = "export the model in eval mode"  # what to do about an operator that trains


class Unsupported(Exception):  # noqa: N818 (a reason, not an error)
    """The node is valid ONNX, but tvmcnn does not compile it; the text is the reason."""


class Undecided(Unsupported):
    """The node needs the value of operand `name` to be known when it is compiled: it decides a shape, say."""

    def __init__(self, role: str, name: str, allowed: str = "only a constant is supported") -> None:
        self.name = name
        super().__init__(f"its {role} '{name}' is computed at run time; {allowed}")


@dataclass(frozen=True)
class Value:
    """An operand: its name, shape and dtype, its data if it is constant, and its meaning if a node of ours makes it.

    Along the axes of `counts` it has as many elements as the tensor of that name says, and `shape` has the most.
    """

    name: str
    shape: Shape
    dtype: str
    data: Array | None = None
    maker: Meaning | None = None
    counts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Meaning:
    """One tensor that a node makes, normalised: the operator, its operands at run time, nothing left implicit.

    `counts` has, for each axis that is as long as the data says, a scalar that says it, an int64.
    """

    op: str
    inputs: tuple[Value, ...]
    shape: Shape
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""  # of the output; "" is that of the first input
    counts: dict[int, Value] = field(default_factory=dict)


Meanings = Meaning | tuple[Meaning, ...]  # several: one for each output of the node, in ONNX's order
OPERATORS: dict[str, Callable[..., Meanings]] = {}


def operator(function: Callable[..., Meanings]) -> Callable[..., Meanings]:
    """Register a function under its ONNX name: `global_average_pool` --> GlobalAveragePool."""
    return named("".join(word.capitalize() for word in function.__name__.rstrip("_").split("_")))(function)


def named(name: str) -> Callable[[Callable[..., Meanings]], Callable[..., Meanings]]:
    """Register a function under an ONNX name that its own does not spell: LRN."""

    def register(function: Callable[..., Meanings]) -> Callable[..., Meanings]:
        OPERATORS[name] = function
        return function

    return register


# ---- checks ---------------------------------------------------------------------------------------------------------


def typed(allowed: Sequence[str], *values: Value | None) -> None:
    """Raise Unsupported unless each operand is of an allowed dtype."""
    for value in values:
        if value is not None and value.dtype not in allowed:
            raise Unsupported(f"input '{value.name}' is {value.dtype}; supported are {', '.join(allowed)}")


def alike(allowed: Sequence[str], *values: Value | None) -> None:
    """Raise unless all operands are of one dtype, an allowed one."""
    typed(allowed, *values)
    given = [value for value in values if value is not None]
    if other := next((value for value in given if value.dtype != given[0].dtype), None):
        raise ModelError(f"input '{given[0].name}' is {given[0].dtype} and '{other.name}' is {other.dtype}")


def floats(*values: Value | None) -> None:
    """Raise unless all operands are of one floating-point dtype."""
    alike(FLOATS, *values)


def constant(role: str, value: Value) -> Array:
    """The data of an operand that must be known when the node is compiled; raises Undecided where it is not."""
    if value.data is None:
        raise Undecided(role, value.name)
    return value.data


def integers(role: str, value: Value) -> list[int]:
    """The data of such an operand as a list."""
    return [int(element) for element in constant(role, value).reshape(-1)]


def scalar(role: str, value: Value) -> float:
    """The one element of such an operand."""
    data = constant(role, value)
    if data.size != 1:
        raise ModelError(f"its {role} '{value.name}' is {dims(value.shape)}; it must be one value")
    return float(data.reshape(()))


def derived(name: str, data: Array, dtype: str = "float32") -> Value:
    """A new constant, such as a transposed weight: a view of the old one where it can be."""
    stored = np.asarray(data, dtype=dtype)
    return Value(name, cast(Shape, stored.shape), dtype, stored)


def axis_of(axis: int, rank: int) -> int:
    """The axis counted from the front; raises ModelError where there is none."""
    if not -rank <= axis < rank:
        raise ModelError(f"axis {axis} is outside the {rank} axes of its input")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> list[int]:
    """The axes counted from the front; raises ModelError where there is none, or where one is named twice."""
    found = [axis_of(axis, rank) for axis in axes]
    if len(set(found)) < len(found):
        raise ModelError(f"axes {list(axes)} name an axis twice")
    return found


def broadcast(*values: Value) -> Shape:
    """The shape that NumPy broadcasts the operands to; raises ModelError where there is none."""
    try:
        return tuple(np.broadcast_shapes(*(value.shape for value in values)))
    except ValueError:
        raise ModelError(f"{' and '.join(dims(value.shape) for value in values)} do not broadcast") from None
