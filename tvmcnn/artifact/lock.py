"""Exact rebuilds: what a library was made of, as hashes; and a lockfile that another compile must agree with.

The same model, records and versions give the same bytes, wherever and whenever: no time, path or host is in a library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tvmcnn.artifact.container import Manifest
from tvmcnn.cache import digest_of
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.errors import LockError
from tvmcnn.network import Program

FORMAT = 1
WORDS = {"image": "code and weights together", "records": "records that kernels took"}


def records_digest(programs: Iterable[Program]) -> str:
    """The SHA-256 of the records that kernels took: of what, by which rule, with which config."""
    taken = {
        json.dumps([kernel_words(program.network, step.choice.kernel), step.choice.rule, asdict(step.choice.config)])
        for program in programs
        for step in program.steps
        if step.choice.tier != "default" and step.choice.config is not None
    }
    return digest_of(sorted(taken))


def lock_of(manifest: Manifest) -> dict[str, Any]:
    """The lock of a library with a sealed manifest."""
    return {
        "lock": FORMAT,
        "name": manifest["name"],
        "targets": [entry["target"]["name"] for entry in (manifest, *manifest["variants"])],
        "precision": manifest["precision"],
        "weights": manifest["weights"]["type"],
        "versions": dict(manifest["versions"]),
        "sha256": {**manifest["made_of"], "image": manifest["sha256"]},
    }


def read_lock(path: Path) -> dict[str, Any]:
    """A lockfile. Raises LockError for a file that is none, or of a later format."""
    try:
        lock = json.loads(path.read_text())
        keys = {"lock", "name", "targets", "precision", "versions", "sha256"}
        if not isinstance(lock, dict) or keys - lock.keys():
            raise ValueError("it has not all that `tvmcnn inspect --lock` writes")
        lock.setdefault("weights", "float32")  # of a file from before there were others
    except (OSError, ValueError) as error:
        raise LockError(f"{path} is no lockfile: {error}") from error
    if lock["lock"] != FORMAT:
        raise LockError(f"{path} has format {lock['lock']}; this tvmcnn reads {FORMAT}")
    return lock


def compare(lock: dict[str, Any], found: dict[str, Any], path: Path) -> None:
    """Raise LockError with all that differs from a lock, in what both have."""
    differ = []
    for key in ("name", "targets", "precision", "weights", "versions", "sha256"):
        theirs, ours = lock[key], found.get(key)
        if ours is None:
            continue
        if not isinstance(theirs, dict):
            theirs, ours = {key: theirs}, {key: ours}
        for word in sorted({*theirs} & {*ours} if key == "sha256" else {*theirs} | {*ours}):
            one, other = theirs.get(word), ours.get(word)
            if one != other:
                name = f"{word} ({WORDS[word]})" if word in WORDS else word
                differ.append(f"{name} is {_short(other)}, locked is {_short(one)}")
    if differ:
        raise LockError(f"nothing is written, for it would differ from {path}: {'; '.join(differ)}")


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
