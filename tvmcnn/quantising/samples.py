"""Samples: the images and arrays of a folder, their classes, and the arrays that one call of a network takes.

An image is a sample, and so is each row of an array: of an .npy of 1000x1x28x28 for a network that takes 1x1x28x28 a
thousand. Files come in the order of their paths, rows in the order of the file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array, Tensor, dims
from tvmcnn.run.arrays import ArrayInfo
from tvmcnn.run.inputs import IMAGES, Pixels, read_inputs

ARRAYS = (".npy", ".npz", ".pb")
LINE = re.compile(r"(?:(.+?)\s*[,;\s]\s*)?(\d+)")  # cat.png,3 or cat.png 3 or 3

Feed = dict[str, Array]


@dataclass(frozen=True)
class Sample:
    """One image, or one row of a file's arrays, and its class where it is known."""

    path: Path
    row: int = 0
    label: int | None = None


@dataclass(frozen=True)
class Reader:
    """Reads samples as a network takes them, `batch` at once; `rows` has the arrays of a file, a row a sample."""

    inputs: tuple[ArrayInfo, ...]
    batch: int
    rows: Callable[[Path], Feed]

    def feeds(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Feed]]:
        """As many samples as a call takes and their arrays, call by call; those that fill no call are left out."""
        for start in range(0, len(samples) - self.batch + 1, self.batch):
            group = samples[start : start + self.batch]
            parts = [(self.rows(sample.path), sample.row) for sample in group]
            yield group, {info.name: _joined(info, parts) for info in self.inputs}


def _joined(info: ArrayInfo, parts: Sequence[tuple[Feed, int]]) -> Array:
    """The rows of several files' arrays as one input."""
    return np.concatenate([part[info.name][row : row + 1] for part, row in parts]).reshape(info.shape)


def reader_for(inputs: Sequence[Tensor], pixels: Pixels) -> Reader:
    """A reader for a network's inputs; it remembers the last file, whose rows come one after the other.

    Raises InputError for a network without inputs.
    """
    if not inputs:
        raise InputError("the network has no inputs: there is nothing to find ranges by")
    infos = tuple(ArrayInfo(tensor.name, tuple(tensor.shape), tensor.dtype) for tensor in inputs)
    leading = {info.shape[:1] for info in infos}
    batch = leading.pop()[0] if len(leading) == 1 and () not in leading else 1

    @functools.lru_cache(maxsize=1)
    def rows(path: Path) -> Feed:
        return _rows(path, infos, batch, pixels)

    return Reader(infos, batch, rows)


def _rows(path: Path, inputs: Sequence[ArrayInfo], batch: int, pixels: Pixels) -> Feed:
    """The arrays of a file by input name, samples along a leading axis. Raises InputError for what does not fit."""
    ones = [ArrayInfo(info.name, (1, *info.shape[1:]), info.dtype) if batch > 1 else info for info in inputs]
    arrays = read_inputs(path, ones, pixels)
    if missing := [info.name for info in inputs if info.name not in arrays]:
        raise InputError(f"{path} has no '{missing[0]}', which the network takes; it has {', '.join(arrays)}")
    found = {info.name: _fitted(path, info, arrays[info.name]) for info in ones}
    counts = {len(array) for array in found.values()}
    if len(counts) > 1:
        raise InputError(f"{path} has arrays of {', '.join(map(str, sorted(counts)))} samples; all must have as many")
    return found


def _fitted(path: Path, info: ArrayInfo, array: Array) -> Array:
    """An array with the samples along its leading axis."""
    if array.dtype != info.dtype:
        raise InputError(f"{path} is {array.dtype}; the network's '{info.name}' takes {info.dtype}")
    if not info.shape or info.shape[0] != 1:  # no axis of samples
        if array.shape == info.shape:
            return array[None]
    elif array.shape[1:] == info.shape[1:] and array.ndim == len(info.shape) and len(array):
        return array
    elif array.shape == info.shape[1:]:
        return array[None]
    raise InputError(f"{path} is {dims(array.shape)}; the network's '{info.name}' takes {dims(info.shape)}")


# ---- a folder -------------------------------------------------------------------------------------------------------


