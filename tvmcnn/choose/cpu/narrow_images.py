"""Narrow images: those between kernels in bfloat16, `--precision bf16`. They are half as large, and who multiplies them
finds them rounded.

    Conv -> float32 -> bf16(x), Conv    -->    Conv, bf16 -> bfloat16 -> Conv

One that is only multiplied is rounded a kernel earlier, and nothing else changes. One that is added too, the residual
of a ResNet's block, is rounded for the addition as well. The sums themselves, biases and all that is hidden in a kernel
stay float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.blocks import BLOCK
from tvmcnn.network import FLOAT32, Choice


def narrowing(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The choices with images in bfloat16 wherever a kernel that rounds factors makes or reads one, and who makes it
    and all who read it can."""
    readers: dict[str, list[Choice]] = {}
    for choice in choices:
        for source in choice.sources:
            readers.setdefault(source.name, []).append(choice)
    narrow = {choice.kernel.output.name for choice in choices if _is_narrow(choice, readers)}
    return tuple(_with_narrow(choice, narrow) for choice in choices)


def _is_narrow(choice: Choice, readers: dict[str, list[Choice]]) -> bool:
    made = choice.kernel.output
    reading = readers.get(made.name, [])  # of the network's outputs nobody, or a reorder
    if choice.writes.block != BLOCK or choice.within is not None or made.dtype != FLOAT32 or not reading:
        return False
    writer, *others = (ALGORITHMS[each.algorithm] for each in (choice, *reading))
    can = writer.writes_narrow and all(reader.reads_narrow for reader in others)
    return can and any(each.rounds for each in (writer, *others))


def _with_narrow(choice: Choice, narrow: set[str]) -> Choice:
    reads = tuple(
        dataclasses.replace(layout, narrow=source.name in narrow)
        for source, layout in zip(choice.sources, choice.reads, strict=True)
    )
    writes = dataclasses.replace(choice.writes, narrow=choice.kernel.output.name in narrow)
    return dataclasses.replace(choice, reads=reads, writes=writes)
