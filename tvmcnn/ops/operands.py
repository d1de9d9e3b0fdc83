"""The operands of a kernel as tensor expressions: read by their ONNX name at logical coordinates, whatever the
layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import te, tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule

from tvmcnn.configs import MmaConfig
from tvmcnn.half_weights import PRODUCTS, STORED
from tvmcnn.network import FLOAT32, Channel, Choice, Layout, Pixel, Shape, Step
from tvmcnn.ops.bfloat16 import narrowed, widened

Where = Pixel | tuple[Any, ...]
EXPANDED = "expanded"  # the stage of a weight of a half type in float32


@dataclass(frozen=True)
class Operands:
    """Placeholders for all that a step reads."""

    inputs: dict[str, te.Tensor]
    layouts: Mapping[str, Layout]
    shapes: Mapping[str, Shape]  # logical shapes of the inputs
    constants: Mapping[str, te.Tensor]
    scalars: Mapping[str, float]
    stored: Mapping[str, te.Tensor] = field(default_factory=dict)  # weights of a half type, which are stages above

    @staticmethod
    def of(step: Step) -> Operands:
        """Placeholders named x0, x1, … and w0, w1, …, so that the scheduled code reads the same for every network."""
        choice = step.choice
        inputs, layouts, shapes = {}, {}, {}
        for i, (tensor, source, layout) in enumerate(
            zip(choice.kernel.inputs, choice.sources, choice.reads, strict=True)
        ):
            stored_as = layout.physical(source.shape), layout.stored_dtype(source.dtype)
            inputs[tensor.name] = te.placeholder(*stored_as, f"x{i}")
            layouts[tensor.name], shapes[tensor.name] = layout, source.shape
        constants = {
            name: te.placeholder(packed.shape, packed.dtype, f"w{i}")
            for i, (name, packed) in enumerate(step.packed.items())
        }
        stored = {name: tensor for name, tensor in constants.items() if _is_half(choice, name, tensor)}
        constants |= {name: expanded(tensor) for name, tensor in stored.items()}
        return Operands(inputs, layouts, shapes, constants, choice.kernel.scalars, stored)

    @property
    def parameters(self) -> list[te.Tensor]:
        """All placeholders in the order of the step's arguments."""
        return [*self.inputs.values(), *{**self.constants, **self.stored}.values()]

    def tensor(self, name: str) -> te.Tensor:
        """The operand `name` as it is stored: for expressions in plain layout its ONNX shape and dtype."""
        return self.inputs[name] if name in self.inputs else self.constants[name]

    def flat(self, name: str, beyond: int = 0) -> te.Tensor:
        """An input as one run of elements, and so many past its end, in the place of the one that has axes.

        Of an index into several axes that comes from one index TVM makes quotients and remainders, and does not always
        see that they are one again: then each lane is loaded alone (32 groups of 6,272 elements: 450 µs, so 44).
        """
        shaped = self.inputs[name]
        self.inputs[name] = te.placeholder((math.prod(extents(shaped)) + beyond,), shaped.dtype, shaped.op.name)
        return self.inputs[name]

    def knows(self, name: str) -> bool:
        """False for a tensor that the kernel itself computes."""
        return name in self.inputs or name in self.constants or name in self.scalars

    def read(self, name: str, where: Where) -> Expr:
        """The element of operand `name` at `where`: a Pixel of an image, or the indices into another tensor.

        A constant is stored as one value a channel, in blocks of the output's layout or not. In plain layout an operand
        may have fewer axes than `where`, or axes of extent 1, and then broadcasts as in NumPy.
        """
        if name in self.scalars:
            return float32(self.scalars[name])
        stored = self.tensor(name)
        if isinstance(where, Pixel):
            if name in self.inputs:
                return self.element(name, self.layouts[name].index(self._broadcast(name, where)))
            channel = where.channel
            return stored[channel.flat] if len(stored.shape) == 1 else stored[channel.block, channel.lane]
        aligned = where[len(where) - len(stored.shape) :]
        return stored[tuple(0 if int(extent) == 1 else i for extent, i in zip(stored.shape, aligned, strict=True))]

    def element(self, name: str, place: tuple[Any, ...]) -> Expr:
        """The element of an input at its place in memory; one that is stored in bfloat16 in float32."""
        stored = self.inputs[name][place]
        return widened(stored) if self.layouts[name].narrow else stored

    def _broadcast(self, name: str, pixel: Pixel) -> Pixel:
        """The pixel of an image that may have one pixel a map, such as the gates of a squeeze-and-excite block."""
        h, w = self.shapes[name][2:]
        return Pixel(pixel.n, pixel.channel, 0 if h == 1 else pixel.h, 0 if w == 1 else pixel.w)


def _is_half(choice: Choice, name: str, stored: te.Tensor) -> bool:
    """True for the weight of a product of float32 that is stored in a half type; tensor cores take float16 itself."""
    anchor = choice.kernel.anchor
    if isinstance(choice.config, MmaConfig):
        return False
    weight = anchor.op in PRODUCTS and name == anchor.inputs[1] and choice.kernel.dtype == FLOAT32
    return weight and str(stored.dtype) in STORED.values()


