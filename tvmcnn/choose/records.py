"""Records: measured configs, one JSON line a kernel and rule, and the lookup that turns them into choices.

    {"kernel": "conv 1x6x14x14 16x6x5x5 …", "rule": "direct", "config": {"vectors": 1, …}, "time_us": 2.2,
     "target": {"isa": "x86-64-v4", "machine": "AMD EPYC", …}, "tvm": "0.27.0.post1", "tvmcnn": "0.1.0", …}

They come from files that the user gives, from the user's own file, which the tuner fills, and from those that ship.
"""

from __future__ import annotations

import functools
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tvmcnn.choose.kernel_key import distance
from tvmcnn.configs import CONFIGS
from tvmcnn.errors import TvmcnnError
from tvmcnn.targets import Machine
from tvmcnn.version import __version__

SCHEDULES = Path(__file__).parent.parent / "schedules"  # in the wheel; a source checkout has it beside the package
GIVEN, OWN, SHIPPED = "given record", "own record", "shipped record"  # the tiers, best first
EVIDENCE = ("default_time_us", "peak_share")  # numbers beside the time, where they were measured
NEAREST = "nearest record"  # of a kernel much like it; behind it there is only "default", computed
# Doublings of extents, in all, that may lie between two kernels. MobileNetV2 on 192 x 160 takes 4 % less with its
# neighbours' configs, ShuffleNet 1.5 %; with those of up to three doublings 2.4 and 1.5 %.
MAX_DISTANCE = 1.5


@dataclass(frozen=True)
class Record:
    """One line: the kernel in words, the rule with its config, µs a call, where and with what it was measured."""

    kernel: str
    rule: str
    config: Any
    microseconds: float
    isa: str
    machine: str
    versions: tuple[str, str]  # of tvmcnn and of TVM
    entry: Mapping[str, Any]  # the line itself, with its evidence
    line: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two records must not have in common in one file."""
        return self.kernel, self.rule, self.isa, self.machine


@dataclass(frozen=True)
class Skipped:
    """A line that is not used, with the reason."""

    line: int
    reason: str
    kind: str  # broken, version, target, duplicate


@dataclass(frozen=True)
class Records:
    """Records for one target: by kernel in words those of its best tier, by rule. `notes` says what was skipped."""

    found: Mapping[str, Mapping[str, tuple[Record, str]]]
    notes: tuple[str, ...] = ()

    def find(self, kernel: str, rule: str) -> tuple[Any, str] | None:
        """The config recorded for the kernel under the rule with its tier, or None."""
        record, tier = self.found.get(kernel, {}).get(rule, (None, ""))
        return None if record is None else (record.config, tier)

    def near(self, kernel: str, rule: str) -> Iterator[Any]:
        """Configs that similar kernels have under the rule, the most similar kernel's first. They may not fit."""
        apart = sorted((distance(kernel, words), words) for words, found in self.found.items() if rule in found)
        yield from (self.found[words][rule][0].config for far, words in apart if far <= MAX_DISTANCE)

    def fastest(self, kernel: str, rules: Iterable[str]) -> str | None:
        """The rule of the fastest record of the kernel, or None if there is none of these rules."""
        found = self.found.get(kernel, {})
        times = {rule: found[rule][0].microseconds if rule in found else math.inf for rule in rules}
        best = min(times, key=lambda rule: times[rule])
        return best if times[best] < math.inf else None


NONE = Records({})


def pinned(manifest: Mapping[str, Any], target: str) -> Records:
    """The configs of a library's own kernels, from one program's part of its manifest."""
    found: dict[str, dict[str, tuple[Record, str]]] = {}
    for kernel in manifest["kernels"]:
        if kernel["words"] and kernel["rule"] in CONFIGS:
            config = CONFIGS[kernel["rule"]](**kernel["config"])
            record = Record(kernel["words"], kernel["rule"], config, 1.0, target, "", ("", ""), {}, 0)
            found.setdefault(kernel["words"], {})[kernel["rule"]] = (record, kernel["tier"])
    return Records(found)


# ---- files ----------------------------------------------------------------------------------------------------------


def schedules_folder() -> Path:
    """Where the shipped records lie: inside the installed package, or at the top of a source checkout."""
    return SCHEDULES if SCHEDULES.is_dir() else SCHEDULES.parent.parent / "schedules"


def own_records() -> Path | None:
    """The user's own file, which `tvmcnn tune` fills: $TVMCNN_RECORDS ("off" for none), else records.jsonl of tvmcnn in
    $XDG_DATA_HOME or ~/.local/share; None where there is no such place."""
    named = os.environ.get("TVMCNN_RECORDS", "")
    if named:
        return None if named == "off" else Path(named)
    try:
        home = Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser())
    except RuntimeError:  # no $HOME, and a user that the system does not know
        return None
    return home / "tvmcnn" / "records.jsonl"


def standing_files() -> list[Path]:
    """The files of records that nobody has to name: the user's own, if there is one, and the shipped ones."""
    own = own_records()
    return [*([own] if own is not None and own.exists() else []), *sorted(schedules_folder().glob("*.jsonl"))]


