"""Candidate: it becomes jobs for the compiler, calls for a library of trials, and the memory that it works on.

    memory: x with its halo | what winograd_data makes | output, all NaN | scratch | constants, packed | again | again

Constants lie in several copies that are used in turn: a call finds them in the cache or in memory, as it will in the
network beside other kernels. (With the weights always in L3, a config won for Winograd on 14 x 14 pixels of 256
channels that is 1.5 times slower inside ResNet-18.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.cache import digest_of
from tvmcnn.choose.cpu.row_bands import banded
from tvmcnn.choose.cpu.tasks import task_count
from tvmcnn.choose.cpu.winograd_choice import winograd_data, without_data
from tvmcnn.codegen.cpu.candidates import Call, Calls
from tvmcnn.codegen.jobs import Job, without_names
from tvmcnn.configs import StreamedConfig
from tvmcnn.layout import pack
from tvmcnn.network import ALIGNMENT, Array, Choice, Layout, Shape, Step, Tensor, round_up, stored_bytes
from tvmcnn.targets import Target
from tvmcnn.tuning.problem import Problem

MAX_TURN_BYTES = 256 << 20  # bytes of weights in turn are as good as any number: no L3 of a few cores' share holds them
TURNS = 3  # of L3 a third is the network's: with 96 MB in turn weights came from L3 that ResNet-18 has from memory
MAX_COPIES = 256
KEPT_BYTES = 32 << 20  # bytes of memory files and, about as many, of packed constants, from one batch to the next


@dataclass(frozen=True)
class Trial:
    """What a process that runs a candidate has to know; `image` and `expected` are files that it reads."""

    image: Path  # the memory, with one copy of the constants
    output: int  # bytes before it
    shape: Shape
    dtype: str
    layout: Layout  # of the output, as the two before
    expected: Path  # float64, of `shape`
    scale: float  # of what is expected, the largest |value|
    tolerance: float  # for the largest |difference|, relative to `scale`


@dataclass(frozen=True)
class Prepared:
    """A candidate, ready to be compiled and tried."""

    choice: Choice
    jobs: Mapping[str, Job]
    calls: Calls
    trial: Trial

    @property
    def memory(self) -> int:
        """Bytes of all copies."""
        return self.calls.constants + self.calls.stride * self.calls.copies


class Preparer:
    """Prepares the candidates of one problem in a folder; those with equal memory share its file."""

    def __init__(self, problem: Problem, target: Target, folder: Path, weights: int, *, cold: bool) -> None:
        """`weights` is the bytes of weights that the whole network has; not `cold`, constants lie in one copy."""
        self.problem, self.target, self.folder = problem, target, folder
        self.turns = min(TURNS * weights, MAX_TURN_BYTES) if cold else 0
        self.expected = folder / f"{digest_of([problem.words])[:20]}.expected"
        if not self.expected.exists():
            self.expected.write_bytes(np.ascontiguousarray(problem.expected, np.float64).tobytes())
        self._packed: dict[object, list[tuple[str, Array]]] = {}
        self._images: set[Path] = set()

    def prepare(self, choice: Choice) -> Prepared:
        """The jobs, calls and memory of a candidate."""
        choices = [self._alone(each) for each in (*self._before(choice), choice)]
        packed = [self._constants(each) for each in choices]
        steps = [
            Step(each, {name: Tensor(name, a.shape, str(a.dtype)) for name, a in arrays}, ())
            for each, arrays in zip(choices, packed, strict=True)
        ]
        jobs = [Job(without_names(step), False, self.target) for step in steps]
        places = _Places(choices, packed)
        calls = tuple(
            Call(job.symbol, places.arguments(each, arrays), each.tasks)
            for job, each, arrays in zip(jobs, choices, packed, strict=True)
        )
        copies = max(1, min(MAX_COPIES, self.turns // places.stride)) if places.stride else 1
        output, layout = choices[-1].kernel.output, choices[-1].writes
        trial = Trial(
            self._image(choices, packed, places),
            places.offsets[output.name],
            output.shape,
            output.dtype,
            layout,
            self.expected,
            self.problem.scale,
            self.problem.tolerance(choice),
        )
        whole = Calls(calls, places.scratch, places.constants, places.stride, copies)
        return Prepared(choice, {job.symbol: job for job in jobs}, whole, trial)

    def tidy(self) -> None:
        """Forget what takes much room, which is made again when it is asked for."""
        images = list(self._images)
        if sum(path.stat().st_size for path in images) > KEPT_BYTES:
            for path in images:
                path.unlink()
            self._images.clear()
            self._packed.clear()
            self.problem.forget()

    def _alone(self, choice: Choice) -> Choice:
        """The choice in the network's bands, but outside it: no part of a concatenation."""
        reads = tuple(dataclasses.replace(layout, pitch=0) for layout in choice.reads)
        writes = dataclasses.replace(choice.writes, pitch=0)
        choice = dataclasses.replace(choice, reads=reads, writes=writes, within=None)
        return banded(self.problem.network, choice, self.target) if self.problem.banded else choice

    def _before(self, choice: Choice) -> list[Choice]:
        """The kernel that a candidate needs to have run, if there is one."""
        if not isinstance(choice.config, StreamedConfig):
            return []
        data = winograd_data(without_data(choice), choice.config.tile)
        return [dataclasses.replace(data, tasks=task_count(self.problem.network, data, self.target))]

    def _constants(self, choice: Choice) -> list[tuple[str, Array]]:
        """The packed constants, packed once for all candidates that pack them alike."""
        numbers = (getattr(choice.config, name) for name in ALGORITHMS[choice.algorithm].packed_by)
        key = choice.algorithm, choice.reads, *numbers
        if key not in self._packed:
            self._packed[key] = list(pack(choice, self.problem.network.constants))
        return self._packed[key]

    def _image(self, choices: Sequence[Choice], packed: Sequence[list[tuple[str, Array]]], places: _Places) -> Path:
        words = [self.problem.words, repr(places), *(f"{name} {a.shape}" for each in packed for name, a in each)]
        path = self.folder / f"{digest_of([*words, *(repr(each.reads) for each in choices)])[:20]}.image"
        if path.exists():
            return path
        image = np.full((places.constants + places.stride) // 4, np.nan, np.float32).view(np.uint8)
        known = dict(zip((t.name for t in self.problem.choice.kernel.inputs), self.problem.inputs, strict=False))
        for choice in choices:
            logical = {tensor.name: tensor for tensor in choice.kernel.inputs}
            for given, source, layout in zip(logical, choice.sources, choice.reads, strict=True):
                if given in known:
                    stored = layout.pack(known[given].reshape(source.shape))
                    _put(image, places.offsets[source.name], stored)
        for choice, arrays in zip(choices, packed, strict=True):
            for name, array in arrays:
                _put(image, places.constants + places.offsets[f"{choice.name} {name}"], array)
        image.tofile(path)
        self._images.add(path)
        return path


@dataclass
class _Places:
    """Where everything lies: sources and outputs by name, constants by kernel and name, in bytes."""

    choices: dataclasses.InitVar[Sequence[Choice]]
    packed: dataclasses.InitVar[Sequence[list[tuple[str, Array]]]]
    offsets: dict[str, int] = field(default_factory=dict)
    scratch: int = 0
    constants: int = 0
    stride: int = 0

    def __post_init__(self, choices: Sequence[Choice], packed: Sequence[list[tuple[str, Array]]]) -> None:
        end = 0
        for choice in choices:
            operands = [*zip(choice.sources, choice.reads, strict=True), (choice.kernel.output, choice.writes)]
            for tensor, layout in operands:
                if tensor.name not in self.offsets:
                    self.offsets[tensor.name] = end
                    end += round_up(stored_bytes(tensor, layout), ALIGNMENT)
        self.scratch = end
        self.constants = end + round_up(max(choice.scratch_bytes for choice in choices) + 1, ALIGNMENT)
        for choice, arrays in zip(choices, packed, strict=True):
            for name, array in arrays:
                self.offsets[f"{choice.name} {name}"] = self.stride
                self.stride += round_up(array.size * array.itemsize, ALIGNMENT)

    def arguments(self, choice: Choice, packed: list[tuple[str, Array]]) -> tuple[tuple[str, int], ...]:
        """Arguments of the kernel's function: its sources, its constants, its output."""
        made = choice.kernel.output
        output = self.offsets[made.name] + choice.writes.first(made.shape) * choice.writes.item_bytes(made.dtype)
        return (
            *(("memory", self.offsets[source.name]) for source in choice.sources),
            *(("constants", self.offsets[f"{choice.name} {name}"]) for name, _ in packed),
            ("memory", output),
        )


def _put(image: Array, offset: int, array: Array) -> None:
    """Write an array into the memory."""
    image[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
