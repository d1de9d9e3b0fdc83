"""Short circuit: a test of indices guards the reads that stand behind it in the same condition.

    if i >= 1 and i < 16 and largest <= x[i - 1]: …
      -->
    if (largest <= x[i - 1] if i >= 1 and i < 16 else False): …

TVM's code for LLVM evaluates both sides of `and`, so the read happens outside of x too; and its simplifier makes an
`and` of an if_then_else within another whose last operands are the same. C, and so CUDA, evaluates the right side only
where the left one holds.
"""

from __future__ import annotations

import functools

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.ir.expr import TensorLoad


def short_circuited(body: tirx.Stmt) -> tirx.Stmt:
    """The lowered body, in which no condition reads what its own tests of indices exclude."""
    return tvm_ffi.structural_map(body, ((tirx.And, _guard), (tirx.Or, _guard)), order="pre")


def _guard(condition: tirx.And | tirx.Or) -> Expr:
    """The condition, decided by its tests without reads alone where they can decide it.

    Vectors are left: an if_then_else, whose branches guard reads, decides one lane at a time.
    """
    kind = type(condition)
    tests = [(test, _reads(test)) for test in _parts(condition, kind)]
    of_indices = [test for test, reads in tests if not reads]
    of_elements = [test for test, reads in tests if reads]
    if str(condition.ty.dtype) != "bool" or not of_indices or not of_elements:
        return condition
    first, rest = functools.reduce(kind, of_indices), functools.reduce(kind, of_elements)
    if kind is tirx.And:
        return tirx.if_then_else(first, rest, tirx.const(False, "bool"))
    return tirx.if_then_else(first, tirx.const(True, "bool"), rest)


def _parts(test: Expr, kind: type[tirx.And | tirx.Or]) -> list[Expr]:
    return [*_parts(test.a, kind), *_parts(test.b, kind)] if isinstance(test, kind) else [test]


def _reads(test: Expr) -> bool:
    """True if the value of an element of memory decides the test."""
    found = False

    def note(_: TensorLoad) -> None:
        nonlocal found
        found = True

    tvm_ffi.structural_walk(test, ((TensorLoad, note),))
    return found
