"""Tensor cores as TVM's intrinsics: a warp loads tiles from shared memory as fragments, multiplies, and stores.

Of float16 they are TVM's own. Of TF32 TVM has none, and its CUDA writer knows no such fragments: float16, which has as
many bits of mantissa, stands for it in TIR, and the written text names TF32 (see `as_tf32`). (CUDA C++ Programming
Guide, "Warp Matrix Functions".)
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from tvm.s_tir import TensorIntrin
from tvm.s_tir.tensor_intrin import cuda
from tvm.script import tirx as T  # noqa: N812 (its name in TVMScript)

SIDE = 16  # rows and columns of a fragment of the sum


class Intrinsics(NamedTuple):
    """The names under which TVM knows them."""

    left: str
    right: str
    zero: str
    products: str
    store: str


@functools.cache
def intrinsics(precision: str, terms: int) -> Intrinsics:
    """Those of a precision, "fp16" or "tf32", for so many terms at once; registered with TVM the first time."""
    names = Intrinsics(*(f"tvmcnn_{word}_{precision}" for word in Intrinsics._fields))
    load = _load_float16 if precision == "fp16" else _load_float32
    TensorIntrin.register(names.left, *load(terms, is_right=False))
    TensorIntrin.register(names.right, *load(terms, is_right=True))
    TensorIntrin.register(names.zero, *cuda.get_wmma_fill_intrin(SIDE, SIDE, terms, "float32"))
    TensorIntrin.register(
        names.products, *cuda.get_wmma_sync_intrin(SIDE, SIDE, terms, "float16", "float32", b_transposed=False)
    )
    TensorIntrin.register(names.store, *cuda.get_wmma_store_intrin(SIDE, SIDE, terms, "float32", "shared"))
    return names


def as_tf32(text: str) -> str:
    """A kernel's text with the fragments that float16 stands for named TF32."""
    return re.sub(r"(wmma::matrix_[ab], \d+, \d+, 8, )half,", r"\1nvcuda::wmma::precision::tf32,", text)


def _load_float16(terms: int, *, is_right: bool) -> tuple[Any, Any]:
    pair: tuple[Any, Any] = cuda.get_wmma_load_intrin(SIDE, SIDE, terms, "float16", "shared", is_right, False)
    return pair


def _load_float32(terms: int, *, is_right: bool) -> tuple[Any, Any]:
    """What a fragment is (a cast), and the call that loads it: the elements are rounded already."""
    scope = f"wmma.matrix_{'b' if is_right else 'a'}"
    rows, columns = (terms, SIDE) if is_right else (SIDE, terms)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def meaning(a: T.handle, c: T.handle) -> None:
        given = T.match_buffer(a, (rows, columns), "float32", align=64, offset_factor=columns, scope="shared")
        made = T.match_buffer(c, (rows, columns), "float16", align=64, offset_factor=columns, scope=scope)
        with T.sblock("root"):
            T.reads(given[0:rows, 0:columns])
            T.writes(made[0:rows, 0:columns])
            for i, j in T.grid(rows, columns):
                with T.sblock("load"):
                    y, x = T.axis.remap("SS", [i, j])
                    made[y, x] = T.Cast("float16", given[y, x])

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def call(a: T.handle, c: T.handle) -> None:
        a1, a0, c1, c0 = T.int32(), T.int32(), T.int32(), T.int32()
        given = T.match_buffer(
            a, (rows, columns), "float32", align=64, offset_factor=columns, scope="shared", strides=[a1, a0]
        )
        made = T.match_buffer(
            c, (rows, columns), "float16", align=64, offset_factor=columns, scope=scope, strides=[c1, c0]
        )
        with T.sblock("root"):
            T.reads(given[0:rows, 0:columns])
            T.writes(made[0:rows, 0:columns])
            T.evaluate(
                T.tvm_load_matrix_sync(
                    made.data,
                    SIDE,
                    SIDE,
                    terms,
                    cuda.get_wmma_fragment_index(made, c1, rows, columns),
                    given.access_ptr("r", ptr_type="float32"),
                    a1,
                    "row_major",
                    dtype="void",
                )
            )

    return meaning, call
