"""Samples: operators that read an image at places which another operand names."""

from __future__ import annotations

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import REGIONS, choice_of
from tvmcnn.configs import RowsConfig
from tvmcnn.network import PLAIN, Choice, Kernel, Layout, Tensor


def samples_grid(state: State, kernel: Kernel) -> bool:
    """True for samples of an image at the places of a grid."""
    return kernel.anchor.op == "GridSample"


def samples_windows(state: State, kernel: Kernel) -> bool:
    """True for the samples that a deformable convolution multiplies."""
    return kernel.anchor.op == "DeformColumns"


def pools_regions(state: State, kernel: Kernel) -> bool:
    """True for a mean or maximum of each bin of regions of interest."""
    return kernel.anchor.op in REGIONS


def grid_sample(state: State, kernel: Kernel) -> Choice:
    """In blocks of channels, which share their places, where there are enough of them."""
    read, layout = _in_blocks_or_plain(state, kernel)
    return choice_of(kernel, "grid_sample", read, layout, "memory")


def deform_columns(state: State, kernel: Kernel) -> Choice:
    """In blocks where all channels of a block are of one tap, group and group of offsets."""
    node = kernel.anchor
    channels = state.network.shape(node.inputs[0])[1]
    whole = not any(channels // node[word] % BLOCK for word in ("group", "offset_group"))
    read, layout = _in_blocks_or_plain(state, kernel, whole=whole)
    return choice_of(kernel, "deform_columns", read, layout, "memory")


def regions(state: State, kernel: Kernel) -> Choice:
    """In blocks of channels, or in plain layout bin by bin where each has a size of its own."""
    read, layout = _in_blocks_or_plain(state, kernel)
    fixed = kernel.anchor.attributes.get("sampling_ratio", 0) > 0
    # Bins of sizes of their own, in plain layout: one at a time, so that each reduction ends with its bin
    columns = layout.physical(kernel.output.shape)[-1] if layout.block > 1 or fixed else 1
    return choice_of(kernel, "regions", read, layout, "rows", (RowsConfig(1, columns, 1), "default"))


def _in_blocks_or_plain(
    state: State, kernel: Kernel, *, whole: bool = True
) -> tuple[list[tuple[Tensor, Layout]], Layout]:
    """The operands of what reads an image where others say, and its layout; the others are plain."""
    image = kernel.inputs[0]
    blocks = (
        image.name == kernel.anchor.inputs[0]
        and len(image.shape) == 4
        and image.dtype == kernel.output.dtype == "float32"
    )
    layout = Layout(BLOCK) if blocks and whole and image.shape[1] >= BLOCK else PLAIN
    first = state.image(image, layout) if layout.block > 1 else state.plain(image)
    return [first, *(state.plain(tensor) for tensor in kernel.inputs[1:])], layout
