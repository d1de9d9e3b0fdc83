"""Winograd choice: a convolution's choice turned into one by Winograd, or back into a direct one.

Whether it goes by Winograd is decided by `decide_winograd` in convolution.py, and tried by the tuner.
"""

from __future__ import annotations

import dataclasses

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.defaults import streamed_scratch, winograd_scratch
from tvmcnn.configs import Config, DirectConfig, StreamedConfig, WinogradConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import PLAIN, Choice, Kernel, Layout, Node, Tensor, dims, round_up
from tvmcnn.targets import Target
from tvmcnn.winograd import grid, halo


def as_direct(choice: Choice, config: DirectConfig) -> Choice:
    """A convolution as the formula is written, reading a halo of its pads."""
    read = Layout(BLOCK, choice.kernel.anchor["pads"])
    return _with(choice, "direct", read, config, 0)


def as_winograd(choice: Choice, config: WinogradConfig) -> Choice:
    """A convolution by Winograd, with filters that are transformed when it is compiled."""
    image, maps = choice.kernel.inputs[0], choice.kernel.output.shape[1]
    scratch = winograd_scratch(config, round_up(image.shape[1], BLOCK), round_up(maps, BLOCK))
    return _with(choice, "winograd", _tiled(choice, config.tile), config, scratch)


def as_streamed(choice: Choice, config: StreamedConfig, data: Tensor, target: Target) -> Choice:
    """A convolution by Winograd, with `data` that `winograd_data` makes, and filters that are transformed as it runs.

    conv(x, residual)    -->    conv(x, residual, data); x is read by the open variant alone
    """
    depth, tiles = round_up(choice.kernel.inputs[0].shape[1], BLOCK), data.shape[4]
    scratch = streamed_scratch(config, depth, tiles, target)
    made = _with(choice, "streamed", _tiled(choice, config.tile), config, scratch)
    kernel = dataclasses.replace(made.kernel, inputs=(*made.kernel.inputs, data))
    return dataclasses.replace(made, kernel=kernel, sources=(*made.sources, data), reads=(*made.reads, PLAIN))


def without_data(choice: Choice) -> Choice:
    """conv(x, residual, data)    -->    conv(x, residual): what `as_streamed` added, gone."""
    kernel = dataclasses.replace(choice.kernel, inputs=choice.kernel.inputs[:-1])
    return dataclasses.replace(choice, kernel=kernel, sources=choice.sources[:-1], reads=choice.reads[:-1])


def winograd_data(choice: Choice, tile: int) -> Choice:
    """The kernel that transforms the image of a convolution: into (N, C/16, m+2, m+2, tiles, 16)."""
    image, node = choice.sources[0], choice.kernel.anchor
    window = window_size(choice.kernel)
    rows, columns = grid(node, image.shape, tile, window)
    filters = node["kernel_shape"]
    name = f"{image.name}@winograd{tile}x{filters[0]}+{','.join(map(str, node['pads']))}"
    name += f"/{dims(window)}" * (window != (1, 1))  # another convolution of the image may need more tiles
    side = tile + filters[0] - 1
    shape = (image.shape[0], -(-image.shape[1] // BLOCK), side, side, rows * columns, BLOCK)
    attributes = {"tile": tile, "kernel_shape": filters, "pads": node["pads"], "window": window}
    made = Node("WinogradData", name, (image.name,), name, attributes)
    kernel = Kernel("winograd_data", (made,), (image,), Tensor(name, shape, image.dtype))
    return Choice(kernel, "winograd_data", (image,), (choice.reads[0],), PLAIN, "winograd_data")


def _tiled(choice: Choice, tile: int) -> Layout:
    return Layout(BLOCK, halo(choice.kernel.anchor, choice.kernel.inputs[0].shape, tile, window_size(choice.kernel)))


def _with(choice: Choice, algorithm: str, first: Layout, config: Config, scratch: int) -> Choice:
    """Another algorithm, which reads the image in layout `first`, or in what covers it."""
    reads = (choice.reads[0] if choice.reads[0].covers(first) else first, *choice.reads[1:])
    return dataclasses.replace(
        choice, algorithm=algorithm, rule=algorithm, reads=reads, config=config, scratch_bytes=scratch
    )
