"""Steps that several rules share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Op
from tvm.s_tir import SBlockRealize, Schedule

from tvmcnn.schedule.steps import Block, Loop, extent

DP4A = "__dp4a"  # as ops/cuda/gemm_words.py calls it, with 0 to add to
EXTERN = Op.get("tirx.call_pure_extern")


def tiles(sch: Schedule, loop: Loop, *sizes: int) -> list[Loop]:
    """The loop in tiles of the product of `sizes`, without a test for the last: see `guarded`."""
    count = -(-extent(sch, loop) // math.prod(sizes))
    return list(sch.split(loop, [count, *sizes], disable_predication=True))


def together(sch: Schedule, block: Block, at: Loop, threads: Mapping[str, int], vector: int = 1) -> None:
    """Compute the block at a loop, its elements shared out to all threads, so many at once as lie side by side."""
    sch.compute_at(block, at, preserve_unit_loops=True)
    loops = sch.get_loops(block)[-len(sch.get(block).iter_vars) :]
    while extent(sch, loops[-1]) % vector:
        vector //= 2
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    _, *bound, lanes = sch.split(fused, [None, *threads.values(), vector])
    for name, loop in zip(threads, bound, strict=True):
        sch.bind(loop, name)
    if vector > 1:
        sch.vectorize(lanes)


def accumulated(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with products of words added to their sum by the instruction that multiplies: nvcc would add apart.

    sum + __dp4a(one, other, 0)    -->    __dp4a(one, other, sum)
    """

    def joined(added: tirx.Add) -> Expr:
        call = added.b
        if not isinstance(call, Call) or not call.op.same_as(EXTERN) or call.args[0].value != DP4A:
            return added
        _, one, other, _ = call.args
        return tirx.call_pure_extern("int32", DP4A, one, other, added.a)

    return tvm_ffi.structural_map(func, (tirx.Add, joined))


def guarded(func: tirx.PrimFunc, name: str = "out") -> tirx.PrimFunc:
    """The function with the block `name` run only inside its domain: its loops were tiled without a test.

    The test then stands before the store alone. One that a split makes would also be copied into the loops that compute
    what the block reads, between every two products.
    """

    def test(realize: SBlockRealize) -> SBlockRealize:
        if realize.block.name_hint != name:
            return realize
        pairs = zip(realize.iter_values, realize.block.iter_vars, strict=True)
        tests = [value < axis.dom.extent for value, axis in pairs if axis.iter_type != axis.CommReduce]
        return SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *tests), realize.block)

    return tvm_ffi.structural_map(func, (SBlockRealize, test))
