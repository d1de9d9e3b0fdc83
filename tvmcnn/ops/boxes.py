"""NonMaxSuppression: of boxes that overlap the best one stays.

Of each image and class the boxes above the threshold are listed. Then, as often as a box may stay, the best of the list
goes to the output, and what overlaps it by too much leaves the list, which so becomes shorter: there is no sort. Areas
are computed in float64, in which corners of float32 multiply exactly: no rounding decides between two boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as emit

from tvmcnn.ops.compact import FILLER
from tvmcnn.ops.in_order import Steps, Tile, local, when
from tvmcnn.ops.operands import literal

FIELDS = 5  # of a listed box: the least and the greatest y, those of x, the area


def _number(value: float) -> Expr:
    return literal(value, "float64")


@dataclass(frozen=True)
class _List:
    """The boxes of an image and class that may yet be selected, in the order of their numbers."""

    length: Any  # int32
    numbers: Any  # int32
    scores: Any  # float32
    fields: Any  # float64, FIELDS a box

    @staticmethod
    def of(count: int) -> _List:
        """Memory for `count` boxes."""
        sizes = {"int32": count, "float32": count, "float64": FIELDS * count}
        return _List(local("int32"), *(local(dtype, size) for dtype, size in sizes.items()))

    def append(self, number: Expr, score: Expr, fields: list[Expr]) -> None:
        """One more box at the end."""
        end = self.length[0]
        emit.buffer_store(self.numbers, number, [end])
        emit.buffer_store(self.scores, score, [end])
        for place, value in enumerate(fields):
            emit.buffer_store(self.fields, value, [end * FIELDS + place])
        emit.buffer_store(self.length, end + 1, [0])

    def box(self, place: Any) -> list[Expr]:
        """The fields of the box at a place of the list."""
        return [self.fields[place * FIELDS + field] for field in range(FIELDS)]


def non_max_suppression(tile: Tile) -> None:
    """ONNX NonMaxSuppression: rows [image, class, box], by class, then as they were selected; then −1."""
    node, scores = tile.node, tile.operands[1]
    images, classes, count = tile.shapes[1]
    listed, rows = _List.of(count), local("int32")
    emit.buffer_store(rows, 0, [0])
    with emit.grid(images, classes) as (n, c):
        emit.buffer_store(listed.length, 0, [0])
        with emit.serial(0, count) as b:
            score = scores[(n * classes + c) * count + b]
            with when(*([] if node["least"] is None else [score > literal(node["least"], "float32")])):
                listed.append(b, score, _fields(tile, n * count + b))
        with emit.serial(0, node["most"]), when(listed.length[0] > 0):
            _select(tile, listed, rows, n, c)
    with emit.serial(0, 3 * (tile.shape[0] - rows[0])) as k:
        tile.store(3 * rows[0] + k, literal(FILLER, "int64"))


def _fields(tile: Tile, box: Any) -> list[Expr]:
    """The corners of a box in order, and its area."""
    a, b, c, d = (tile.operands[0][box * 4 + place].astype("float64") for place in range(4))
    if tile.node["centered"]:  # x, y, width, height
        half = _number(0.5)
        least_y, greatest_y, least_x, greatest_x = b - d * half, b + d * half, a - c * half, a + c * half
    else:  # two corners, in either order
        least_y, greatest_y = tirx.min(a, c), tirx.max(a, c)
        least_x, greatest_x = tirx.min(b, d), tirx.max(b, d)
    area = (greatest_x - least_x) * (greatest_y - least_y)
    return [least_y, greatest_y, least_x, greatest_x, area]


def _select(tile: Tile, listed: _List, rows: Any, n: Any, c: Any) -> None:
    """Write the best box of the list, the first of equal ones; keep those that do not overlap it by too much."""
    best, length, chosen = local("int32"), local("int32"), local("float64", FIELDS)
    emit.buffer_store(best, 0, [0])
    with emit.serial(1, listed.length[0]) as k, when(listed.scores[k] > listed.scores[best[0]]):
        emit.buffer_store(best, k, [0])
    row = 3 * rows[0]
    for place, value in enumerate((n, c, listed.numbers[best[0]])):
        tile.store(row + place, value.astype("int64"))
    emit.buffer_store(rows, rows[0] + 1, [0])
    for field, value in enumerate(listed.box(best[0])):
        emit.buffer_store(chosen, value, [field])
    emit.buffer_store(length, listed.length[0], [0])
    emit.buffer_store(listed.length, 0, [0])
    with emit.serial(0, length[0]) as k:
        goes = _overlap(listed.box(k), [chosen[field] for field in range(FIELDS)], tile.node["overlap"])
        with when(tirx.Not(tirx.any(k.equal(best[0]), goes))):
            listed.append(listed.numbers[k], listed.scores[k], listed.box(k))


def _overlap(box: list[Expr], other: list[Expr], most: float) -> Expr:
    """Whether two boxes have more than `most` of their union in common; what has no area overlaps nothing."""
    height = tirx.min(box[1], other[1]) - tirx.max(box[0], other[0])
    width = tirx.min(box[3], other[3]) - tirx.max(box[2], other[2])
    common = height * width
    union = box[4] + other[4] - common
    zero = _number(0)
    there = tirx.all(height > zero, width > zero, box[4] > zero, other[4] > zero, union > zero)
    return tirx.all(there, common / union > _number(most))


STEPS: Mapping[str, Steps] = {"NonMaxSuppression": non_max_suppression}
