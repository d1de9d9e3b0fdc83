"""Tile registers as kernels by AMX use them: all of 16 rows of 64 bytes, from a kernel's begin to its end.

    tdpbusd …    -->    ldtilecfg config; tdpbusd …; tilerelease

The registers are a thread's own, empty until they are configured, and unconfigured again lest the system save 8 KiB of
them whenever it switches threads. Both take 100 to 200 ns.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.target import codegen

TILES, ROWS, ROW_BYTES = 8, 16, 64


def with_tiles(body: tirx.Stmt) -> tirx.Stmt:
    """The body of a kernel, between two instructions if it multiplies tiles."""
    if not _multiplies_tiles(body):
        return body
    config = tirx.decl_buffer((16,), "int32", "tile_config", data_alignment=64)
    words = [0] * 16
    words[0] = 1  # the palette, of eight tiles
    for tile in range(TILES):
        words[4 + tile // 2] |= ROW_BYTES << 16 * (tile % 2)
        words[12 + tile // 4] |= ROWS << 8 * (tile % 4)
    stores = [tirx.BufferStore(config, tirx.IntImm("int32", word), [i]) for i, word in enumerate(words)]
    address = tirx.address_of(tirx.BufferLoad(config, [0]))
    return tirx.SeqStmt([tirx.AllocBuffer(config), *stores, _run("ldtilecfg", address), body, _run("tilerelease")])


def _multiplies_tiles(body: tirx.Stmt) -> bool:
    found: list[Call] = []
    zero = codegen.llvm_lookup_intrinsic_id("llvm.x86.tilezero")

    def look(call: Call) -> Call:
        if call.args and isinstance(call.args[0], tirx.IntImm) and int(call.args[0]) == zero:
            found.append(call)
        return call

    tvm_ffi.structural_map(body, (Call, look))
    return bool(found)


def _run(instruction: str, *operands: object) -> tirx.Evaluate:
    return tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{instruction}", *operands))
