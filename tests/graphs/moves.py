"""Operators that put elements elsewhere, and those that fill."""

from __future__ import annotations

import math

import numpy as np
from onnx import numpy_helper

from graphs.draft import DTYPES, MOST, Draft, Held, Skip
from graphs.elementwise import partner
from graphs.growers import allowed, filled, grows


def ranked(least: int, most: int = 5):  # type: ignore[no-untyped-def]
    return lambda held: least <= held.rank <= most


@grows("Transpose", when=ranked(1))
def transpose(d: Draft, op: str, x: Held) -> None:
    kind = d.integer(0, 3)
    if kind == 0:
        d.node(op, [x])
    elif kind == 1 and x.rank == 4:
        d.node(op, [x], perm=d.choice(([0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1, 3], [1, 0, 2, 3])))
    else:
        rest, perm = list(range(x.rank)), []
        while rest:
            perm.append(rest.pop(d.integer(0, len(rest) - 1)))
        d.node(op, [x], perm=perm)


@grows("Reshape")
def reshape(d: Draft, op: str, x: Held) -> None:
    """Flat, an axis cut in two, two joined, or 0 and −1 among the extents."""
    shape, kind = list(x.shape), d.integer(0, 4)
    if kind == 0:
        target = [x.size]
    elif kind == 1 and x.rank >= 2:
        axis = d.integer(0, x.rank - 2)
        target = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
    elif kind == 2 and 1 <= x.rank <= 4:
        axis = d.integer(0, x.rank - 1)
        parts = [n for n in (2, 3, 4, 5, 16) if shape[axis] % n == 0] or [1]
        n = d.choice(parts)
        target = [*shape[:axis], *d.choice(([n, shape[axis] // n], [shape[axis] // n, n])), *shape[axis + 1 :]]
    elif kind == 3 and x.rank >= 2:
        target = [shape[0], math.prod(shape[1:])]
    else:
        target = [1, *shape][:5] if x.rank < 5 else shape
    if d.chance(1, 3) and target and x.size:
        target[d.integer(0, len(target) - 1)] = -1
    d.node(op, [x, d.whole(target)])


@grows("Flatten", when=ranked(0))
def flatten(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], axis=d.integer(0, x.rank) if d.chance(1, 2) else 1 if x.rank else 0)


@grows("Squeeze", when=lambda held: 1 in held.shape)
def squeeze(d: Draft, op: str, x: Held) -> None:
    ones = [axis for axis, extent in enumerate(x.shape) if extent == 1]
    d.node(op, [x, None if d.chance(1, 3) else d.whole([d.choice(ones)])])


@grows("Unsqueeze", when=ranked(0, 4))
def unsqueeze(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x, d.whole([d.integer(0, x.rank) if d.chance(1, 2) else -1])])


@grows("Concat", when=ranked(1))
def concat(d: Draft, op: str, x: Held) -> None:
    """With tensors that have the same other axes, constants, or itself."""
    axis = d.integer(0, x.rank - 1) if d.chance(1, 3) or x.rank < 2 else 1
    rest = x.shape[:axis] + x.shape[axis + 1 :]

    def fits(held: Held) -> bool:
        alike = held.dtype == x.dtype and held.rank == x.rank and held.name != x.name
        return alike and held.shape[:axis] + held.shape[axis + 1 :] == rest

    others = []
    for _ in range(d.choice((1, 2, 3))):
        found = d.pick(fits)
        if found is None or d.chance(1, 5):
            part = (*x.shape[:axis], d.choice((1, 3, 16)), *x.shape[axis + 1 :])
            found = x if d.chance(1, 3) else d.drawn(part, x.dtype)
        others.append(found)
    place = d.integer(0, len(others))
    d.node(op, [*others[:place], x, *others[place:]], axis=axis - x.rank if d.chance(1, 4) else axis)


@grows("Split", when=lambda held: held.rank >= 1 and max(held.shape) >= 2)
def split(d: Draft, op: str, x: Held) -> None:
    axis = d.choice([axis for axis, extent in enumerate(x.shape) if extent >= 2][::-1])
    extent, parts = x.shape[axis], d.choice((2, 3) if x.shape[axis] >= 3 else (2,))
    if d.chance(1, 2):
        first = d.integer(1, extent - parts + 1)
        sizes = [first, extent - first] if parts == 2 else [first, 1, extent - first - 1]
        d.node(op, [x, d.whole(sizes)], outputs=parts, axis=axis)
    elif d.opset >= 18:
        d.node(op, [x], outputs=parts, axis=axis, num_outputs=parts)
    elif extent % parts == 0:
        d.node(op, [x], outputs=parts, axis=axis)
    else:
        raise Skip("Split: unequal parts before opset 18")


@grows("Slice", when=ranked(1))
def slice_(d: Draft, op: str, x: Held) -> None:
    axes = d.axes(x.rank)
    starts, ends, steps = [], [], []
    for axis in axes:
        extent = x.shape[axis]
        step = d.choice((1, 1, 2, 3, -1, -2))
        start = d.integer(0, max(0, extent - 1))
        end = min(extent, start + d.integer(1, max(1, extent)))
        end = start if d.chance(1, 40) else end  # nothing is left
        if step < 0:
            start, end = end - 1, (start - 1 if start else -(1 << 31))
        starts.append(start - extent if d.chance(1, 5) and start < extent else start)
        ends.append((1 << 31) if step > 0 and end == extent and d.chance(1, 3) else end)
        steps.append(step)
    given = [d.whole(starts), d.whole(ends), d.whole(axes)]
    d.node(op, [x, *given, *([d.whole(steps)] if any(step != 1 for step in steps) or d.chance(1, 3) else [])])


@grows("Pad", when=lambda held: held.rank >= 1 and held.size > 0)
def pad(d: Draft, op: str, x: Held) -> None:
    mode = d.choice(("constant", "reflect", "edge", "wrap") if d.opset >= 19 else ("constant", "reflect", "edge"))
    before, after = [0] * x.rank, [0] * x.rank
    for axis in d.axes(x.rank):
        most = min(2, x.shape[axis] - 1) if mode == "reflect" else 2
        least = -1 if x.shape[axis] > 2 and mode == "constant" else 0
        before[axis], after[axis] = d.integer(0, most - least) + least, d.integer(0, most - least) + least
    value = d.constant(np.asarray(d.choice((0, 1, 3)), x.dtype)) if mode == "constant" and d.chance(1, 2) else None
    d.node(op, [x, d.whole([*before, *after]), value], mode=mode)


@grows("Tile", when=ranked(1))
def tile(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x, d.whole([d.choice((1, 2, 3)) for _ in range(x.rank)])])


@grows("Expand", when=lambda held: True)
def expand(d: Draft, op: str, x: Held) -> None:
    grown = [d.choice((1, 2, 5)) if extent == 1 else d.choice((extent, 1)) for extent in x.shape]
    d.node(op, [x, d.whole([*([2] if d.chance(1, 3) and x.rank < 5 else []), *grown])])


@grows("DepthToSpace", when=lambda held: held.rank == 4 and held.shape[1] % 4 == 0 and held.shape[1] > 0)
def depth_to_space(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], blocksize=2, mode=d.choice(("DCR", "CRD")))


