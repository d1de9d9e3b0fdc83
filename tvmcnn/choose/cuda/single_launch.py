"""A small network in one launch: a block of threads has some images, and every tensor of them in shared memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from tvmcnn.choose.cuda.defaults import PROCESSORS, SHARED_BYTES, WARP, gemv_configs
from tvmcnn.choose.shared import choice_of, covers
from tvmcnn.configs import GemmConfig, GemvConfig, WholeConfig
from tvmcnn.fuse import multiply_accumulates
from tvmcnn.network import FLOAT32, PLAIN, Choice, Network, round_up

SHARED = 32 << 10  # bytes of a block for every tensor of an image, beside the sums of a product
IMAGES = (8, 4, 2)  # of a block: with more a thread has no registers for their sums
TINY = 1 << 20  # multiply-accumulates an image: more keep many blocks at work


def is_tiny(network: Network, choices: Sequence[Choice]) -> bool:
    """Whether the network is a chain of convolutions and products, of which a block has room for every tensor."""
    return all(test(network, choices) for test in TESTS)


def _is_chain(network: Network, choices: Sequence[Choice]) -> bool:
    """Several kernels, each of which reads what the one before makes; one input, one output."""
    outputs = [choice.kernel.output for choice in choices]
    return (
        len(choices) > 1
        and len(network.inputs) == len(network.outputs) == 1
        and all(
            len(choice.sources) == 1 and choice.sources[0].name == before.name
            for choice, before in zip(choices, (network.inputs[0], *outputs), strict=False)
        )
    )


def _are_products(network: Network, choices: Sequence[Choice]) -> bool:
    """True for products of float32; those of words would need other expressions."""
    products = all(isinstance(choice.config, GemmConfig | GemvConfig) for choice in choices)
    return products and all(choice.kernel.dtype == FLOAT32 and not choice.kernel.prologue for choice in choices)


def _keep_the_batch(network: Network, choices: Sequence[Choice]) -> bool:
    batch = _batch(network)
    return batch > 0 and all(choice.kernel.output.shape[0] == batch for choice in choices)


def _fit_a_block(network: Network, choices: Sequence[Choice]) -> bool:
    return sum(choice.kernel.output.size * choice.kernel.output.item_bytes for choice in choices) <= SHARED * _batch(
        network
    )


def _are_few(network: Network, choices: Sequence[Choice]) -> bool:
    products = sum(multiply_accumulates(network, choice.kernel) for choice in choices)
    return products <= TINY * _batch(network)


def _share_no_constant(network: Network, choices: Sequence[Choice]) -> bool:
    used = [name for choice in choices for name in choice.kernel.constants]
    return len(used) == len({*used})


def _batch(network: Network) -> int:
    return network.inputs[0].shape[0] if network.inputs[0].shape else 0


TESTS: tuple[Callable[[Network, Sequence[Choice]], bool], ...] = (
    _is_chain, _are_products, _keep_the_batch, _fit_a_block, _are_few, _share_no_constant,
)  # fmt: skip


def whole(network: Network, choices: Sequence[Choice]) -> Choice:
    """One kernel of them all."""
    parts = tuple(_part(network, choice) for choice in choices)
    kernels = [part.kernel for part in parts]
    kernel = dataclasses.replace(
        kernels[0],
        nodes=tuple(node for each in kernels for node in each.nodes),
        output=kernels[-1].output,
        hidden=tuple(tensor for each in kernels for tensor in (*each.hidden, each.output))[:-1],
        constants=tuple(name for each in kernels for name in each.constants),
        scalars={name: value for each in kernels for name, value in each.scalars.items()},
    )
    source = [(parts[0].sources[0], PLAIN)]
    config = WholeConfig(parts, images=_images(parts))
    return choice_of(kernel, "whole", source, PLAIN, "whole", (config, "default"))


def _images(parts: Sequence[Choice]) -> int:
    """Images of a block: as many as there is shared memory for, and blocks enough to keep all multiprocessors at work.

    A weight that is loaded serves them all. Two tensors of an image are alive at once; where a thread has one element
    of the later, all have read before any writes, and TVM gives both the same memory.
    """
    batch, threads = parts[0].kernel.output.shape[0], WholeConfig(()).threads
    tensors: list[int] = []
    for part in parts:
        size = part.kernel.output.size // batch
        tensors += [part.config.parts * round_up(size, WARP), size] if isinstance(part.config, GemvConfig) else [size]
    pairs = itertools.pairwise(tensors)
    room = parts[0].kernel.item_bytes * max(
        max(one, other) if other <= threads else one + other for one, other in pairs
    )
    fits = (n for n in IMAGES if batch % n == 0 and batch // n >= 2 * PROCESSORS and n * room <= SHARED_BYTES)
    return next(fits, 1)


def _part(network: Network, choice: Choice) -> Choice:
    """The kernel as a part of one: a thread has an element, or a part of a column's sum."""
    kernel = choice.kernel
    if kernel.anchor.op == "Conv" and not covers(kernel):
        return dataclasses.replace(choice, algorithm="grouped_conv", rule="whole", config=None)
    columns = round_up(kernel.output.shape[1], WARP)
    parts = max(1, min(gemv_configs(network, kernel)[0].parts, WholeConfig(()).threads // columns))
    return dataclasses.replace(choice, algorithm="gemv", rule="gemv", config=GemvConfig(parts))
