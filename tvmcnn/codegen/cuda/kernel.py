"""CUDA C++: the text of each kernel as TVM writes it, and how it is launched. No TVM is needed to compile or run it.

    extern "C" __global__ void __launch_bounds__(64) tvmcnn_conv_1f0c…(float* a00, float* a01, float* a02)

TVM sorts a kernel's parameters by name; ours are named by their position, so that the order is theirs.
"""

from __future__ import annotations

import re

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvmcnn.choose.cuda.defaults import SHARED_BYTES
from tvmcnn.codegen.cuda.chain import Device
from tvmcnn.codegen.over_time import over_time
from tvmcnn.configs import GemmConfig, GemvConfig, MmaConfig, PlanesConfig
from tvmcnn.network import Step
from tvmcnn.ops import declare
from tvmcnn.schedule.cuda import RULES
from tvmcnn.schedule.cuda.fragments import as_tf32
from tvmcnn.schedule.cuda.loops import accumulated, guarded

ARCH = "sm_80"  # what TVM is told; the text has nothing that is only some architecture's
TILE_CONFIGS = (GemmConfig, MmaConfig, GemvConfig, PlanesConfig)  # rules whose last tiles reach beyond the output
ITEM_BYTES = {"float": 4, "int": 4, "half": 2}
THREADS = 1024  # of a block, on every GPU
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\)\s*\{')
_SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?(float|int|half) \w+\[(\d+)\]")


def scheduled(step: Step) -> tirx.PrimFunc:
    """The PrimFunc of a step after its rule."""
    choice = step.choice
    sch = Schedule(declare(step))
    RULES[choice.rule](sch, choice.config)
    func = accumulated(over_time(sch.mod["main"]))
    return guarded(func) if isinstance(choice.config, TILE_CONFIGS) else func


def device_code(step: Step, symbol: str) -> Device:
    """The kernel of a step. Raises RuntimeError if it is more than one kernel, or a block has no room for it."""
    func = _by_position(scheduled(step))
    limits = {"max_threads_per_block": THREADS, "max_shared_memory_per_block": SHARED_BYTES, "thread_warp_size": 32}
    machine = tvm.target.Target({"kind": "cuda", "arch": ARCH, **limits}, host={"kind": "llvm", "mcpu": "x86-64-v3"})
    # A pass that gives two stages one buffer takes a half for a float where it does so with both.
    keep_apart = getattr(step.choice.config, "precision", "") == "fp16"
    options = {"tirx.UnrollLoop": {"explicit_unroll": False}, "tirx.disable_storage_rewrite": keep_apart}
    with tvm.transform.PassContext(config=options):
        module = tvm.compile(tvm.IRModule({"main": func}), target=machine).mod
    source = module.imports[0].inspect_source("cuda")
    source = as_tf32(source) if getattr(step.choice.config, "precision", "") == "tf32" else source
    found = list(_KERNEL.finditer(source))
    if len(found) != 1:
        raise RuntimeError(f"{symbol} is {len(found)} kernels")
    shared = sum(ITEM_BYTES[kind] * int(count) for kind, count in _SHARED.findall(source))
    if shared > SHARED_BYTES:
        raise RuntimeError(f"{symbol} needs {shared} bytes of shared memory; a block has {SHARED_BYTES}")
    name, parameters = found[0].groups()
    text = source[source.index('extern "C" __global__') :]
    text = text[text.index(";") + 1 :].strip()  # behind the declaration
    arguments = tuple(int(word) for word in re.findall(r"\ba(\d\d)_", parameters))
    extents = _launch(func)
    blocks, threads = (tuple(extents.get(f"{kind}.{axis}", 1) for axis in "xyz") for kind in ("blockIdx", "threadIdx"))
    return Device(symbol, text.replace(name, symbol), arguments, blocks, threads)


def _by_position(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with its parameters named a00_x0, a01_w0, …"""
    renamed = {}
    for position, old in enumerate(func.params):
        renamed[old.name] = (old, tirx.decl_buffer(old.shape, old.dtype, f"a{position:02}_{old.name}"))

    def rename(var: tirx.Var) -> tirx.Var:
        old, new = renamed.get(getattr(var, "name", ""), (None, var))
        return new if old is not None and var.same_as(old) else var

    body = tvm_ffi.structural_map(func.body, (tirx.Var, rename), order="post")
    return tirx.PrimFunc([new for _, new in renamed.values()], body, func.ret_type, func.attrs)


def _launch(func: tirx.PrimFunc) -> dict[str, int]:
    """Launch extents, keyed by axis name: {'blockIdx.x': 56, 'threadIdx.x': 128}."""
    found: dict[str, int] = {}

    def note(loop: tirx.For) -> tirx.For:
        if loop.thread_binding is not None:
            tag = str(loop.thread_binding.thread_tag)
            found[tag] = max(found.get(tag, 1), int(loop.extent))
        return loop

    tvm_ffi.structural_map(func.body, (tirx.For, note))
    return found