@grows("SpaceToDepth", when=lambda held: held.rank == 4 and held.shape[2] % 2 == held.shape[3] % 2 == 0)
def space_to_depth(d: Draft, op: str, x: Held) -> None:
    d.node(op, [x], blocksize=2)


@grows("Trilu", when=lambda held: held.rank >= 2)
def trilu(d: Draft, op: str, x: Held) -> None:
    kind = d.integer(0, 2)
    k = np.asarray(d.integer(-2, 2), np.int64)
    d.node(op, [x, None if kind == 0 else d.constant(k) if kind == 1 else d.input(k)], upper=d.integer(0, 1))


@grows("Resize", when=lambda held: held.rank in (3, 4) and held.size > 0 and held.finite)
def resize(d: Draft, op: str, x: Held) -> None:
    mode = d.choice(("nearest", "linear", "cubic") if x.is_float else ("nearest",))
    spatial = x.shape[2:]
    words = {"mode": mode, "coordinate_transformation_mode": d.choice(("asymmetric", "half_pixel", "align_corners"))}
    if mode == "nearest":
        words["nearest_mode"] = d.choice(("floor", "round_prefer_floor", "ceil"))
    if d.chance(1, 2):
        sizes = [extent * d.choice((2, 1)) + d.choice((0, 1)) for extent in spatial]
        d.node(op, [x, None, None, d.whole([*x.shape[:2], *sizes])], **words)
        return
    scales = [d.choice((2.0, 1.0, 1.5, 3.0)) for _ in spatial]
    d.node(op, [x, None, d.constant(np.asarray([1, 1, *scales], np.float32))], **words)


@grows("ReverseSequence", when=lambda held: held.rank >= 2 and held.size > 0)
def reverse_sequence(d: Draft, op: str, x: Held) -> None:
    time = d.integer(0, 1)
    rng = np.random.default_rng(d.integer(0, 99))
    lengths = np.asarray(rng.integers(0 if d.chance(1, 4) else 1, x.shape[time] + 1, x.shape[1 - time]))
    given = d.input(lengths) if d.chance(1, 2) else d.constant(lengths)
    d.node(op, [x, given], batch_axis=1 - time, time_axis=time)


# ---- indices --------------------------------------------------------------------------------------------------------


def indices(d: Draft, shape: tuple[int, ...], extent: int, dtype: str = "int64") -> Held:
    """Within −extent to extent − 1: constant or an input."""
    rng = np.random.default_rng(d.integer(0, 99))
    low = -extent if d.chance(1, 3) else 0
    value = np.asarray(rng.integers(low, extent, shape), dtype)
    return d.input(value) if d.chance(1, 3) else d.constant(value)


