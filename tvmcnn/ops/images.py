"""Convolutions and matrix products with images in the lanes: where a network has fewer maps than a vector has lanes and
a batch has as many images, every lane has its own and all of them do the same.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te
from tvm.ir import Expr

from tvmcnn.fuse import window_size
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.conv import finish, source_pixel
from tvmcnn.ops.elementwise import apply
from tvmcnn.ops.operands import Operands, extents, unravel


def conv_images(step: Step, given: Operands) -> te.Tensor:
    """Conv. x: NCHW16n with a halo that holds the pads; y: NCHW16n; weight: (C, kH, kW, M), a scalar a tap.

    "conv" is (N/16, M, H', p, W', q, 16) with p x q the window of a fused pool.
    """
    choice = step.choice
    node, layout = choice.kernel.anchor, choice.reads[0]
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    n, maps, height, width = choice.kernel.output.shape
    p, q = window_size(choice.kernel)
    depth, kh, kw = (int(extent) for extent in weight.shape[:3])
    rc, rh, rw = te.reduce_axis((0, depth), "rc"), te.reduce_axis((0, kh), "rh"), te.reduce_axis((0, kw), "rw")

    def tap(g: Any, o: Any, y: Any, dy: Any, z: Any, dz: Any, i: Any) -> Expr:
        row, column = source_pixel(node, y * p + dy, rh, z * q + dz, rw)
        pixel = Pixel(g * layout.images + i, Channel(rc, 0, 1), row, column)
        return te.sum(x[layout.index(pixel)] * weight[rc, rh, rw, o], axis=[rc, rh, rw])

    conv = te.compute((n // layout.images, maps, height, p, width, q, layout.images), tap, name="conv")
    images = layout.images
    return finish(
        step, given, lambda px, dy, dz: conv[px.n // images, px.channel.flat, px.h, dy, px.w, dz, px.n % images]
    )


def term(x: te.Tensor, group: Any, k: Any, image: Any) -> Expr:
    """Element `k` of one image's row in (N/16, …, 16)."""
    return x[(group, *unravel(k, extents(x)[1:-1]), image)]


def dense_images(step: Step, given: Operands) -> te.Tensor:
    """Gemm, and the convolution that covers its whole input. x: (N/16, …, 16), as it lies; weight: (K, M)."""
    choice = step.choice
    node, images, shape = choice.kernel.anchor, choice.reads[0].images, choice.kernel.output.shape
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    depth, maps = (int(extent) for extent in weight.shape)
    rk = te.reduce_axis((0, depth), "rk")
    sums = te.compute(
        (shape[0] // images, maps, images),
        lambda g, o, i: te.sum(term(x, g, rk, i) * weight[rk, o], axis=[rk]),
        name="conv",
    )
    bias = node.inputs[2] if len(node.inputs) > 2 else None

    def element(g: Any, o: Any, *rest: Any) -> Expr:
        i = rest[-1]
        where = Pixel(g * images + i, Channel(o, 0, 1), 0, 0) if len(shape) == 4 else (g * images + i, o)
        value = sums[g, o, i]
        value = value if bias is None else value + given.read(bias, where)
        return apply(choice.kernel.nodes[1:], value, given, where)

    assert math.prod(shape[2:]) == 1, "a matrix, or images of one pixel"
    return te.compute(choice.makes.physical(shape), element, name="out")
