"""x86-64-v4: AVX-512, Intel's server CPUs from Skylake (2017) and AMD's from Zen 4 (2022) on.

With VNNI it is x86-64-v4-vnni.
"""

from __future__ import annotations

import dataclasses

from tvmcnn.targets.x86_64_v3 import X86_64_V3, supports

FLAGS = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

X86_64_V4 = dataclasses.replace(
    X86_64_V3,
    name="x86-64-v4",
    cpu="x86-64-v4",
    features=(*X86_64_V3.features, *FLAGS),
    cpu_tests=(*X86_64_V3.cpu_tests, *map(supports, FLAGS)),
    vector_bytes=64,
    registers=32,
    fma_broadcasts=True,
    l2_bytes=1 << 20,
)

# Intel's Cascade Lake (2019), AMD's Zen 4 (2022), and later
X86_64_V4_VNNI = dataclasses.replace(
    X86_64_V4,
    name="x86-64-v4-vnni",
    attributes=("+avx512vnni",),
    features=(*X86_64_V4.features, "avx512_vnni"),
    cpu_tests=(*X86_64_V4.cpu_tests, supports("avx512vnni")),
    quads=True,
)
