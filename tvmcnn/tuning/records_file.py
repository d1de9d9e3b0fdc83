"""Records file: files of records listed, merged and pruned, for the command `records`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcnn.choose.records import Record, Skipped, read_records, standing_files, unfit
from tvmcnn.errors import TvmcnnError
from tvmcnn.files import write_file

HEADS = ("kernel", "rule", "target", "machine", "µs", "default", "peak", "date", "")


@dataclass(frozen=True)
class Shelf:
    """What was found: records by file, lines that were skipped, and what was written, if anything was."""

    records: tuple[tuple[Path, Record], ...]
    skipped: tuple[tuple[Path, Skipped], ...]
    written: tuple[Path, ...] = ()
    table: bool = False  # print the records one by one

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "records": [{"file": str(path), "line": record.line, **record.entry} for path, record in self.records],
            "skipped": [{"file": str(path), "line": why.line, "reason": why.reason} for path, why in self.skipped],
            "written": list(map(str, self.written)),
        }

    def __str__(self) -> str:
        lines = [f"{path}, line {why.line} {why.reason}" for path, why in self.skipped]
        if self.table:
            rows = [HEADS, *(_row(record) for _, record in self.records)]
            widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
            lines = [*("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), *lines]
        count = f"{len(self.records)} records, {len(self.skipped)} lines skipped"
        wrote = f"; wrote {', '.join(map(str, self.written))}" if self.written else ""
        return "\n".join([*lines, count + wrote])


def listed(files: Sequence[Path], isa: str | None) -> Shelf:
    """Every record of some files, without any the user's own and the shipped ones."""
    records, skipped = _read(files or standing_files(), isa)
    return Shelf(tuple(records), tuple(skipped), table=True)


def merged(files: Sequence[Path], output: Path) -> Shelf:
    """One file of the records of several: of equal ones the fastest. Raises TvmcnnError where one cannot be read."""
    records, skipped = _read(files, None)
    best: dict[tuple[str, ...], tuple[Path, Record]] = {}
    for path, record in records:
        if record.key in best:
            kept, other = sorted([best[record.key], (path, record)], key=lambda pair: pair[1].microseconds)
            skipped.append(
                (other[0], Skipped(other[1].line, f"is slower than {kept[0]}, line {kept[1].line}", "slower"))
            )
            best[record.key] = kept
        else:
            best[record.key] = (path, record)
    _write(output, [record for _, record in best.values()])
    return Shelf(tuple(best.values()), tuple(skipped), (output,))


def pruned(files: Sequence[Path], isa: str | None, output: Path | None) -> Shelf:
    """The files without lines that are no record, of other versions, replaced, or not for the target `isa`."""
    if output is not None and len(files) > 1:
        raise TvmcnnError(f"{len(files)} files cannot be pruned into one; records merge does that")
    shelves = [(path, *_read([path], isa)) for path in files]  # all are read before one is written
    for path, records, _ in shelves:
        _write(output or path, [record for _, record in records])
    kept = tuple(pair for _, records, _ in shelves for pair in records)
    dropped = tuple(pair for _, _, skipped in shelves for pair in skipped)
    return Shelf(kept, dropped, tuple(output or path for path in files))


def _read(files: Iterable[Path], isa: str | None) -> tuple[list[tuple[Path, Record]], list[tuple[Path, Skipped]]]:
    kept, skipped = [], []
    for path in files:
        records, lines = read_records(path)
        skipped += [(path, why) for why in lines]
        for record in records:
            if (why := unfit(record, isa)) is None:
                kept.append((path, record))
            else:
                skipped.append((path, why))
    return kept, skipped


def _write(path: Path, records: Sequence[Record]) -> None:
    ordered = sorted(records, key=lambda record: record.key)
    write_file(path, "".join(f"{json.dumps(record.entry)}\n" for record in ordered))


def _row(record: Record) -> tuple[str, ...]:
    default, share = record.entry.get("default_time_us"), record.entry.get("peak_share")
    config = " ".join(f"{name}={value}" for name, value in record.entry["config"].items())
    return (
        record.kernel,
        record.rule,
        record.isa,
        record.machine,
        f"{record.microseconds:.2f}",
        f"{default:.2f}" if default else "",
        f"{share:.0%}" if share else "",
        str(record.entry.get("date", "")),
        config,
    )
