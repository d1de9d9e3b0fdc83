"""Unfolded frames: those that a window of a 3-D convolution meets, as the channels of one image.

    x (D + 2 frames, C, H, W), the first and the last of zeros; image d has the 3·C channels from frame d on

In memory the frames of a volume follow each other, each with its channels in blocks. So an image of three frames is
where it should be, and the next begins a frame later: their convolution is told the distance, and nothing is copied.
The frames of padding are allocated with the volume, around it. (144 to 64 maps by 3 x 1 x 1 on 8 frames of 56 x 56: a
copy of three times the volume would take as long as a half of its products.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.network import NO_PADS, Choice, Kernel, Layout, Node, Pads, round_up

Ends = tuple[int, int]  # frames of zeros in front of a volume, and behind it


def wanted_ends(kernels: Sequence[Kernel]) -> dict[str, Ends]:
    """The frames of zeros that those who unfold a tensor in place want around it, by its name."""
    found: dict[str, Ends] = {}
    for kernel in kernels:
        if kernel.anchor.op == "UnfoldFrames" and _may_be_view(kernel):
            name = kernel.inputs[0].name
            front, back = found.get(name, (0, 0))
            before, after = _ends(kernel.anchor)
            found[name] = (max(front, before), max(back, after))
    return found


def passed_on(kernels: Sequence[Kernel], halos: dict[str, Pads]) -> dict[str, Pads]:
    """The halos with those around unfolded frames around the frames themselves."""
    halos = dict(halos)
    for kernel in kernels:
        if kernel.anchor.op == "UnfoldFrames" and _may_be_view(kernel) and kernel.output.name in halos:
            name = kernel.inputs[0].name
            top, left, bottom, right = map(max, halos.get(name, NO_PADS), halos[kernel.output.name])
            halos[name] = (top, left, bottom, right)
    return halos


def unfolds_blocks(state: State, kernel: Kernel) -> bool:
    """True where each frame has its channels in blocks of its own."""
    if kernel.anchor.op != "UnfoldFrames" or kernel.output.dtype != "float32":
        return False
    tensor, layout = state.stored[kernel.inputs[0].name]
    return layout.block > 1 and tensor.shape == kernel.inputs[0].shape and _fills_blocks(kernel)


def unfold(state: State, kernel: Kernel) -> Choice:
    """In place where the volume has what is wanted around it, else as a copy."""
    node, (tensor, layout) = kernel.anchor, state.stored[kernel.inputs[0].name]
    maker = next((choice for choice in state.choices if choice.kernel.output.name == tensor.name), None)
    if maker is None or not _may_be_view(kernel) or layout.pitch:
        return choice_of(kernel, "unfold_frames", [(tensor, layout)], Layout(BLOCK), "memory")
    (front, back), (before, after) = maker.ends, _ends(node)
    if front < before or back < after:
        return choice_of(kernel, "unfold_frames", [(tensor, layout)], Layout(BLOCK), "memory")
    channels = round_up(tensor.shape[1], BLOCK)
    whole, start = maker.within or (tensor, 0)
    writes = dataclasses.replace(layout, pitch=node["stride"] * channels // BLOCK)
    within = (whole, start - node["begin"] * channels)
    return Choice(kernel, "view", (tensor,), (layout,), writes, "none", within=within)


def _ends(node: Node) -> Ends:
    """The frames that the windows reach past the first and the last."""
    frames, made = node["frames"]
    last = (made - 1) * node["stride"] + node["taps"] - 1 - node["begin"]
    return max(0, node["begin"]), max(0, last - (frames - 1))


def _may_be_view(kernel: Kernel) -> bool:
    """True for one volume whose frames, one by one, are where a window wants them."""
    node, images = kernel.anchor, kernel.inputs[0].shape[0]
    one = images == node["frames"][0] and (node["dilation"] == 1 or node["taps"] == 1)
    return one and _fills_blocks(kernel) and kernel.inputs[0].shape[1] >= BLOCK


def _fills_blocks(kernel: Kernel) -> bool:
    taps: int = kernel.anchor["taps"]
    return taps == 1 or kernel.output.shape[1] // taps % BLOCK == 0
