"""Quantities in words, as short as a person reads them."""

from __future__ import annotations


def number(value: float) -> str:
    """Three digits, or all before the point: 0.0424, 12.3, 1080."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def spent(microseconds: float) -> str:
    """12.3 µs, 4.56 ms"""
    return f"{microseconds:.3g} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def size(count: int) -> str:
    """1.23 MB"""
    for unit, scale in (("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


def flop(count: int) -> str:
    """8.18 GFLOP"""
    return f"{count / 1e9:.3g} GFLOP" if count >= 1e9 else f"{count / 1e6:.3g} MFLOP"


def counted(threads: int) -> str:
    """1 thread, 2 threads"""
    return f"{threads} thread{'s' if threads != 1 else ''}"
