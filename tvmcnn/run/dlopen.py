"""dlopen: the libraries that this process has open, each until nobody runs it any more.

The dynamic loader takes an equal path for the library that it has, even if the file was replaced since. Here a path is
spelt with as many "/." as other files of its name are mapped: /tmp/lenet5.so, /tmp/./lenet5.so, ...
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from tvmcnn.errors import ArtifactError

File = tuple[int, int]  # device and inode: no other file has these while the first is mapped

_process = ctypes.CDLL(None)
_lock = threading.Lock()
_known: dict[Path, dict[File, tuple[int, str]]] = {}  # by path the files mapped from it: how it was spelt, its hash


class Mapped:
    """A library in this process, which is unloaded with the last object of its file, unless its code is held otherwise:
    the first one has the memory of the pool of threads and stays.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        """Load the file at `path`. Raises ArtifactError for one that was written over, OSError as the loader."""
        with _lock:
            self.spelling = _spelling(path, sha256)
            self.symbols = ctypes.CDLL(self.spelling)
        weakref.finalize(self, _unload, self.symbols._handle, path).atexit = False


def _unload(handle: int, path: Path) -> None:
    _process.dlclose(ctypes.c_void_p(handle))
    if _lock.acquire(blocking=False):  # not if it is this thread that loads, interrupted by the garbage collector
        _forget(path)
        if not _known.get(path, True):
            del _known[path]
        _lock.release()


def _forget(path: Path) -> None:
    """Forget the files of a path that are not mapped any more."""
    files, there = _known.get(path, {}), _mapped() if path in _known else set()
    for file, (dots, _) in list(files.items()):
        if _spelt(path, dots) not in there:
            del files[file]


def _spelling(path: Path, sha256: str) -> str:
    _forget(path)
    status, files = path.stat(), _known.setdefault(path, {})
    file = (status.st_dev, status.st_ino)
    free = next(dots for dots in range(len(files) + 1) if dots not in {taken for taken, _ in files.values()})
    dots, known = files.setdefault(file, (free, sha256))
    if known != sha256:
        raise ArtifactError(
            f"{path} was written over in place while this process had it loaded: load it in a new process"
        )
    return _spelt(path, dots)


def _spelt(path: Path, dots: int) -> str:
    return f"{path.parent}{'/.' * dots}/{path.name}"


class _Object(ctypes.Structure):
    """The beginning of dl_phdr_info."""

    _fields_ = (("address", ctypes.c_uint64), ("name", ctypes.c_char_p))


def _mapped() -> set[str]:
    """The names by which the dynamic loader has what it has.

    Asking dlopen would not do: it also compares inodes, and takes the file that is at a path now for the one that was.
    """
    names: set[str] = set()

    def each(found: Any, size: int, data: int | None) -> int:
        names.add(os.fsdecode(found.contents.name or b""))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Object), ctypes.c_size_t, ctypes.c_void_p)
    _process.dl_iterate_phdr(kind(each), None)
    return names
