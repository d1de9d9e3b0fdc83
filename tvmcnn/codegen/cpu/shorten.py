"""Shorten: a reduction over as many terms as there can be ends where a test says that the others add nothing.

    for k in 54: y += x[k] if k < count[0] else 0    -->    for k in min(54, count[0]): y += …

Expressions have no extents that are known at run time alone. (100 regions of 256 channels, whose bins have 2 x 2
samples where 54 x 68 are possible: 609 ms, and so 3.7.)
"""

from __future__ import annotations

import math

import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad


def shortened(body: tirx.Stmt) -> tirx.Stmt:
    """The lowered body with the loops of such reductions cut short."""
    return tvm_ffi.structural_map(body, ((tirx.For, _shorten),), order="post")


def _shorten(loop: tirx.For) -> tirx.For:
    test = _test_of_term(loop)
    if test is None:
        return loop
    extent = loop.extent
    for each in _conjuncts(test):
        if isinstance(each, tirx.LT) and each.a.same_as(loop.loop_var) and _is_fixed(each.b):
            extent = tirx.min(extent, each.b)
    return tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, annotations=loop.annotations)


def _test_of_term(stmt: tirx.Stmt) -> tirx.Expr | None:
    """The test of the one statement of a nest of loops, if it adds nothing to a sum or a maximum where that fails."""
    while isinstance(stmt, tirx.For | tirx.SeqStmt):
        if isinstance(stmt, tirx.For):
            stmt = stmt.body
            continue
        *names, stmt = stmt.seq
        if not all(isinstance(name, tirx.Bind) for name in names):
            return None
    if not isinstance(stmt, tirx.BufferStore) or not isinstance(stmt.value, tirx.Add | tirx.Max):
        return None
    old, term = stmt.value.a, stmt.value.b
    neutral = 0.0 if isinstance(stmt.value, tirx.Add) else -math.inf
    if not isinstance(old, TensorLoad) or not old.source.same_as(stmt.buffer):
        return None
    if not isinstance(term, Call) or term.op.name != "prim.if_then_else":
        return None
    test, _, other = term.args
    return test if isinstance(other, tirx.FloatImm) and other.value == neutral else None


def _conjuncts(test: tirx.Expr) -> list[tirx.Expr]:
    return [*_conjuncts(test.a), *_conjuncts(test.b)] if isinstance(test, tirx.And) else [test]


def _is_fixed(bound: tirx.Expr) -> bool:
    """True for an element of a small table, always the same one."""
    return isinstance(bound, TensorLoad) and all(isinstance(index, tirx.IntImm) for index in bound.indices)
