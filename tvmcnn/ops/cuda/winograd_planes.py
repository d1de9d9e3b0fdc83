"""ONNX Conv with 3x3 filters by Winograd's F(m x m, 3x3) in plain layout, as three kernels: for GPUs.

    winograd_in       v[e, c, p] = (Bᵀ d B)[e]           of each m+2 by m+2 tile p of each channel
    winograd_gemm     z[e, o, p] = Σ_c u[e, c, o] · v[e, c, p]
    winograd_out      y          = Aᵀ z A, bias, epilogue and pool

e counts the (m+2)² elements of a tile: "planes", one product of matrices each. p counts the tiles of all images, so
that many images make large products. See tvmcnn/winograd.py for the formula.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import GemmConfig, PlanesConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import Channel, Pixel, Step, round_up
from tvmcnn.ops.conv import finish
from tvmcnn.ops.operands import Operands, extents, float32
from tvmcnn.ops.winograd import PAIRS, PARITY, combined
from tvmcnn.winograd import MATRICES, grid

KERNEL = 3  # rows and columns of the filters


def winograd_in(step: Step, given: Operands) -> te.Tensor:
    """x: (N, C, H, W); "out": (m+2)² planes of (C, N·tiles). "patch" is d, "rows" Bᵀ d."""
    kernel = step.choice.kernel
    node, name = kernel.anchor, kernel.inputs[0].name
    planes, channels, count = kernel.output.shape
    m, (_, _, h, w) = node["tile"], given.shapes[name]
    rows, columns = grid(node, given.shapes[name], m)
    side, matrix, (top, left) = m + 2, MATRICES[m, KERNEL].bt, node["pads"][:2]

    def element(c: Any, p: Any, r: Any, s: Any) -> Expr:
        image, tile = p // (rows * columns), p % (rows * columns)
        pixel = Pixel(image, Channel(c, 0, 1), tile // columns * m + r - top, tile % columns * m + s - left)
        inside = tirx.all(pixel.h >= 0, pixel.h < h, pixel.w >= 0, pixel.w < w)
        return tirx.if_then_else(inside, given.read(name, pixel), float32(0.0))

    patch = te.compute((channels, count, side, side), element, name="patch")
    down = te.compute(
        (channels, count, side, side),
        lambda c, p, i, s: combined(matrix, PARITY, i, lambda r: patch[c, p, r, s]),
        name="rows",
    )
    return te.compute(
        (planes, channels, count),
        lambda e, c, p: combined(matrix, PARITY, e % side, lambda s: down[c, p, e // side, s]),
        name="out",
    )


def winograd_gemm(step: Step, given: Operands) -> te.Tensor:
    """v: (m+2)² planes of (C, P); weight: as many of (C, M) up to whole tiles; "out": as many of (M, P)."""
    kernel = step.choice.kernel
    weight, data = given.constants[kernel.anchor.inputs[1]], given.inputs[kernel.inputs[0].name]
    planes, maps, count = kernel.output.shape
    _, terms, columns = extents(weight)
    depth, pixels = extents(data)[1], round_up(count, step.choice.numbers(GemmConfig).pixels)

    def gather(e: Any, q: Any, p: Any) -> Expr:
        tests = [*([q < depth] if terms > depth else []), *([p < count] if pixels > count else [])]
        return tirx.if_then_else(tirx.all(*tests), data[e, q, p], float32(0.0)) if tests else data[e, q, p]

    gathered = te.compute((planes, terms, pixels), gather, name="gathered")
    rq = te.reduce_axis((0, terms), "rq")
    sums = te.compute(
        (planes, columns, pixels),
        lambda e, o, p: te.sum(weight[e, rq, o] * gathered[e, rq, p], axis=[rq]),
        name="sum",
        attrs={"window": 1},
    )
    return te.compute((planes, maps, count), lambda *i: sums[i], name="out")


def winograd_out(step: Step, given: Operands) -> te.Tensor:
    """z: (m+2)² planes of (M, N·tiles), the kernel's last input; y: (N, M, H, W). "lines" is Aᵀ z, "tile" Aᵀ z A."""
    kernel = step.choice.kernel
    data, (a, b) = given.inputs[kernel.inputs[-1].name], window_size(kernel)
    _, maps, count = extents(data)
    m = step.choice.numbers(PlanesConfig).tile
    rows, columns = grid(kernel.anchor, given.shapes[kernel.inputs[0].name], m)
    side, matrix = m + 2, MATRICES[m, KERNEL].at
    lines = te.compute(
        (maps, count, m, side),
        lambda o, p, i, j: combined(matrix, PAIRS, i, lambda k: data[k * side + j, o, p]),
        name="lines",
    )
    tile = te.compute(
        (maps, count, m, m),
        lambda o, p, i, j: combined(matrix, PAIRS, j, lambda k: lines[o, p, i, k]),
        name="tile",
    )

    def value(pixel: Pixel, dy: int, dz: int) -> Expr:
        y, z = pixel.h * a + dy, pixel.w * b + dz
        where = pixel.n * (rows * columns) + y // m * columns + z // m
        return tile[pixel.channel.flat, where, y % m, z % m]

    return finish(step, given, value)
