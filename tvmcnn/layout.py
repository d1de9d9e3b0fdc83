"""Lay out: constants packed as the kernels read them, and every tensor given its place in one arena.

Nothing is allocated at run time: the arena is the caller's, and a kernel's own scratch fits its stack.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tvmcnn.arena import Block, lower_bound, plan
from tvmcnn.errors import UnsupportedError
from tvmcnn.network import (
    ALIGNMENT,
    INDEX_LIMIT,
    Array,
    Choice,
    Held,
    Layout,
    Network,
    Place,
    Program,
    Step,
    Tensor,
    dims,
    round_up,
    row_shape,
    stored_bytes,
)
from tvmcnn.precision import rounded
from tvmcnn.winograd import transformed


class Weights:
    """The packed weights of a library in a temporary file: equal ones once, each at the start of a cache line.

    On disk because a network may have hundreds of megabytes: nothing but the constant at hand is in memory twice.
    """

    def __init__(self) -> None:
        self.file = tempfile.NamedTemporaryFile(prefix="tvmcnn-weights-")  # noqa: SIM115 (open as long as we live)
        self.bytes = 0
        self.offsets: dict[bytes, int] = {}  # by SHA-256

    def add(self, array: Array) -> int:
        """The offset of `array`, which is written if it is new."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(data).digest()
        if digest not in self.offsets:
            self.file.write(bytes(-self.bytes % ALIGNMENT))
            self.offsets[digest] = round_up(self.bytes, ALIGNMENT)
            self.file.write(data)
            self.bytes = self.offsets[digest] + data.nbytes
        return self.offsets[digest]

    @property
    def path(self) -> Path:
        """The file, with everything written."""
        self.file.flush()
        return Path(self.file.name)


def lay_out(network: Network, choices: Sequence[Choice], weights: Weights) -> Program:
    """The Program of a network whose kernels are chosen: arena offsets, arguments of every call. Fills `weights`.

    Raises UnsupportedError for a tensor that int32 indices do not reach.
    """
    for choice in choices:
        stored = choice.writes.physical(choice.kernel.output.shape)
        if math.prod(stored) > INDEX_LIMIT:
            reason = f"node '{choice.kernel.nodes[-1].name}': its output would be stored as {dims(stored)},"
            raise UnsupportedError(network.name, [f"{reason} more than {INDEX_LIMIT:,} elements"])
    places, held, least = _places(network, choices)
    empty = (tensor for tensor in network.tensors.values() if tensor.size == 0 and tensor.name not in places)
    places |= {tensor.name: (Place("arena"), Layout()) for tensor in empty}  # read by kernels, but nothing of it
    steps = []
    for choice in choices:
        packed, arguments = {}, [places[source.name][0] for source in choice.sources]
        for name, array in pack(choice, network.constants):
            packed[name] = Tensor(name, tuple(array.shape), str(array.dtype))
            arguments.append(Place("weights", offset=weights.add(array)))
        arguments.append(places[choice.kernel.output.name][0])
        steps.append(Step(choice, packed, tuple(arguments)))
    scratch = max((round_up(choice.scratch_bytes, ALIGNMENT) for choice in choices), default=0)
    arena_bytes = max((each.offset + each.bytes for each in held), default=0)
    return Program(network, tuple(steps), arena_bytes, scratch, least, places, held)


# ---- packed constants -----------------------------------------------------------------------------------------------


