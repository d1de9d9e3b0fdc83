"""Parts: a batch of any size, run in parts of the sizes that a library was compiled for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array
from tvmcnn.run.arrays import ArrayInfo, check_output, checked_array

FILLED = 3 / 4  # of a size must be images for it to run padded: below that smaller sizes do less work


def parts(batch: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(size, images) of the runs that cover `batch` images, with as few as possible computed for nothing.

    Sizes 1, 8, 64:  batch 71 --> 64 of 64, 7 of 8;  batch 5 --> 1 of 1, five times. Without a size that fits what is
    left, the smallest runs padded.
    """
    found, left = [], batch
    for size in sorted(sizes, reverse=True):
        count, left = divmod(left, size)
        found += [(size, size)] * count
        if left >= FILLED * size:
            found.append((size, left))
            left = 0
    return [*found, (min(sizes), left)] if left else found


class OfOneSize(Protocol):
    """What runs batches of one size: a `Runner`."""

    name: str

    @property
    def inputs(self) -> tuple[ArrayInfo, ...]:
        """What it takes, the batch its leading extent."""

    @property
    def outputs(self) -> tuple[ArrayInfo, ...]:
        """What it gives."""

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """The outputs for the inputs."""

    def bind(self, *arrays: Any, out: Any = None) -> Callable[[], Any]:
        """A function without arguments that runs it on these arrays."""


def in_parts(sizes: Mapping[int, OfOneSize], arrays: Sequence[Any], out: Any = None) -> tuple[Array, ...]:
    """The outputs for a batch of any size, in parts; `sizes` has what runs each size.

    Raises InputError for inputs of different batches, an empty one, and what does not fit.
    """
    given = _checked(sizes, arrays)
    outputs, rows, start = _outputs(sizes, len(given[0]), out), _rows(sizes), 0
    for size, count in parts(len(given[0]), list(sizes)):
        ours = [array[start : start + count] for array in given]
        theirs = [o[start * each : (start + count) * each] for o, each in zip(outputs, rows, strict=True)]
        if count == size:
            sizes[size](*ours, out=theirs)
        else:
            padded = [np.concatenate([x, np.zeros((size - count, *x.shape[1:]), x.dtype)]) for x in ours]
            for whole, part in zip(several(sizes[size](*padded)), theirs, strict=True):
                part[:] = whole[: len(part)]
        start += count
    return outputs


def bound_in_parts(sizes: Mapping[int, OfOneSize], arrays: Sequence[Any], out: Any = None) -> Callable[[], Any]:
    """A function without arguments that runs such a batch; one that is no compiled size is checked each time."""
    batch = len(_checked(sizes, arrays)[0])
    if batch in sizes:
        return sizes[batch].bind(*arrays, out=out)
    outputs = _outputs(sizes, batch, out)
    return lambda: alone(in_parts(sizes, arrays, outputs))


def batch_of(sizes: Mapping[int, OfOneSize], arrays: Sequence[Any]) -> int:
    """How many images the inputs have. Raises InputError as `in_parts`."""
    return len(_checked(sizes, arrays)[0])


def alone(outputs: tuple[Array, ...]) -> Any:
    """The one output, or all of several."""
    return outputs[0] if len(outputs) == 1 else outputs


def several(arrays: Any) -> tuple[Array, ...]:
    """What is one array or several as a tuple."""
    return tuple(arrays) if isinstance(arrays, tuple | list) else (arrays,)


def _smallest(sizes: Mapping[int, OfOneSize]) -> OfOneSize:
    return sizes[min(sizes)]


def _rows(sizes: Mapping[int, OfOneSize]) -> list[int]:
    """Rows of each output for one image."""
    return [info.shape[0] // min(sizes) for info in _smallest(sizes).outputs]


def _checked(sizes: Mapping[int, OfOneSize], arrays: Sequence[Any]) -> list[Array]:
    """The inputs as arrays of one batch; all but the batch is as compiled."""
    smallest = _smallest(sizes)
    if len(arrays) != len(smallest.inputs):
        raise InputError(f"{len(arrays)} inputs given; {smallest.name} takes {len(smallest.inputs)}")
    batches = {np.shape(array)[0] if np.ndim(array) else 0 for array in arrays}
    if len(batches) != 1 or 0 in batches:
        shapes = ", ".join(str(np.shape(array)) for array in arrays)
        raise InputError(f"the inputs given are {shapes}; their leading dimensions must be one batch of at least 1")
    batch = batches.pop()
    wanted = [ArrayInfo(info.name, (batch, *info.shape[1:]), info.dtype) for info in smallest.inputs]
    return [checked_array(array, info) for array, info in zip(arrays, wanted, strict=True)]


def _outputs(sizes: Mapping[int, OfOneSize], batch: int, out: Any) -> tuple[Array, ...]:
    smallest = _smallest(sizes)
    infos = [
        ArrayInfo(info.name, (rows * batch, *info.shape[1:]), info.dtype)
        for info, rows in zip(smallest.outputs, _rows(sizes), strict=True)
    ]
    if out is None:
        return tuple(np.empty(info.shape, info.dtype) for info in infos)
    given = several(out)
    if len(given) != len(infos):
        raise InputError(f"{len(given)} arrays in out=; {smallest.name} has {len(infos)} outputs")
    for array, info in zip(given, infos, strict=True):
        check_output(array, info)
    return given
