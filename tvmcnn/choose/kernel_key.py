"""Kernel key: a kernel in words, by which records know it, and how unlike two of them are.

    conv 1x6x14x14 16x6x5x5 k5,5 s1,1 p0,0,0,0 d1,1 g1 float32 +bias +relu

Two kernels of the same words compute the same, but for their weights' values: what is fast for one is fast for both.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

from tvmcnn.network import Kernel, Network, Node, dims

DTYPE = re.compile(r"(float|u?int)[0-9]+|bool")
EXTENTS = re.compile(r"[1-9][0-9]{,17}(x[1-9][0-9]{,17})*")  # records come from anywhere, their words too


def kernel_words(network: Network, kernel: Kernel) -> str:
    """What a kernel computes, in words that outlive a TVM release.

    conv 1x6x14x14 16x6x5x5 s1,1 p0,0,0,0 d1,1 g1 float32 +add +relu +maxpool2,2/2,2
    """
    words = [kernel.anchor.op.lower(), *(dims(tensor.shape) for tensor in kernel.inputs[:1])]
    weights = {name: network.constants[name].shape for name in kernel.constants}
    words += [dims(shape) for shape in list(weights.values())[:1]]
    words += _window_words(kernel.anchor)
    words.append(kernel.dtype)
    words += [f"{node.op.lower()}+" for node in kernel.prologue]
    words += ["+bias"] if len(kernel.anchor.inputs) > 2 else []
    for node in kernel.nodes[1:]:
        words.append(f"+{node.op.lower()}" + "/".join(_window_words(node)))
    return " ".join(words)


def _window_words(node: Node) -> list[str]:
    letters = {"kernel_shape": "k", "strides": "s", "pads": "p", "dilations": "d"}
    found = [f"{letter}{','.join(map(str, node[name]))}" for name, letter in letters.items() if name in node.attributes]
    return found + ([f"g{node['group']}"] if "group" in node.attributes else [])


@functools.lru_cache(1 << 16)
def distance(one: str, other: str) -> float:
    """How unlike two kernels in words are: the sum of the ratios' logarithms of their extents; inf for another operator
    or window. The epilogue counts little: it costs little.

    conv 1x64x56x56 128x64x1x1 k1,1 … and conv 1x64x28x56 256x64x1x1 k1,1 …    -->    2 (base 2)
    """
    ours, theirs = one.split(), other.split()
    extents, windows, rest = zip(*(_parts(words) for words in (ours, theirs)), strict=True)
    if ours[0] != theirs[0] or windows[0] != windows[1] or [*map(len, extents[0])] != [*map(len, extents[1])]:
        return math.inf
    flat = ([extent for operand in each for extent in operand] for each in extents)
    apart = sum(abs(math.log2(a / b)) for a, b in zip(*flat, strict=True))
    return float(apart + 0.1 * (rest[0] != rest[1]))


def _parts(words: Sequence[str]) -> tuple[list[list[int]], list[str], list[str]]:
    """The extents of the operands, what must be equal, and the rest."""
    extents = [[int(d) for d in word.split("x")] for word in words[1:3] if EXTENTS.fullmatch(word)]
    depthwise = (
        ["depthwise"] if len(extents) == 2 and len(extents[1]) > 1 and extents[1][1] == 1 < extents[0][1] else []
    )
    windows = [word for word in words if (word[0] in "ksd" and word[1:2].isdecimal()) or DTYPE.fullmatch(word)]
    windows += depthwise
    return extents, windows, [word for word in words if "+" in word]
