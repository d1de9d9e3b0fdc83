"""x86-64-v3: AVX2 and FMA, Intel's Haswell (2013) and AMD's Zen (2017) and later; with VNNI x86-64-v3-vnni."""

from __future__ import annotations

import dataclasses

from tvmcnn.targets.kinds import Target

# /proc/cpuinfo's flag, and what GCC and Clang call it. They also ask whether the system keeps the registers.
FLAGS = {
    "avx": "avx",
    "avx2": "avx2",
    "bmi1": "bmi",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "abm": "lzcnt",
    "movbe": None,  # which they cannot ask for, and no CPU with the others lacks
}


def supports(name: str | None) -> str:
    """The C expression that asks for a feature."""
    return f'__builtin_cpu_supports("{name}")' if name is not None else ""


X86_64_V3 = Target(
    name="x86-64-v3",
    cpu="x86-64-v3",
    attributes=(),
    triple="x86_64-linux-gnu",
    baseline="x86-64",
    pause="__builtin_ia32_pause()",
    cpu_init="__builtin_cpu_init();",
    features=tuple(FLAGS),
    cpu_tests=tuple(map(supports, FLAGS.values())),
    vector_bytes=32,
    registers=16,
    fma_units=2,
    fma_latency=4,
    fma_broadcasts=False,
    loads=2,
)

# Intel's Alder Lake (2021) and AMD's Zen 5 (2024) and later, whose VNNI instructions of 256 bits need no AVX-512
X86_64_V3_VNNI = dataclasses.replace(
    X86_64_V3,
    name="x86-64-v3-vnni",
    attributes=("+avxvnni",),
    features=(*X86_64_V3.features, "avx_vnni"),
    cpu_tests=(*X86_64_V3.cpu_tests, supports("avxvnni")),
    quads=True,
)