def samples_of(data: Path, reader: Reader, report: Callable[[str], None]) -> list[Sample]:
    """The samples of a folder, or of one file. Raises InputError where there are none, or too few for a call."""
    if not data.exists():
        raise InputError(f"the folder {data} does not exist")
    every = sorted(path for path in data.rglob("*") if path.is_file()) if data.is_dir() else [data]
    kinds = (*IMAGES, *ARRAYS)
    files = [path for path in every if path.suffix.lower() in kinds]
    if not files:
        raise InputError(f"{data} has no images and no arrays: it takes {', '.join(kinds)}")
    if len(every) > len(files):
        report(f"{len(every) - len(files)} files in {data} are neither images nor arrays, and are left out")
    samples = [Sample(path, row) for path in files for row in range(_count(path, reader))]
    if len(samples) < reader.batch:
        raise InputError(f"{data} has {len(samples)} samples; a call of the network takes {reader.batch}")
    return samples


def _count(path: Path, reader: Reader) -> int:
    """How many samples a file has; arrays are read for it, so that one that does not fit is told before the work."""
    if path.suffix.lower() not in ARRAYS:
        return 1
    return len(next(iter(reader.rows(path).values())))


def spread(samples: Sequence[Sample], count: int, batch: int) -> list[Sample]:
    """`count` of the samples, or as many as fill whole calls, evenly spread: a folder's files lie class by class."""
    count = max(min(count, len(samples)) // batch, 1) * batch
    return [samples[place * len(samples) // count] for place in range(count)]


# ---- classes --------------------------------------------------------------------------------------------------------


def labelled(
    samples: Sequence[Sample], data: Path, labels: Path | None, classes: int | None, report: Callable[[str], None]
) -> list[Sample]:
    """The samples with the classes that a file of labels gives them, or else the folders that they lie in.

    `classes` is how many the network has scores of, if that is known.
    """
    if labels is None:
        return _by_folder(samples, data, classes, report)
    try:
        lines = [line.strip() for line in labels.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read the labels {labels}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the labels {labels}: it is not UTF-8 text") from error
    found = [LINE.fullmatch(line) for line in lines]
    start = 1 if len(found) > 1 and found[0] is None else 0  # the head of a table
    for line, match in zip(lines[start:], found[start:], strict=True):
        if match is None:
            raise InputError(f"{labels}: the line '{line}' does not end in the number of a class")
    pairs = [(match[1], int(match[2])) for match in found[start:] if match is not None]
    if all(name is None for name, _ in pairs):
        return _in_order(samples, [number for _, number in pairs], labels)
    return _by_name(samples, data, {(name or "").strip("\"'"): number for name, number in pairs}, labels, report)


def _in_order(samples: Sequence[Sample], numbers: Sequence[int], labels: Path) -> list[Sample]:
    if len(numbers) != len(samples):
        raise InputError(f"{labels} has {len(numbers)} classes and no names of files; there are {len(samples)} samples")
    return [Sample(each.path, each.row, number) for each, number in zip(samples, numbers, strict=True)]


def _by_name(
    samples: Sequence[Sample], data: Path, numbers: Mapping[str, int], labels: Path, report: Callable[[str], None]
) -> list[Sample]:
    """Classes by the path within the folder, or by the file's name alone."""
    found = []
    for sample in samples:
        within = sample.path.relative_to(data).as_posix() if data.is_dir() else sample.path.name
        found.append(Sample(sample.path, sample.row, numbers.get(within, numbers.get(sample.path.name))))
    known = sum(sample.label is not None for sample in found)
    if not known:
        raise InputError(f"{labels} names none of the files in {data}, such as '{samples[0].path.name}'")
    if known < len(found):
        report(f"{labels} has the class of {known} of {len(found)} samples")
    return found


def _by_folder(
    samples: Sequence[Sample], data: Path, classes: int | None, report: Callable[[str], None]
) -> list[Sample]:
    """Classes by the folders within the folder: by their numbers, or else by the order of their names, if there is one
    for each class."""
    parts = [sample.path.relative_to(data).parts if data.is_dir() else () for sample in samples]
    if any(len(part) < 2 for part in parts):
        return list(samples)
    names = sorted({part[0] for part in parts})
    numbered = all(name.isdecimal() for name in names)
    if not numbered and len(names) != classes:
        scores = f"the network has {classes} classes" if classes else "the network has no scores of classes"
        report(f"{len(names)} folders in {data} are no classes, since {scores}; --labels FILE gives classes by number")
        return list(samples)
    numbers = {name: int(name) if numbered else place for place, name in enumerate(names)}
    how = "by their numbers" if numbered else "in the order of their names"
    ends = ", ".join(f"'{name}' is {numbers[name]}" for name in (names[0], names[-1]))
    report(f"classes: {len(names)} folders, {how}: {ends}")
    return [Sample(each.path, each.row, numbers[part[0]]) for each, part in zip(samples, parts, strict=True)]