def expanded(stored: te.Tensor) -> te.Tensor:
    """A weight of a half type in float32: a stage "expanded" for the rule, or which `inlined` makes part of its reader.

    One instruction on a vector of float16, vcvtph2ps. The bits of a bfloat16 are the upper ones of a float32.
    """

    def element(*i: Any) -> Expr:
        if str(stored.dtype) == STORED["fp16"]:
            return stored[i].astype(FLOAT32)
        return widened(stored[i])

    return te.compute(stored.shape, element, name=EXPANDED)


def inlined(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with each weight of a half type expanded where it is read, not in memory.

    expanded[k] = float32(w[k]); y += x[k]·expanded[k]    -->    y += x[k]·float32(w[k])
    """
    sch = Schedule(func)
    blocks = [block for block in sch.get_child_blocks(sch.get_sblock("root")) if sch.get(block).name_hint == EXPANDED]
    for block in blocks:
        sch.compute_inline(block)
    return sch.mod["main"] if blocks else func


def float32(value: float) -> Expr:
    """A float32 literal."""
    return tirx.const(value, "float32")


def dtype_of(value: Expr) -> str:
    """The dtype of an expression, an element of a tensor among them."""
    return str(value.dtype if isinstance(value, te.tensor.TensorSlice) else value.ty)


def literal(value: float, dtype: str) -> Expr:
    """A literal of any dtype; a uint64 that int64 does not reach is written as the int64 of the same bits."""
    if dtype == "uint64" and value >= 2**63:
        return tirx.reinterpret(dtype, tirx.const(value - 2**64, "int64"))
    return tirx.const(value, dtype)


class Let:
    """Values that an expression names more than once: expressions are trees, in which such a value would stand, and be
    compiled, as often as it is named.

        let = Let()
        y = let(exp(x))
        return let.within(y * y + y)            t = exp(x) in t * t + t
    """

    def __init__(self) -> None:
        self.bound: list[tuple[Any, Expr]] = []

    def __call__(self, value: Expr) -> Expr:
        """A name for `value`; what is a name or a literal already stays."""
        if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm | te.tensor.TensorSlice):
            return value
        self.bound.append((tirx.Var("t", dtype_of(value)), value))
        return self.bound[-1][0]

    def within(self, body: Expr) -> Expr:
        """`body` with all that it names; what is named once stands in its place."""
        for name, value in reversed(self.bound):
            uses = list[Any]()
            placed = tvm_ffi.structural_map(body, (tirx.Var, functools.partial(_placed, name, value, uses)))
            body = placed if len(uses) == 1 else tirx.Let(name, value, body) if uses else body
        return body


def _placed(name: Any, value: Expr, uses: list[Any], var: Any) -> Expr:
    if not var.same_as(name):
        return var
    uses.append(var)
    return value


def unravel(index: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """The indices of element `index` of a C-contiguous array; the first has what is left, and so no bound."""
    if not shape:
        return ()
    indices: list[Any] = []
    for extent in reversed(shape[1:]):
        indices.insert(0, index % extent)
        index = index // extent
    return (index, *indices)


def extents(tensor: te.Tensor) -> Shape:
    """The stored shape as numbers."""
    return tuple(int(extent) for extent in tensor.shape)


def output_pixel(layout: Layout, *indices: Any) -> Pixel:
    """The logical coordinates that a store to `indices` of an image in `layout` writes; inside the halo they are
    outside the image.
    """
    n, block, row, column = indices[:4]
    if layout.images > 1:
        n = n * layout.images + indices[4]
    lane = indices[4] if layout.block > 1 else 0
    return Pixel(n, Channel(block, lane, layout.block), row - layout.halo[0], column - layout.halo[1])


def inside(layout: Layout, shape: Shape, pixel: Pixel) -> Expr | None:
    """The test that `pixel` is no padding of `layout`; None where the layout has none."""
    _, channels, height, width = shape
    top, left, bottom, right = layout.halo
    tests = [
        *([pixel.channel.flat < channels] if channels % layout.block else []),
        *([pixel.h >= 0] if top else []),
        *([pixel.h < height] if bottom else []),
        *([pixel.w >= 0] if left else []),
        *([pixel.w < width] if right else []),
    ]
    return tirx.all(*tests) if tests else None


def as_stored(layout: Layout, shape: Shape, pixel: Pixel, value: Expr) -> Expr:
    """`value`, or 0 where `pixel` is padding; in bfloat16 if the layout has that.

    A Select, not a branch: it keeps the store a vector, and `value` is computed from padding that is itself finite. Of
    integers it is `value` everywhere: their padding may hold anything.
    """
    test = inside(layout, shape, pixel) if dtype_of(value) == FLOAT32 else None
    value = value if test is None else tirx.Select(test, value, float32(0.0))
    return narrowed(value) if layout.narrow else value
