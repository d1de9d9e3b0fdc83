"""Winograd's minimal filtering: the matrices of F(2x2, 3x3), F(4x4, 3x3) and F(2x2, 5x5), and what follows from them.

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

An m x m tile Y of the convolution of an r x r filter g takes (m+r-1)² products of a tile d, where direct convolution
takes (m·r)²: 2.25 times fewer for F(2x2, 3x3), 4 times for F(4x4, 3x3), 2.8 times for F(2x2, 5x5). (Lavin and Gray,
Fast Algorithms for Convolutional Neural Networks, 2015.) The points are 0, ±1, ∞ and, where a tile d is 6 x 6, ±2: Bᵀ
is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvmcnn.network import Array, Node, Pads, Shape


@dataclass(frozen=True)
class Matrices:
    """Bᵀ of the input, G of the filter, Aᵀ of the output; and an inverse: back · G is the identity."""

    bt: tuple[tuple[float, ...], ...]
    g: tuple[tuple[float, ...], ...]
    at: tuple[tuple[float, ...], ...]
    back: tuple[tuple[float, ...], ...]


BT_OF_SIX = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
MATRICES: Mapping[tuple[int, int], Matrices] = {  # by m and r
    (2, 3): Matrices(
        bt=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        g=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        at=((1, 1, 1, 0), (0, 1, -1, -1)),
        back=((1, 0, 0, 0), (0, 1, -1, 0), (0, 0, 0, 1)),
    ),
    (4, 3): Matrices(
        bt=BT_OF_SIX,
        g=(
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        at=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
        back=((4, 0, 0, 0, 0, 0), (0, -3, 3, 0, 0, 0), (0, 0, 0, 0, 0, 1)),
    ),
    (2, 5): Matrices(
        bt=BT_OF_SIX,
        g=(
            (1 / 4, 0, 0, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3),
            (1 / 24, -1 / 12, 1 / 6, -1 / 3, 2 / 3),
            (0, 0, 0, 0, 1),
        ),
        at=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 1)),
        back=(
            (4, 0, 0, 0, 0, 0),
            (0, -4, 4, -2, 2, 0),
            (-4, -3, -3, 0, 0, -1),
            (0, 1, -1, 2, -2, 0),
            (0, 0, 0, 0, 0, 1),
        ),
    ),
}


def tiles_for(kernel: int) -> tuple[int, ...]:
    """Rows and columns of the tiles that filters of `kernel` x `kernel` may make, the largest first; none for most."""
    return tuple(sorted((m for m, r in MATRICES if r == kernel), reverse=True))


def saving(kernel: int) -> float:
    """How many times fewer products the largest tile takes than direct convolution; 1 where there is none."""
    return max((float(m * kernel) / (m + kernel - 1) for m in tiles_for(kernel)), default=1.0) ** 2


def transformed(weight: Array, tile: int) -> Array:
    """G g Gᵀ of every filter, rounded once: (M, C, r, r) --> (m+r-1, m+r-1, M, C)."""
    g = np.array(MATRICES[tile, weight.shape[-1]].g)
    made: Array = np.einsum("ai,ocij,bj->aboc", g, weight.astype(np.float64), g, optimize=True).astype(np.float32)
    return made


def error_growth(tile: int, kernel: int = 3) -> float:
    """How much larger rounding errors are than those of direct convolution: 0.6 for F(2x2, 3x3), 10.5 for F(4x4, 3x3),
    4.0 for F(2x2, 5x5).

    For data and filters of independent elements of variance 1, element a of the transformed ones has the variances
    |B_a|² and |G_a|², and output p adds their products with the factors A_pa: direct convolution adds r products of
    variance 1 in each of two dimensions. A sum rounds in proportion to its size and to the root of its length, which
    the transform makes r² times shorter. (Measured on 24 to 256 channels: 0.4, 6 to 11, and 2.2 to 3.4.)
    """
    matrices = MATRICES[tile, kernel]
    bt, g, at = (np.array(matrix) ** 2 for matrix in (matrices.bt, matrices.g, matrices.at))
    variances = at @ (g.sum(axis=1) * bt.sum(axis=1))
    return float(variances.max() / kernel) / kernel


def grid(node: Node, image: Shape, tile: int, window: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Rows and columns of the tiles that cover the map that Conv `node` makes of an image (N, C, H, W).

    A pool of that `window` behind it reads whole windows alone: 27 x 25 pixels in windows of 2 x 2 are 26 x 24, and
    7 x 6 tiles of 4 x 4.
    """
    (height, width), beyond = image[2:], node["kernel_shape"][0] - 1
    top, left, bottom, right = node["pads"]
    sides = zip((height + top + bottom - beyond, width + left + right - beyond), window, strict=True)
    rows, columns = (math.ceil((side - side % pooled) / tile) for side, pooled in sides)
    return rows, columns


def halo(node: Node, image: Shape, tile: int, window: tuple[int, int] = (1, 1)) -> Pads:
    """The zeros that the tiles read around the image: the pads, and at the bottom and right what fills the last; none
    where the tiles of `grid` end inside of it."""
    (height, width), (top, left, _, _), beyond = image[2:], node["pads"], node["kernel_shape"][0] - 1
    rows, columns = grid(node, image, tile, window)
    return top, left, max(0, rows * tile + beyond - top - height), max(0, columns * tile + beyond - left - width)
