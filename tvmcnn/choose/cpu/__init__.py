"""Choose: each kernel gets its algorithm, layouts, rule and config. The one place that decides.

Layouts follow the network once, front to back: convolutions write NCHW16c, what can works in the layout that it finds,
the rest reads plain tensors; a reorder is added only where reader and writer differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tvmcnn.choose.cpu.convolution import decide_bf16, decide_winograd
from tvmcnn.choose.cpu.cost import microseconds
from tvmcnn.choose.cpu.dots import wanted_bytes
from tvmcnn.choose.cpu.expanded_weights import expanding
from tvmcnn.choose.cpu.frames import passed_on, wanted_ends
from tvmcnn.choose.cpu.narrow_images import narrowing
from tvmcnn.choose.cpu.operators import decide, joins_blocks
from tvmcnn.choose.cpu.row_bands import in_bands
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.records import Records
from tvmcnn.configs import ColumnsConfig
from tvmcnn.fuse import is_anchor, window_size
from tvmcnn.network import FLOAT32, NO_PADS, PLAIN, Choice, Kernel, Network, Pads, Tensor
from tvmcnn.targets import Target
from tvmcnn.winograd import halo


def choose(
    network: Network,
    kernels: Sequence[Kernel],
    target: Target,
    records: Records,
    precision: str = "fp32",
    *,
    exact: bool = False,
    blocked: bool = True,
) -> tuple[Choice, ...]:
    """The kernels in the order they run, reorders among them, each with every decision made.

    `exact` convolves directly, as the formula is written; otherwise by Winograd where that is faster. Without `blocked`
    all images are plain, which is slow: to find out whether a layout is to blame for something.
    With `precision` "bf16" convolutions that it makes faster have their factors rounded, on targets that multiply them,
    and images between these are stored so.
    Outputs of the network are plain. A Reshape costs nothing: its tensor is the same memory under another name.
    """
    choices = _front_to_back(network, kernels, target, records, precision, exact=exact, images=1, blocked=blocked)
    if blocked and _is_tiny(network, choices, target):
        lanes = target.lanes(FLOAT32)
        others = _front_to_back(network, kernels, target, records, precision, exact=exact, images=lanes)
        choices = min(choices, others, key=lambda each: microseconds(network, each, target))
    made = expanding(network, in_bands(network, choices, target), target)
    return narrowing(network, made, target) if precision == "bf16" else made


def _is_tiny(network: Network, choices: Sequence[Choice], target: Target) -> bool:
    """True for a batch of whole vectors of images whose maps are too few for channels in the lanes."""
    batches = {tensor.shape[0] if tensor.shape else 0 for tensor in network.inputs}
    whole = all(batch > 0 and batch % target.lanes(FLOAT32) == 0 for batch in batches)
    return whole and any(isinstance(choice.config, ColumnsConfig) for choice in choices)


def _front_to_back(
    network: Network,
    kernels: Sequence[Kernel],
    target: Target,
    records: Records,
    precision: str,
    *,
    exact: bool,
    images: int,
    blocked: bool = True,
) -> list[Choice]:
    """The choices from front to back, with `images` of them in the lanes of convolutions and matrix products."""
    readers: dict[str, tuple[Kernel, ...]] = {}
    for kernel in kernels:
        for tensor in kernel.inputs:
            readers[tensor.name] = (*readers.get(tensor.name, ()), kernel)
    stored = {tensor.name: (tensor, PLAIN) for tensor in network.inputs}
    homes = _homes(network, kernels) if blocked else {}
    state = State(
        network, target, records, exact, readers, stored, {}, {}, {}, {}, homes, images, precision, blocked=blocked
    )
    if blocked:
        convolutions = list(_convolutions(state, kernels))
        state = dataclasses.replace(state, winograd={k.output.name: decide_winograd(state, k) for k in convolutions})
        narrow = frozenset(k.output.name for k in convolutions if decide_bf16(state, k))
        wide = {name: None if name in narrow else found for name, found in state.winograd.items()}
        state = dataclasses.replace(state, winograd=wide, narrow=narrow)
        halos = passed_on(kernels, _halos(state, kernels))
        wanted = wanted_bytes(state, kernels)
        halos |= {name: layout.halo for name, layout in wanted.items()}
        fills = {name: layout.fill for name, layout in wanted.items()}
        state = dataclasses.replace(state, halos=halos, fills=fills, ends=wanted_ends(kernels))
    for kernel in kernels:
        is_output = state.is_output(kernel)
        if kernel.output.size == 0:
            state.stored[kernel.output.name] = (kernel.output, PLAIN)  # nothing to compute, nothing to store
            continue
        if kernel.anchor.op == "Reshape" and kernel.inputs and not is_output:
            state.stored[kernel.output.name] = state.stored[kernel.anchor.inputs[0]]
            continue
        choice = decide(state, kernel)
        if is_output and not choice.writes.plain:
            name = state.fresh(f"{kernel.output.name}@{choice.writes}", kernel.output)
            inner = dataclasses.replace(kernel.output, name=name)
            state.add(dataclasses.replace(choice, kernel=dataclasses.replace(choice.kernel, output=inner)))
            state.reorder(inner, choice.writes, kernel.output, PLAIN)
        else:
            state.add(choice)
    return state.choices


def _convolutions(state: State, kernels: Sequence[Kernel]) -> Iterator[Kernel]:
    """The kernels whose anchor is a convolution of images."""
    for kernel in kernels:
        images = bool(kernel.inputs) and len(kernel.inputs[0].shape) == 4
        if images and kernel.anchor.op == "Conv" and is_anchor(state.network, kernel.anchor):
            yield kernel


def _halos(state: State, kernels: Sequence[Kernel]) -> dict[str, Pads]:
    """The halo that the convolutions reading a tensor want, by its name: who makes the tensor leaves room for it.

    Conv 1x1 -> t -> Conv 3x3, pads 1    -->  t is stored with a halo of 1, no kernel copies it into one
    """
    halos: dict[str, Pads] = {}
    for kernel in _convolutions(state, kernels):
        node, image, found = kernel.anchor, kernel.inputs[0], state.winograd[kernel.output.name]
        wanted = node["pads"] if found is None else halo(node, image.shape, found[0].tile, window_size(kernel))
        have = halos.get(image.name, NO_PADS)
        halos[image.name] = tuple(map(max, have, wanted))
    return halos


def _homes(network: Network, kernels: Sequence[Kernel]) -> dict[str, tuple[Tensor, int]]:
    """Where the parts of each concatenation of whole channel blocks belong: by name the whole and the first channel.

    Concat(Concat(a, b), c) is one whole with three parts. A tensor can only lie in one: a second copies it.
    """
    fixed = {tensor.name for tensor in (*network.inputs, *network.outputs)}
    homes: dict[str, tuple[Tensor, int]] = {}
    for kernel in reversed(kernels):
        if kernel.anchor.op != "Concat" or kernel.output.name in fixed or not joins_blocks(kernel):
            continue
        whole, channel = homes.get(kernel.output.name, (kernel.output, 0))
        for name in kernel.anchor.inputs:
            if name not in homes and name not in fixed:
                homes[name] = (whole, channel)
            channel += network.tensors[name].shape[1]
    return homes
