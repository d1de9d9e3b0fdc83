"""What earlier compiles made, by the hash of all that decides it: kernels' object code, verdicts of verification.

The folder is $TVMCNN_CACHE, else tvmcnn in $XDG_CACHE_HOME or ~/.cache; TVMCNN_CACHE=off turns it off. Entries are
written whole, so that any number of processes may share it; each carries its own hash, and a damaged one is none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT = 2 << 30  # bytes; the entries that were used longest ago go first
DIGEST = 32  # bytes of SHA-256
NEW = "new-"  # what an entry is called while it is written
STALE = 24 * 3600  # seconds after which nobody writes it any more


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


@functools.cache
def sources_digest(*names: str) -> str:
    """The hash of some of our own files and folders of them, as they were when this process first asked.

    An edit makes stale what they made.
    """
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
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        except RuntimeError:  # no $HOME, and a user that the system does not know: containers have such
            return Cache(None)
        return Cache(home / "tvmcnn")

    def obstacle(self) -> str:
        """Makes the folder, the user's alone, if it is missing; returns why nothing can be kept in it, empty if it can.

        Object code from there runs as the user, so that nobody else may have put it there.
        """
        if self.folder is None:
            return ""
        try:
            if not self.folder.is_dir():
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self.folder.mkdir(mode=0o700, exist_ok=True)
            status = self.folder.stat()
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        if status.st_uid != os.geteuid():
            return f"{self.folder} belongs to another user"
        if status.st_mode & 0o022:
            return f"{self.folder} may be written by others (chmod 700 mends it)"
        return "" if os.access(self.folder, os.W_OK | os.X_OK) else f"{self.folder} may not be written"

    def get(self, key: str) -> bytes | None:
        """The entry, if it is there and undamaged."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # pruned just now, or a folder that may only be read
            os.utime(path)  # used now
        body = data[DIGEST:]
        return body if hashlib.sha256(body).digest() == data[:DIGEST] else None

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry. A folder that cannot be written keeps nothing: the work is done, only not remembered."""
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=NEW, dir=path.parent)
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
        for used, _, path in self._files(f"{NEW}.*"):  # of a process that was killed as it wrote
            if used < time.time() - STALE:
                _drop(path)
        for _, size, path in entries:
            if excess <= 0:
                return
            _drop(path)
            excess -= size

    def entries(self) -> list[tuple[float, int, Path]]:
        """(time of the last use, bytes, file) of each entry. Other files that the folder may hold are none of ours."""
        return list(self._files(f"[0-9a-f]{{{2 * DIGEST - 2}}}"))

    def _files(self, pattern: str) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*") if self.folder is not None else ():
            if re.fullmatch(pattern, path.name):
                with contextlib.suppress(OSError):  # another process may have dropped it just now
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path

    def clear(self) -> int:
        """Drop every entry; returns how many there were."""
        count = len(self.entries())
        self.prune(limit=-1)
        return count - len(self.entries())

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / key[2:]


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or not ours to drop
        path.unlink()
