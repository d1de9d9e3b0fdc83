"""What becomes of GPU kernels once all are decided: sums in parts, Winograd's three, and a small network as one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from tvmcnn.choose.cpu.state import choice_of
from tvmcnn.choose.cuda.defaults import PROCESSORS, SHARED_BYTES, WARP, gemv_configs
from tvmcnn.configs import GemvConfig, PlanesConfig, ThreadsConfig, WholeConfig
from tvmcnn.fuse import multiply_accumulates, pool_of, window_size
from tvmcnn.network import FLOAT, NO_PADS, PLAIN, Choice, Kernel, Network, Node, Tensor, round_up
from tvmcnn.winograd import grid

SHARED = 32 << 10  # bytes of a block for every tensor of an image, beside the sums of a product
IMAGES = (8, 4, 2)  # of a block: with more a thread has no registers for their sums
TINY = 1 << 20  # multiply-accumulates an image: more keep many blocks at work


def in_parts(choice: Choice) -> list[Choice]:
    """The kernels that a choice stands for: three by Winograd, two where the sum is split, else itself."""
    if choice.rule not in ("gemm", "mma"):
        return [choice]
    if choice.rule == "gemm" and choice.config.winograd:
        return _by_winograd(choice)
    return _split(choice) if choice.config.split > 1 else [choice]


def _split(choice: Choice) -> list[Choice]:
    """A convolution whose sum is split, as the kernel that makes the parts and the one that adds them.

    conv(x, residual)    -->    parts = convpartial(x);  conv(x, residual, parts), which reads no x
    """
    kernel, config = choice.kernel, choice.config
    node, (n, maps, height, width), (a, b) = kernel.anchor, kernel.output.shape, window_size(kernel)
    group = int(node["group"])
    shape = (config.split, n, group, maps // group, height * width * a * b)
    parts = Tensor(f"{kernel.output.name}@parts", shape, kernel.output.dtype)
    attributes = {**node.attributes, "made": ((height, width), (a, b))}
    partial = Node("ConvPartial", f"{node.name}@parts", node.inputs[:2], parts.name, attributes)
    first = dataclasses.replace(
        kernel, nodes=(partial,), inputs=kernel.inputs[:1], output=parts, hidden=(), constants=_early(kernel)
    )
    made = dataclasses.replace(
        choice, kernel=first, algorithm="gemm_partial", sources=choice.sources[:1], reads=choice.reads[:1]
    )
    return [made, _last(choice, parts, "gemm_sum", "threads", ThreadsConfig())]


def _by_winograd(choice: Choice) -> list[Choice]:
    """A convolution as the kernel that transforms the image, the one that multiplies, and the one that transforms back.

    conv(x, residual)    -->    v = winogradin(x);  z = winogradgemm(v);  conv(x, residual, z), which reads no x
    """
    kernel, m = choice.kernel, choice.config.winograd
    node, (n, maps, _, _), (a, b) = kernel.anchor, kernel.output.shape, window_size(kernel)
    image = choice.sources[0]
    rows, columns = grid(node, image.shape, m)
    tiles, planes = n * rows * columns, (m + 2) ** 2
    data = Tensor(f"{kernel.output.name}@data", (planes, image.shape[1], tiles), image.dtype)
    products = Tensor(f"{kernel.output.name}@products", (planes, maps, tiles), kernel.output.dtype)
    into = Node("WinogradIn", f"{node.name}@data", node.inputs[:1], data.name, {**node.attributes, "tile": m})
    times = Node("WinogradGemm", f"{node.name}@products", (data.name, node.inputs[1]), products.name)
    first = dataclasses.replace(kernel, nodes=(into,), inputs=kernel.inputs[:1], output=data, hidden=(), constants=())
    second = Kernel(kernel.name, (times,), (data,), products, constants=(node.inputs[1],))
    config = PlanesConfig(m, m // a, m // b)
    return [
        dataclasses.replace(
            choice, kernel=first, algorithm="winograd_in", sources=choice.sources[:1], reads=choice.reads[:1],
            rule="planes", config=config,
        ),
        dataclasses.replace(choice, kernel=second, algorithm="winograd_gemm", sources=(data,), reads=(PLAIN,)),
        _last(choice, products, "winograd_out", "planes", config),
    ]  # fmt: skip


def _early(kernel: Kernel) -> tuple[str, ...]:
    """The constants that the first of two kernels reads: the prologue's, and the weight."""
    early = {kernel.anchor.inputs[1], *(name for node in kernel.prologue for name in node.inputs)}
    return tuple(name for name in kernel.constants if name in early)


def _last(choice: Choice, made: Tensor, algorithm: str, rule: str, config: ThreadsConfig | PlanesConfig) -> Choice:
    """The kernel that makes the output from what the ones before it made."""
    kernel = choice.kernel
    early = _early(kernel)
    rest = tuple(name for name in kernel.constants if name not in early)
    return dataclasses.replace(
        choice, kernel=dataclasses.replace(kernel, prologue=(), inputs=(*kernel.inputs, made), constants=rest),
        algorithm=algorithm, sources=(*choice.sources, made), reads=(*choice.reads, PLAIN), rule=rule, config=config,
    )  # fmt: skip


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
        tensors += [part.config.parts * round_up(size, WARP), size] if part.config is not None else [size]
    pairs = itertools.pairwise(tensors)
    room = FLOAT * max(max(one, other) if other <= threads else one + other for one, other in pairs)
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


def covers(kernel: Kernel) -> bool:
    """Whether a convolution is one product with the whole image."""
    node = kernel.anchor
    same = node["kernel_shape"] == kernel.inputs[0].shape[2:] and node["pads"] == NO_PADS
    plain = node["dilations"] == (1, 1) and node["group"] == 1 and len(kernel.inputs) == 1
    return same and plain and not kernel.prologue and pool_of(kernel) is None
