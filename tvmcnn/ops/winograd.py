"""ONNX Conv with 3x3 filters by Winograd's F(m x m, 3x3), in NCHW16c: see tvmcnn/winograd.py for the formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.fusion import window_size
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.conv import finish
from tvmcnn.ops.operands import Operands, float32
from tvmcnn.winograd import MATRICES, grid


def winograd(step: Step, given: Operands) -> te.Tensor:
    """x: NCHW16c with a halo that fills the last tiles; y: NCHW16c; weight: (parts, m+2, m+2,
    M/16/parts, C/16, 16, 16), in the order that the parts of the maps read it.

    With t the tile, (i, j) its transformed element and (p, q) its pixel: "rows" (N, C/16, t, i, s, c) and "transformed"
    (N, i, j, C/16, t, c) are Bᵀ d B, "product" (N, i, j, M/16, t, o) is the sum over the channels, "lines"
    (N, M/16, t, p, j, o) and "tile" (N, M/16, t, p, q, o) are Aᵀ z A.
    """
    choice = step.choice
    node, layout, m = choice.kernel.anchor, choice.reads[0], choice.config.tile
    x, weight = given.inputs[node.inputs[0]], given.constants[node.inputs[1]]
    image = given.shapes[node.inputs[0]]
    matrices = MATRICES[m]
    rows, columns = grid(node, image, m)
    parts, side, _, per_part, depth, lanes, _ = (int(extent) for extent in weight.shape)
    blocks = parts * per_part
    n, (top, left) = image[0], node["pads"][:2]
    rb, rc = te.reduce_axis((0, depth), "rb"), te.reduce_axis((0, lanes), "rc")

    def pixel(b: Any, cb: Any, t: Any, r: Any, s: Any, c: Any) -> Expr:
        where = Pixel(b, Channel(cb, c, lanes), m * (t // columns) + r - top, m * (t % columns) + s - left)
        return x[layout.index(where)]

    count = rows * columns
    down = te.compute(
        (n, depth, count, side, side, lanes),
        lambda b, cb, t, i, s, c: _row(matrices.bt, i, lambda r: pixel(b, cb, t, r, s, c)),
        name="rows",
    )
    data = te.compute(
        (n, side, side, depth, count, lanes),
        lambda b, i, j, cb, t, c: _row(matrices.bt, j, lambda s: down[b, cb, t, i, s, c]),
        name="transformed",
    )
    product = te.compute(
        (n, side, side, blocks, count, lanes),
        lambda b, i, j, ob, t, o: te.sum(
            data[b, i, j, rb, t, rc] * weight[ob // per_part, i, j, ob % per_part, rb, rc, o], axis=[rb, rc]
        ),
        name="product",
    )
    lines = te.compute(
        (n, blocks, count, m, side, lanes),
        lambda b, ob, t, p, j, o: _row(matrices.at, p, lambda i: product[b, i, j, ob, t, o]),
        name="lines",
    )
    tile = te.compute(
        (n, blocks, count, m, m, lanes),
        lambda b, ob, t, p, q, o: _row(matrices.at, q, lambda j: lines[b, ob, t, p, j, o]),
        name="tile",
    )
    p, q = window_size(choice.kernel)

    def value(px: Pixel, dy: int, dz: int) -> Expr:
        y, z = px.h * p + dy, px.w * q + dz
        return tile[px.n, px.channel.block, y // m * columns + z // m, y % m, z % m, px.channel.lane]

    return finish(step, given, value)


def filter_tap(weight: te.Tensor, tile: int, o: Any, c: Any, i: Any, j: Any) -> Expr:
    """k[o, c, i, j] of the filters that `weight` holds transformed, for whoever convolves directly."""
    back, per_part, lanes = MATRICES[tile].back, int(weight.shape[3]), int(weight.shape[-1])
    block = o // lanes

    def element(a: int, b: int) -> Expr:
        return weight[block // per_part, a, b, block % per_part, c // lanes, c % lanes, o % lanes]

    return _row(back, i, lambda a: _row(back, j, lambda b: element(a, b)))


def _row(matrix: Sequence[Sequence[float]], index: Any, term: Callable[[int], Expr]) -> Expr:
    """Σ_k matrix[index][k]·term(k): of the unrolled `index` one sum is left, without its zeros and ones."""
    value = _combination(matrix[-1], term)
    for position in reversed(range(len(matrix) - 1)):
        value = tirx.Select(index == position, _combination(matrix[position], term), value)
    return value


def _combination(factors: Sequence[float], term: Callable[[int], Expr]) -> Expr:
    """Σ_k factors[k]·term(k), positive terms first so that none need be negated."""
    used = sorted((k for k, factor in enumerate(factors) if factor), key=lambda k: factors[k] < 0)
    value = _scaled(factors[used[0]], term(used[0]))
    for k in used[1:]:
        part = _scaled(abs(factors[k]), term(k))
        value = value + part if factors[k] > 0 else value - part
    return value


def _scaled(factor: float, value: Expr) -> Expr:
    return value if factor == 1 else value * float32(factor)
