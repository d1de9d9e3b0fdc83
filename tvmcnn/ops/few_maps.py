"""Convolutions to so few maps that the lanes of a vector hold channels: the last of most networks that make images.

    lanes[m, y, x, l] = Σ_{b,i,j} x[b, y+i, x+j, l] · w[m, b, i, j, l];  y[m, y, x] = Σ_l lanes[m, y, x, l]

With maps in the lanes one of 16 would be computed for a depth map, and 13 of 16 in vain for the colours of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te
from tvm.ir import Expr

from tvmcnn.configs import FewMapsConfig
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.conv import finished
from tvmcnn.ops.direct import image_element
from tvmcnn.ops.lanes import joined
from tvmcnn.ops.operands import Operands
from tvmcnn.ops.tiles import Tiled, Tiles


def few_maps(step: Step, given: Operands) -> Tiled:
    """Conv of one group. x: NCHW16c with a halo that holds the pads; y: NCHW; weight: (M, C/16, kH, kW, 16).

    "total_lanes" is (N, H', W'/c, c, M, 16), tiles of c columns; "total" has their sums, see lanes.py; "out" is
    (N, M, H', W'/c, c).
    """
    choice = step.choice
    node, (n, maps, height, width) = choice.kernel.anchor, choice.kernel.output.shape
    weight, columns = given.constants[node.inputs[1]], Tiles(width, choice.numbers(FewMapsConfig).columns)
    _, blocks, kh, kw, block = (int(extent) for extent in weight.shape)
    rb, rh, rw = (te.reduce_axis((0, count), name) for name, count in (("rb", blocks), ("rh", kh), ("rw", kw)))
    (sh, sw), (dh, dw), (top, left, *_) = node["strides"], node["dilations"], node["pads"]

    def tap(i: Any, y: Any, tx: Any, x: Any, m: Any, lane: Any) -> Expr:
        row, column = y * sh + rh * dh - top, columns.element(tx, x) * sw + rw * dw - left
        pixel = image_element(step, given, Pixel(i, Channel(rb, lane, block), row, column))
        return te.sum(pixel * weight[m, rb, rh, rw, lane], axis=[rb, rh, rw])

    tiles = (n, height, columns.count, columns.tile, maps)
    total = joined(tiles, te.compute((*tiles, block), tap, name="total_lanes"), te.sum, "total")

    def place(at: Sequence[Any]) -> tuple[Any, ...]:
        i, m, y, tx, x = at
        return (i, m, y, columns.element(tx, x))

    def element(i: Any, m: Any, y: Any, tx: Any, x: Any) -> Expr:
        pixel = Pixel(i, Channel(m, 0, 1), y, columns.element(tx, x))
        return finished(step, given, pixel, lambda dy, dx: total[i, y, tx, x, m])

    out = te.compute((n, maps, height, columns.count, columns.tile), element, name="out")
    return Tiled(out, choice.kernel.output.shape, place)