def read_records(path: Path) -> tuple[list[Record], list[Skipped]]:
    """The records of a file in its order, and the lines that are none, or that a later one replaces.

    Raises TvmcnnError for a file that cannot be read.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise TvmcnnError(f"cannot read the records {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TvmcnnError(f"{path} is no file of records: it is not UTF-8 text") from error
    records, skipped = _parsed(text)
    return list(records), list(skipped)


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> tuple[tuple[Record, ...], tuple[Skipped, ...]]:
    """`read_records` of a text: the shipped files take longer to read than a small network to compile."""
    records: dict[tuple[str, ...], Record] = {}
    skipped: list[Skipped] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = parse(json.loads(line), number)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            skipped.append(Skipped(number, f"is broken: {what}", "broken"))
            continue
        if record.key in records:
            old = records.pop(record.key)
            skipped.append(Skipped(old.line, f"is replaced by line {number}", "duplicate"))
        records[record.key] = record
    return tuple(records.values()), tuple(sorted(skipped, key=lambda each: each.line))


def parse(entry: Mapping[str, Any], line: int = 0) -> Record:
    """The record of a line. Raises ValueError, KeyError, TypeError or OverflowError for one that is none."""
    rule, microseconds = entry["rule"], float(entry["time_us"])
    if rule not in CONFIGS:
        raise ValueError(f"there is no rule {reprlib.repr(rule)}; there are {', '.join(CONFIGS)}")
    if not 0 < microseconds < math.inf:
        raise ValueError(f"time_us is {microseconds:g}, no time")
    for name in EVIDENCE:
        if not isinstance(entry.get(name), int | float | None):
            raise ValueError(f"{name} is {reprlib.repr(entry[name])}, no number")
    target = entry["target"]
    isa, machine = str(target["isa"]), str(target.get("machine", ""))
    versions = (str(entry["tvmcnn"]), str(entry["tvm"]))
    kernel, config = str(entry["kernel"]), CONFIGS[rule](**entry["config"])
    if not kernel.strip():
        raise ValueError("kernel is empty")
    return Record(kernel, rule, config, microseconds, isa, machine, versions, entry, line)


@functools.cache
def versions_here() -> tuple[str, str]:
    """(tvmcnn version, TVM version); the latter is "" if TVM is not installed."""
    try:
        return __version__, version("apache-tvm")
    except PackageNotFoundError:
        return __version__, ""


def unfit(record: Record, isa: str | None = None) -> Skipped | None:
    """Why a record is not used: it is of other versions, or of another target than `isa`; None if it is used."""
    for name, theirs, ours in zip(("tvmcnn", "TVM"), record.versions, versions_here(), strict=True):
        if ours and theirs != ours:
            return Skipped(record.line, f"is of {name} {theirs}, this is {ours}", "version")
    if isa is not None and record.isa != isa:
        return Skipped(record.line, f"is for {record.isa}", "target")
    return None


# ---- lookup ---------------------------------------------------------------------------------------------------------


def load_records(target: Machine, given: Iterable[Path] = (), *, own: bool = True, shipped: bool = True) -> Records:
    """What the files say of each kernel on a target: the given files, the later first, the user's own, the shipped.

    A kernel takes the records of one file alone, since only those were measured side by side: of the first that has
    any, and in it those of this machine if there are such. `notes` has a sentence for each file that was not used
    whole. Raises TvmcnnError for a given file that cannot be read.
    """
    machine = target.here
    found: dict[str, dict[str, tuple[Record, str]]] = {}
    notes = []
    for path, tier in _files(given, own=own, shipped=shipped):
        records, skipped = read_records(path)
        unused = {record.line: why for record in records if (why := unfit(record, target.isa)) is not None}
        fitting = [record for record in records if record.line not in unused]
        here = {record.kernel for record in fitting if record.machine == machine}
        fresh = [each for each in fitting if each.kernel not in found]
        for record in fresh:
            if record.kernel not in here or record.machine == machine:
                found.setdefault(record.kernel, {})[record.rule] = (record, tier)
        told = [*skipped, *(why for why in unused.values() if tier != SHIPPED or why.kind != "target")]
        if told:
            notes.append(_note(path, len(records) + len(skipped), told))
        if tier != SHIPPED and fitting and machine and not here:
            notes.append(f"{path}: measured on {fitting[0].machine or 'an unnamed CPU'}, not on this {machine}")
    return Records(found, tuple(notes))


def _files(given: Iterable[Path], *, own: bool, shipped: bool) -> Iterator[tuple[Path, str]]:
    """The files of records and their tiers, those first that win."""
    yield from ((path, GIVEN) for path in reversed(list(given)))
    if own and (path := own_records()) is not None and path.exists():
        yield path, OWN
    if shipped:
        yield from ((path, SHIPPED) for path in sorted(schedules_folder().glob("*.jsonl")))


def _note(path: Path, lines: int, skipped: Sequence[Skipped]) -> str:
    """my.jsonl: 3 of 20 records are not used: line 4 is broken: …; 2 are for x86-64-v4"""
    reasons = Counter(each.reason for each in skipped if each.kind in ("version", "target"))
    many = [
        f"{count} {'is' if count == 1 else 'are'} {reason.removeprefix('is ')}" for reason, count in reasons.items()
    ]
    others = [f"line {each.line} {each.reason}" for each in skipped if each.kind in ("broken", "duplicate")]
    shown = [*many, *others[:3], *([f"{len(others) - 3} more"] if len(others) > 3 else [])]
    return f"{path}: {len(skipped)} of {lines} records are not used: {'; '.join(shown)}"
