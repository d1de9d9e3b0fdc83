"""Draft: an ONNX model in the making. Every node that is added is evaluated by the oracle at once, so that the values
of each tensor are known to whatever is added next: indices within range, logarithms of what is positive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tvmcnn.check.reference import reference
from tvmcnn.errors import TvmcnnError

Array = np.ndarray[Any, Any]
T = TypeVar("T")

FLOATS = ("float32", "float16", "float64")
INTEGERS = ("int32", "int64", "int8", "uint8", "int16", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
OPSETS = (21, 17, 18, 13, 23, 24)
EDGES = (7, 8, 9, 15, 16, 17, 31, 33)  # extents around whole vectors
MOST = 12_000  # elements of a tensor
LARGEST = {"float16": 2000.0, "float32": 1e6, "float64": 1e6}  # beyond which nothing is left of small differences
INTEGER_LIMIT = 1 << 40


class Skip(Exception):  # noqa: N818 (an answer, not an error)
    """An operator that does not fit here after all; the text says why."""


@dataclass(frozen=True)
class Held:
    """A tensor of the draft, with the values that the oracle finds for it."""

    name: str
    value: Array
    constant: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def rank(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def dtype(self) -> str:
        return self.value.dtype.name

    @property
    def is_float(self) -> bool:
        return self.value.dtype.kind == "f"

    @property
    def finite(self) -> bool:
        return not self.is_float or bool(np.isfinite(self.value).all())

    @property
    def image(self) -> bool:
        """True for an image of some size that a convolution can read."""
        return self.rank == 4 and self.is_float and self.finite and self.size > 0


@dataclass
class Draft:
    """What there is so far, and the drawing of more."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    opset: int = 21
    pool: list[Held] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)  # tensors behind which nothing more may be drawn
    inputs: dict[str, Array] = field(default_factory=dict)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # with the reasons, for who works on the generators
    count: int = 0

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def integer(self, low: int, high: int) -> int:
        """A number of low to high, both counted; shrinks to low."""
        return int(self.draw(st.integers(low, high)))

    def choice(self, values: Sequence[T]) -> T:
        """One of several; shrinks to the first."""
        return values[self.integer(0, len(values) - 1)] if len(values) > 1 else values[0]

    def chance(self, parts: int, of: int) -> bool:
        """True in so many parts of so many; shrinks to False."""
        return self.integer(0, of - 1) >= of - parts

    def extent(self) -> int:
        """Draw the extent of an axis: mostly around whole vectors, rarely 1."""
        kind = self.integer(0, 9)
        if kind < 5:
            return self.integer(2, 6)
        return self.choice(EDGES) if kind < 9 else 1

    def numbers(self, shape: Sequence[int], dtype: str, kind: int | None = None) -> Array:
        """Values by a drawn seed: normal floats with outliers or multiples of a quarter, small integers of either sign
        or all that 8 bits hold, coins."""
        kind = self.integer(0, 3) if kind is None else kind
        rng = np.random.default_rng(self.integer(0, 999))
        if dtype == "bool":
            return np.asarray(rng.random(shape) < 0.5)
        if np.dtype(dtype).kind in "iu":
            low = 0 if dtype.startswith("u") else -9
            limits = np.iinfo(dtype)
            if kind == 3 and limits.bits == 8:
                return np.asarray(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
            return np.asarray(rng.integers(low, 10, shape), dtype)
        values = np.asarray(rng.standard_normal(shape))
        if kind == 1:
            values = np.where(rng.random(shape) < 1 / 32, 8 * values, values)
        if kind == 2:
            values = np.round(4 * values) / 4
        return np.asarray(values, dtype)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def fresh(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def input(self, value: Array) -> Held:
        """Another input of the graph."""
        held = Held(self.fresh("x"), value)
        self.inputs[held.name] = value
        self.pool.append(held)
        return held

    def constant(self, value: Any, dtype: str | None = None) -> Held:
        """An initializer; it is not in the pool."""
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        name = self.fresh("c")
        self.initializers.append(numpy_helper.from_array(array, name))
        return Held(name, array, constant=True)

    def whole(self, numbers: Any) -> Held:
        """An int64 constant: what decides shapes."""
        return self.constant(np.asarray(numbers, np.int64))

    def drawn(self, shape: Sequence[int], dtype: str, kind: int | None = None) -> Held:
        """A constant of drawn values."""
        return self.constant(self.numbers(shape, dtype, kind))

    def weight(self, shape: Sequence[int], dtype: str, depth: int) -> Held:
        """A constant by which sums of so many terms keep their size."""
        values = self.numbers(shape, "float64", 0)
        return self.constant(values / math.sqrt(max(depth, 1)), dtype)

    def pick(self, fits: Callable[[Held], bool]) -> Held | None:
        """One tensor of the pool that fits, mostly the newest."""
        found = [held for held in reversed(self.pool) if held.name not in self.closed and fits(held)]
        if not found:
            return None
        return found[0] if self.integer(0, 2) < 2 else self.choice(found)

    def axis(self, held: Held, negative: bool = True) -> int:
        """An axis of a tensor, sometimes counted from the end."""
        axis = self.integer(0, held.rank - 1)
        return axis - held.rank if negative and self.chance(1, 3) else axis

    def axes(self, rank: int, least: int = 1) -> list[int]:
        """Some axes in ascending order."""
        found = [axis for axis in range(rank) if self.chance(1, 2)]
        return found if len(found) >= least else list(range(rank))[-least:] if least else found

    def since(self, op: str) -> int:
        """The version of an operator at the draft's opset."""
        return int(onnx.defs.get_schema(op, self.opset).since_version)

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def node(self, op: str, operands: Sequence[Held | None], outputs: int = 1, **attributes: Any) -> list[Held]:
        """A node and what it makes. Raises Skip where the oracle has no answer, or one that leads nowhere."""
        operands = list(operands)
        while operands and operands[-1] is None:
            operands.pop()
        names = [self.fresh("t") for _ in range(outputs)]
        inputs = [held.name if held is not None else "" for held in operands]
        node = helper.make_node(op, inputs, names, f"n_{names[0]}", **attributes)
        made = self._evaluated(node, [held for held in operands if held is not None])
        for name in names:
            self._check(op, made[name], [held for held in operands if held is not None])
        self.nodes.append(node)
        held = [Held(name, made[name]) for name in names]
        self.pool += held
        return held

    def _evaluated(self, node: onnx.NodeProto, operands: Sequence[Held]) -> dict[str, Array]:
        given = {held.name: held.value for held in operands}
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in given.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "one", infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        try:
            return reference(model, given, every_tensor=True)
        except TvmcnnError as error:
            self.skipped.append(f"{node.op_type}: {error}")
            raise Skip(str(error)) from error

    def _check(self, op: str, value: Array, operands: Sequence[Held]) -> None:
        """Raise Skip for what is too large, in number or in size, and mostly for a new NaN or infinity."""
        if value.size > MOST:
            raise Skip(f"{op}: {value.size} elements")
        if value.dtype.kind in "iu" and value.size and np.abs(value.astype(np.float64)).max() > INTEGER_LIMIT:
            raise Skip(f"{op}: a large integer")
        if value.dtype.kind != "f":
            return
        finite = np.isfinite(value)
        if not finite.all() and all(held.finite for held in operands) and not self.chance(1, 8):
            raise Skip(f"{op}: NaN or infinity")
        if value.size and np.abs(value, where=finite, out=np.zeros(value.shape)).max() > LARGEST[value.dtype.name]:
            raise Skip(f"{op}: large numbers")

    # ---- the model --------------------------------------------------------------------------------------------------

    def model(self, shown: Sequence[str]) -> onnx.ModelProto:
        """The model whose outputs are the tensors that nobody reads, and those in `shown`."""
        read = {name for node in self.nodes for name in node.input}
        held = {each.name: each for each in self.pool}
        made = [name for node in self.nodes for name in node.output]
        wanted = [name for name in made if name not in read or name in shown]
        used = {name: value for name, value in self.inputs.items() if name in read}
        self.inputs = used
        infos = [self._info(name, value) for name, value in used.items()]
        outputs = [self._info(name, held[name].value) for name in wanted]
        kept = [tensor for tensor in self.initializers if tensor.name in read]
        graph = helper.make_graph(self.nodes, "random", infos, outputs, kept)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)

    @staticmethod
    def _info(name: str, value: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
