"""The result of quantising, as a table and for programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcnn.quantising.compare import Comparison
from tvmcnn.quantising.noise import MOVES, Noise

SHOWN = 10  # tensors of the table
WIDTH = 33  # characters of its first column


@dataclass(frozen=True)
class Quantised:
    """What `quantize` wrote, what it costs, and where: `layers` are all quantised tensors, the noisiest first."""

    path: Path
    method: str
    calibrated: int  # samples
    bytes_before: int
    bytes_after: int
    comparison: Comparison
    layers: tuple[Noise, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return dataclasses.asdict(self) | {"path": str(self.path)}

    @property
    def worst(self) -> tuple[Noise, ...]:
        """The noisiest tensors, without those that have another's elements."""
        return tuple(row for row in self.layers if row.op not in MOVES or row.is_weight)[:SHOWN]

    def __str__(self) -> str:
        lines = [_row("", "float32", "quantised"), _row("bytes", f"{self.bytes_before:,}", f"{self.bytes_after:,}")]
        of = f"of {self.comparison.samples:,} samples"
        if (accuracy := self.comparison.accuracy) is not None:
            shares = (f"{right / accuracy.samples:.2%}" for right in (accuracy.before, accuracy.after))
            lines.append(_row(f"right, of {accuracy.samples:,} samples", *shares))
        for output in self.comparison.outputs:
            if output.same is not None:
                lines.append(_row(f"same answer, {of}", "", f"{output.same:.2%}", output.output))
            lines.append(_row(f"relative error, {of}", "", f"{output.relative_error:.2%}", output.output))
        lines.append(_row("noisiest tensors", "dB", "dB alone", "node"))
        for row in self.worst:
            node = f"{row.node} ({row.op})" if row.node else row.op
            tensor = f"{_cut(row.tensor, WIDTH - 10)}, a weight" if row.is_weight else _cut(row.tensor, WIDTH)
            lines.append(_row(tensor, f"{row.decibels:.1f}", f"{row.alone:.1f}", node))
        return "\n".join(lines)


def _row(head: str, first: str, second: str, end: str = "") -> str:
    return f"{head:<{WIDTH}} {first:>11} {second:>11}  {end}".rstrip()


def _cut(text: str, width: int) -> str:
    """The end of a long name, which tells layers apart."""
    return text if len(text) <= width else f"…{text[1 - width :]}"
