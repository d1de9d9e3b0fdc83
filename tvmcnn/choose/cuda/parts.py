"""Kernels in parts: a split sum is two kernels, a convolution by Winograd three."""

from __future__ import annotations

import dataclasses

from tvmcnn.configs import GemmConfig, MmaConfig, PlanesConfig, ThreadsConfig
from tvmcnn.fuse import window_size
from tvmcnn.network import PLAIN, Choice, Kernel, Node, Tensor
from tvmcnn.winograd import grid

# By the algorithm of the whole: those of the parts of a sum and of the sum of them, and of what type the parts are
PARTS = {
    "gemm_conv": ("gemm_partial", "gemm_sum", "float32"),
    "gemm_words_conv": ("gemm_words_partial", "gemm_words_sum", "int32"),
}


def in_parts(choice: Choice) -> list[Choice]:
    """The kernels that a choice stands for: three by Winograd, two where the sum is split, else itself."""
    config = choice.config
    if isinstance(config, GemmConfig) and config.winograd:
        return _by_winograd(choice, config.winograd)
    if isinstance(config, GemmConfig | MmaConfig) and config.split > 1:
        return _split(choice, config.split)
    return [choice]


def _split(choice: Choice, split: int) -> list[Choice]:
    """A convolution whose sum is split, as the kernel that makes the parts and the one that adds them.

    conv(x, residual)    -->    parts = convpartial(x);  conv(x, residual, parts), which reads no x
    """
    kernel = choice.kernel
    node, (n, maps, height, width), (a, b) = kernel.anchor, kernel.output.shape, window_size(kernel)
    group = int(node["group"])
    shape = (split, n, group, maps // group, height * width * a * b)
    by_parts, by_sum, dtype = PARTS[choice.algorithm]
    parts = Tensor(f"{kernel.output.name}@parts", shape, dtype)
    attributes = {**node.attributes, "made": ((height, width), (a, b))}
    partial = Node("ConvPartial", f"{node.name}@parts", node.inputs[:2], parts.name, attributes)
    first = dataclasses.replace(
        kernel, nodes=(partial,), inputs=kernel.inputs[:1], output=parts, hidden=(), constants=_early(kernel)
    )
    made = dataclasses.replace(
        choice, kernel=first, algorithm=by_parts, sources=choice.sources[:1], reads=choice.reads[:1]
    )
    return [made, _last(choice, parts, by_sum, "threads", ThreadsConfig())]


def _by_winograd(choice: Choice, m: int) -> list[Choice]:
    """A convolution in tiles of m x m as three kernels: one transforms the image, one multiplies, one transforms back.

    conv(x, residual)    -->    v = winogradin(x);  z = winogradgemm(v);  conv(x, residual, z), which reads no x
    """
    kernel = choice.kernel
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
