"""Operators that move elements and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmcnn.errors import ModelError
from tvmcnn.network import dims
from tvmcnn.operators.words import Meaning, Unsupported, Value, axis_of, constant, floats, operator, scalar


@operator
def concat(*operands: Value, axis: int) -> Meaning:
    """ONNX Concat along one axis."""
    floats(*operands)
    axis = axis_of(axis, len(operands[0].shape))
    shapes = [list(value.shape) for value in operands]
    rests = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
    if any(rest != rests[0] for rest in rests):
        raise ModelError(f"{', '.join(dims(v.shape) for v in operands)} do not concatenate along axis {axis}")
    shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    return Meaning("Concat", operands, shape, {"axis": axis})


@operator
def pad(
    x: Value,
    pads: Value,
    constant_value: Value | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
) -> Meaning:
    """ONNX Pad with constant pads and value; negative pads crop."""
    floats(x)
    if mode != "constant":
        raise Unsupported(f"attribute mode='{mode}'; only 'constant' is supported")
    amounts = [int(v) for v in constant("pads", pads).reshape(-1)]
    rank = len(x.shape)
    chosen = range(rank) if axes is None else [axis_of(int(a), rank) for a in constant("axes", axes).reshape(-1)]
    if len(amounts) != 2 * len(chosen):
        raise ModelError(f"{len(amounts)} pads for {len(chosen)} axes of {dims(x.shape)}; there must be two an axis")
    begins, ends = [0] * rank, [0] * rank
    for position, axis in enumerate(chosen):
        begins[axis], ends[axis] = amounts[position], amounts[position + len(chosen)]
    shape = tuple(b + s + e for b, s, e in zip(begins, x.shape, ends, strict=True))
    if min(shape, default=1) < 1:
        raise ModelError(f"pads {amounts} crop {dims(x.shape)} to nothing")
    value = scalar("constant_value", constant_value) if constant_value is not None else 0.0
    return Meaning("Pad", (x,), shape, {"begins": tuple(begins), "value": value})


@operator
def reshape(x: Value, shape: Value, *, allowzero: int = 0) -> Meaning:
    """ONNX Reshape to a constant shape; 0 keeps an extent (unless allowzero), one −1 takes what is left."""
    floats(x)
    wanted = [int(v) for v in constant("shape", shape).reshape(-1)]
    text = f"{dims(x.shape)} ({math.prod(x.shape)} elements) does not reshape to {wanted}"
    if not allowzero:
        if any(extent == 0 and axis >= len(x.shape) for axis, extent in enumerate(wanted)):
            raise ModelError(text)
        wanted = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = math.prod(x.shape) // rest if rest else 0
    if math.prod(wanted) != math.prod(x.shape) or min(wanted, default=0) < 0:
        raise ModelError(text)
    return Meaning("Reshape", (x,), tuple(wanted))


@operator
def flatten(x: Value, *, axis: int = 1) -> Meaning:
    """ONNX Flatten: a matrix whose rows are the axes before `axis`."""
    floats(x)
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        raise ModelError(f"axis {axis} is outside {dims(x.shape)}")
    axis += rank if axis < 0 else 0
    return Meaning("Reshape", (x,), (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator
def transpose(x: Value, *, perm: Sequence[int] | None = None) -> Meaning:
    """ONNX Transpose; without perm the axes are reversed."""
    floats(x)
    order = tuple(perm) if perm is not None else tuple(reversed(range(len(x.shape))))
    if sorted(order) != list(range(len(x.shape))):
        raise ModelError(f"perm {list(order)} is no permutation of the {len(x.shape)} axes of {dims(x.shape)}")
    return Meaning("Transpose", (x,), tuple(x.shape[axis] for axis in order), {"perm": order})


@operator
def identity(x: Value) -> Meaning:
    """ONNX Identity, where it could not be removed: a copy."""
    floats(x)
    return Meaning("Reshape", (x,), x.shape)
