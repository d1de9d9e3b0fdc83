"""Files: written whole or not at all, and refused before the work where they cannot be written; folders for scratch."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tvmcnn.errors import ToolError

PICTURES = (".png", ".svg", ".pdf")  # that matplotlib writes


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes if it does not.

    Raises ToolError where the folder is missing, not writable or full.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0o077)  # it can only be read by setting it; what another thread makes meanwhile is private
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        raise ToolError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_place(path: Path | None, suffixes: Sequence[str]) -> None:
    """Raise ToolError, before the work, for a file that cannot be written: its suffix, or its folder."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ToolError(f"'{path}' ends in '{path.suffix}'; allowed are {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ToolError(f"cannot write {path}: the folder {path.parent} does not exist")


def write_file(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file whole or not at all. Raises ToolError as `written_whole` does."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for the compiler's own files, gone at the end. Raises ToolError where there is no room."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="tvmcnn-")
    except OSError as error:
        raise no_room(error) from error
    with temporary as folder:
        yield Path(folder)


def no_room(error: OSError) -> ToolError:
    """The sentence for a failure to write the compiler's own files."""
    return ToolError(f"cannot write the compiler's own files ($TMPDIR names their place): {error.strerror}")
