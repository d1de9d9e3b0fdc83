"""Choose for GPUs: each kernel's algorithm, rule and config. Every tensor is plain: 32 threads read 32 neighbouring
pixels, so that no layout is better than ONNX's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.choose.cuda.defaults import WARP, configs, maps_of, mma_configs
from tvmcnn.choose.cuda.parts import in_parts
from tvmcnn.choose.cuda.single_launch import is_tiny, whole
from tvmcnn.choose.fits import recorded
from tvmcnn.choose.records import NONE, Records
from tvmcnn.choose.shared import GLOBAL_POOLS, IN_ORDER, LANES, MOVES, QUANTISED, REGIONS, SAMPLES, choice_of, covers
from tvmcnn.configs import Config, RecurrentConfig, ThreadsConfig
from tvmcnn.fuse import ELEMENTWISE, POOLS, RECURRENT, is_anchor
from tvmcnn.fuse.bytes_in_words import NARROW_GROUP, multiplies_words
from tvmcnn.network import IN_BYTES, PLAIN, Choice, Kernel, Network, Tensor

GEMV_ROWS = 8  # rows of a matrix product, each of which reads the other matrix on its own


def choose(
    network: Network,
    kernels: Sequence[Kernel],
    records: Records = NONE,
    precision: str = "fp32",
    *,
    exact: bool = False,
) -> tuple[Choice, ...]:
    """The kernels in the order they run, each with every decision made; `exact`, none by Winograd. Another `precision`
    than float32 is for matrix products that fill tensor cores' tiles; a network that is one launch has none."""
    choices = decided(network, kernels, records, exact=exact)
    if is_tiny(network, choices):
        return named([whole(network, choices)])
    if precision != "fp32":
        choices = [on_tensor_cores(network, choice, precision) for choice in choices]
    return named([part for choice in choices for part in in_parts(choice)])


def on_tensor_cores(network: Network, choice: Choice, precision: str) -> Choice:
    """A product of matrices by tensor cores; others, and one whose pool's window cuts their tiles, as it is."""
    found = mma_configs(network, choice, precision) if "mma" in ALGORITHMS[choice.algorithm].cuda else []
    return dataclasses.replace(choice, rule="mma", config=found[0], tier="default") if found else choice


