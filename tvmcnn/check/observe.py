"""Observe: what a library computes, seen from a process that may die of it.

Code that is new on this machine is not to be trusted: it runs in a process of its own, kernel by kernel and then by its
one native call, on memory between guards. A crash, a hang, and a byte written where no kernel may write become one
sentence that names the kernel.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcnn.algorithms import ALGORITHMS, Makes
from tvmcnn.artifact.container import Manifest
from tvmcnn.check.guards import Guarded, Watch
from tvmcnn.errors import VerifyError
from tvmcnn.network import Array, Layout
from tvmcnn.run import load
from tvmcnn.run.arrays import ArrayInfo
from tvmcnn.run.runner import Runner, _Frame, arranged
from tvmcnn.worker_process import Isolated, LostError

CALL = "the whole network"  # what runs, where that is no kernel
SECONDS = 300.0  # that a library may take, and more by its products: nobody waits for a kernel that does not end
PRODUCTS = 2e7  # multiply-accumulates a second: plain loops on a machine that does ten things more
NAME_BYTES = 256  # of the file that tells which kernel runs


@dataclass(frozen=True)
class Subject:
    """A program of a library, to be observed: what a loaded one says of itself."""

    path: Path
    name: str
    symbol: str
    target: str
    threads: int
    manifest: Manifest
    inputs: tuple[ArrayInfo, ...]
    outputs: tuple[ArrayInfo, ...]

    @staticmethod
    def of(runner: Runner) -> Subject:
        """The program of a runner."""
        words = runner.path, runner.name, runner.symbol, runner.target, runner.threads
        return Subject(*words, runner.manifest, runner.inputs, runner.written)


@dataclass(frozen=True)
class Observed:
    """What a program computed: each tensor that it can show, in computing order, and the outputs of its native call."""

    tensors: Mapping[str, Array]
    outputs: tuple[Array, ...]


def subjects(library: Path, target: str | None = None) -> tuple[Subject, ...]:
    """The programs of a library, one a size, loaded in another process: for `target`, or the best for this CPU.

    Raises as `load` does.
    """
    found: tuple[Subject, ...] = _worker().call("tvmcnn.check.observe:_subjects", str(library), target)
    return found


def observe(runner: Runner | Subject, arrays: Sequence[Array]) -> Observed:
    """What a program, loaded in another process, computes from `arrays`, in graph order.

    Raises VerifyError, naming the kernel, for one that crashes, hangs, or writes where it may not.
    """
    macs = sum(kernel["macs"] for kernel in runner.manifest["kernels"])
    with tempfile.NamedTemporaryFile(prefix="tvmcnn-kernel-") as trail:
        place = (str(runner.path), runner.target, runner.threads, runner.symbol)
        try:
            found: Observed = _worker().call(
                "tvmcnn.check.observe:observed", *place, list(arrays), trail.name, seconds=SECONDS + macs / PRODUCTS
            )
        except LostError as error:
            kernel = Path(trail.name).read_bytes().rstrip(b"\0").decode() or "loading it"
            ending = str(error).partition(":")[0]  # what the process printed last says less
            hint = ": it reads or writes outside of its memory" if "SIGSEGV" in ending else ""
            raise VerifyError(f"{runner.name} is not right: in {kernel} the process {ending}{hint}") from error
    return found


_workers = threading.local()  # a process for each thread: it ends with the thread, and answers one at a time


def _worker() -> Isolated:
    """This thread's process. A fork has none of its own yet: the pipes are its parent's."""
    if getattr(_workers, "owner", None) != os.getpid():
        _workers.owner, _workers.process = os.getpid(), Isolated(quiet=True)
    process: Isolated = _workers.process
    return process


# ---- in that process ------------------------------------------------------------------------------------------------


def _subjects(library: str, target: str | None) -> tuple[Subject, ...]:
    return tuple(map(Subject.of, load(library, target=target).programs))


def observed(path: str, target: str, threads: int, symbol: str, arrays: Sequence[Array], trail: str) -> Observed:
    """`observe` where it happens; the file `trail` tells which kernel runs."""
    runner = next(each for each in load(path, threads, target=target).programs if each.symbol == symbol)
    with open(trail, "r+b", buffering=0) as file:

        def note(name: str) -> None:
            os.pwrite(file.fileno(), name.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0"), 0)

        given = [Guarded.holding(array) for array in arrays]
        tensors = _by_kernels(runner, given, note) if "archs" not in runner.manifest["target"] else {}
        outputs = _at_once(runner, given, note)
    return Observed(tensors, outputs)


def _at_once(runner: Runner, given: Sequence[Guarded], note: Callable[[str], None]) -> tuple[Array, ...]:
    """The outputs of the one native call."""
    note(CALL)
    outputs = [Guarded(info.shape, info.dtype) for info in runner.written]
    arena = _arena(runner)
    runner.run_in([each.array for each in given], [each.array for each in outputs], arena.array)
    _check_guards(runner, CALL, (*given, *outputs, arena))
    return tuple(each.array.copy() for each in outputs)


def _by_kernels(runner: Runner, given: Sequence[Guarded], note: Callable[[str], None]) -> dict[str, Array]:
    """Every tensor that the library can show: without open variants those that kernels store."""
    found: dict[str, Array] = {}
    outputs = [Guarded(info.shape, info.dtype) for info in runner.written]
    arena = _arena(runner)
    watch = Watch(arena.array)
    memory = (arena.array.ctypes.data, arena.array)
    with _Frame(runner, [each.array for each in given], tuple(each.array for each in outputs), memory) as frame:
        for entry, each in zip(runner.manifest["inputs"], given, strict=True):
            found |= {t["name"]: arranged(each.array, t).copy() for t in entry["stores"]}
        for index, kernel in enumerate(runner.manifest["kernels"]):
            note(f"kernel {kernel['name']} ({'+'.join(kernel['ops'])})")
            frame.step(index)
            if (bytes_ := watch.strays([*_written(runner, kernel)])) is not None:
                first, last = bytes_
                raise VerifyError(
                    f"{runner.name} is not right: kernel {kernel['name']} writes bytes {first} to {last} of the arena,"
                    f" which hold other tensors than its own"
                )
            if runner.manifest["activations"] and kernel["hidden"]:
                note(f"the open variant of kernel {kernel['name']} ({'+'.join(kernel['ops'])})")
                found |= _hidden(runner, frame, index, kernel)
            for stored in kernel["stores"]:
                found[stored["name"]] = frame.read(kernel["output"], stored)
            _check_guards(runner, f"kernel {kernel['name']}", (*given, *outputs, arena))
    return found


def _hidden(runner: Runner, frame: _Frame, index: int, kernel: Mapping[str, Any]) -> dict[str, Array]:
    memory = Guarded((frame.hidden_bytes(kernel["hidden"]),), "uint8")
    found = frame.hidden(index, kernel["hidden"], memory.array)
    _check_guards(runner, f"the open variant of kernel {kernel['name']}", (memory,))
    return found


def _arena(runner: Runner) -> Guarded:
    """An arena of exactly the bytes that are promised, threads' scratch at its end."""
    size = runner.manifest["arena_bytes"] + runner.threads * runner.manifest["thread_bytes"]
    return Guarded((size,), "uint8")


def _written(runner: Runner, kernel: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The bytes of the arena that a kernel may write, each range by its first and the one past its last."""
    manifest, output = runner.manifest, kernel["output"]
    if kernel.get("scratch", manifest["thread_bytes"]):
        yield manifest["arena_bytes"], manifest["arena_bytes"] + runner.threads * manifest["thread_bytes"]
    if output["space"] != "arena" or ALGORITHMS[kernel["algorithm"]].makes is Makes.NOTHING:
        return
    layout = Layout.of(output)
    shape = layout.physical(tuple(output["shape"]))
    item = layout.item_bytes(output["dtype"])
    size = math.prod(shape) * item
    if not layout.pitch:
        before, after = output.get("ends", (0, 0))
        yield output["offset"] - before, output["offset"] + size + after
        return
    apart = layout.strides(tuple(output["shape"]))[0] * item
    for image in range(shape[0]):
        yield output["offset"] + image * apart, output["offset"] + image * apart + size // shape[0]


def _check_guards(runner: Runner, kernel: str, blocks: Sequence[Guarded]) -> None:
    if not all(block.whole for block in blocks):
        raise VerifyError(f"{runner.name} is not right: {kernel} writes below the beginning of its memory")
