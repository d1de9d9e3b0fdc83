"""NonMaxSuppression: of boxes that overlap the best one stays.

The boxes of an image and class that are above the threshold become a heap. The best goes from it again and again, to
the output if it overlaps none of those that went there by too much: so only boxes that may be selected are put in
order. Areas are computed in float64, in which corners of float32 multiply exactly: no rounding decides between two
boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as emit

from tvmcnn.blocks import BLOCK
from tvmcnn.network import round_up
from tvmcnn.ops.compact import FILLER
from tvmcnn.ops.in_order import Steps, Tile, local, when
from tvmcnn.ops.operands import literal

FIELDS = 5  # of a selected box: the least and the greatest y, those of x, the area
RUN = BLOCK  # selected boxes that a box is compared with at once; choose/cpu/sequences.py counts with whole runs
AREA = FIELDS - 1


def _number(value: float) -> Expr:
    return literal(value, "float64")


@dataclass(frozen=True)
class _Heap:
    """The boxes of an image and class that may yet be selected: each comes behind its parent, of equal scores the later
    box does.
    """

    scores: Any  # the operand
    start: Any  # where in it the scores of the class begin
    size: Any  # int32
    numbers: Any  # int32, of the boxes
    moved: Any  # int32: the one that sinks
    hole: Any  # int32
    child: Any  # int32

    def append(self, number: Any) -> None:
        """One more box, not in order yet."""
        emit.buffer_store(self.numbers, number, [self.size[0]])
        emit.buffer_store(self.size, self.size[0] + 1, [0])

    def _behind(self, i: Any, j: Any) -> Expr:
        a, b = self.scores[self.start + i], self.scores[self.start + j]
        return tirx.any(a < b, tirx.all(a.equal(b), i > j))

    def sift(self, place: Any) -> None:
        """Let the box at a place sink below all that are better."""
        emit.buffer_store(self.moved, self.numbers[place], [0])
        emit.buffer_store(self.hole, place, [0])
        emit.buffer_store(self.child, 2 * place + 1, [0])
        first, second = self.numbers[self.child[0]], self.numbers[self.child[0] + 1]
        with emit.While(self.child[0] < self.size[0]):
            with when(self.child[0] + 1 < self.size[0]), when(self._behind(first, second)):
                emit.buffer_store(self.child, self.child[0] + 1, [0])
            with emit.If(self._behind(self.moved[0], first)):
                with emit.Then():
                    emit.buffer_store(self.numbers, first, [self.hole[0]])
                    emit.buffer_store(self.hole, self.child[0], [0])
                    emit.buffer_store(self.child, 2 * self.child[0] + 1, [0])
                with emit.Else():
                    emit.buffer_store(self.child, self.size[0], [0])
        emit.buffer_store(self.numbers, self.moved[0], [self.hole[0]])

    def order(self) -> None:
        """Make a heap of what was appended."""
        half = self.size[0] // 2
        with emit.serial(0, half) as k:
            self.sift(half - 1 - k)

    def pop(self, best: Any) -> None:
        """Take the best box away, to `best`."""
        emit.buffer_store(best, self.numbers[0], [0])
        emit.buffer_store(self.size, self.size[0] - 1, [0])
        emit.buffer_store(self.numbers, self.numbers[self.size[0]], [0])
        self.sift(0)


def non_max_suppression(tile: Tile) -> None:
    """ONNX NonMaxSuppression: rows [image, class, box], by class, then as they were selected; then −1."""
    node, scores = tile.node, tile.operands[1]
    images, classes, count = tile.shapes[1]
    room = round_up(node["most"], RUN)
    rows, selected, best = local("int32"), local("int32"), local("int32")
    numbers, kept, box = local("int32", count), local("float64", FIELDS * room), local("float64", FIELDS)
    sinking = [local("int32") for _ in range(4)]
    emit.buffer_store(rows, 0, [0])
    with emit.grid(images, classes) as (n, c):
        size, moved, hole, child = sinking
        heap = _Heap(scores, (n * classes + c) * count, size, numbers, moved, hole, child)
        emit.buffer_store(selected, 0, [0])
        with emit.serial(0, room) as k:  # behind the last selected box are such as overlap nothing
            emit.buffer_store(kept, _number(0), [AREA * room + k])
        _list(heap, count, node["least"])
        heap.order()
        with emit.While(tirx.all(heap.size[0] > 0, selected[0] < node["most"])):
            heap.pop(best)
            for field, value in enumerate(_fields(tile, n * count + best[0])):
                emit.buffer_store(box, value, [field])
            _keep(tile, box, kept, room, selected, rows, (n, c, best[0]))
    with emit.serial(0, 3 * (tile.shape[0] - rows[0])) as k:
        tile.store(3 * rows[0] + k, literal(FILLER, "int64"))


def _list(heap: _Heap, count: int, least: float | None) -> None:
    """All boxes, or those whose score is above the least."""
    emit.buffer_store(heap.size, 0, [0])
    with emit.serial(0, count) as b:
        tests = [] if least is None else [heap.scores[heap.start + b] > literal(least, "float32")]
        with when(*tests):
            heap.append(b)


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


def _keep(tile: Tile, box: Any, kept: Any, room: int, selected: Any, rows: Any, row: tuple[Any, ...]) -> None:
    """Write the row of a box, and keep its fields, unless it overlaps one that was selected by too much."""
    k, hit = local("int32"), local("int32")
    emit.buffer_store(k, 0, [0])
    emit.buffer_store(hit, 0, [0])
    ours = [box[field] for field in range(FIELDS)]
    with emit.While(tirx.all(hit[0].equal(0), k[0] < selected[0])):
        with emit.serial(0, RUN) as lane:
            theirs = [kept[field * room + k[0] + lane] for field in range(FIELDS)]
            emit.buffer_store(hit, hit[0] | _overlap(ours, theirs, tile.node["overlap"]).astype("int32"), [0])
        emit.buffer_store(k, k[0] + RUN, [0])
    with when(hit[0].equal(0)):
        for place, value in enumerate(row):
            tile.store(3 * rows[0] + place, value.astype("int64"))
        for field, value in enumerate(ours):
            emit.buffer_store(kept, value, [field * room + selected[0]])
        emit.buffer_store(rows, rows[0] + 1, [0])
        emit.buffer_store(selected, selected[0] + 1, [0])


def _overlap(box: list[Expr], other: list[Expr], most: float) -> Expr:
    """Whether two boxes have more than `most` of their union in common; what has no area overlaps nothing."""
    height = tirx.min(box[1], other[1]) - tirx.max(box[0], other[0])
    width = tirx.min(box[3], other[3]) - tirx.max(box[2], other[2])
    common = height * width
    union = box[AREA] + other[AREA] - common
    zero = _number(0)
    there = tirx.all(height > zero, width > zero, box[AREA] > zero, other[AREA] > zero, union > zero)
    return tirx.all(there, common > _number(most) * union)


STEPS: Mapping[str, Steps] = {"NonMaxSuppression": non_max_suppression}
