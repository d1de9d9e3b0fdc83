"""Platforms: CPUs and GPUs as two values of one word. What the arrow asks of a kind of machine, it asks here.

    platform = platform_of(resolve_several("x86-64-v3,x86-64-v4"))
    choices = platform.choose(network, kernels, machine, records, precision, exact=exact)
    code = platform.generate(name, programs, weights, effort)
    image = code.link(folder)

No other stage asks which kind a machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tvmcnn.cache import Cache
from tvmcnn.choose import cpu as choose_for_cpus
from tvmcnn.choose import cuda as choose_for_gpus
from tvmcnn.choose.records import Records
from tvmcnn.codegen.cpu import chain, dispatch
from tvmcnn.codegen.cpu import generate as cpu_code
from tvmcnn.codegen.cpu.generate import Functions
from tvmcnn.codegen.cuda import chain as gpu_chain
from tvmcnn.codegen.cuda import generate as gpu_code
from tvmcnn.codegen.cuda.nvcc import nvcc
from tvmcnn.codegen.link import c_compiler, compiler_version
from tvmcnn.errors import TargetError, ToolError
from tvmcnn.layout import Weights
from tvmcnn.network import Choice, Kernel, Network, Program
from tvmcnn.progress import Progress
from tvmcnn.run.gpu_runner import why_not_here
from tvmcnn.targets import TARGETS, Gpu, Machine, Target
from tvmcnn.targets.kinds import arch_number


@dataclass(frozen=True)
class Effort:
    """What generating code may use, and whom it tells: `processes` that compile, a line or a share of the work."""

    cache: Cache
    processes: int
    report: Callable[[str], None]
    progress: Progress
    activations: bool  # whether tensors that fusion hides are to be computable


@dataclass(frozen=True)
class Code:
    """What programs became: how to link it, its C header, and what can be shown of it."""

    link: Callable[[Path], Path]  # in a folder: the ELF image
    archive: Callable[[Path], Path] | None  # after `link`, the static library; none for GPUs
    header: str
    shown: Mapping[str, Callable[[], str]]  # "tir", "asm", "c", "cuda": made when asked for
    functions: Sequence[Sequence[Mapping[str, str]]]  # symbols by machine, program and kernel
    activations: bool  # whether tensors that fusion hides can be computed


class Platform(Protocol):
    """A kind of machine, and the machines of it that one library is for, the best first."""

    @property
    def machines(self) -> Sequence[Machine]:
        """The machines, of which each has programs of its own."""

    def check(self, output: Path, precision: str, weights: str) -> None:
        """Raise ToolError, before the work, for tools that are missing and for what this kind of machine has not."""

    def versions(self) -> dict[str, str]:
        """The versions of the compilers of its code."""

    def choose(
        self,
        network: Network,
        kernels: Sequence[Kernel],
        machine: Machine,
        records: Records,
        precision: str,
        *,
        exact: bool,
    ) -> tuple[Choice, ...]:
        """The kernels in the order they run, each with every decision made for one of the machines."""

    def generate(self, name: str, programs: Sequence[Sequence[Program]], weights: Weights, effort: Effort) -> Code:
        """The code of the programs, by machine."""

    def why_not_here(self, machine: Machine, image: Path, name: str) -> str:
        """Why a linked image cannot run on this computer; empty if it can."""


def platform_of(machines: Sequence[Machine]) -> Platform:
    """The platform of what targets.resolve_several has found: classes of CPUs, or GPUs."""
    gpus = [machine for machine in machines if isinstance(machine, Gpu)]
    return Cuda(gpus[0]) if gpus else Cpus(tuple(machine for machine in machines if isinstance(machine, Target)))


@dataclass(frozen=True)
class Cpus:
    """CPUs of one class or several. A library has code for each, and chooses when it is loaded."""

    machines: tuple[Target, ...]

    def check(self, output: Path, precision: str, weights: str) -> None:
        """Raise ToolError without a C compiler, and for a precision that only tensor cores or other CPUs have."""
        c_compiler()
        without = [target.name for target in self.machines if not target.bf16_pairs]
        able = ", ".join(target.name for target in TARGETS.values() if target.bf16_pairs)
        if precision == "bf16" and without:
            raise ToolError(
                f"precision bf16 needs AVX512-BF16, which {', '.join(without)} has not; targets with it: {able}"
            )
        if precision not in ("fp32", "bf16"):
            name = self.machines[0].name
            also = "fp32" if without else "fp32 or bf16"
            raise ToolError(f"precision {precision} is for tensor cores, target cuda:sm_…; {name} computes in {also}")

    def versions(self) -> dict[str, str]:
        """The version of the C compiler."""
        return {"cc": compiler_version(c_compiler())}

    def choose(
        self,
        network: Network,
        kernels: Sequence[Kernel],
        machine: Machine,
        records: Records,
        precision: str,
        *,
        exact: bool,
    ) -> tuple[Choice, ...]:
        """See choose/cpu."""
        assert isinstance(machine, Target)
        return choose_for_cpus.choose(network, kernels, machine, records, precision, exact=exact)

    def generate(self, name: str, programs: Sequence[Sequence[Program]], weights: Weights, effort: Effort) -> Code:
        """Object code of each kernel by LLVM, once for each class of CPUs, and C that chains them."""
        pairs = list(zip(programs, self.machines, strict=True))
        classes = [Functions.of(each, machine, activations=effort.activations) for each, machine in pairs]
        objects: dict[str, bytes] = {}
        for functions in classes:
            objects |= cpu_code.compiled(functions, effort.cache, effort.processes, effort.progress)
        several = len(self.machines) > 1
        return Code(
            link=lambda folder: cpu_code.generate(name, classes, objects, weights.path, folder),
            archive=lambda folder: cpu_code.archived(name, classes, folder),
            header=(
                dispatch.header(name, programs, self.machines)
                if several
                else chain.header(programs[0], self.machines[0])
            ),
            shown={
                "tir": lambda: "\n\n".join(cpu_code.tir(each, machine) for each, machine in pairs),
                "asm": lambda: "\n".join(cpu_code.assembly(each, machine) for each, machine in pairs),
                "c": lambda: "\n".join(cpu_code.all_sources(name, classes)[0].values()),
            },
            functions=[[symbols.kernels for symbols in functions.symbols] for functions in classes],
            activations=effort.activations,
        )

    def why_not_here(self, machine: Machine, image: Path, name: str) -> str:
        """What this CPU lacks of the machine's instructions."""
        assert isinstance(machine, Target)
        missing = machine.missing()
        return f"this CPU lacks {', '.join(missing)}, which {machine.name} needs" if missing else ""


