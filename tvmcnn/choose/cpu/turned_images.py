"""Turned images: the Transposes between NCHW and NHWC that read an image in blocks of channels, or write it in them."""

from __future__ import annotations

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.convolution import reads_blocks
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.fuse import ELEMENTWISE, POOLS, is_anchor
from tvmcnn.network import PLAIN, TO_FIRST, TO_LAST, Choice, Kernel, Layout


def turns_image(state: State, kernel: Kernel) -> bool:
    """A Transpose of a float32 image from blocks of channels, or to readers that would put it into them."""
    node = kernel.anchor
    if node.op != "Transpose" or not kernel.inputs or kernel.output.dtype != "float32":
        return False
    if node["perm"] == TO_LAST:
        tensor, layout = state.stored[kernel.inputs[0].name]
        return layout.block > 1 and tensor.shape == kernel.inputs[0].shape
    blocks = state.blocked and node["perm"] == TO_FIRST and kernel.output.shape[1] >= BLOCK
    return blocks and not state.is_output(kernel) and _is_read_in_blocks(state, kernel)


def turned_image(state: State, kernel: Kernel) -> Choice:
    """NCHW16c --> NHWC, or NHWC --> NCHW16c."""
    if kernel.anchor["perm"] == TO_LAST:
        return choice_of(kernel, "transpose", [state.stored[kernel.inputs[0].name]], PLAIN, "memory")
    return choice_of(kernel, "transpose", [state.plain(kernel.inputs[0])], Layout(BLOCK), "memory")


def _is_read_in_blocks(state: State, kernel: Kernel) -> bool:
    """True for an image that a convolution or a pool reads, or a sum beside another image that lies in blocks."""
    for reader in state.readers.get(kernel.output.name, ()):
        if reader.anchor.op == "Conv" and is_anchor(state.network, reader.anchor):
            return reads_blocks(state, reader)
        if reader.anchor.op in POOLS:
            return True
        if reader.anchor.op in ELEMENTWISE and reader.output.shape == kernel.output.shape:
            others = [tensor for tensor in reader.inputs if tensor.name != kernel.output.name]
            if any(state.stored[other.name][1].block > 1 for other in others if other.name in state.stored):
                return True
            if not others and not state.is_output(reader) and _is_read_in_blocks(state, reader):
                return True
    return False
