"""Operators after which the same elements lie in the same order, and those that only change the order of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    DTYPES,
    EXPORT,
    Meaning,
    Unsupported,
    Value,
    axes_of,
    integers,
    operator,
    scalar,
    typed,
)
from tvmcnn.network import Shape, dims


def view(x: Value, shape: Shape) -> Meaning:
    """The elements of `x` in their order under another shape: no kernel of its own unless it makes an output."""
    typed(DTYPES, x)
    return Meaning("Reshape", (x,), shape)


@operator
def identity(x: Value) -> Meaning:
    """ONNX Identity, where it could not be removed: a copy."""
    return view(x, x.shape)


@operator
def dropout(
    data: Value,
    ratio: Value | None = None,
    training_mode: Value | None = None,
    *,
    seed: int | None = None,  # of training only
) -> tuple[Meaning, ...]:
    """ONNX Dropout at inference: the data as it is, and a mask that keeps every element."""
    if training_mode is not None and scalar("training_mode", training_mode):
        raise Unsupported(f"training_mode is true, not false as for inference: {EXPORT}")
    return view(data, data.shape), Meaning("ConstantOfShape", (), data.shape, {"value": True}, "bool")


@operator
def reshape(data: Value, shape: Value, *, allowzero: int = 0) -> Meaning:
    """ONNX Reshape to a constant shape; 0 keeps an extent (unless allowzero), one −1 takes what is left."""
    wanted = integers("shape", shape)
    text = f"{dims(data.shape)} ({math.prod(data.shape)} elements) does not reshape to {wanted}"
    if allowzero:
        if 0 in wanted and -1 in wanted:
            raise ModelError(f"{text}: with allowzero=1 a shape may have 0 or −1, not both")
    else:
        if any(extent == 0 and axis >= len(data.shape) for axis, extent in enumerate(wanted)):
            raise ModelError(text)
        wanted = [data.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = math.prod(data.shape) // rest if rest else 0
    if math.prod(wanted) != math.prod(data.shape) or min(wanted, default=0) < 0:
        raise ModelError(text)
    return view(data, tuple(wanted))


@operator
def flatten(x: Value, *, axis: int = 1) -> Meaning:
    """ONNX Flatten: a matrix whose rows are the axes before `axis`."""
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        raise ModelError(f"axis {axis} is outside {dims(x.shape)}")
    axis += rank if axis < 0 else 0
    return view(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator
def squeeze(data: Value, axes: Value | None = None) -> Meaning:
    """ONNX Squeeze: without the given axes, which have extent 1; without `axes` all of extent 1."""
    rank = len(data.shape)
    gone = [a for a in range(rank) if data.shape[a] == 1] if axes is None else axes_of(integers("axes", axes), rank)
    if wide := [axis for axis in gone if data.shape[axis] != 1]:
        raise ModelError(f"axis {wide[0]} of {dims(data.shape)} has extent {data.shape[wide[0]]}; only 1 is squeezed")
    return view(data, tuple(extent for axis, extent in enumerate(data.shape) if axis not in gone))


@operator
def unsqueeze(data: Value, axes: Value) -> Meaning:
    """ONNX Unsqueeze: with an axis of extent 1 at each of the given places of the output."""
    given = integers("axes", axes)
    rank = len(data.shape) + len(given)
    new, extents = axes_of(given, rank), iter(data.shape)
    return view(data, tuple(1 if axis in new else next(extents) for axis in range(rank)))


@operator
def transpose(x: Value, *, perm: Sequence[int] | None = None) -> Meaning:
    """ONNX Transpose; without perm the axes are reversed. A view where no two axes larger than 1 change places."""
    typed(DTYPES, x)
    order = tuple(perm) if perm is not None else tuple(reversed(range(len(x.shape))))
    if sorted(order) != list(range(len(x.shape))):
        raise ModelError(f"perm {list(order)} is no permutation of the {len(x.shape)} axes of {dims(x.shape)}")
    shape = tuple(x.shape[axis] for axis in order)
    wide = [axis for axis in order if x.shape[axis] != 1]
    return view(x, shape) if wide == sorted(wide) else Meaning("Transpose", (x,), shape, {"perm": order})
