"""Narrow images: those between kernels in bfloat16, `--precision bf16`. They are half as large, and who multiplies them
finds them rounded.

    Conv -> float32 -> bf16(x), Conv    -->    Conv, bf16 -> bfloat16 -> Conv

One that is only multiplied is rounded a kernel earlier, and nothing else changes. One that is added too, the residual
of a ResNet's block, is rounded for the addition as well. The sums themselves, biases and all that is hidden in a kernel
stay float32.

Where AMX reads them they lie in blocks of 32 channels, a row of its tiles: a convolution of stride 1 then loads tiles
from the image itself, which is what others pack first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.amx import loading
from tvmcnn.choose.cpu.tasks import task_count
from tvmcnn.configs import AmxConfig
from tvmcnn.network import FLOAT32, Choice, Layout, Network
from tvmcnn.targets import Target


def narrowing(network: Network, choices: Sequence[Choice], target: Target) -> tuple[Choice, ...]:
    """The choices with images in bfloat16 wherever a kernel that rounds factors makes or reads one, and who makes it
    and all who read it can."""
    readers: dict[str, list[Choice]] = {}
    for choice in choices:
        for source in choice.sources:
            readers.setdefault(source.name, []).append(choice)
    blocks: dict[str, int] = {}
    for choice in choices:
        if _is_narrow(choice, readers):
            blocks[choice.kernel.output.name] = _block(choice, readers[choice.kernel.output.name], blocks)
    narrow = (_with_narrow(choice, blocks) for choice in choices)
    made = (loading(choice) if isinstance(choice.config, AmxConfig) else choice for choice in narrow)
    return tuple(
        dataclasses.replace(choice, tasks=task_count(network, choice, target)) if choice.writes.narrow else choice
        for choice in made
    )


def _is_narrow(choice: Choice, readers: Mapping[str, Sequence[Choice]]) -> bool:
    made = choice.kernel.output
    reading = readers.get(made.name, [])  # of the network's outputs nobody, or a reorder
    if choice.writes.block != BLOCK or choice.within is not None or made.dtype != FLOAT32 or not reading:
        return False
    writer, *others = (ALGORITHMS[each.algorithm] for each in (choice, *reading))
    can = writer.writes_narrow and all(reader.reads_narrow for reader in others)
    return bool(can) and any(each.rounds for each in (writer, *others))


def _block(choice: Choice, reading: Sequence[Choice], blocks: Mapping[str, int]) -> int:
    """The channels of a block: as many as all can, if they are whole blocks; of an image that keeps those of another,
    no more than that has."""
    writer, *others = (ALGORITHMS[each.algorithm] for each in (choice, *reading))
    most = min(writer.writes_narrow, *(reader.reads_narrow for reader in others))
    if writer.weight is None:
        read = zip(choice.sources, choice.reads, strict=True)
        most = min(most, *(blocks.get(source.name, layout.block) for source, layout in read))
    return most if choice.kernel.output.shape[1] % most == 0 else BLOCK


def _with_narrow(choice: Choice, blocks: Mapping[str, int]) -> Choice:
    def stored(name: str, layout: Layout) -> Layout:
        return dataclasses.replace(layout, block=blocks[name], narrow=True) if name in blocks else layout

    read = zip(choice.sources, choice.reads, strict=True)
    reads = tuple(stored(source.name, layout) for source, layout in read)
    return dataclasses.replace(choice, reads=reads, writes=stored(choice.kernel.output.name, choice.writes))
