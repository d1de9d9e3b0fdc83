"""CPU object code. Kernels are plain C functions on raw pointers: no TVM runtime, no alignment that nobody checks.

    int32_t tvmcnn_conv_1f0c…(x, weight, bias, y, scratch, begin, end)

A public PrimFunc would assume 64-byte aligned data without a test, would call TVM for scratch buffers of 1 KB and more,
and would start threads by TVM's pool. A private one on raw pointers does none of it: its small buffers are marked to
stay on the stack, the large ones lie in `scratch`, and its parallel loop runs from task `begin` to task `end`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule, PointerType, PrimType
from tvm.target import codegen

from tvmcnn.codegen.cpu.bfloat16 import in_bfloat16
from tvmcnn.codegen.cpu.lookups import PERMUTES, looked_up
from tvmcnn.codegen.cpu.prefetch import prefetching
from tvmcnn.codegen.cpu.short_circuit import short_circuited
from tvmcnn.codegen.cpu.shorten import shortened
from tvmcnn.codegen.cpu.tile_config import with_tiles
from tvmcnn.configs import STACK_LIMIT
from tvmcnn.network import ALIGNMENT, round_up
from tvmcnn.targets import Target

EXPANDED = "expanded"  # the buffer of a weight in float32, which has scratch whatever else is on the stack
SCRATCH_MINIMUM = 4 << 10  # bytes: smaller buffers are registers, or a few lines of L1 that the stack has already
NAMED_TOO_LATE = "cannot find variable cse_"  # how TVM's LLVM code generator says it, see compile_kernels
ITEM = 4  # bytes of a float32, as which scratch is declared, whatever lies in it


def raw_pointer_function(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same body on raw pointers, returning int32 0.

    def main(x: Buffer((4, 16)), y: Buffer((4, 16))): body
      -->
    def private(x_p: handle, y_p: handle) -> int32: x = decl_buffer(x_p); y = decl_buffer(y_p); body; return 0

    It returns an int because a private void function with a parallel loop fails LLVM's verifier.
    """
    pointers, declarations = [], []
    for buffer in func.params:
        pointer = tirx.Var(f"{buffer.name}_p", PointerType(PrimType(str(buffer.ty.dtype)), "global"))
        pointers.append(pointer)
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    body = tirx.SeqStmt([*declarations, with_tiles(func.body), tirx.Return(tirx.IntImm("int32", 0))])
    raw = tirx.PrimFunc(pointers, body, PrimType("int32"), None)
    return raw.with_attrs({"s_tir": True, "tirx.noalias": True})


def compile_kernels(
    functions: Mapping[str, tirx.PrimFunc], target: Target, scratch: Mapping[str, int] | None = None
) -> tvm.runtime.Module:
    """An LLVM module with one C function a PrimFunc, named by the mapping's keys.

    `scratch` is the bytes of scratch that a function is given, 0 without an entry. `write_to_file("k.o")` emits the
    module, `inspect_source("asm")` shows it.

    TVM names what several expressions share before the first that it has counted, which is not always the first: it
    does not look into a Let (a Max behind a Relu, of 31 maps). Where a name is read before it is there, none is made;
    LLVM finds what is shared by itself.
    """
    try:
        return _module(functions, target, scratch or {})
    except tvm.error.InternalError as error:
        if NAMED_TOO_LATE not in str(error):
            raise
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        return _module(functions, target, scratch or {})


def _module(functions: Mapping[str, tirx.PrimFunc], target: Target, scratch: Mapping[str, int]) -> tvm.runtime.Module:
    words = {"kind": "llvm", "mcpu": target.cpu, "mtriple": target.triple}
    machine = tvm.target.Target(words | ({"mattr": [*target.attributes]} if target.attributes else {}))
    machine = machine.with_host(machine)
    module = IRModule({name: raw_pointer_function(func) for name, func in functions.items()})
    module = tirx.transform.BindTarget(machine)(module)
    lower, finalize, _ = tirx.get_default_tir_pipeline(machine)
    module = lower(module)
    named = {
        var: _task_range(_instructions(func, target), var.name_hint, scratch.get(var.name_hint, 0)).with_attr(
            "global_symbol", var.name_hint
        )
        for var, func in module.functions_items()
    }
    return codegen.build_module(finalize()(IRModule(named, attrs=module.attrs)), machine)


def _instructions(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """The function with lookups in tables of bytes, and products of bfloat16, as the target has them."""
    body = looked_up(func.body) if {*target.features} >= PERMUTES else func.body
    return func.with_body(in_bfloat16(body) if target.bf16_pairs else body)


def _task_range(func: tirx.PrimFunc, name: str, scratch_bytes: int) -> tirx.PrimFunc:
    """A lowered function that runs some of its tasks, in memory that it is given.

    def f(x, y): v = alloc(40000); for i in parallel(28): …
      -->
    def f(x, y, scratch, begin, end): v = decl(scratch + 0); for i in range(begin, end): …

    Small buffers become registers or stack, never a call of TVM's allocator. Raises RuntimeError for a function that
    needs more stack, more scratch, or has other than one parallel loop.
    """
    scratch = tirx.Var("scratch_p", PointerType(PrimType("float32"), "global"))
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    area = tirx.decl_buffer((max(1, scratch_bytes // ITEM),), "float32", "scratch")
    on_stack = in_scratch = loops = 0
    expanded = _expanded_bytes(func)

    def place(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        nonlocal on_stack, in_scratch
        buffer = allocation.buffer
        size = _bytes(buffer)
        if buffer.name == EXPANDED or (scratch_bytes > expanded and size >= SCRATCH_MINIMUM):
            start = tirx.address_of(tirx.BufferLoad(area, [in_scratch // ITEM]))
            in_scratch += round_up(size, ALIGNMENT)
            return tirx.DeclBuffer(buffer, data=start)
        on_stack += size
        annotations = {**dict(allocation.annotations), "disable_lower_builtin": tirx.IntImm("bool", 1)}
        return tirx.AllocBuffer(buffer, annotations)

    def bound(loop: tirx.For) -> tirx.For:
        nonlocal loops
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        loops += 1
        return tirx.For(loop.loop_var, begin, end - begin, tirx.ForKind.SERIAL, loop.body)

    body = tvm_ffi.structural_map(
        short_circuited(prefetching(shortened(func.body))), ((tirx.AllocBuffer, place), (tirx.For, bound)), order="post"
    )
    if on_stack > STACK_LIMIT:
        raise RuntimeError(
            f"{name} would take {on_stack} bytes of stack, more than {STACK_LIMIT}: its schedule lacks a compute_at"
        )
    if in_scratch > scratch_bytes or loops > 1:
        raise RuntimeError(f"{name} takes {in_scratch} bytes of the {scratch_bytes} it has, in {loops} parallel loops")
    if scratch_bytes:
        body = tirx.SeqStmt([tirx.DeclBuffer(area, data=scratch), body])
    return tirx.PrimFunc([*func.params, scratch, begin, end], body, func.ret_type, func.attrs)


def _bytes(buffer: Any) -> int:
    """The bytes of a buffer of known extents."""
    size: int = math.prod(int(extent) for extent in buffer.ty.shape)
    return size * int(tvm.DataType(str(buffer.ty.dtype)).itemsize)


def _expanded_bytes(func: tirx.PrimFunc) -> int:
    """The bytes of scratch that a weight in float32 takes."""
    found: list[int] = []

    def note(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        found.extend([round_up(_bytes(allocation.buffer), ALIGNMENT)] * (allocation.buffer.name == EXPANDED))
        return allocation

    tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, note))
    return sum(found)
