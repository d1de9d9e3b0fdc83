"""What earlier compiles made, by the hash of all that decides it: kernels' object code, verdicts of verification.

The folder is $TVMCNN_CACHE, else tvmcnn in $XDG_CACHE_HOME or ~/.cache; TVMCNN_CACHE=off turns it off. Entries are
written whole, so that any number of processes may share it; each carries its own hash, and a damaged one is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LIMIT = 2 << 30  # bytes; the entries that were used longest ago go first
DIGEST = 32  # bytes of SHA-256


def digest_of(parts: Iterable[str | bytes]) -> str:
    """The SHA-256 of some texts, in hexadecimal; where one ends and the next begins counts."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources_digest(*names: str) -> str:
    """The hash of some of our own files and folders of them: an edit makes what they made stale."""
    root = Path(__file__).parent
    found = sorted(
        file for name in names for file in ((root / name).rglob("*.py") if (root / name).is_dir() else [root / name])
    )
    return digest_of([part for file in found for part in (str(file.relative_to(root)), file.read_bytes())])


@dataclass(frozen=True)
class Cache:
    """A folder of entries by key, a hexadecimal hash; None keeps nothing."""

    folder: Path | None

    @staticmethod
    def default() -> Cache:
        """The user's cache."""
        named = os.environ.get("TVMCNN_CACHE", "")
        if named == "off":
            return Cache(None)
        if named:
            return Cache(Path(named))
        home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        return Cache(Path(home) / "tvmcnn")

    def get(self, key: str) -> bytes | None:
        """The entry, if it is there and undamaged."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            data = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None
        body = data[DIGEST:]
        return body if hashlib.sha256(body).digest() == data[:DIGEST] else None

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry. A folder that cannot be written keeps nothing: the work is done, only not remembered."""
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(name, path)
            except OSError:
                os.unlink(name)
                raise

    def prune(self, limit: int = LIMIT) -> None:
        """Drop the entries that were used longest ago until no more than `limit` bytes are left."""
        entries = sorted(self.entries(), key=lambda entry: entry[0])
        excess = sum(size for _, size, _ in entries) - limit
        for _, size, path in entries:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def entries(self) -> list[tuple[float, int, Path]]:
        """(time of the last use, bytes, file) of each entry."""
        found = []
        for path in self.folder.glob("??/*") if self.folder is not None else ():
            with contextlib.suppress(OSError):  # another process may have dropped it just now
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def clear(self) -> int:
        """Drop every entry; returns how many there were."""
        entries = self.entries()
        self.prune(limit=-1)
        return len(entries)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / key[2:]
