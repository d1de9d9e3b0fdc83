"""Tile registers as a kernel by AMX uses them, from its begin to its end.

    tdpbusd …    -->    ldtilecfg config; tdpbusd …; tilerelease

The registers are a thread's own, empty until they are configured, and unconfigured again lest the system save 8 KiB of
them whenever it switches threads. Both take 100 to 200 ns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm_ffi
from tvm import tirx

ANNOTATION = "tvmcnn.tiles"  # of a loop: tiles of sums, of the image, of weights, and the rows of one of these
ROWS, ROW_BYTES, WORD = 16, 64, 4


def with_tiles(body: tirx.Stmt) -> tirx.Stmt:
    """The body of a kernel, between two instructions if it multiplies tiles."""
    counts = _counts(body)
    if not counts:
        return body
    config = tirx.decl_buffer((16,), "int32", "tile_config", data_alignment=64)
    words = _config(*counts).view(np.int32)
    stores = [tirx.BufferStore(config, tirx.IntImm("int32", int(word)), [i]) for i, word in enumerate(words)]
    address = tirx.address_of(tirx.BufferLoad(config, [0]))
    return tirx.SeqStmt([tirx.AllocBuffer(config), *stores, _run("ldtilecfg", address), body, _run("tilerelease")])


def _config(sums: int, image: int, weights: int, depth: int) -> np.ndarray:
    """The 64 bytes that ldtilecfg reads: the palette, then from byte 16 each tile's bytes of a row in 16 bits, and from
    byte 48 its rows in 8. (Intel's Software Developer's Manual, LDTILECFG.)"""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    row_bytes = [*[ROW_BYTES] * sums, *[depth * WORD] * image, *[ROW_BYTES] * weights]
    config[16 : 16 + 2 * len(row_bytes)] = np.array(row_bytes, np.uint16).view(np.uint8)
    rows = [*[ROWS] * (sums + image), *[depth] * weights]
    config[48 : 48 + len(rows)] = rows
    return config


def _counts(body: tirx.Stmt) -> Sequence[int]:
    found: list[Sequence[int]] = []

    def look(loop: tirx.For) -> tirx.For:
        if ANNOTATION in loop.annotations:
            found.append([int(count) for count in loop.annotations[ANNOTATION]])
        return loop

    tvm_ffi.structural_map(body, (tirx.For, look))
    return found[0] if found else ()


def _run(instruction: str, *operands: object) -> tirx.Evaluate:
    return tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{instruction}", *operands))
