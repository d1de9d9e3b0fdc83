"""ONNX Conv with r x r filters by Winograd's F(m x m, r x r), in NCHW16c: see tvmcnn/winograd.py for the formula.

A tile of the image and what becomes of it has s x s elements, where s = m + r - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import FilteringConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import Channel, Pixel, Step
from tvmcnn.ops.conv import finish
from tvmcnn.ops.operands import Operands, extents, float32
from tvmcnn.winograd import MATRICES, Matrices, grid

Matrix = Sequence[Sequence[float]]
Groups = Sequence[Sequence[int]]
PARITY = ((0, 2, 4), (1, 3, 5))  # rows of Bᵀ and G come in pairs that differ in the sign of the odd columns
PAIRS = ((0,), (1, 2), (3, 4), (5,))  # columns of Aᵀ come in pairs that differ in sign


def winograd(step: Step, given: Operands) -> te.Tensor:
    """x: NCHW16c with a halo that fills the last tiles; y: NCHW16c; weight: transformed, (parts, s, s, M/16/parts,
    C/16, 16, 16), in the order that the parts of the maps read it.

    With t the tile and (i, j) its transformed element, "rows" (N, C/16, t, i, s, c) and "transformed"
    (N, C/16, i, j, t, c) are Bᵀ d B.
    """
    weight = given.constants[step.choice.kernel.anchor.inputs[1]]
    _, side, _, per_part, depth, lanes, _ = extents(weight)
    rows = _rows(step, given)
    n, count = int(rows.shape[0]), int(rows.shape[2])
    matrix = _matrices(step).bt
    data = te.compute(
        (n, depth, side, side, count, lanes),
        lambda b, cb, i, j, t, c: combined(matrix, PARITY, j, lambda s: rows[b, cb, t, i, s, c]),
        name="transformed",
    )

    def term(b: Any, i: Any, j: Any, ob: Any, t: Any, o: Any, rb: Any, rc: Any) -> Expr:
        return data[b, rb, i, j, t, rc] * weight[ob // per_part, i, j, ob % per_part, rb, rc, o]

    return _products(step, given, term, (n, depth, count, lanes))


def winograd_data(step: Step, given: Operands) -> te.Tensor:
    """Bᵀ d B for "streamed": x NCHW16c with a halo that fills the last tiles; y: (N, C/16, s, s, t, 16)."""
    rows, node = _rows(step, given), step.choice.kernel.anchor
    matrix = MATRICES[node["tile"], node["kernel_shape"][0]].bt
    return te.compute(
        step.choice.kernel.output.shape,
        lambda b, cb, i, j, t, c: combined(matrix, PARITY, j, lambda s: rows[b, cb, t, i, s, c]),
        name="out",
    )


def streamed(step: Step, given: Operands) -> te.Tensor:
    """As "winograd", of data that "winograd_data" has transformed, the kernel's last input, and filters as they are.

    weight: (M/16, C/16, 16, r, r, 16), r² vectors for each channel in one run. "filter_rows" (M/16, C/16, c, i, s, o)
    and "filters" (M/16, C/16, i, j, c, o) are G g Gᵀ.
    """
    weight = given.constants[step.choice.kernel.anchor.inputs[1]]
    data = given.inputs[step.choice.kernel.inputs[-1].name]
    blocks, depth, lanes, taps, _, _ = extents(weight)
    n, _, side, _, count, _ = extents(data)
    matrix = _matrices(step).g
    down = te.compute(
        (blocks, depth, lanes, side, taps, lanes),
        lambda ob, cb, c, i, s, o: combined(matrix, PARITY, i, lambda r: weight[ob, cb, c, r, s, o]),
        name="filter_rows",
    )
    filters = te.compute(
        (blocks, depth, side, side, lanes, lanes),
        lambda ob, cb, i, j, c, o: combined(matrix, PARITY, j, lambda s: down[ob, cb, c, i, s, o]),
        name="filters",
    )

    def term(b: Any, i: Any, j: Any, ob: Any, t: Any, o: Any, rb: Any, rc: Any) -> Expr:
        return data[b, rb, i, j, t, rc] * filters[ob, rb, i, j, rc, o]

    return _products(step, given, term, (n, depth, count, lanes))


def _rows(step: Step, given: Operands) -> te.Tensor:
    """Bᵀ d of the image that the kernel reads first, "rows": (N, C/16, t, i, s, c)."""
    node, layout, name = step.choice.kernel.anchor, step.choice.reads[0], step.choice.kernel.inputs[0].name
    x, image = given.inputs[name], given.shapes[name]
    m = node["tile"] if "tile" in node.attributes else step.choice.numbers(FilteringConfig).tile
    kernel = node["kernel_shape"][0]
    rows, columns = grid(node, image, m, node.attributes.get("window") or window_size(step.choice.kernel))
    n, depth, _, _, lanes = extents(x)
    top, left = node["pads"][:2]

    def pixel(b: Any, cb: Any, t: Any, r: Any, s: Any, c: Any) -> Expr:
        where = Pixel(b, Channel(cb, c, lanes), m * (t // columns) + r - top, m * (t % columns) + s - left)
        return x[layout.index(where)]

    return te.compute(
        (n, depth, rows * columns, m + kernel - 1, m + kernel - 1, lanes),
        lambda b, cb, t, i, s, c: combined(MATRICES[m, kernel].bt, PARITY, i, lambda r: pixel(b, cb, t, r, s, c)),
        name="rows",
    )


def _products(step: Step, given: Operands, term: Callable[..., Expr], sizes: tuple[int, int, int, int]) -> te.Tensor:
    """The rest: "product" (N, M/16, i, j, t, o), the sum of `term` over the channels; "lines" (N, M/16, t, p, j, o) and
    "tile" (N, M/16, t, p, q, o), which are Aᵀ z A; and the epilogue.
    """
    choice = step.choice
    config, matrix = choice.numbers(FilteringConfig), _matrices(step).at
    m, side = config.tile, config.tile + config.kernel - 1
    n, depth, count, lanes = sizes
    blocks = -(-choice.kernel.output.shape[1] // lanes)
    window = window_size(choice.kernel)
    columns = grid(choice.kernel.anchor, choice.kernel.inputs[0].shape, m, window)[1]
    rb, rc = te.reduce_axis((0, depth), "rb"), te.reduce_axis((0, lanes), "rc")
    product = te.compute(
        (n, blocks, side, side, count, lanes),
        lambda b, ob, i, j, t, o: te.sum(term(b, i, j, ob, t, o, rb, rc), axis=[rb, rc]),
        name="product",
    )
    lines = te.compute(
        (n, blocks, count, m, side, lanes),
        lambda b, ob, t, p, j, o: combined(matrix, PAIRS, p, lambda i: product[b, ob, i, j, t, o]),
        name="lines",
    )
    tile = te.compute(
        (n, blocks, count, m, m, lanes),
        lambda b, ob, t, p, q, o: combined(matrix, PAIRS, q, lambda j: lines[b, ob, t, p, j, o]),
        name="tile",
    )
    p, q = window

    def value(px: Pixel, dy: int, dz: int) -> Expr:
        y, z = px.h * p + dy, px.w * q + dz
        return tile[px.n, px.channel.block, y // m * columns + z // m, y % m, z % m, px.channel.lane]

    return finish(step, given, value)


def _matrices(step: Step) -> Matrices:
    config = step.choice.numbers(FilteringConfig)
    return MATRICES[config.tile, config.kernel]


def filter_tap(step: Step, weight: te.Tensor, o: Any, c: Any, i: Any, j: Any) -> Expr:
    """k[o, c, i, j] of the filters that `weight` holds transformed, for whoever convolves directly."""
    back, per_part, lanes = _matrices(step).back, int(weight.shape[3]), int(weight.shape[-1])
    block = o // lanes

    def element(a: int, b: int) -> Expr:
        return weight[block // per_part, a, b, block % per_part, c // lanes, c % lanes, o % lanes]

    return combined(back, PARITY, i, lambda a: combined(back, PARITY, j, lambda b: element(a, b)))


def combined(matrix: Matrix, groups: Groups, index: Any, term: Callable[[int], Expr]) -> Expr:
    """Σ_k matrix[index][k]·term(k): of the unrolled `index` one sum is left, without its zeros and ones."""
    value = _combination(matrix[-1], groups, term)
    for position in reversed(range(len(matrix) - 1)):
        value = tirx.Select(index == position, _combination(matrix[position], groups, term), value)
    return value


def _combination(factors: Sequence[float], groups: Groups, term: Callable[[int], Expr]) -> Expr:
    """Σ_k factors[k]·term(k) as multiples of sums over groups of terms, which other rows of the matrix have too.

    The compiler then computes each such sum once:
      4a − 4b − c + d, −4a − 4b + c + d    -->    (d − 4b) − (c − 4a), (d − 4b) + (c − 4a)
      a + b + 4c + 4d, a − b + 8c − 8d     -->    (a + b) + 4·(c + d), (a − b) + 8·(c − d)
    """
    parts: list[tuple[float, Expr]] = []
    for group in groups:
        used = {k: factors[k] for k in group if k < len(factors) and factors[k]}
        if used:
            unit = min(used.values(), key=lambda factor: (abs(factor), factor < 0))
            parts.append((unit, _sum([(factor / unit, term(k)) for k, factor in used.items()])))
    return _sum(parts)


def _sum(parts: Sequence[tuple[float, Expr]]) -> Expr:
    """Σ factor·value, positive ones first so that none need be negated."""
    (factor, value), *rest = sorted(parts, key=lambda part: part[0] < 0)
    total = _scaled(factor, value)
    for factor, value in rest:
        part = _scaled(abs(factor), value)
        total = total + part if factor > 0 else total - part
    return total


def _scaled(factor: float, value: Expr) -> Expr:
    return value if factor == 1 else value * float32(factor)
