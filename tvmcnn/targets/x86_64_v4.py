"""x86-64-v4: AVX-512, Intel's server CPUs from Skylake (2017) and AMD's from Zen 4 (2022) on.

With VNNI it is x86-64-v4-vnni, with bfloat16 too x86-64-v4-bf16, with matrix tiles x86-64-v4-amx.
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

# AMD's Zen 4 (2022) and Intel's Cooper Lake (2020), and later
X86_64_V4_BF16 = dataclasses.replace(
    X86_64_V4_VNNI,
    name="x86-64-v4-bf16",
    attributes=(*X86_64_V4_VNNI.attributes, "+avx512bf16"),
    features=(*X86_64_V4_VNNI.features, "avx512_bf16"),
    cpu_tests=(*X86_64_V4_VNNI.cpu_tests, supports("avx512bf16")),
    bf16_pairs=True,
)

# Intel's Sapphire Rapids (2023) and later: /proc/cpuinfo's flags and CPUID's bits, of leaf 7 in EDX
TILES = {"amx_tile": 24, "amx_int8": 25, "amx_bf16": 22}

X86_64_V4_AMX = dataclasses.replace(
    X86_64_V4_BF16,
    name="x86-64-v4-amx",
    attributes=(*X86_64_V4_BF16.attributes, "+amx-tile", "+amx-int8", "+amx-bf16"),
    features=(*X86_64_V4_BF16.features, *TILES),
    c_header="tiles.h",
    cpu_tests=(*X86_64_V4_BF16.cpu_tests, *(f"tvmcnn_tiles({bit})" for bit in TILES.values())),
    tiles=True,
)
