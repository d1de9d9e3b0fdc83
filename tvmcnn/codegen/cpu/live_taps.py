"""Live taps: where a tile of a convolution would meet nothing but padding, a row or a column of taps is left out.

    for rb, rh, rw: for rc: sums += x[y + 12·rh − 12, x + 12·rw − 12] · w[rh, rw]
      -->
    for rb, rh, rw: if 0 <= y + 12·rh − 12 < 28 and …: for rc: sums += …

Nothing but products of zeros is left out. A filter with dilations of 12, 24 and 36, as DeepLab's, has most of its taps
in the padding of a small map, whichever the pixel is; fuse/drop_dead_taps.py removes those that no pixel wants.
(256 to 256 maps of 28 x 28 by 3 x 3: at a dilation of 12 8.2 to 6.1 ms, at 24 8.9 to 3.2.)
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlockRealize

from tvmcnn.configs import TileConfig
from tvmcnn.network import Step
from tvmcnn.ops.direct import PixelTiles

SUMS = "conv_update"  # the block that adds products, when its sums have been set to zero
AXES = (("ty", "y", "dy", "rh"), ("tx", "x", "dx", "rw"))  # of it, along rows and along columns


def with_live_taps(func: tirx.PrimFunc, step: Step) -> tirx.PrimFunc:
    """The scheduled function with a test around what the inner one of the loops over rows and columns of taps does."""
    values = _values(func.body)
    taps = [values[names[-1]] for names in AXES]
    around: list[Any] = []
    found = False

    def enclosed(loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        nonlocal found
        around.append(loop.loop_var)
        missing = [tap for tap in taps if not any(tap.same_as(var) for var in around)]
        if not missing and not found:
            found = True
            test = _meets_pixels(step, {name: _first(value, around) for name, value in values.items()})
            body = tirx.IfThenElse(test, loop.body, None)
            made: tirx.Stmt = tirx.For(
                loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=loop.annotations
            )
        else:
            made = mutator.default_mutate(loop)
        around.pop()
        return made

    body = tvm_ffi.structural_mutate(func.body, ((tirx.For, enclosed),))
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


def _values(body: tirx.Stmt) -> dict[str, Any]:
    """What the axes of the sums are, in the loops around them."""
    values: dict[str, Any] = {}

    def note(realized: SBlockRealize) -> SBlockRealize:
        if realized.block.name_hint == SUMS:
            names = [axis.var.name.removeprefix("v_") for axis in realized.block.iter_vars]
            values.update(zip(names, realized.iter_values, strict=True))
        return realized

    tvm_ffi.structural_map(body, (SBlockRealize, note))
    return values


def _first(value: Any, around: list[Any]) -> Any:
    """The value in the first turn of all loops but those around."""

    def outside(var: tirx.Var) -> Any:
        return var if any(var.same_as(each) for each in around) else tirx.IntImm("int32", 0)

    return tvm_ffi.structural_map(value, (tirx.Var, outside))


def _meets_pixels(step: Step, at: dict[str, Any]) -> Any:
    """Whether a pixel of the tile that begins `at` these meets one of the image."""
    tiles, config = PixelTiles.of(step.choice), step.choice.numbers(TileConfig)
    extents = step.choice.kernel.inputs[0].shape[2:]
    tests = []
    for axis, (names, size) in enumerate(zip(AXES, (config.rows, config.columns), strict=True)):
        tile, *pixel = (at[name] for name in names)
        first = tiles.first(axis, tile) + tiles.offset(axis, *pixel)
        tests += [first + _reach(tiles, axis, size) >= 0, first < extents[axis]]
    return tirx.all(*tests)


def _reach(tiles: PixelTiles, axis: int, size: int) -> int:
    """Rows or columns of the image from the first pixel of a tile to the last, for one tap."""
    return int(tiles.offset(axis, size - 1, tiles.window[axis] - 1, 0))
