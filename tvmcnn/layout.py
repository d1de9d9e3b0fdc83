"""Layout: constants packed as the kernels read them, and every tensor given its place in one arena.

Nothing is allocated at run time: the arena is the caller's, and a kernel's own scratch fits its stack.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tvmcnn import packing
from tvmcnn.algorithms import ALGORITHMS, Makes
from tvmcnn.arena import Block, lower_bound, plan
from tvmcnn.configs import WholeConfig
from tvmcnn.errors import UnsupportedError
from tvmcnn.half_weights import LEAST, PRODUCTS, holds, narrowed
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
    stored_bytes,
)


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
        for name, array in pack(choice, network.constants, network.half_weights.kind):
            packed[name] = Tensor(name, tuple(array.shape), str(array.dtype))
            arguments.append(Place("weights", offset=weights.add(array)))
        arguments.append(places[choice.kernel.output.name][0])
        steps.append(Step(choice, packed, tuple(arguments)))
    scratch = max((round_up(choice.scratch_bytes, ALIGNMENT) for choice in choices), default=0)
    arena_bytes = max((each.offset + each.bytes for each in held), default=0)
    return Program(network, tuple(steps), arena_bytes, scratch, least, places, held)


def pack(choice: Choice, constants: Mapping[str, Array], half: str = "fp32") -> Iterator[tuple[str, Array]]:
    """The constants of a kernel as its tensor expression reads them, one by one with their names, in its order.

    A weight of which every element is a number of the type `half` is stored as such.
    """
    anchor = choice.kernel.anchor
    for name, array in _packed(choice, constants):
        large = anchor.op in PRODUCTS and name == anchor.inputs[1] and constants[name].size >= LEAST
        yield name, narrowed(array, half) if large and holds(half, array) else array


def _packed(choice: Choice, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    kernel, how = choice.kernel, ALGORITHMS[choice.algorithm]
    if choice.is_view:
        return
    if isinstance(choice.config, WholeConfig):
        for part in choice.config.parts:
            yield from _packed(part, constants)
        return
    if how.constants is not None:
        yield from how.constants(choice, constants)
        return
    early = {name for node in kernel.prologue for name in node.inputs}
    for name in kernel.constants:
        array = constants[name]
        if how.weight is not None and name == kernel.anchor.inputs[1]:
            yield name, how.weight(choice, array)
        elif name in early:
            yield name, packing.channels(array, kernel.inputs[0].shape[1], choice.reads[0].block)
        else:
            yield name, how.operand(choice, array)
    yield from how.made(choice)


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
        layout = dataclasses.replace(choice.writes, pitch=0)
        size = round_up(stored_bytes(whole, layout) + beyond.get(whole.name, 0), ALIGNMENT)
        block = blocks.setdefault(whole.name, Block(size, step, step))
        block.last = max(block.last, last_read.get(tensor.name, step))
        map_size = math.prod(layout.physical(tensor.shape)[2:4]) if channel else 0  # of a channel, in blocks
        inside.append((choice, whole.name, channel * map_size * layout.item_bytes(whole.dtype)))
    plan(list(blocks.values()))
    for choice, name, start in inside:
        places[choice.kernel.output.name] = (Place("arena", offset=blocks[name].offset + start), choice.writes)
    held = (Held(name, each.offset, each.size, each.first, each.last) for name, each in blocks.items())
    return places, tuple(held), lower_bound(list(blocks.values()))


def _read_beyond(choices: Sequence[Choice]) -> dict[str, int]:
    """The bytes past their end that tensors are read to, by name: a plain gate of 17 maps in two blocks of 16, and an
    image from which AMX loads whole tiles."""
    found = {
        source.name: -source.shape[1] % choice.makes.block * source.item_bytes
        for choice in choices
        if choice.makes.block > 1 and ALGORITHMS[choice.algorithm].makes is not Makes.COPY
        for source, layout in zip(choice.sources, choice.reads, strict=False)
        if layout.plain and source.shape[2:] == (1, 1)
    }
    for choice in choices:
        if choice.reads_beyond:
            name = choice.sources[0].name
            found[name] = max(found.get(name, 0), choice.reads_beyond)
    return found
