"""Run: a compiled library becomes a callable. Needs numpy and apache-tvm-ffi; imports neither tvm nor onnx.

`Runner.__call__` is one native call. `activations` and `profile` chain the same kernels one by one.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm_ffi

from tvmcnn.artifact.container import Manifest
from tvmcnn.errors import InputError, caught, explained
from tvmcnn.machine import usable_cpus
from tvmcnn.network import ALIGNMENT, Array, Layout, counted, dims
from tvmcnn.run.arrays import ArrayInfo, check_output, checked_array, random_array, with_batch
from tvmcnn.run.dlopen import Mapped
from tvmcnn.run.parts import alone, bound_in_parts, in_parts


@dataclass(frozen=True)
class KernelProfile:
    """What one kernel costs: median µs of many calls, floating-point operations, bytes read and written."""

    name: str
    ops: str
    algorithm: str
    microseconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.flops / self.microseconds / 1e3


class Runner:
    """A loaded network. Any number of threads may call it at once: each call takes an arena of its own from a pool.

    A call shares its work with up to `threads` - 1 workers, which all networks of the process have in common; kernels
    of less than 20 µs run on the caller's thread. Results are bit for bit the same for every number of threads.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int) -> None:
        self.path, self.manifest, self._threads = path, manifest, threads
        self.name: str = manifest["name"]
        self.symbol: str = manifest["symbol"]  # what the names of its entries begin with
        self.target: str = manifest["target"]["name"]
        # The name of each input's leading dimension, where it may have any extent
        self.open_batch: Mapping[str, str] = manifest.get("open_batch", {})
        self.inputs = tuple(_info(entry) for entry in manifest["inputs"])
        self.written = tuple(_info(entry) for entry in manifest["outputs"])  # the outputs, then what counts them
        counts = {name for info in self.written for _, name in info.counts}
        self.outputs = tuple(info for info in self.written if info.name not in counts)
        self._counts = self.written[len(self.outputs) :]
        self._output_arrays = [(info.shape, np.dtype(info.dtype)) for info in self.written]
        library = Mapped(path, manifest["sha256"])
        self._symbols = library.symbols
        self._open(library)
        self._arenas: list[tuple[int, Array]] = []
        self._spare = 2 * usable_cpus()  # arenas that wait for a call; more that a crowd of callers needed are freed
        self._library = library  # the last, to go behind the functions of it

    def _open(self, library: Mapped) -> None:
        """Find the library's entries."""
        module = tvm_ffi.load_module(library.spelling, keep_module_alive=False)
        self._native = module.get_function(f"{self.symbol}_run")
        self._native_bind = module.get_function(f"{self.symbol}_bind")

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """The outputs for the inputs in graph order: one array, or a tuple if the network has several.

        Inputs are arrays of exactly the compiled shapes and dtypes: NumPy, or anything with __dlpack__ on the CPU.
        `out` takes preallocated C-contiguous arrays, which are returned; they may share no memory with an input or with
        each other. Of an output that is as long as the data says the part that counts is returned, `out` has room for
        the most. Where the batch is open, other leading extents run image by image. Raises InputError for what does not
        fit.
        """
        # Every Python statement here is time beside a network of 13 µs: the native entry checks types, shapes, strides
        # and alignment itself, and only what it refuses goes the slow way.
        if out is None:
            outputs = self._allocate()
        else:
            outputs = tuple(out) if type(out) in (tuple, list) else (out,)
            if self._counts:
                outputs = self._with_counts(outputs)
            if len(arrays) != len(self.inputs):  # the native entry sees the sum of both counts only
                self._check_counts(arrays, outputs)
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = self._new_arena()
        try:
            self._native(*arrays, *outputs, arena[0], self._threads)
        except Exception:
            if self._is_other_batch(arrays):
                return self._in_parts(arrays, out)
            self._run_checked(arrays, outputs, arena[0])
        finally:
            if len(self._arenas) < self._spare:
                self._arenas.append(arena)
        if self._counts:
            outputs = self._that_count(outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    @property
    def programs(self) -> tuple[Runner, ...]:
        """The runner of each batch size: this one. Not kept, so that the last reference to it unloads the library."""
        return (self,)

    @property
    def threads(self) -> int:
        """How many threads a call may use, the caller's among them. Fixed: each has its scratch in every arena."""
        return self._threads

    @caught
    def bind(self, *arrays: Any, out: Any = None) -> Callable[[], Any]:
        """A function without arguments that runs the network on these arrays, whatever they hold by then.

        It reads the inputs where they are, writes to `out` (new arrays if not given) and returns it. Nothing is checked
        or allocated in a call, which saves 0.8 of LeNet-5's 5 µs. One thread at a time may call it. Raises InputError
        for inputs or outputs that do not fit, or could only be used as a copy.
        """
        if self._is_other_batch(arrays):
            return bound_in_parts({self.inputs[0].shape[0]: self}, arrays, out)
        if out is None:
            outputs = self._allocate()
        else:
            outputs = tuple(out) if isinstance(out, tuple | list) else (out,)
            outputs = self._with_counts(outputs) if self._counts else outputs
        self._check_counts(arrays, outputs)
        given = [checked_array(array, info) for array, info in zip(arrays, self.inputs, strict=True)]
        for array, ours, info in zip(arrays, given, self.inputs, strict=True):
            if isinstance(array, np.ndarray) and ours is not array:
                raise InputError(f"input '{info.name}' is not C-contiguous and aligned: a call could not see it change")
        for array, info in zip(outputs, self.written, strict=True):
            check_output(array, info)
        arena = self._new_arena()
        native = self._native_bind(*given, *outputs, arena[0], self.threads)
        result, that_count = alone(outputs), self._that_count if self._counts else None

        def call(keep: Any = (given, arena, self._library)) -> Any:
            native()
            return result if that_count is None else alone(that_count(outputs))

        return call

    @caught
    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
        """onnxruntime's form: a list of the named outputs (None: all) for inputs by name."""
        return named_outputs(self, output_names, feeds)

    def get_inputs(self) -> list[ArrayInfo]:
        """Names and shapes of the inputs, as onnxruntime gives them: an open batch by its name."""
        return [self._shown(info) for info in self.inputs]

    def get_outputs(self) -> list[ArrayInfo]:
        """Names and shapes of the outputs, as those of the inputs."""
        return [self._shown(info) for info in self.outputs]

    def _shown(self, info: ArrayInfo) -> ArrayInfo:
        if not self.open_batch:
            return info
        symbols = self.open_batch
        return with_batch(info, symbols.get(info.name) or next(iter(symbols.values())), self.inputs[0].shape[0])

    def _is_other_batch(self, arrays: Sequence[Any]) -> bool:
        """Whether the batch is open, and not the one that the network was compiled for."""
        if not self.open_batch or not arrays or not np.ndim(arrays[0]):
            return False
        return bool(len(arrays[0]) != self.inputs[0].shape[0])

    def _in_parts(self, arrays: Sequence[Any], out: Any) -> Any:
        return alone(in_parts({self.inputs[0].shape[0]: self}, arrays, out))

    @property
    def folded(self) -> dict[str, str]:
        """ONNX tensors that no kernel computes, each with the reason."""
        return dict(self.manifest["folded"])

    @caught
    def step_by_step(self, *arrays: Any) -> Any:
        """What `__call__` returns, by the graph runner: one native call a kernel. Bitwise equal."""
        outputs = self._allocate()
        with _Frame(self, arrays, outputs) as frame:
            for step in range(len(self.manifest["kernels"])):
                frame.step(step)
        return alone(self._that_count(outputs))

    @caught
    def activations(self, *arrays: Any) -> dict[str, Array]:
        """Every tensor of the ONNX graph by its name, in the order that they are computed, outputs included.

        Tensors that fusion hides come from an open variant of their kernel and agree with the fused one within
        rounding. A float16 tensor inside the network is float32 here, as it is computed. `folded` names those that no
        longer exist. Raises InputError if the library was compiled without them.
        """
        if not self.manifest["activations"]:
            raise InputError(f"{self.path.name} was compiled with --no-activations: it cannot show hidden tensors")
        found: dict[str, Array] = {}
        with _Frame(self, arrays, self._allocate()) as frame:
            for entry, address in zip(self.manifest["inputs"], frame.addresses, strict=False):
                found |= {t["name"]: arranged(address.array, t).copy() for t in entry["stores"]}
            for index, kernel in enumerate(self.manifest["kernels"]):
                frame.step(index)
                found.update(frame.hidden(index, kernel["hidden"]))
                for stored in kernel["stores"]:
                    found[stored["name"]] = frame.read(kernel["output"], stored)
        entries = [entry for kernel in self.manifest["kernels"] for entry in (*kernel["hidden"], *kernel["stores"])]
        for info in map(_info, entries):
            found[info.name] = counted(found[info.name], info.counts, found)
        return found

    @caught
    def profile(self, *arrays: Any, seconds: float = 0.2, kernel: str | None = None) -> list[KernelProfile]:
        """Each kernel's cost (or that of the one named), measured one by one for about `seconds` in all.

        Random inputs if none are given.
        """
        if not arrays:
            arrays = tuple(random_array(info, seed) for seed, info in enumerate(self.inputs))
        kernels = self.manifest["kernels"]
        self._check_kernel(kernel)
        count = len(kernels) if kernel is None else 1
        profiles = []
        with _Frame(self, arrays, self._allocate()) as frame:
            for index, entry in enumerate(kernels):
                frame.step(index)
                if kernel not in (None, entry["name"]):
                    continue
                spent = frame.time(index, seconds / count)
                words = (entry["name"], "+".join(entry["ops"]), entry["algorithm"])
                profiles.append(KernelProfile(*words, spent * 1e6, 2 * entry["macs"], entry["bytes"]))
        return profiles

    def run_in(self, arrays: Sequence[Array], outputs: Sequence[Array], arena: Array) -> None:
        """One native call on the caller's memory: arrays that fit, an arena of `arena_bytes` and `threads` times
        `thread_bytes`."""
        self._run_checked(arrays, outputs, arena.ctypes.data)

    def _check_kernel(self, kernel: str | None) -> None:
        if kernel is not None and kernel not in (names := [entry["name"] for entry in self.manifest["kernels"]]):
            raise InputError(f"{self.name} has no kernel '{kernel}'; it has {_names(names)}")

    def _allocate(self) -> tuple[Array, ...]:
        try:  # which costs nothing, where `caught` would cost a call
            return tuple([np.empty(shape, dtype) for shape, dtype in self._output_arrays])
        except MemoryError as error:
            raise explained(error, f"{self.name}: outputs") from error

    def _with_counts(self, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The user's outputs with memory for what counts them."""
        return (*outputs, *(np.empty(info.shape, info.dtype) for info in self._counts))

    def _that_count(self, outputs: Sequence[Array]) -> tuple[Array, ...]:
        """The part of each output that counts, from all that a native call has written."""
        numbers = {info.name: array for info, array in zip(self.written, outputs, strict=True)}
        return tuple(counted(numbers[info.name], info.counts, numbers) for info in self.outputs)

    @caught
    def _new_arena(self) -> tuple[int, Array]:
        """Another arena for the pool: its 64-byte aligned address, and the array that owns it."""
        size = self.manifest["arena_bytes"] + self.threads * self.manifest["thread_bytes"]
        memory = np.zeros(size + 2 * ALIGNMENT, np.uint8)
        return memory.ctypes.data + -memory.ctypes.data % ALIGNMENT, memory

    @caught
    def _run_checked(self, arrays: Sequence[Any], outputs: Sequence[Any], arena: int) -> None:
        """The slow way in: say what is wrong, or copy what only lies badly (strides, alignment)."""
        run = self._symbols[f"{self.symbol}_run_threads"]
        status = run(*self._addresses(arrays, outputs), ctypes.c_void_p(arena), ctypes.c_int32(self.threads))
        if status:
            raise RuntimeError(f"{self.name}_run_threads returned {status}")

    def _addresses(self, arrays: Sequence[Any], outputs: Sequence[Any]) -> list[_Address]:
        self._check_counts(arrays, outputs)
        given = [checked_array(array, info) for array, info in zip(arrays, self.inputs, strict=True)]
        for array, info in zip(outputs, self.written, strict=True):
            check_output(array, info)
        return [_Address(array) for array in (*given, *outputs)]

    def _check_counts(self, arrays: Sequence[Any], outputs: Sequence[Any]) -> None:
        if len(arrays) != len(self.inputs):
            raise InputError(
                f"{len(arrays)} inputs given;"
                f" {self.name} takes {len(self.inputs)}: {_names(info.name for info in self.inputs)}"
            )
        given = len(outputs) - len(self._counts)
        if given != len(self.outputs):
            raise InputError(f"{given} arrays in out=; {self.name} has {len(self.outputs)} outputs")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{info.name} {dims(info.shape)}" for info in (*self.inputs, *self.outputs))
        return f"<tvmcnn network {self.name} for {self.target}: {shapes}{'; any batch' if self.open_batch else ''}>"


class Network(Protocol):
    """What `Runner` and `BatchedRunner` have in common: a callable with named inputs and outputs."""

    name: str
    inputs: tuple[ArrayInfo, ...]
    outputs: tuple[ArrayInfo, ...]

    def __call__(self, *arrays: Any) -> Any:
        """The outputs for the inputs in graph order."""


def named_outputs(net: Network, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Array]:
    """The named outputs of `net` (None: all) for inputs by name."""
    expected = [info.name for info in net.inputs]
    if set(feeds) != set(expected):
        raise InputError(f"the inputs given are {_names(feeds)}; {net.name} takes {_names(expected)}")
    known = [info.name for info in net.outputs]
    if unknown := [name for name in output_names or () if name not in known]:
        raise InputError(f"{net.name} has no output '{unknown[0]}'; it has {_names(known)}")
    result = net(*(feeds[name] for name in expected))
    by_name = dict(zip(known, result if isinstance(result, tuple) else (result,), strict=True))
    return [by_name[name] for name in output_names or known]


class _Address(ctypes.c_void_p):
    """The address of an array, which it keeps alive."""

    def __init__(self, array: Array) -> None:
        super().__init__(array.ctypes.data)
        self.array = array


class _Frame:
    """One run, step by step: the arguments of every native call, and the arena between the steps."""

    def __init__(
        self,
        runner: Runner,
        arrays: Sequence[Any],
        outputs: tuple[Array, ...],
        arena: tuple[int, Array] | None = None,
    ) -> None:
        """`arena`, its address and the array that owns it, is one of the runner's own if not given."""
        self.runner, self.outputs, self.given = runner, outputs, arena is not None
        self.addresses = runner._addresses(arrays, outputs)
        if arena is not None:
            self.arena = arena
        else:
            try:
                self.arena = runner._arenas.pop()
            except IndexError:
                self.arena = runner._new_arena()
        self.symbols = runner._symbols

    def __enter__(self) -> _Frame:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.given and len(self.runner._arenas) < self.runner._spare:
            self.runner._arenas.append(self.arena)

    def step(self, index: int, repeat: int = 1) -> None:
        step = self.symbols[f"{self.runner.symbol}_step"]
        numbers = (ctypes.c_int32(index), ctypes.c_int32(repeat), ctypes.c_int32(self.runner.threads))
        step(*numbers, *self.addresses, ctypes.c_void_p(self.arena[0]))

    def hidden(self, index: int, tensors: Sequence[Mapping[str, Any]], memory: Array | None = None) -> dict[str, Array]:
        """What step `index` keeps in registers, by its open variant, which writes to `memory` of `hidden_bytes`."""
        if not tensors:
            return {}
        infos = [_info(tensor) for tensor in tensors]
        sizes = [_bytes(tensor) for tensor in tensors]
        memory = np.empty(sum(sizes), np.uint8) if memory is None else memory
        opened = self.symbols[f"{self.runner.symbol}_open"]
        opened(ctypes.c_int32(index), *self.addresses, ctypes.c_void_p(self.arena[0]), _Address(memory))
        parts = np.split(memory, np.cumsum(sizes)[:-1])
        stored = [part.copy().view(info.dtype) for info, part in zip(infos, parts, strict=True)]
        return {entry["name"]: arranged(part, entry) for entry, part in zip(tensors, stored, strict=True)}

    def hidden_bytes(self, tensors: Sequence[Mapping[str, Any]]) -> int:
        """Bytes that an open variant writes: its tensors one behind the other."""
        return sum(map(_bytes, tensors))

    def read(self, output: Mapping[str, Any], entry: Mapping[str, Any]) -> Array:
        """A copy of what a kernel stored, as the tensor of the manifest's `entry` is in ONNX."""
        if output["space"] == "output":
            return np.array(arranged(self.outputs[output["index"]], entry))
        layout, stored = self._stored(output)
        return np.array(arranged(layout.unpack(stored, tuple(output["shape"])), entry))

    def write(self, output: Mapping[str, Any], array: Array) -> None:
        """Put an array where a kernel stores its output."""
        if output["space"] == "output":
            np.copyto(self.outputs[output["index"]].reshape(array.shape), array)
            return
        layout, stored = self._stored(output)
        stored[...] = layout.pack(array)

    def _stored(self, output: Mapping[str, Any]) -> tuple[Layout, Array]:
        layout = Layout.of(output)
        logical, dtype = tuple(output["shape"]), np.dtype(layout.stored_dtype(output["dtype"]))
        start = self.arena[0] - self.arena[1].ctypes.data + output["offset"]
        steps = [stride * dtype.itemsize for stride in layout.strides(logical)] if layout.pitch else None
        return layout, np.ndarray(layout.physical(logical), dtype, self.arena[1], start, steps)

    def time(self, index: int, seconds: float) -> float:
        """Median seconds of one call of step `index`, over native batches that take about `seconds` together."""

        def batch(repeat: int) -> float:
            start = time.perf_counter()
            self.step(index, repeat)
            return (time.perf_counter() - start) / repeat

        batch(1)
        repeat = min(1 << 20, max(1, int(seconds / 10 / batch(2))))
        return float(np.median([batch(repeat) for _ in range(9)]))


def _info(entry: Mapping[str, Any]) -> ArrayInfo:
    counts = tuple((axis, name) for axis, name in entry.get("counts", ()))
    return ArrayInfo(entry["name"], tuple(entry["shape"]), entry["dtype"], counts)


def arranged(array: Array, entry: Mapping[str, Any]) -> Array:
    """Elements as they follow each other in memory, as the tensor of the manifest's `entry` in ONNX's shape."""
    shape, order = entry["shape"], entry.get("order")
    if not order:
        return array.reshape(shape)
    return np.ascontiguousarray(array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)))


def _bytes(entry: Mapping[str, Any]) -> int:
    info = _info(entry)
    return int(math.prod(info.shape)) * np.dtype(info.dtype).itemsize


def _names(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
