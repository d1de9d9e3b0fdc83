"""CPU object code. Kernels are plain C functions on raw pointers: no TVM runtime, no alignment that nobody checks.

A public PrimFunc would assume 64-byte aligned data without a test, and would call TVM for scratch buffers of 1 KB and
more. A private one on raw pointers does neither, if its buffers are marked to stay on the stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule, PointerType, PrimType
from tvm.target import codegen

from tvmcnn.targets import Target

STACK_LIMIT = 256 << 10  # bytes: a thread may have as little as 512 KB
TRIPLE = "x86_64-linux-gnu"


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
    body = tirx.SeqStmt([*declarations, func.body, tirx.Return(tirx.IntImm("int32", 0))])
    raw = tirx.PrimFunc(pointers, body, PrimType("int32"), None)
    return raw.with_attrs({"s_tir": True, "tirx.noalias": True})


def compile_kernels(functions: Mapping[str, tirx.PrimFunc], target: Target) -> tvm.runtime.Module:
    """An LLVM module with one C function a PrimFunc, named by the mapping's keys.

    `write_to_file("k.o")` emits it, `inspect_source("asm")` shows it.
    """
    machine = tvm.target.Target({"kind": "llvm", "mcpu": target.name, "mtriple": TRIPLE})
    machine = machine.with_host(machine)
    module = IRModule({name: raw_pointer_function(func) for name, func in functions.items()})
    module = tirx.transform.BindTarget(machine)(module)
    lower, finalize, _ = tirx.get_default_tir_pipeline(machine)
    module = lower(module)
    named = {
        var: _on_the_stack(var.name_hint, func).with_attr("global_symbol", var.name_hint)
        for var, func in module.functions_items()
    }
    return codegen.build_module(finalize()(IRModule(named, attrs=module.attrs)), machine)


def _on_the_stack(name: str, func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Mark every buffer of a lowered function to become registers or stack, never a call of TVM's allocator."""
    total = 0

    def mark(allocation: tirx.AllocBuffer) -> tirx.AllocBuffer:
        nonlocal total
        buffer = allocation.buffer
        total += math.prod(int(extent) for extent in buffer.ty.shape) * tvm.DataType(str(buffer.ty.dtype)).itemsize
        annotations = {**dict(allocation.annotations), "disable_lower_builtin": tirx.IntImm("bool", 1)}
        return tirx.AllocBuffer(buffer, annotations)

    body = tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, mark), order="post")
    if total > STACK_LIMIT:
        raise RuntimeError(
            f"{name} would take {total} bytes of stack, more than {STACK_LIMIT}: its schedule lacks a compute_at"
        )
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)
