"""Prefetch: while a register tile is computed over and over, the weights of the next one come into L2.

Weights lie in the order that they are read, tile after tile, kernel after kernel. One tile of them serves several
passes (over rows and columns of pixels, say): the first pass finds them in memory, and wants 64 bytes in 3.5 cycles,
which is twice what one core gets from there; the others find them in L2. Spread over all passes of the tile before,
the same lines ask for a fraction of that rate, and nobody waits: ResNet-50's 1x1 of 7 x 7 pixels take 630 µs, not 790.
(At a fixed distance they are all asked for in the first pass, which gained 3 to 5 %.) Behind the last tile lie the
weights of the kernel that runs next.
"""

from __future__ import annotations

import math

import tvm
import tvm_ffi
from tvm import tirx

from tvmcnn.network import ALIGNMENT

PASSES = "tvmcnn.passes"  # annotates a reduction: how many times it runs over one tile of the weights,
TILE = "tvmcnn.tile"  # and the elements of such a tile
WEIGHTS = "w0"


def prefetching(body: tirx.Stmt) -> tirx.Stmt:
    """The lowered body with prefetches in the reductions that are annotated so.

    for t: for k in 64: c += x[k]·w0[t·1024 + k·16 : +16]
      -->
    for t: for k in 64: prefetch(&w0[(t // passes + 1)·1024 + (t % passes·64 + k)·16 / passes]); c += …
    """
    weights: list[tirx.Var] = []
    loops: list[tirx.For] = []

    def declared(declaration: tirx.DeclBuffer, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        if declaration.buffer.name == WEIGHTS:
            weights.append(declaration.buffer)
        return declaration

    def enclosed(loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        if PASSES in loop.annotations:
            return _in_reduction(loop, weights[0], loops)
        loops.append(loop)
        made: tirx.Stmt = mutator.default_mutate(loop)
        loops.pop()
        return made

    return tvm_ffi.structural_mutate(body, ((tirx.DeclBuffer, declared), (tirx.For, enclosed)))


def _in_reduction(outermost: tirx.For, weights: tirx.Var, around: list[tirx.For]) -> tirx.For:
    """The nest of reductions with the prefetches before its innermost loop.

    Not inside it: there LLVM moves them between the FMAs, and an accumulator more than the registers hold goes to the
    stack (1x1, 1024 to 256 channels of 14 x 14: 452 µs became 670).
    """
    line = ALIGNMENT // tvm.DataType(str(weights.ty.dtype)).itemsize  # elements
    passes, lines = int(outermost.annotations[PASSES]), int(outermost.annotations[TILE]) // line
    reductions = [outermost]
    while isinstance(reductions[-1].body, tirx.For):
        reductions.append(reductions[-1].body)
    inner: tirx.Stmt = reductions.pop() if len(reductions) > 1 else outermost.body
    steps = math.prod(int(loop.extent) for loop in reductions)
    each = -(-lines // (passes * steps))  # lines a step

    position, step = _position(around), _position(reductions)
    tile, tiles = position // passes + 1, int(weights.ty.shape[0]) // (lines * line)
    if math.prod(int(loop.extent) for loop in around) > passes * tiles:
        tile = tile % tiles  # several images, or strips of tiles: the weights are read again
    first = tile * (lines * line) + (position % passes * steps + step) * (each * line)
    body: tirx.Stmt = tirx.SeqStmt([*(_hint(weights, first + n * line) for n in range(each)), inner])
    for loop in reversed(reductions):
        body = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)
    return body


def _position(loops: list[tirx.For]) -> tirx.Expr:
    """Where an iteration of a nest of loops stands in their order, outermost first."""
    position: tirx.Expr = tirx.IntImm("int32", 0)
    for loop in loops:
        position = position * loop.extent + loop.loop_var
    return position


def _hint(weights: tirx.Var, element: tirx.Expr) -> tirx.Stmt:
    """A prefetch for reading, of data, into L2 (locality 2 of 3)."""
    address = tirx.address_of(tirx.BufferLoad(weights, [element]))
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))
