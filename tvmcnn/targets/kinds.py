"""Kinds of machines: classes of CPUs by their instruction set, and NVIDIA GPUs by their architectures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tvmcnn.machine import cpu_flags, cpu_name


@dataclass(frozen=True)
class Target:
    """A class of CPUs: what choosing, code generation and the C compiler must know of an instruction set.

    `features` are /proc/cpuinfo's flags: all must be there before a library may run.
    """

    name: str
    cpu: str  # what LLVM and the C compiler call the instruction set: -mcpu, -march
    attributes: tuple[str, ...]  # LLVM's names of instructions beyond it: -mattr
    triple: str  # LLVM's
    baseline: str  # -march of the C around the kernels, which runs on every CPU of the triple and asks what it has
    pause: str  # C: wait a moment, and leave the core's units to its other thread
    features: tuple[str, ...]
    cpu_init: str  # C: the statement that must run before `cpu_tests`
    cpu_tests: tuple[str, ...]  # C: one expression a feature, 1 where the CPU has it; "" where no C can ask
    vector_bytes: int
    registers: int  # architectural vector registers
    fma_units: int  # FMAs of whole vectors that begin in one cycle
    fma_latency: int  # cycles until the sum can be added to
    fma_broadcasts: bool  # whether an FMA can take one element in memory for all lanes
    loads: int  # of whole vectors in one cycle
    c_header: str = ""  # of the C around the kernels, which `cpu_tests` need
    quads: bool = False  # whether one instruction adds four products of bytes to a sum: VNNI
    bf16_pairs: bool = False  # whether one instruction adds two products of bfloat16 to a sum: AVX512-BF16
    tiles: bool = False  # whether it multiplies matrices of 16 rows of 64 bytes: AMX
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    machine: str = ""  # the CPU's own name when the target is this machine, "" for a class of machines

    multiplies_bytes = True  # has kernels for convolutions of integers of 8 bits,
    in_words = False  # of which images in plain layout are multiplied in words of four channels

    def lanes(self, dtype: str) -> int:
        """Elements of a type in one vector register."""
        return self.vector_bytes // np.dtype(dtype).itemsize

    @property
    def isa(self) -> str:
        """What a record calls it: floats are computed alike with instructions beyond the set and without."""
        return self.cpu

    @property
    def short(self) -> str:
        """v3 or v4_vnni, in the names of a library's programs."""
        return self.name.removeprefix("x86-64-").replace("-", "_")

    @property
    def here(self) -> str:
        """The CPU's own name where this machine is of the class, "" elsewhere: only its records are of this machine."""
        return "" if self.missing() else self.machine or cpu_name()

    @property
    def facts(self) -> dict[str, object]:
        """What a manifest says of it."""
        return {"name": self.name, "features": list(self.features)}

    def missing(self) -> tuple[str, ...]:
        """The features that this machine's CPU lacks."""
        flags = cpu_flags()
        return tuple(feature for feature in self.features if feature not in flags)

    def __str__(self) -> str:
        return f"{self.name} ({self.lanes('float32')} float32 lanes, {self.registers} registers)"


@dataclass(frozen=True)
class Gpu:
    """NVIDIA GPUs of some architectures; a library has code for each, and PTX of the newest for those to come."""

    name: str  # cuda:sm_80,sm_90
    archs: tuple[str, ...]  # sm_80, …: ascending

    multiplies_bytes = in_words = True
    machine = here = ""  # a GPU is never this machine: libraries for it are made anywhere

    @property
    def isa(self) -> str:
        """What a record calls it: the newest, which the kernels are chosen for."""
        return f"cuda:{self.archs[-1]}"

    @property
    def short(self) -> str:
        """sm_80, in the names of a library's programs."""
        return self.archs[-1]

    @property
    def facts(self) -> dict[str, object]:
        """What a manifest says of it."""
        return {"name": self.name, "features": [], "archs": list(self.archs)}

    def __str__(self) -> str:
        return f"{self.name} (NVIDIA GPUs: code for {', '.join(self.archs)}, PTX of {self.archs[-1]})"


Machine: TypeAlias = Target | Gpu


def arch_number(arch: str) -> int:
    """sm_80 is 80, sm_100a 100."""
    return int(re.sub(r"\D", "", arch))
