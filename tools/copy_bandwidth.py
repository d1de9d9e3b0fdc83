"""The machine's other limit: GB/s of copying an array that no cache holds, in the process that asks."""

from __future__ import annotations

import numpy as np
from fma_peak import together

COPIED = 64 << 20  # bytes


class CopyBandwidth:
    """Two arrays; `measure` may be called between other measurements. It leaves the caches full of them."""

    def __init__(self, size: int = COPIED) -> None:
        self._source, self._target = np.ones(size, np.uint8), np.ones(size, np.uint8)  # ones: every page is there

    def measure(self, threads: int = 1) -> float:
        """GB/s of one copy, bytes read plus bytes written; each thread copies its part."""
        parts = [np.array_split(array, threads) for array in (self._target, self._source)]
        return (
            2 * self._source.size / together(lambda index: np.copyto(parts[0][index], parts[1][index]), threads) / 1e9
        )
