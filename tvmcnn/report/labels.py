"""Labels: where texts go on a plot so that they cover neither each other nor what is drawn.

Everything is in pixels, from the lower left corner.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

DIRECTIONS = 12  # around a mark
AWAY = (2, 12, 24, 40, 60)  # from it, the nearest first
SPARE = 1  # between two texts


class Box(NamedTuple):
    """A rectangle along the axes."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """True if they have more than an edge in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def contains(self, other: Box) -> bool:
        """True if nothing of the other is outside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.bottom <= other.bottom and other.top <= self.top

    def grown(self, by: float) -> Box:
        """With a margin."""
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)


def around(x: float, y: float, radius: float) -> Box:
    """The box of a round mark."""
    return Box(x - radius, y - radius, x + radius, y + radius)


def along(points: Sequence[tuple[float, float]], step: float = 4.0) -> Iterator[Box]:
    """Small boxes that cover a line from point to point."""
    for (x, y), (u, v) in itertools.pairwise(points):
        count = max(1, math.ceil(math.hypot(u - x, v - y) / step))
        for i in range(count + 1):
            yield around(x + (u - x) * i / count, y + (v - y) * i / count, step / 2)


def beside(mark: Box, width: float, height: float, taken: Sequence[Box], inside: Box) -> Box | None:
    """The place for a text of some size that is nearest to a mark, overlaps nothing `taken`, and lies inside; None if
    there is none."""
    x, y = (mark.left + mark.right) / 2, (mark.bottom + mark.top) / 2
    radius = (mark.right - mark.left) / 2
    for away in AWAY:
        for turn in range(DIRECTIONS):
            angle = 2 * math.pi * turn / DIRECTIONS
            # The text's nearest edge or corner lies on the circle.
            u = x + (radius + away) * math.cos(angle) + width / 2 * (_sign(math.cos(angle)) - 1)
            v = y + (radius + away) * math.sin(angle) + height / 2 * (_sign(math.sin(angle)) - 1)
            box = Box(u, v, u + width, v + height)
            if inside.contains(box) and not any(box.grown(SPARE).overlaps(each) for each in taken):
                return box
    return None


def shortened(name: str, most: int) -> str:
    """The end of a name, which tells more than its beginning, in so many characters."""
    return name if len(name) <= most else f"…{name[len(name) - most + 1 :]}"


def _sign(value: float) -> int:
    return 0 if abs(value) < 1e-9 else int(math.copysign(1, value))
