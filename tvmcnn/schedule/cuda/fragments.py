"""Tensor cores as intrinsics: a warp loads tiles from shared memory as fragments, multiplies, and stores the sums.

Each is what it means, in TVMScript, and the call of CUDA's that does it. Of TF32 TVM's CUDA writer knows no fragments:
float16, which has as many bits of mantissa, stands for it in TIR, and the written text names TF32 (see `as_tf32`).
(CUDA C++ Programming Guide, "Warp Matrix Functions".)

The scripts are text: TVM has such intrinsics ready, but the decorator that makes them reads the source of every frame
of the stack, which takes a minute for all.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from tvm.s_tir import TensorIntrin
from tvm.script import from_source
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

SIDE = 16  # rows and columns of a fragment of the sum


class Intrinsics(NamedTuple):
    """The names under which TVM knows them."""

    left: str
    right: str
    zero: str
    products: str
    store: str


LOAD = (
    """
    for i, j in T.grid({rows}, {columns}):
        with T.sblock("load"):
            y, x = T.axis.remap("SS", [i, j])
            made[y, x] = {as_factor}
    """,
    "T.tvm_load_matrix_sync(made.data, {shape}, {made}, from_.access_ptr('r', ptr_type='{stored}'), from_.strides[0],"
    " 'row_major', dtype='void')",
)
ZERO = (
    """
    for i, j in T.grid(16, 16):
        with T.sblock("zero"):
            y, x = T.axis.remap("SS", [i, j])
            made[y, x] = T.float32(0)
    """,
    "T.tvm_fill_fragment(made.data, {shape}, {made}, T.float32(0), dtype='void')",
)
PRODUCTS = (
    """
    for i, j, k in T.grid(16, 16, {terms}):
        with T.sblock("products"):
            y, x, t = T.axis.remap("SSR", [i, j, k])
            made[y, x] = made[y, x] + T.Cast("float32", left[y, t]) * T.Cast("float32", right[t, x])
    """,
    "T.tvm_mma_sync(made.data, {made}, left.data, {left}, right.data, {right}, made.data, {made}, dtype='void')",
)
STORE = (
    """
    for i, j in T.grid(16, 16):
        with T.sblock("store"):
            y, x = T.axis.remap("SS", [i, j])
            made[y, x] = from_[y, x]
    """,
    "T.tvm_store_matrix_sync(from_.data, {shape}, {from_}, made.access_ptr('w', ptr_type='float32'), made.strides[0],"
    " 'row_major', dtype='void')",
)
Buffer = tuple[str, tuple[int, int], str, str]  # name, rows and columns, dtype, scope


@functools.cache
def intrinsics(precision: str, terms: int) -> Intrinsics:
    """Intrinsics of a precision, "fp16" or "tf32", for that many terms at once; registered with TVM the first time."""
    names = Intrinsics(*(f"tvmcnn_{word}_{precision}" for word in Intrinsics._fields))
    stored = "float16" if precision == "fp16" else "float32"
    sums = (SIDE, SIDE)
    accumulator: Buffer = ("made", sums, "float32", "wmma.accumulator")
    factors: list[Buffer] = [
        ("left", (SIDE, terms), "float16", "wmma.matrix_a"),
        ("right", (terms, SIDE), "float16", "wmma.matrix_b"),
    ]
    for name, (_, shape, dtype, scope) in zip((names.left, names.right), factors, strict=True):
        given: Buffer = ("from_", shape, stored, "shared")
        _register(name, LOAD, terms, [given, ("made", shape, dtype, scope)])
    _register(names.zero, ZERO, terms, [accumulator])
    _register(names.products, PRODUCTS, terms, [*factors, accumulator], reads_made=True)
    _register(names.store, STORE, terms, [("from_", *accumulator[1:]), ("made", sums, "float32", "shared")])
    return names


def as_tf32(text: str) -> str:
    """A kernel's text with the fragments that float16 stands for named TF32."""
    return re.sub(r"(wmma::matrix_[ab], \d+, \d+, 8, )half,", r"\1nvcuda::wmma::precision::tf32,", text)


def _register(
    name: str, scripts: tuple[str, str], terms: int, buffers: list[Buffer], *, reads_made: bool = False
) -> None:
    """Make TVM know an intrinsic by its meaning and its call, over buffers of which the last is written."""
    meaning, call = scripts
    rows, columns = buffers[-1][1]
    stored = buffers[0][2]
    words: dict[str, Any] = {"rows": rows, "columns": columns, "terms": terms, "stored": stored}
    words["shape"] = f"{SIDE}, {SIDE}, {terms}"
    words["as_factor"] = "from_[y, x]" if stored == buffers[-1][2] else "T.Cast('float16', from_[y, x])"
    words |= {buffer[0]: _index(buffer) for buffer in buffers}
    read = [*buffers[-1:] * reads_made, *buffers[:-1]]
    body = f"    T.evaluate({call.format(**words)})"
    TensorIntrin.register(
        name,
        _function(meaning.format(**words).strip("\n").rstrip(), buffers, read, strides=False),
        _function(body, buffers, read, strides=True),
    )


def _index(buffer: Buffer) -> str:
    """Which of a variable's fragments a part of it is: they lie row by row."""
    name, (rows, columns), _, _ = buffer
    return (
        f"{name}.elem_offset // {name}.strides[0] // {rows} * ({name}.strides[0] // {columns})"
        f" + {name}.elem_offset % {name}.strides[0] // {columns}"
    )


def _function(body: str, buffers: list[Buffer], read: list[Buffer], *, strides: bool) -> Any:
    """A PrimFunc of a body over buffers."""
    lines = ["@T.prim_func(s_tir=True)", f"def function({', '.join(f'p_{b[0]}: T.handle' for b in buffers)}) -> None:"]
    for name, (rows, columns), dtype, scope in buffers:
        if strides:
            lines.append(f"    {name}_row, {name}_column = T.int32(), T.int32()")
        own = f", strides=[{name}_row, {name}_column]" if strides else ""
        shape = f"({rows}, {columns}), '{dtype}', align=64, offset_factor={columns}, scope='{scope}'"
        lines.append(f"    {name} = T.match_buffer(p_{name}, {shape}{own})")
    reads, writes = (
        ", ".join(f"{name}[0:{rows}, 0:{columns}]" for name, (rows, columns), _, _ in each)
        for each in (read, buffers[-1:])
    )
    lines += ["    with T.sblock('root'):", f"        T.reads({reads})", f"        T.writes({writes})"]
    lines += ["    " + line for line in body.splitlines()]
    return from_source("\n".join(lines), {"T": T})
