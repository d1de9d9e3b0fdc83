"""What becomes of GPU kernels once all are decided: sums in parts, and a whole small network as one kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmcnn.configs import GemvConfig, ThreadsConfig, WholeConfig
from tvmcnn.fusion import multiply_accumulates, pool_of, window_size
from tvmcnn.gpu_defaults import WARP, gemv_configs
from tvmcnn.network import FLOAT, NO_PADS, PLAIN, Choice, Kernel, Network, Node, Tensor, round_up
from tvmcnn.walk import choice_of

SHARED = 32 << 10  # bytes of a block for every tensor of an image, beside the sums of a product
TINY = 1 << 20  # multiply-accumulates an image: more keep many blocks at work


def in_parts(choice: Choice) -> list[Choice]:
    """A convolution whose sum is split, as the kernel that makes the parts and the one that adds them.

    conv(x, residual)    -->    parts = convpartial(x);  conv(x, residual, parts), which reads no x
    """
    kernel, config = choice.kernel, choice.config
    if choice.rule != "gemm" or config.split == 1:
        return [choice]
    node, (n, maps, height, width), (a, b) = kernel.anchor, kernel.output.shape, window_size(kernel)
    group = int(node["group"])
    name = f"{kernel.output.name}@parts"
    parts = Tensor(name, (config.split, n, group, maps // group, height * width * a * b))
    attributes = {**node.attributes, "made": ((height, width), (a, b))}
    partial = Node("ConvPartial", f"{node.name}@parts", node.inputs[:2], name, attributes)
    early = {node.inputs[1], *(each for before in kernel.prologue for each in before.inputs)}
    read, rest = ([name for name in kernel.constants if (name in early) == first] for first in (True, False))
    first = dataclasses.replace(
        kernel, nodes=(partial,), inputs=kernel.inputs[:1], output=parts, hidden=(), constants=tuple(read)
    )
    second = dataclasses.replace(kernel, prologue=(), inputs=(*kernel.inputs, parts), constants=tuple(rest))
    adds = dataclasses.replace(
        choice, kernel=second, algorithm="gemm_sum", sources=(*choice.sources, parts), reads=(*choice.reads, PLAIN),
        rule="threads", config=ThreadsConfig(),
    )  # fmt: skip
    made = dataclasses.replace(
        choice, kernel=first, algorithm="gemm_partial", sources=choice.sources[:1], reads=choice.reads[:1]
    )
    return [made, adds]


def is_tiny(network: Network, choices: Sequence[Choice]) -> bool:
    """Whether the network is a chain of convolutions and products, of which a block has room for every tensor."""
    outputs = [choice.kernel.output for choice in choices]
    chain = len(network.inputs) == len(network.outputs) == 1 and all(
        len(choice.sources) == 1 and choice.sources[0].name == before.name
        for choice, before in zip(choices, (network.inputs[0], *outputs), strict=False)
    )
    plain = all(choice.rule in ("gemm", "gemv") and not choice.kernel.prologue for choice in choices)
    batch = network.inputs[0].shape[0] if chain and network.inputs[0].shape else 0
    same = batch > 0 and all(tensor.shape[0] == batch for tensor in outputs)
    products = sum(multiply_accumulates(network, choice.kernel) for choice in choices)
    used = [name for choice in choices for name in choice.kernel.constants]
    room = sum(tensor.size * FLOAT for tensor in outputs) <= SHARED * max(1, batch)
    small = products <= TINY * max(1, batch) and len(used) == len({*used})
    return len(choices) > 1 and chain and plain and same and room and small


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
    return choice_of(kernel, "whole", source, PLAIN, "whole", (WholeConfig(parts), "default"))


def _part(network: Network, choice: Choice) -> Choice:
    """The kernel as a part of one: a thread has an element, or a part of a column's sum."""
    kernel = choice.kernel
    if kernel.anchor.op == "Conv" and not covers(kernel):
        return dataclasses.replace(choice, algorithm="grouped_conv", rule="whole", config=None)
    columns = round_up(kernel.output.shape[1], WARP)
    parts = max(1, min(gemv_configs(network, kernel)[0].parts, WholeConfig(()).threads // columns))
    return dataclasses.replace(choice, algorithm="gemv", rule="gemv", config=GemvConfig(parts))


def covers(kernel: Kernel) -> bool:
    """Whether a convolution is one product with the whole image."""
    node = kernel.anchor
    same = node["kernel_shape"] == kernel.inputs[0].shape[2:] and node["pads"] == NO_PADS
    plain = node["dilations"] == (1, 1) and node["group"] == 1 and len(kernel.inputs) == 1
    return same and plain and not kernel.prologue and pool_of(kernel) is None
