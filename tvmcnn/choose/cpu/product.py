"""Products: matrix products, and convolutions that cover their whole input."""

from __future__ import annotations

import dataclasses
import math

from tvmcnn.choose.cpu.bf16 import PAIR, multiplies_rows_in_bf16, pairs_of_rows_config
from tvmcnn.choose.cpu.defaults import dense_config, images_config
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import choice_of
from tvmcnn.network import ALIGNMENT, PLAIN, Choice, Kernel, Layout, round_up


def dense(state: State, kernel: Kernel) -> Choice:
    """A matrix product reads its rows as they lie in memory, halo and all; only a stack of matrices must be plain."""
    image = kernel.inputs[0]
    rows = kernel.output.shape[0]
    source, layout = state.stored[image.name]
    if layout.images > 1:
        if (
            source.shape[0] == rows
            and len(kernel.inputs) == 1
            and kernel.output.size == math.prod(kernel.output.shape[:2])
        ):
            maps = kernel.output.shape[1]
            depth = math.prod(source.shape[1:])
            tile = images_config(maps, rows // state.images, 1, depth, state.target)
            writes = Layout(images=state.images)
            return choice_of(kernel, "dense_images", [(source, layout)], writes, "images", (tile, "default"))
        source, layout = state.plain(image)
    if len(kernel.output.shape) != 2 and kernel.anchor.op == "Gemm":
        source, layout = state.plain(image)
        rows = math.prod(kernel.output.shape[:-1])
    elif source.shape[:1] != (rows,):  # a scalar seen as a matrix has no axis
        source, layout = state.plain(image)
    maps = kernel.output.shape[1 if kernel.anchor.op == "Conv" else -1]
    depth = math.prod(layout.physical(source.shape)) // rows
    narrow = multiplies_rows_in_bf16(state, kernel, rows, depth)
    if narrow:
        config, tier = pairs_of_rows_config(rows, depth, maps, state.target), "default"
    else:
        config, tier = state.tuned(kernel, "dense", dense_config(rows, depth, maps, kernel.dtype, state.target))
    read = [(source, layout), *(state.plain(tensor) for tensor in kernel.inputs[1:])]
    # Rows of whole tiles cost nothing where only matrix products read them. Not with a second tensor in the epilogue,
    # whose rows have no halo to read.
    readers = {reader.anchor.op for reader in state.readers.get(kernel.output.name, ())}
    inner = not state.is_output(kernel) and readers == {"Gemm"}
    padded = len(kernel.output.shape) == 2 and len(kernel.inputs) == 1 and inner
    writes = Layout(1, (0, 0, 0, round_up(maps, config.width) - maps)) if padded else PLAIN
    if not narrow:
        return choice_of(kernel, "dense", read, writes, "dense", (config, tier))
    choice = choice_of(kernel, "dense_bf16", read, writes, "dense_pairs", (config, tier))
    return dataclasses.replace(choice, scratch_bytes=round_up(rows * round_up(depth, PAIR) * 2, ALIGNMENT))
