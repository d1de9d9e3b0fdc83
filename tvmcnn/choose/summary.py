"""Summary: what was chosen for whole programs, in a line each, for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tvmcnn.fuse import multiply_accumulates
from tvmcnn.network import Program


def tiers(programs: Sequence[Program]) -> str:
    """configs: 18 by shipped records, 3 computed"""
    found = Counter(
        step.choice.tier for program in programs for step in program.steps if step.choice.config is not None
    )
    computed = found.pop("default", 0)
    counts = [f"{count} by {tier}{'s' if count > 1 else ''}" for tier, count in sorted(found.items())]
    return f"configs: {', '.join([*counts, f'{computed} computed'])}"


def tensor_cores(programs: Sequence[Program]) -> str:
    """tensor cores: 16 of 21 kernels with products; the others multiply in float32"""
    pairs = [(program.network, step.choice) for program in programs for step in program.steps]
    on = sum(choice.rule == "mma" for _, choice in pairs)
    off = sum(
        choice.rule != "mma" and choice.algorithm != "gemm_sum" and multiply_accumulates(network, choice.kernel) > 0
        for network, choice in pairs
    )
    return f"tensor cores: {on} of {on + off} kernels with products{'; the others multiply in float32' * (off > 0)}"
