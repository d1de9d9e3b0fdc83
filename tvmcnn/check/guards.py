"""Guards: memory that betrays who reads or writes beside it.

Each block ends, to the byte, where a page begins that nobody may touch, and such a page lies before it. What is left of
its own first page is filled with a pattern, which reads as NaN and −1 and is looked at afterwards.

    | no access | pattern  data | no access |

A kernel that goes past the end, by one byte or by many, is ended by SIGSEGV. One that stays below the beginning changes
the pattern; one that goes further below is ended too. So this is for a process that may die: see observe.py.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmcnn.network import Array, Shape

PAGE = mmap.PAGESIZE
PATTERN = 0xFF
NO_ACCESS = 0  # PROT_NONE


class Guarded:
    """A C-contiguous array between guards, filled with the pattern."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        """Raises OSError if there is no memory for it."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        inner = -(-size // PAGE) * PAGE
        self._memory = mmap.mmap(-1, inner + 2 * PAGE)
        whole = np.frombuffer(self._memory, np.uint8)
        whole[PAGE : PAGE + inner] = PATTERN
        self._before = whole[PAGE : PAGE + inner - size]
        self.array: Array = whole[PAGE + inner - size : PAGE + inner].view(kind).reshape(shape)
        start = whole.ctypes.data
        for page in (start, start + PAGE + inner):
            if _libc().mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect failed")

    @property
    def whole(self) -> bool:
        """False once somebody has written below the beginning."""
        return bool((self._before == PATTERN).all())

    @staticmethod
    def holding(array: Array) -> Guarded:
        """A copy of `array` between guards."""
        made = Guarded(array.shape, str(array.dtype))
        made.array[...] = array
        return made


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


class Watch:
    """The bytes of an arena as they were before a kernel ran, to see which it has changed."""

    def __init__(self, arena: Array) -> None:
        self._arena, self._before = arena, arena.copy()

    def strays(self, allowed: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """The first and the last byte changed outside of the `allowed` ranges (first byte, byte past the last); None if
        there is none. What was allowed is the state to compare with next time."""
        position = 0
        found: list[int] = []
        for start, end in (*sorted(allowed), (self._arena.size, self._arena.size)):
            if not np.array_equal(self._arena[position:start], self._before[position:start]):
                changed = np.flatnonzero(self._arena[position:start] != self._before[position:start])
                found += [position + int(changed[0]), position + int(changed[-1])]
            self._before[start:end] = self._arena[start:end]
            position = max(position, end)
        return (found[0], found[-1]) if found else None
