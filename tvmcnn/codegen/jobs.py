"""Jobs: what there is to compile. Kernels that differ in nothing but names are one job, and become one C function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from tvmcnn.cache import digest_of, sources_digest
from tvmcnn.network import Node, Program, Step, Tensor
from tvmcnn.targets import Target
from tvmcnn.version import __version__

# What turns a step into object code, and what turns it into CUDA C++
EITHER = (
    *("ops", "schedule"),
    *("network.py", "half_weights.py", "blocks.py", "configs.py", "fuse/__init__.py", "fuse/regions.py"),
    "winograd.py",  # its matrices
    "packed_band.py",
    "codegen/over_time.py",
)
LOWERED = ("llvm", "bfloat16", "live_taps", "lookups", "prefetch", "short_circuit", "shorten", "tile_config", "kernels")
SOURCES = (*EITHER, *(f"codegen/cpu/{name}.py" for name in LOWERED))
GPU_SOURCES = (*EITHER, "codegen/cuda/kernel.py", "codegen/cuda/chain.py", "choose/cuda/defaults.py")


@dataclass(frozen=True)
class Job:
    """A step without names, to be compiled as it is or unfused (`opened`), for one target."""

    step: Step
    opened: bool
    machine: Target

    @functools.cached_property
    def key(self) -> str:
        """The hash of everything that decides the object code."""
        target = (self.machine.name, self.machine.triple, self.machine.features, self.machine.lanes("float32"))
        return digest_of([repr(self.step), repr(self.opened), repr(target), _tools(SOURCES)])

    @property
    def symbol(self) -> str:
        """The name of the C function."""
        return symbol_of(self.step, self.key)


def symbol_of(step: Step, key: str) -> str:
    """The name of a kernel's function. Whoever has this name has this code: two libraries may share it."""
    return f"tvmcnn_{step.choice.kernel.anchor.op.lower()}_{key[:20]}"


def gpu_key(step: Step) -> str:
    """The hash of everything that decides the CUDA C++ of a step without names."""
    return digest_of([repr(step), "cuda", _tools(GPU_SOURCES)])


def code_digest() -> str:
    """The hash of what turns steps into object code: measurements of other code count for nothing."""
    return digest_of([_tools(SOURCES)])[:16]


@functools.cache
def _tools(sources: tuple[str, ...]) -> str:
    versions = f"tvmcnn {__version__}, tvm {version('apache-tvm')}, tvm-ffi {version('apache-tvm-ffi')}"
    return f"{versions}, {sources_digest(*sources)}"


@dataclass(frozen=True)
class Symbols:
    """The C functions of a program's kernels and of their open variants, by kernel name."""

    kernels: dict[str, str]
    opened: dict[str, str]


def jobs_of(program: Program, machine: Target, *, activations: bool) -> tuple[Symbols, dict[str, Job]]:
    """The functions of a program, and the jobs that make them by symbol. Only what hides tensors has an open variant.

    37 convolutions, 16 of them different    -->  16 jobs
    """
    symbols, jobs = Symbols({}, {}), {}
    for step in program.steps:
        if step.choice.is_view:
            continue
        for opened, names in ((False, symbols.kernels), (True, symbols.opened)):
            if not opened or (step.choice.kernel.hidden and activations):
                job = Job(without_names(_shown(step) if opened else step), opened, machine)
                names[step.choice.name] = job.symbol
                jobs[job.symbol] = job
    return symbols, jobs


def _shown(step: Step) -> Step:
    """The step as its open variant sees it: who reads the output, and so wants a halo, makes no difference."""
    return dataclasses.replace(step, choice=dataclasses.replace(step.choice, writes=step.choice.makes))


def without_names(step: Step) -> Step:
    """The step with every tensor and constant named by its position, and nothing said of where it runs.

    conv1_relu = Relu(conv1_out), weights "stem.w"    -->  t2 = Relu(t1), weights "t3"
    """
    names: dict[str, str] = {}
    kernel = step.choice.kernel
    divisor = f"{kernel.output.name}.divisor"  # of an AveragePool, found by the name of its output

    def name(old: str) -> str:
        if old == divisor and old in step.packed:
            return f"{name(kernel.output.name)}.divisor"
        return names.setdefault(old, f"t{len(names)}")

    def tensor(old: Tensor) -> Tensor:
        return dataclasses.replace(old, name=name(old.name), counts=())

    def tensors(old: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(map(tensor, old))

    def nodes(old: Sequence[Node]) -> tuple[Node, ...]:
        return tuple(Node(n.op, "", tuple(map(name, n.inputs)), name(n.output), n.attributes) for n in old)

    renamed = dataclasses.replace(
        kernel,
        name="kernel",
        inputs=tensors(kernel.inputs),
        prologue=nodes(kernel.prologue),
        nodes=nodes(kernel.nodes),
        output=tensor(kernel.output),
        hidden=tensors(kernel.hidden),
        constants=tuple(map(name, kernel.constants)),
        scalars={name(key): value for key, value in kernel.scalars.items()},
    )
    choice = dataclasses.replace(
        step.choice, kernel=renamed, sources=tensors(step.choice.sources), tier="", within=None
    )
    return Step(choice, {name(key): tensor(packed) for key, packed in step.packed.items()}, ())
