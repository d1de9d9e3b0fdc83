"""Comparison: how often the float network and the quantised one give the same answer, and how often the right one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array, Shape
from tvmcnn.progress import Progress
from tvmcnn.quantising.samples import Reader, Sample
from tvmcnn.quantising.sessions import Run


@dataclass(frozen=True)
class Agreement:
    """The agreement of one output: ‖quantised − float‖ / ‖float‖ over all samples, and the share of samples with the
    same best class (of integers, of equal elements); None where it is no scores of classes."""

    output: str
    relative_error: float
    same: float | None


@dataclass(frozen=True)
class Accuracy:
    """Right answers of samples whose class is known, by the float network and by the quantised one."""

    samples: int
    before: int
    after: int


@dataclass(frozen=True)
class Comparison:
    """What was found on so many samples."""

    samples: int
    outputs: tuple[Agreement, ...]
    accuracy: Accuracy | None


def compare(
    plain: Run,
    quantised: Run,
    reader: Reader,
    samples: Sequence[Sample],
    report: Callable[[str], None],
    progress: Progress,
) -> Comparison:
    """Run both networks on the samples. Raises InputError for a class that the network has no score of."""
    tallies: dict[str, _Tally] = {}
    right, labelled, calls, count = [0, 0], 0, len(samples) // reader.batch, 0
    for done, (group, feed) in enumerate(reader.feeds(samples), 1):
        wanted, found = plain(feed), quantised(feed)
        for name, array in wanted.items():
            tallies.setdefault(name, _Tally()).add(array, found[name], reader.batch)
        scores = [name for name, array in wanted.items() if _classes(array, reader.batch)]
        labels = [sample.label for sample in group]
        if len(scores) == 1 and any(label is not None for label in labels):
            labelled += sum(label is not None for label in labels)
            for place, answers in enumerate((wanted, found)):
                right[place] += _right(answers[scores[0]].reshape(reader.batch, -1), labels, group)
        count += len(group)
        progress("comparing", done, calls)
    if any(sample.label is not None for sample in samples) and not labelled:
        report("there is no accuracy: the network has no output, or several, with scores of classes")
    outputs = tuple(tally.result(name) for name, tally in tallies.items())
    return Comparison(count, outputs, Accuracy(labelled, *right) if labelled else None)


def classes_of(shapes: Iterable[Shape]) -> int | None:
    """How many classes a network has scores of: None if none of its outputs has any, or several have."""
    found = [shape[1] for shape in shapes if _is_of_classes(shape)]
    return found[0] if len(found) == 1 else None


def _is_of_classes(shape: Shape) -> bool:
    """N x K, or N x K x 1 x 1"""
    return len(shape) in (2, 4) and shape[1] > 1 and math.prod(shape[2:]) == 1


def _classes(array: Array, batch: int) -> bool:
    """Whether an output has scores of classes: floats of N x K, or of N x K x 1 x 1."""
    return array.dtype.kind == "f" and _is_of_classes(array.shape) and len(array) == batch


def _right(scores: Array, labels: Sequence[int | None], group: Sequence[Sample]) -> int:
    for label, sample in zip(labels, group, strict=True):
        if label is not None and label >= scores.shape[1]:
            raise InputError(f"{sample.path} is of class {label}; the network has classes 0 to {scores.shape[1] - 1}")
    return sum(label == best for label, best in zip(labels, scores.argmax(axis=1).tolist(), strict=True))


class _Tally:
    """Sums over samples of one output."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.same = self.of = 0

    def add(self, wanted: Array, found: Array, batch: int) -> None:
        if wanted.shape != found.shape:  # outputs as long as the data says: nothing agrees
            self.noise = math.inf
            return
        exact = wanted.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(found - exact).sum())
        if wanted.dtype.kind != "f":
            self.same += int((wanted == found).sum())
            self.of += wanted.size
        elif _classes(wanted, batch):
            best, other = (array.reshape(batch, -1).argmax(axis=1) for array in (wanted, found))
            self.same += int((best == other).sum())
            self.of += batch

    def result(self, name: str) -> Agreement:
        error = math.sqrt(self.noise / self.signal) if self.signal else math.inf if self.noise else 0.0
        return Agreement(name, error, self.same / self.of if self.of else None)