def pack(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The constants of a kernel as its tensor expression reads them, one by one with their names, in its order."""
    kernel = choice.kernel
    if choice.is_view:
        return
    if choice.algorithm == "whole":
        for part in choice.config.parts:
            yield from pack(part, constants)
        return
    early = {name for node in kernel.prologue for name in node.inputs}
    for name in kernel.constants:
        array = constants[name]
        if choice.algorithm in WEIGHTS and name == kernel.anchor.inputs[1]:
            yield name, WEIGHTS[choice.algorithm](choice, array)
        elif name in early:
            yield name, _channels(array, kernel.inputs[0].shape[1], choice.reads[0].block)
        else:
            yield name, _operand(choice, array)
    if choice.algorithm == "pool" and kernel.anchor.op == "AveragePool":
        yield f"{kernel.output.name}.divisor", window_sizes(choice)


def _operand(choice: Choice, array: Array) -> Array:
    """A constant of the epilogue: one value a channel, in the output's blocks; otherwise aligned to the output's
    rank. One value for all channels is repeated for each: padded with zeros it would be that of the first alone."""
    shape, block = choice.kernel.output.shape, choice.writes.block
    if choice.algorithm in ("plain", "resize"):
        return array
    if choice.algorithm == "elementwise" and choice.writes.plain:
        return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    channels = shape[1] if len(shape) == 4 and choice.kernel.anchor.op != "Gemm" else shape[-1]
    if choice.algorithm == "dense":
        values = np.broadcast_to(array.reshape(-1), channels)
        return np.pad(values, (0, -channels % choice.config.width))
    return _channels(array, channels, block)


def _channels(array: Array, channels: int, block: int) -> Array:
    """One value a channel, in blocks: (C,) or (1,) --> (⌈C/16⌉, 16), padded with zeros."""
    values = np.broadcast_to(array.reshape(-1), channels)
    return values if block == 1 else np.pad(values, (0, -values.size % block)).reshape(-1, block)


def _direct(choice: Choice, weight: Array) -> Array:
    """(M, C/g, kH, kW) --> (⌈M/16⌉, ⌈C/g/b⌉, kH, kW, b, 16): OIHW{b}i16o, b the block of the input."""
    maps, out, block = Layout(choice.writes.block), choice.writes.block, choice.reads[0].block
    lanes = maps.pack(weight.transpose(1, 0, 2, 3))  # (C/g, M/16, kH, kW, 16)
    lanes = np.pad(lanes, ((0, -lanes.shape[0] % block), *((0, 0),) * 4))
    depth, blocks, kh, kw, _ = lanes.shape
    return lanes.reshape(depth // block, block, blocks, kh, kw, out).transpose(2, 0, 3, 4, 1, 5)


def _winograd(choice: Choice, weight: Array) -> Array:
    """(M, C, 3, 3) --> (p, m+2, m+2, ⌈M/16⌉/p, ⌈C/16⌉, 16, 16): G g Gᵀ by its elements, each OI16i16o, in p parts."""
    moved, parts = transformed(weight, choice.config.tile), choice.config.parts
    moved = np.pad(moved, ((0, 0), (0, 0), (0, -moved.shape[2] % 16), (0, -moved.shape[3] % 16)))
    side, _, maps, depth = moved.shape
    split = moved.reshape(side, side, parts, maps // 16 // parts, 16, depth // 16, 16)
    return split.transpose(2, 0, 1, 3, 5, 6, 4)


def _streamed(choice: Choice, weight: Array) -> Array:
    """(M, C, 3, 3) --> (⌈M/16⌉, ⌈C/16⌉, 16, 3, 3, 16): one run of memory in the order that it is transformed."""
    return _direct(choice, weight).transpose(0, 1, 4, 2, 3, 5)


def _depthwise(choice: Choice, weight: Array) -> Array:
    """(C, 1, kH, kW) --> (⌈C/16⌉, kH, kW, 16)"""
    packed: Array = Layout(choice.writes.block).pack(weight.transpose(1, 0, 2, 3))[0]
    return packed


def _columns(choice: Choice, weight: Array) -> Array:
    """(M, C, kH, kW) --> (C, kH, kW, M): the M broadcast scalars of one tap side by side."""
    return weight.transpose(1, 2, 3, 0)


def _dense(choice: Choice, weight: Array) -> Array:
    """(M, C, H, W) or (K, N) --> (⌈N/t⌉, K', t): t columns of a tile side by side, rows as the input lies in memory.

    K' counts the input's padding too; the weights there are zero.
    """
    source, layout, width = choice.sources[0], choice.reads[0], choice.config.width
    rows = weight.reshape(weight.shape[0], -1) if choice.kernel.anchor.op == "Conv" else weight.T
    stored = layout.pack(rows.reshape(-1, *row_shape(source.shape, rows.shape[1]))).reshape(rows.shape[0], -1)
    if spare := -stored.shape[0] % width:
        stored = np.pad(stored, ((0, spare), (0, 0)))
    return stored.reshape(-1, width, stored.shape[1]).transpose(0, 2, 1)


def _dense_images(choice: Choice, weight: Array) -> Array:
    """(M, C, H, W) or (K, N) --> (K, N): the broadcast scalars of one term side by side."""
    return weight.reshape(weight.shape[0], -1).T if choice.kernel.anchor.op == "Conv" else weight


def _gemm(choice: Choice, weight: Array) -> Array:
    """(M, C/g, kH, kW) or (K, N) --> (g, K', N'): terms by maps of each group, with zeros up to whole tiles.

    For tensor cores (g, N', K'), rounded once.
    """
    if weight.ndim == 4:
        groups = choice.kernel.anchor["group"]
        terms = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    else:
        terms = weight[None]
    config = choice.config
    deep, wide = (config.parts, 32) if choice.rule == "gemv" else (config.depth * config.split, config.maps)
    _, depth, maps = terms.shape
    padded: Array = np.pad(terms, ((0, 0), (0, -depth % deep), (0, -maps % wide)))
    return rounded(padded.transpose(0, 2, 1), config.precision) if choice.rule == "mma" else padded


def _planes(choice: Choice, weight: Array) -> Array:
    """(M, C, 3, 3) --> ((m+2)², C', M'): G g Gᵀ by its elements, terms by maps, with zeros up to whole tiles."""
    config = choice.config
    moved = transformed(weight, config.winograd)
    terms = moved.reshape(-1, *moved.shape[2:]).transpose(0, 2, 1)
    return np.pad(terms, ((0, 0), (0, -terms.shape[1] % config.depth), (0, -terms.shape[2] % config.maps)))


WEIGHTS: dict[str, Callable[[Choice, Array], Array]] = {
    "direct": _direct,
    "winograd": _winograd,
    "streamed": _streamed,
    "depthwise": _depthwise,
    "columns": _columns,
    "dense": _dense,
    "conv_images": _columns,
    "dense_images": _dense_images,
    "pixels": lambda choice, weight: weight,
    "gemm_conv": _gemm,
    "gemm_partial": _gemm,
    "gemm_dense": _gemm,
    "winograd_gemm": _planes,
    "gemv": _gemm,
    "grouped_conv": lambda choice, weight: weight,
    "grouped": lambda choice, weight: weight,
}


def window_sizes(choice: Choice) -> Array:
    """The divisors of an AveragePool, (H_out, W_out): pixels in each window, with the padding if ONNX counts it."""
    node, source = choice.kernel.anchor, choice.sources[0]
    counts = []
    for axis in (0, 1):
        size, begin, end = source.shape[2 + axis], node["pads"][axis], node["pads"][2 + axis]
        low, high = (-begin, size + end) if node["count_include_pad"] else (0, size)
        taps = np.arange(node["kernel_shape"][axis]) * node["dilations"][axis]
        first = np.arange(choice.kernel.output.shape[2 + axis]) * node["strides"][axis] - begin
        positions = first[:, None] + taps[None, :]
        counts.append(((positions >= low) & (positions < high)).sum(axis=1))
    return np.outer(counts[0], counts[1]).astype(np.float32)


# ---- the arena ------------------------------------------------------------------------------------------------------


def _places(
    network: Network, choices: Sequence[Choice]
) -> tuple[dict[str, tuple[Place, Layout]], tuple[Held, ...], int]:
    """Where each tensor lives, what the arena holds, and the lower bound of its bytes.

    A part of a concatenation lies in the whole's block, which lives from the first part written to the last read.
    """
    places = {tensor.name: (Place("input", i), Layout()) for i, tensor in enumerate(network.inputs)}
    outputs = {tensor.name: i for i, tensor in enumerate(network.outputs)}
    last_read = {source.name: step for step, choice in enumerate(choices) for source in choice.sources}
    beyond = _read_beyond(choices)
    blocks: dict[str, Block] = {}
    inside: list[tuple[Choice, str, int]] = []  # choices whose outputs are in the arena, the block and offset in it
    for step, choice in enumerate(choices):
        tensor = choice.kernel.output
        if tensor.name in outputs:
            places[tensor.name] = (Place("output", outputs[tensor.name]), choice.writes)
            continue
        whole, channel = choice.within or (tensor, 0)
        layout = choice.writes if choice.within is None else Layout(choice.writes.block)
        size = round_up(stored_bytes(whole, layout) + beyond.get(whole.name, 0), ALIGNMENT)
        block = blocks.setdefault(whole.name, Block(size, step, step))
        block.last = max(block.last, last_read.get(tensor.name, step))
        inside.append((choice, whole.name, channel * math.prod(whole.shape[2:]) * whole.item_bytes if channel else 0))
    plan(list(blocks.values()))
    for choice, name, start in inside:
        places[choice.kernel.output.name] = (Place("arena", offset=blocks[name].offset + start), choice.writes)
    held = (Held(name, each.offset, each.size, each.first, each.last) for name, each in blocks.items())
    return places, tuple(held), lower_bound(list(blocks.values()))


def _read_beyond(choices: Sequence[Choice]) -> dict[str, int]:
    """The bytes past their end that tensors are read to, by name: a plain gate of 17 maps in two blocks of 16."""
    return {
        source.name: -source.shape[1] % choice.makes.block * source.item_bytes
        for choice in choices
        if choice.makes.block > 1 and choice.algorithm != "reorder"
        for source, layout in zip(choice.sources, choice.reads, strict=False)
        if layout.plain and source.shape[2:] == (1, 1)
    }
