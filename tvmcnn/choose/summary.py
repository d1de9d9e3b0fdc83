"""Summary: what was chosen for whole programs, in a line each, for the log."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from tvmcnn.algorithms import ALGORITHMS, Makes
from tvmcnn.blocks import groups_together
from tvmcnn.choose.cpu.bf16 import why_float32
from tvmcnn.choose.shared import QUANTISED
from tvmcnn.configs import MmaConfig
from tvmcnn.fuse import is_depthwise, multiply_accumulates
from tvmcnn.network import FLOAT32, Choice, Kernel, Network, Program, Step
from tvmcnn.targets import Target

OF_SUMS = ("Requantised", "Summed")  # what is made of exact sums in float32
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicScale", "DynamicZeroPoint", "Centred")


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
    on = sum(isinstance(choice.config, MmaConfig) for _, choice in pairs)
    off = sum(_multiplies_in_float32(network, choice) for network, choice in pairs)
    return f"tensor cores: {on} of {on + off} kernels with products{'; the others multiply in float32' * (off > 0)}"


def _multiplies_in_float32(network: Network, choice: Choice) -> bool:
    counted = ALGORITHMS[choice.algorithm].counted and not isinstance(choice.config, MmaConfig)
    return counted and multiply_accumulates(network, choice.kernel) > 0


def in_bfloat16(programs: Sequence[Program], target: Target) -> str:
    """bfloat16: 51 of 54 kernels with products; in float32 3 by Winograd; and 48 of 52 images between kernels"""
    pairs = [(program.network, step.choice) for program in programs for step in program.steps]
    choices = [choice for network, choice in pairs if multiply_accumulates(network, choice.kernel) > 0]
    counted = [choice for choice in choices if ALGORITHMS[choice.algorithm].counted]
    others = (choice for choice in counted if not ALGORITHMS[choice.algorithm].rounds)
    wide = Counter(why_float32(choice, tiles=target.tiles) for choice in others)
    named = f"; in float32 {', '.join(f'{count} {why}' for why, count in wide.items())}" if wide else ""
    between = [step.choice for program in programs for step in program.steps if _makes_an_image(program.network, step)]
    stored = sum(choice.writes.narrow for choice in between)
    images = f"; and {stored} of {len(between)} images between kernels" if between else ""
    return f"bfloat16: {len(counted) - wide.total()} of {len(counted)} kernels with products{named}{images}"


def _makes_an_image(network: Network, step: Step) -> bool:
    """Whether a kernel stores an image of float32 for others to read."""
    made = step.choice.kernel.output
    between = made.name in network.tensors and made.name not in {tensor.name for tensor in network.outputs}
    return between and not step.choice.is_view and made.dtype == FLOAT32 and len(made.shape) == 4


def in_integers(choices: Iterable[Choice]) -> str:
    """integers: 21 kernels compute on 8 bits, 3 in other types: Softmax, Sigmoid, Add (2)

    Empty where none does. What converts between both counts with neither.
    """
    copies = (Makes.COPY, Makes.NOTHING)
    kernels = [choice.kernel for choice in choices if ALGORITHMS[choice.algorithm].makes not in copies]
    sums = {name for kernel in kernels if kernel.anchor.op in OF_SUMS for name in kernel.anchor.inputs}
    parts = [kernel for kernel in kernels if kernel.anchor.output in sums]
    operators = [kernel for kernel in kernels if kernel.anchor.op not in CONVERSIONS and kernel not in parts]
    on = [kernel for kernel in operators if _is_of_bytes(kernel)]
    if len(kernels) == len(operators) and not any(kernel.anchor.op in QUANTISED for kernel in on):
        return ""
    others = Counter(kernel.ops for kernel in operators if not _is_of_bytes(kernel))
    named = ", ".join(f"{ops} ({count})" if count > 1 else ops for ops, count in others.items())
    return f"integers: {len(on)} kernels compute on 8 bits, {others.total()} in other types{f': {named}' * bool(named)}"


def _is_of_bytes(kernel: Kernel) -> bool:
    return kernel.anchor.op in OF_SUMS or any(
        tensor.item_bytes == 1 and tensor.dtype != "bool" for tensor in kernel.inputs
    )


def by_winograd(choices: Iterable[Choice]) -> str:
    """Winograd: 5 of 17 convolutions, with up to 10.5 times the rounding error of direct ones; …

    Empty where none goes by it. A product with one element of a tile goes into all its sums: what is not finite, and
    the rounding of a large one, reaches pixels whose windows do not hold it.
    """
    convolutions = [choice for choice in choices if choice.kernel.anchor.op == "Conv"]
    found = [choice for choice in convolutions if not ALGORITHMS[choice.algorithm].exact]
    configs = [dataclasses.asdict(choice.config) for choice in found if choice.config is not None]
    if not configs:
        return ""
    growth = max(ALGORITHMS[choice.algorithm].growth(numbers) for choice, numbers in zip(found, configs, strict=True))
    tile = max(numbers["tile"] for numbers in configs)
    return (
        f"Winograd: {len(found)} of {len(convolutions)} convolutions, with up to {growth:.3g} times the rounding"
        f" error of direct ones; NaN, inf and outliers spread inside a tile of {tile} x {tile} pixels"
        " (--exact has neither)"
    )


def groups_as_one(choices: Iterable[Choice]) -> str:
    """Groups: 3 of 7 grouped convolutions compute some of their groups as one; NaN and inf …

    Empty where none does. The filters have zeros for the other group's channels, and 0 times infinity is NaN.
    """
    grouped = [c for c in choices if c.kernel.anchor.op == "Conv" and c.kernel.anchor["group"] > 1]
    blocked = [c for c in grouped if c.makes.block > 1 and not is_depthwise(c.kernel)]  # channels in the lanes
    together = [choice for choice in blocked if groups_together(choice.kernel) > 1]
    if not together:
        return ""
    return (
        f"groups: {len(together)} of {len(grouped)} grouped convolutions compute two or three groups as one; NaN and"
        " inf spread from one to the other (--exact keeps them apart)"
    )
