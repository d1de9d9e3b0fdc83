"""What a run of the tuner is given: checked before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from tvmcnn.choose.records import own_records
from tvmcnn.codegen.cpu.candidates import Linker
from tvmcnn.errors import TargetError, ToolError
from tvmcnn.onnx_file import Model
from tvmcnn.targets import NATIVE, TARGETS, Target
from tvmcnn.tuning.measure import Measurer, PlaceLostError
from tvmcnn.tuning.remote import servers
from tvmcnn.tuning.worker import Place

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_budget(budget: str | float) -> float:
    """Seconds: of 90, "90s", "10m", "1.5h". Raises ToolError for anything else, and for none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(budget))
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ToolError(f"the budget '{budget}' is no time above 0; write 90s, 10m or 2h")
    return seconds


def journal_path(records: Path) -> Path:
    """Beside my.jsonl lies my.trials.jsonl."""
    return records.with_suffix(f".trials{records.suffix}")


def records_path(records: str | PathLike[str] | None) -> Path:
    """The file of records to fill, without a name the user's own. Raises ToolError for one that cannot be."""
    path = own_records() if records is None else Path(records)
    if path is None:
        raise ToolError("there is no place for your own records ($TVMCNN_RECORDS is off, or $HOME is missing): give -o")
    if path.suffix != ".jsonl":
        raise ToolError(f"the records '{path}' end in '{path.suffix}'; a file of records ends in .jsonl")
    if records is not None and not path.parent.is_dir():
        raise ToolError(f"cannot write {path}: the folder {path.parent} does not exist")
    return path


def places(target: str, tracker: str | None, key: str | None) -> list[Place]:
    """This machine, or one place for each server that the tracker has under the key."""
    if tracker is None and key is None:
        return [None]
    if tracker is None or key is None:
        raise ToolError("--rpc-tracker HOST:PORT and --rpc-key KEY belong together")
    if target in NATIVE:
        raise TargetError(f"with --rpc-tracker, name the target of the other machines: {' or '.join(TARGETS)}")
    host, port, count = servers(tracker, key)
    return [(host, port, key)] * count


def same_machine(measurers: Sequence[Measurer], linker: Linker) -> str:
    """The CPU's name at every place. Raises TargetError where two differ: their times cannot be compared."""
    library = linker.link("probe", [], {})
    for measurer in measurers:
        try:
            measurer.open(library, 0)
        except PlaceLostError as error:
            where = "this machine" if measurer.place is None else f"a server of '{measurer.place[2]}'"
            raise TargetError(f"cannot measure on {where}: {error}") from error
    names = sorted({measurer.machine for measurer in measurers})
    if len(names) > 1:
        raise TargetError(f"the servers are different machines ({', '.join(names)}): give each kind a key of its own")
    return names[0]


def check_machine(machine: Target, where: Sequence[Place]) -> None:
    """Raise TargetError for a target that cannot be measured where it shall be."""
    if None in where and (missing := machine.missing()):
        lacks = f"this CPU lacks {', '.join(missing)}"
        raise TargetError(f"cannot measure for {machine.name} here: {lacks}; --rpc-tracker measures on other machines")


def name(model: Model) -> str:
    """What a record's command calls a model: its file's name, without the folder."""
    return Path(model).name if isinstance(model, str | PathLike) else "MODEL"


def snapshot(path: Path, folder: Path) -> Path:
    """A copy of the records as they are now."""
    copy = folder / "before.jsonl"
    copy.write_bytes(path.read_bytes() if path.exists() else b"")
    return copy