@grows("Gather", when=lambda held: held.rank >= 1 and held.size > 0)
def gather(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(0, x.rank - 1)
    made = d.pick(lambda held: from_arg_max(d, held, x.shape[axis]) and held.rank + x.rank - 1 <= 5)
    if made is None or d.chance(1, 2):
        shape = d.choice([s for s in ((3,), (), (1,), (2, 2)) if len(s) + x.rank - 1 <= 5])
        made = indices(d, shape, x.shape[axis], d.choice(("int64", "int32")))
    d.node(op, [x, made], axis=axis - x.rank if d.chance(1, 4) else axis)


def from_arg_max(d: Draft, held: Held, extent: int) -> bool:
    """True for what an ArgMax makes of no more values than there are to choose among: never out of range."""
    node = next((node for node in d.nodes if held.name in node.output), None)
    if node is None or node.op_type not in ("ArgMax", "ArgMin"):
        return False
    source = next(other for other in d.pool if other.name == node.input[0])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return source.shape[axis] <= extent


@grows("GatherElements", when=lambda held: held.rank >= 1 and held.size > 0)
def gather_elements(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(0, x.rank - 1)
    shape = [d.integer(1, min(extent, 4)) for extent in x.shape]
    shape[axis] = d.integer(1, 5)
    d.node(op, [x, indices(d, tuple(shape), x.shape[axis], d.choice(("int64", "int32")))], axis=axis)


@grows("GatherND", when=lambda held: held.rank >= 1 and held.size > 0)
def gather_nd(d: Draft, op: str, x: Held) -> None:
    batch = d.integer(0, min(1, x.rank - 1))
    depth = d.integer(1, x.rank - batch)
    count = d.integer(1, 3)
    rng = np.random.default_rng(d.integer(0, 99))
    shape = (*x.shape[:batch], count)
    value = np.stack([rng.integers(0, x.shape[batch + i], shape) for i in range(depth)], axis=-1)
    given = d.input(value) if d.chance(1, 3) else d.constant(value)
    d.node(op, [x, given], **({"batch_dims": batch} if batch else {}))


@grows("OneHot", when=lambda held: 1 <= held.rank <= 4 and held.size <= 2000 and held.finite)
def one_hot(d: Draft, op: str, x: Held) -> None:
    depth = d.integer(2, 6)
    values = d.drawn((2,), d.choice(DTYPES))
    where = d.integer(0, x.rank) if d.chance(1, 2) else -1
    size = d.constant(np.asarray(depth, d.choice(("int64", "int32"))).reshape(d.choice(((), (1,)))))
    if x.is_float:
        x = d.node("Round", [x])[0]
    d.node(op, [x, size, values], axis=where)


# ---- what fills -----------------------------------------------------------------------------------------------------


@grows("Shape", "Size")
def extents(d: Draft, op: str, x: Held) -> None:
    """Draw a use of the shape of x: x takes the shape that it has, a constant is filled, or numbers are counted."""
    part = {"start": d.integer(0, x.rank)} if op == "Shape" and d.opset >= 15 and d.chance(1, 3) else {}
    made = d.node(op, [x], **part)[0]
    kind = d.integer(0, 3)
    if op == "Shape" and not part and kind == 1:
        d.node("Reshape", [x, made])
    elif op == "Shape" and kind == 2 and 0 < math.prod(int(n) for n in made.value) < MOST:
        d.node("ConstantOfShape", [made], value=numpy_helper.from_array(d.numbers((1,), d.choice(DTYPES))))
    elif op == "Shape" and not part and kind == 3:
        d.node("Expand", [d.drawn((), x.dtype), made])


@grows("ConstantOfShape")
def constant_of_shape(d: Draft, op: str, x: Held) -> None:
    value = numpy_helper.from_array(d.numbers((1,), x.dtype))
    made = d.node(op, [d.whole(x.shape)], value=value)[0]
    combined(d, x, made)


@grows("Constant")
def constant(d: Draft, op: str, x: Held) -> None:
    combined(d, x, d.node(op, [], value=numpy_helper.from_array(partner(d, x).value))[0])


@grows("Range", when=lambda held: held.rank >= 1)
def range_(d: Draft, op: str, x: Held) -> None:
    dtype = x.dtype if x.dtype in ("float32", "int64", "int32") else "int64"
    step = d.choice((1, 2, 3))
    bounds = [d.constant(n, dtype) for n in (1, 1 + step * x.shape[-1], step)]
    combined(d, x, d.node(op, bounds)[0])


def combined(d: Draft, x: Held, made: Held) -> None:
    """What was filled beside x, sometimes: alone it is an output."""
    if made.dtype != x.dtype or d.chance(1, 4):
        return
    op = "Or" if x.dtype == "bool" else "Max" if not filled(x) or d.chance(1, 2) else "Add"
    if x.dtype in allowed(op, d.opset):
        d.node(op, [x, made])