@dataclass(frozen=True)
class Cuda:
    """NVIDIA GPUs of some architectures, with one text for them all."""

    machine: Gpu

    @property
    def machines(self) -> tuple[Gpu]:
        """The one."""
        return (self.machine,)

    def check(self, output: Path, precision: str, weights: str) -> None:
        """Raise ToolError without a C compiler or nvcc, for a static library, for half weights, and for a precision
        that no GPU of the target has."""
        if weights != "fp32":
            raise ToolError(
                f"weights {weights} are for CPUs; on GPUs --precision fp16 has those of large products in float16"
            )
        if output.suffix == ".a":
            raise ToolError(
                "a static library is for CPUs: CUDA's runtime must be linked by nvcc, name the output with .so"
            )
        c_compiler()
        nvcc()
        if precision == "bf16":
            raise ToolError("precision bf16 is for CPUs with AVX512-BF16; GPUs compute in fp32, tf32 or fp16")
        old = [arch for arch in self.machine.archs if arch_number(arch) < 80]
        if precision == "tf32" and old:
            raise ToolError(f"precision tf32 needs sm_80 or later; the target has {', '.join(old)}: choose fp16 for it")

    def versions(self) -> dict[str, str]:
        """The versions of the C compiler and of nvcc."""
        return {"cc": compiler_version(c_compiler()), "nvcc": compiler_version(nvcc())}

    def choose(
        self,
        network: Network,
        kernels: Sequence[Kernel],
        machine: Machine,
        records: Records,
        precision: str,
        *,
        exact: bool,
    ) -> tuple[Choice, ...]:
        """See choose/cuda: every GPU of the target has the same kernels.

        Raises TargetError for an output that is as long as the data says, which a GPU would have to be waited for.
        """
        if counted := [tensor.name for tensor in network.outputs if tensor.counts]:
            raise TargetError(f"output '{counted[0]}' is as long as the data says: such a network is compiled for CPUs")
        return choose_for_gpus.choose(network, kernels, records, precision, exact=exact)

    def generate(self, name: str, programs: Sequence[Sequence[Program]], weights: Weights, effort: Effort) -> Code:
        """One CUDA C++ file with the kernels and their chain, for nvcc."""
        (ours,) = programs
        kernels = gpu_code.Kernels.of(ours, self.machine, effort.progress)
        return Code(
            link=lambda folder: gpu_code.generate(
                kernels, weights.path, weights.bytes, folder, effort.cache, effort.report, effort.progress
            ),
            archive=None,
            header=gpu_chain.header(ours, self.machine),
            shown={"cuda": lambda: kernels.source(weights.bytes), "tir": lambda: gpu_code.tir(ours)},
            functions=[[symbols.kernels for symbols in kernels.symbols]],
            activations=False,
        )

    def why_not_here(self, machine: Machine, image: Path, name: str) -> str:
        """What the image itself says of this computer's driver and GPU."""
        return why_not_here(image, name)
