"""Memory: a compiled network touches what it was given and nothing else, by valgrind; tools/memcheck.py does more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from memcheck import TARGET, examine

from tvmcnn.demo import MODEL
from tvmcnn.targets import TARGETS

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed"),
    pytest.mark.skipif(bool(TARGETS[TARGET].missing()), reason=f"this CPU is no {TARGET}"),
]


def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    kernels, found = examine(MODEL, None, tmp_path)
    assert kernels == 5
    assert found == ""


def test_valgrind_finds_an_arena_that_is_too_small(tmp_path: Path) -> None:
    """A planted mistake, of four bytes."""
    _, found = examine(MODEL, None, tmp_path, missing=4)
    assert "Invalid" in found
