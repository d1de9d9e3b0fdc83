"""Generate: the steps of programs become code, and code one shared library with a C ABI.

`cpu/` and `cuda/` generate for their machines; what both need is here and in jobs.py, signature.py and entries.py.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tvmcnn.errors import ToolError


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
