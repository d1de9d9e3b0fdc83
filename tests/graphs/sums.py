"""Matrix products and reductions."""

from __future__ import annotations

import numpy as np

from graphs.draft import Draft, Held, Skip
from graphs.growers import filled, grows

COLUMNS = (10, 16, 7, 17, 33, 1, 8, 24)


@grows("Gemm", when=lambda held: held.rank == 2 and filled(held))
def gemm(d: Draft, op: str, x: Held) -> None:
    """With a constant or an arriving B, from either side."""
    transposed = d.chance(1, 5)
    depth, columns = x.shape[0 if transposed else 1], d.choice(COLUMNS)
    transposed_b = d.chance(1, 2)
    shape = (columns, depth) if transposed_b else (depth, columns)
    b = factor(d, shape, x.dtype, depth)
    rows = x.shape[1 if transposed else 0]
    kind = d.integer(0, 4)
    c = None if kind == 0 else d.drawn(((columns,), (1, columns), (rows, columns), ())[kind - 1], x.dtype)
    words: dict[str, object] = {"transA": 1} if transposed else {}
    words |= {"transB": 1} if transposed_b else {}
    if d.chance(1, 4):
        words |= {"alpha": 2.0, "beta": 3.0} if not x.is_float else {"alpha": 0.5, "beta": 1.5}
    d.node(op, [x, b, c], **words)


def factor(d: Draft, shape: tuple[int, ...], dtype: str, depth: int) -> Held:
    if np.dtype(dtype).kind != "f":
        value = d.numbers(shape, dtype, 0)
    else:
        value = (d.numbers(shape, "float64", 0) / np.sqrt(max(depth, 1))).astype(dtype)
    return d.input(value) if d.chance(1, 6) else d.constant(value)


@grows("MatMul", when=lambda held: held.rank >= 1 and filled(held))
def mat_mul(d: Draft, op: str, x: Held) -> None:
    """Multiply by a matrix, a stack of them, itself, or another tensor of the pool."""
    columns, kind = d.choice(COLUMNS), d.integer(0, 5)
    found = d.pick(
        lambda held: held.rank >= 2 and held.dtype == x.dtype and held.shape[:-1] == (*x.shape[:-2], x.shape[-1])
    )
    if kind == 4 and found is not None and x.rank >= 2 and found.finite:
        d.node(op, [x, found])
    elif kind == 5 and x.rank >= 2:  # as attention does, of rows or of columns
        if x.rank == 4 and d.chance(1, 2):
            x = d.node("Reshape", [x, d.whole((*x.shape[:2], -1))])[0]
        y = d.node("Transpose", [x], perm=(*range(x.rank - 2), x.rank - 1, x.rank - 2))[0]
        d.node(op, [x, y] if d.chance(1, 2) else [y, x])
    elif kind == 3 and x.rank >= 3:
        d.node(op, [x, factor(d, (*x.shape[:-2], x.shape[-1], columns), x.dtype, x.shape[-1])])
    elif kind == 2 and x.rank >= 2:  # from the left
        rows = d.choice((3, 5, 16))
        d.node(op, [factor(d, (rows, x.shape[-2]), x.dtype, x.shape[-2]), x])
    elif kind == 1:
        d.node(op, [x, factor(d, x.shape[-1:], x.dtype, x.shape[-1])])
    else:
        d.node(op, [x, factor(d, (x.shape[-1], columns), x.dtype, x.shape[-1])])


REDUCTIONS = """
    ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceProd ReduceLogSum ReduceLogSumExp
""".split()  # noqa: SIM905


@grows(*REDUCTIONS, when=filled)
def reduction(d: Draft, op: str, x: Held) -> None:
    axes = d.axes(x.rank)
    if not axes and x.rank == 0:
        raise Skip(f"{op}: of a scalar")
    terms = int(np.prod([x.shape[axis] for axis in axes]))
    if op == "ReduceProd" and (terms > 12 or (x.is_float and np.abs(x.value).max() > 4)):
        raise Skip("ReduceProd: of many")
    if (
        op in ("ReduceLogSum", "ReduceLogSumExp", "ReduceL2") and not x.is_float
    ):  # else it may be too large for the type
        x = d.node("Mod", [x, d.constant(np.asarray(9, x.dtype))])[0]
    if op in ("ReduceLogSum", "ReduceL2") and x.is_float:
        x = d.node("Exp" if op == "ReduceLogSum" else "Abs", [x])[0]
    axes = [axis - x.rank if d.chance(1, 4) else axis for axis in axes]
    words = {} if d.chance(1, 2) else {"keepdims": 0}
    whole = len(axes) == x.rank and d.chance(1, 2)
    if d.since(op) >= 18 or op == "ReduceSum":
        d.node(op, [x, None if whole else d.whole(axes)], **words)
    else:
        d.node(op, [x], **words, **({} if whole else {"axes": axes}))


@grows("ArgMax", "ArgMin", when=lambda held: held.rank >= 1 and filled(held))
def arg(d: Draft, op: str, x: Held) -> None:
    axis = d.integer(0, x.rank - 1)
    d.node(op, [x], axis=axis, keepdims=d.integer(0, 1), select_last_index=d.integer(0, 1))