def named(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The choices with their kernels numbered: k0_conv, k1_maxpool, …"""
    names = [f"k{i}_{choice.kernel.anchor.op.lower()}" for i, choice in enumerate(choices)]
    return tuple(
        dataclasses.replace(choice, kernel=dataclasses.replace(choice.kernel, name=name))
        for choice, name in zip(choices, names, strict=True)
    )


def decided(network: Network, kernels: Sequence[Kernel], records: Records, *, exact: bool = False) -> list[Choice]:
    """The kernels one by one. A Reshape costs nothing, as on CPUs."""
    stored = {tensor.name: tensor for tensor in network.inputs}
    outputs = {tensor.name for tensor in network.outputs}
    choices: list[Choice] = []
    for kernel in kernels:
        stored[kernel.output.name] = kernel.output
        if kernel.output.size == 0:
            continue
        if kernel.anchor.op == "Reshape" and kernel.inputs and kernel.output.name not in outputs:
            stored[kernel.output.name] = stored[kernel.anchor.inputs[0]]
            continue
        read = [dataclasses.replace(stored[tensor.name], shape=tensor.shape) for tensor in kernel.inputs]
        choice = _decide(network, kernel, read)
        if computed := configs(network, choice):
            found = recorded(records, network, kernel, choice.rule)
            ranked = [(config, "default") for config in computed]
            ranked = [found, *ranked] if found is not None else ranked
            ways = (dataclasses.replace(choice, config=config, tier=tier) for config, tier in ranked)
            choice = next(way for way in ways if not exact or _is_exact(way))
        choices.append(choice)
    return choices


Way: TypeAlias = tuple[str, str, Config | None]  # algorithm, rule, and the config, which `configs` finds for products


def _is_exact(choice: Choice) -> bool:
    """Whether `--exact` allows all the kernels that a choice stands for."""
    return all(ALGORITHMS[part.algorithm].exact for part in in_parts(choice))


def _decide(network: Network, kernel: Kernel, read: Sequence[Tensor]) -> Choice:
    """Choose the first way of KERNELS that applies."""
    algorithm, rule, config = next(way(network, kernel) for applies, way in KERNELS if applies(network, kernel))
    return choice_of(kernel, algorithm, [(tensor, PLAIN) for tensor in read], PLAIN, rule, (config, "default"))


def _is_convolution(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op == "Conv" and is_anchor(network, kernel.anchor)


def _is_product(network: Network, kernel: Kernel) -> bool:
    return is_anchor(network, kernel.anchor)


def _runs_over_time(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op in RECURRENT


def _is_elementwise(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op in ELEMENTWISE


def _is_softmax(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op in ("Softmax", "LogSoftmax")


def _pools_floats(network: Network, kernel: Kernel) -> bool:
    floats = bool(kernel.inputs) and kernel.inputs[0].dtype == kernel.output.dtype == "float32"
    return floats and len(kernel.output.shape) == 4 and kernel.anchor.op in (*POOLS, "LpPool", *GLOBAL_POOLS)


def _goes_in_order(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op in IN_ORDER


def _pools_regions(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op in REGIONS


def _always(network: Network, kernel: Kernel) -> bool:
    return True


def _convolution(network: Network, kernel: Kernel) -> Way:
    if covers(kernel) and kernel.output.shape[0] <= GEMV_ROWS:
        return "gemv", "gemv", None
    narrow = min(network.constants[kernel.anchor.inputs[1]].shape[1], maps_of(kernel)) < NARROW_GROUP
    if kernel.anchor["group"] > 1 and narrow:
        return "grouped_conv", "threads", ThreadsConfig()
    return "gemm_conv", "gemm", None


def _product(network: Network, kernel: Kernel) -> Way:
    few = math.prod(kernel.output.shape[:-1]) <= GEMV_ROWS
    return ("gemv", "gemv", None) if few else ("gemm_dense", "gemm", None)


def _recurrent(network: Network, kernel: Kernel) -> Way:
    return "recurrent", "recurrent", RecurrentConfig(kernel.output.shape[-1])


def _elementwise(network: Network, kernel: Kernel) -> Way:
    return "elementwise", "threads", ThreadsConfig()


def _softmax(network: Network, kernel: Kernel) -> Way:
    last = kernel.anchor["axis"] == len(kernel.output.shape) - 1
    return "softmax_along", "rows" if last and kernel.output.shape[-1] >= WARP else "threads", ThreadsConfig()


def _pool(network: Network, kernel: Kernel) -> Way:
    if kernel.anchor.op not in GLOBAL_POOLS:
        return "pool", "threads", ThreadsConfig()
    terms = math.prod(kernel.inputs[0].shape[2:])
    return "global_pool", "rows" if terms >= WARP else "threads", ThreadsConfig()


def _in_order(network: Network, kernel: Kernel) -> Way:
    return "in_order", "threads", ThreadsConfig()


def _regions(network: Network, kernel: Kernel) -> Way:
    return "regions", "threads", ThreadsConfig()


def _convolves_words(network: Network, kernel: Kernel) -> bool:
    return IN_BYTES in kernel.anchor.attributes


def _words_convolved(network: Network, kernel: Kernel) -> Way:
    few = covers(kernel) and kernel.output.shape[0] <= GEMV_ROWS
    return ("gemv_words", "gemv", None) if few else ("gemm_words_conv", "gemm", None)


def _multiplies_words(network: Network, kernel: Kernel) -> bool:
    return multiplies_words(network, kernel.anchor)


def _words_multiplied(network: Network, kernel: Kernel) -> Way:
    few = math.prod(kernel.output.shape[:-1]) <= GEMV_ROWS
    return ("gemv_words", "gemv", None) if few else ("gemm_words_dense", "gemm", None)


def _is_quantised(network: Network, kernel: Kernel) -> bool:
    return kernel.anchor.op in QUANTISED


def _quantised(network: Network, kernel: Kernel) -> Way:
    return "quantised", "threads", ThreadsConfig()


def _plain(network: Network, kernel: Kernel) -> Way:
    """Any operator, rank and dtype."""
    if _reduces_rows(kernel):
        return "plain", "rows", ThreadsConfig()
    known = kernel.anchor.op in (*MOVES, *LANES, *SAMPLES)
    return "plain", "threads" if known else "fallback", ThreadsConfig()


KERNELS: tuple[tuple[Callable[[Network, Kernel], bool], Callable[[Network, Kernel], Way]], ...] = (
    (_is_convolution, _convolution),  # the first that applies
    (_is_product, _product),
    (_runs_over_time, _recurrent),
    (_is_elementwise, _elementwise),
    (_is_softmax, _softmax),
    (_pools_floats, _pool),
    (_goes_in_order, _in_order),
    (_pools_regions, _regions),
    (_convolves_words, _words_convolved),
    (_multiplies_words, _words_multiplied),
    (_is_quantised, _quantised),
    (_always, _plain),
)


def _reduces_rows(kernel: Kernel) -> bool:
    """Whether the last axes are reduced, of at least a warp's elements each."""
    node, shape = kernel.anchor, kernel.inputs[0].shape if kernel.inputs else ()
    axes = tuple(node["axes"]) if "axes" in node.attributes and node.op in LANES else ()
    return axes == tuple(range(len(shape) - len(axes), len(shape))) != () and math.prod(shape[axes[0] :]) >= WARP
