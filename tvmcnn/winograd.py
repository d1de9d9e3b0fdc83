"""Winograd's minimal filtering: the matrices of F(2x2, 3x3) and F(4x4, 3x3), and what follows from them.

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

An m x m tile Y of the convolution of a 3 x 3 filter g takes (m+2)² products of a tile d, where direct convolution takes
9·m²: 2.25 times fewer for m = 2, 4 times for m = 4. (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
2015.) The points are 0, ±1, ∞ and, for m = 4, ±2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvmcnn.network import Array, Node, Pads, Shape

KERNEL = 3  # rows and columns of the filter


@dataclass(frozen=True)
class Matrices:
    """Bᵀ of the input, G of the filter, Aᵀ of the output; and an inverse: back · G is the identity."""

    bt: tuple[tuple[float, ...], ...]
    g: tuple[tuple[float, ...], ...]
    at: tuple[tuple[float, ...], ...]
    back: tuple[tuple[float, ...], ...]


MATRICES = {
    2: Matrices(
        bt=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        g=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        at=((1, 1, 1, 0), (0, 1, -1, -1)),
        back=((1, 0, 0, 0), (0, 1, -1, 0), (0, 0, 0, 1)),
    ),
    4: Matrices(
        bt=(
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
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
}


def transformed(weight: Array, tile: int) -> Array:
    """G g Gᵀ of every filter, rounded once: (M, C, 3, 3) --> (m+2, m+2, M, C)."""
    g = np.array(MATRICES[tile].g)
    made: Array = np.einsum("ai,ocij,bj->aboc", g, weight.astype(np.float64), g, optimize=True).astype(np.float32)
    return made


def error_growth(tile: int) -> float:
    """How much larger rounding errors are than those of direct convolution: 0.6 for F(2x2), 10.5 for F(4x4).

    For data and filters of independent elements of variance 1, element a of the transformed ones has the variances
    |B_a|² and |G_a|², and output p adds their products with the factors A_pa: direct convolution adds 3 products of
    variance 1 in each of two dimensions. A sum rounds in proportion to its size and to the root of its length, which
    the transform makes 9 times shorter. (Measured on 64 to 256 channels: 0.4 and 6 to 11.)
    """
    bt, g, at = (np.array(m) ** 2 for m in (MATRICES[tile].bt, MATRICES[tile].g, MATRICES[tile].at))
    variances = at @ (g.sum(axis=1) * bt.sum(axis=1))
    return float(variances.max() / KERNEL) / KERNEL


def grid(node: Node, image: Shape, tile: int, window: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Rows and columns of the tiles that cover the map that Conv `node` makes of an image (N, C, H, W).

    A pool of that `window` behind it reads whole windows alone: 27 x 25 pixels in windows of 2 x 2 are 26 x 24, and
    7 x 6 tiles of 4 x 4.
    """
    height, width = image[2:]
    top, left, bottom, right = node["pads"]
    sides = zip((height + top + bottom - 2, width + left + right - 2), window, strict=True)
    rows, columns = (math.ceil((side - side % pooled) / tile) for side, pooled in sides)
    return rows, columns


def halo(node: Node, image: Shape, tile: int, window: tuple[int, int] = (1, 1)) -> Pads:
    """The zeros that the tiles read around the image: the pads, and at the bottom and right what fills the last; none
    where the tiles of `grid` end inside of it."""
    (height, width), (top, left, _, _) = image[2:], node["pads"]
    rows, columns = grid(node, image, tile, window)
    return top, left, max(0, rows * tile + 2 - top - height), max(0, columns * tile + 2 - left - width)
