"""Sizes: the input shapes and batches that one library is compiled for, each with a program of its own.

--batch 1,8                                 lenet5, lenet5_b8
--input-shape x:1x3x480x640 --input-shape x:Nx3x640x640
                                            net, net_Nx3x640x640: two images a library, of the second any batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvmcnn.errors import ModelError
from tvmcnn.network import Asked, dims

Shapes = Mapping[str, Asked]


@dataclass(frozen=True)
class Size:
    """One program: its name, and what binds its inputs."""

    name: str
    shapes: Shapes
    batch: int | None

    @property
    def image(self) -> Mapping[str, Asked]:
        """The shapes without the batch: of sizes that have these alike any batch runs in parts."""
        return {name: shape[1:] for name, shape in self.shapes.items()}

    @property
    def leading(self) -> list[int]:
        """The leading extent of each input that has one, 1 where it is open."""
        return [shape[0] or 1 for shape in self.shapes.values() if shape]

    def __str__(self) -> str:
        if self.batch is not None:
            return f"batch {self.batch}"
        return ", ".join(f"{name} {dims(shape)}" for name, shape in self.shapes.items()) or "the file's own size"


def sizes_of(name: str, shapes: Shapes | Sequence[Shapes] | None, batch: int | Sequence[int] | None) -> list[Size]:
    """The sizes of a library called `name`: those of one image together, by ascending batches.

    Raises ModelError for none, for one twice, and for several batches beside several shapes.
    """
    asked = [shapes or {}] if isinstance(shapes, Mapping) or shapes is None else list(shapes) or [{}]
    batches = [batch] if isinstance(batch, int) or batch is None else sorted(batch)
    if isinstance(batch, Sequence) and (not batch or len({*batch}) != len(batch)):
        found = ", ".join(map(str, batch)) or "none"
        raise ModelError(f"the batches are {found}; they must be different numbers, at least one")
    if len(asked) > 1 and len(batches) > 1:
        raise ModelError(
            f"{len(asked)} input shapes and {len(batches)} batches are given: have the batches in the shapes, as the"
            " leading extents"
        )
    if len(batches) > 1:
        return [Size(f"{name}_b{each}" if place else name, asked[0], each) for place, each in enumerate(batches)]
    made = [Size("", each, batches[0]) for each in asked]
    images = [size.image for size in made]
    made.sort(key=lambda size: (images.index(size.image), size.leading))
    named = [Size(_named(name, made[0], size), size.shapes, size.batch) for size in made]
    if twice := next((size for size in named if [each.shapes for each in named].count(size.shapes) > 1), None):
        raise ModelError(f"the size {twice} is given twice")
    return named


def _named(name: str, first: Size, size: Size) -> str:
    """The program's name: that of the library for the first, then with the shapes that differ from it."""
    others = [dims(shape) for word, shape in size.shapes.items() if first.shapes.get(word) != shape]
    return "_".join([name, *others])
