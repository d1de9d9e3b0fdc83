"""Choose: each kernel gets its algorithm, layouts, rule and config. The one place that decides.

Layouts follow the network once, front to back: convolutions write NCHW16c, what can works in the layout that it finds,
the rest reads plain tensors; a reorder is added only where reader and writer differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from tvmcnn.choose.cpu.convolution import conv, plain, winograd_of
from tvmcnn.choose.cpu.cost import microseconds
from tvmcnn.choose.cpu.defaults import BLOCK, rows_config
from tvmcnn.choose.cpu.product import dense
from tvmcnn.choose.cpu.row_bands import in_bands
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.records import Records
from tvmcnn.choose.shared import GLOBAL_POOLS, LANES, MOVES, choice_of
from tvmcnn.configs import ColumnsConfig, SoftmaxConfig
from tvmcnn.fuse import ELEMENTWISE, POOLS, is_anchor, is_per_channel
from tvmcnn.network import FLOAT32, NO_PADS, PLAIN, Choice, Kernel, Layout, Network, Pads, Tensor
from tvmcnn.targets import Target
from tvmcnn.winograd import halo

BLOCKED_POOLS = (*POOLS, "LpPool", *GLOBAL_POOLS)  # those that have expressions in any layout of float32 images
# Reductions whose columns lie side by side in plain layout: the rule "rows" fits.
ROWS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "MaxPoolIndices", "LRN", *BLOCKED_POOLS)
MAX_TAPS = 16  # of a Resize in one expression: cubic has 4 x 4


def choose(
    network: Network,
    kernels: Sequence[Kernel],
    target: Target,
    records: Records,
    *,
    exact: bool = False,
    blocked: bool = True,
) -> tuple[Choice, ...]:
    """The kernels in the order they run, reorders among them, each with every decision made.

    `exact` convolves directly, as the formula is written; otherwise by Winograd where that is faster. Without `blocked`
    all images are plain, which is slow: to find out whether a layout is to blame for something.
    Outputs of the network are plain. A Reshape costs nothing: its tensor is the same memory under another name.
    """
    choices = _front_to_back(network, kernels, target, records, exact=exact, images=1, blocked=blocked)
    if blocked and _is_tiny(network, choices, target):
        others = _front_to_back(network, kernels, target, records, exact=exact, images=target.lanes(FLOAT32))
        choices = min(choices, others, key=lambda each: microseconds(network, each, target))
    return in_bands(network, choices, target)


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
    *,
    exact: bool,
    images: int,
    blocked: bool = True,
) -> list[Choice]:
    """The choices from front to back, with `images` of them in the lanes of convolutions and matrix products."""
    readers: dict[str, frozenset[str]] = {}
    for kernel in kernels:
        for tensor in kernel.inputs:
            readers[tensor.name] = readers.get(tensor.name, frozenset()) | {kernel.anchor.op}
    stored = {tensor.name: (tensor, PLAIN) for tensor in network.inputs}
    homes = _homes(network, kernels) if blocked else {}
    state = State(network, target, records, exact, readers, stored, {}, {}, homes, images, blocked)
    if blocked:
        state = dataclasses.replace(
            state, winograd={k.output.name: winograd_of(state, k) for k in _convolutions(state, kernels)}
        )
        state = dataclasses.replace(state, halos=_halos(state, kernels))
    for kernel in kernels:
        is_output = state.is_output(kernel)
        if kernel.output.size == 0:
            state.stored[kernel.output.name] = (kernel.output, PLAIN)  # nothing to compute, nothing to store
            continue
        if kernel.anchor.op == "Reshape" and kernel.inputs and not is_output:
            state.stored[kernel.output.name] = state.stored[kernel.anchor.inputs[0]]
            continue
        choice = _decide(state, kernel)
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
        wanted = node["pads"] if found is None else halo(node, image.shape, found[0].tile)
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
        if kernel.anchor.op != "Concat" or kernel.output.name in fixed or not _joins_blocks(kernel):
            continue
        whole, channel = homes.get(kernel.output.name, (kernel.output, 0))
        for name in kernel.anchor.inputs:
            if name not in homes and name not in fixed:
                homes[name] = (whole, channel)
            channel += network.tensors[name].shape[1]
    return homes


def _joins_blocks(kernel: Kernel) -> bool:
    """True for a Concat of float32 images along their channels, each a whole number of blocks."""
    images = len(kernel.output.shape) == 4 and kernel.anchor["axis"] == 1 and _all_float32(kernel)
    return images and not kernel.constants and all(tensor.shape[1] % BLOCK == 0 for tensor in kernel.inputs)


def _decide(state: State, kernel: Kernel) -> Choice:
    op = kernel.anchor.op
    if op == "Conv" and not state.blocked and is_anchor(state.network, kernel.anchor):
        return plain(state, kernel)
    if is_anchor(state.network, kernel.anchor):
        return conv(state, kernel) if op == "Conv" else dense(state, kernel)
    if op in ELEMENTWISE:
        return _elementwise(state, kernel)
    if op in ("Softmax", "LogSoftmax"):
        axis = kernel.anchor["axis"]
        columns = kernel.output.shape[-1] if axis == len(kernel.output.shape) - 1 > 0 else 0
        config = SoftmaxConfig(axis, in_lanes=columns >= BLOCK and _all_float32(kernel))
        read = [state.plain(tensor) for tensor in kernel.inputs]
        return choice_of(kernel, "softmax", read, PLAIN, "softmax", (config, "default"))
    if kernel.inputs and kernel.inputs[0].dtype == kernel.output.dtype == "float32":
        if op in BLOCKED_POOLS and len(kernel.output.shape) == 4:
            return _pool(state, kernel)
        if op == "Resize" and state.stored[kernel.inputs[0].name][1].block > 1 and _resizes_maps(kernel):
            layout = Layout(BLOCK)
            return choice_of(kernel, "resize", [state.image(kernel.inputs[0], layout)], layout, "memory")
        if op == "DepthToSpace" and state.stored[kernel.inputs[0].name][1].block > 1 and _moves_blocks(kernel):
            layout = Layout(BLOCK)
            return choice_of(kernel, "depth_to_space", [state.image(kernel.inputs[0], layout)], layout, "memory")
        if op == "Concat" and _joins_blocks(kernel):
            return _concat(state, kernel)
    return _plain(state, kernel)


def _plain(state: State, kernel: Kernel) -> Choice:
    """Any operator, rank and dtype."""
    read = [state.plain(tensor) for tensor in kernel.inputs]
    if _reduces_rows(kernel):
        return choice_of(kernel, "lanes", read, PLAIN, "lanes")
    if kernel.anchor.op in ROWS or _keeps_last(state.network, kernel):
        return choice_of(kernel, "plain", read, PLAIN, "rows", (rows_config(state.network, kernel), "default"))
    moves = kernel.anchor.op in MOVES or "factors" in kernel.anchor.attributes
    return choice_of(kernel, "plain", read, PLAIN, "memory" if moves else "fallback")


def _keeps_last(network: Network, kernel: Kernel) -> bool:
    """True for a reduction along axes other than the last, whose columns then lie side by side."""
    node = kernel.anchor
    shapes = [
        *(tensor.shape for tensor in kernel.inputs),
        *(network.constants[name].shape for name in kernel.constants),
    ]
    return "axes" in node.attributes and len(shapes[0]) - 1 not in node["axes"] and bool(kernel.output.shape)


def _reduces_rows(kernel: Kernel) -> bool:
    """True for a reduction of float32 elements along the last axes, of at least a vector of them each."""
    node = kernel.anchor
    if node.op not in LANES or not kernel.inputs or not kernel.output.shape or not _all_float32(kernel):
        return False
    shape = kernel.inputs[0].shape
    axes = tuple(node["axes"]) if "axes" in node.attributes else tuple(range(2, len(shape)))
    last = tuple(range(len(shape) - len(axes), len(shape)))
    return axes == last != () and last[0] > 0 and math.prod(shape[last[0] :]) >= BLOCK


def _moves_blocks(kernel: Kernel) -> bool:
    """True for a DepthToSpace that takes whole blocks of channels apart."""
    return kernel.anchor["mode"] == "DCR" and kernel.output.shape[1] % BLOCK == 0


def _resizes_maps(kernel: Kernel) -> bool:
    """True for a Resize of rows and columns, with so few taps that all fit one expression."""
    node, shape = kernel.anchor, kernel.output.shape
    if len(shape) != 4 or shape[:2] != kernel.inputs[0].shape[:2]:
        return False
    return "factors" in node.attributes or (set(node["axes"]) <= {2, 3} and node["taps"] <= MAX_TAPS)


def _all_float32(kernel: Kernel) -> bool:
    return all(tensor.dtype == "float32" for tensor in (*kernel.inputs, kernel.output))


def _pool(state: State, kernel: Kernel) -> Choice:
    tensor, layout = state.stored[kernel.inputs[0].name]
    if tensor.shape != kernel.inputs[0].shape or layout.images > 1:
        tensor, layout = state.plain(kernel.inputs[0])
    if layout.block == 1 and _reduces_rows(kernel):
        return choice_of(kernel, "lanes", [state.plain(kernel.inputs[0])], PLAIN, "lanes")
    algorithm = "global_pool" if kernel.anchor.op in GLOBAL_POOLS else "pool"
    rule = "pool" if layout.block > 1 else "fallback"
    return choice_of(kernel, algorithm, [(tensor, layout)], Layout(layout.block), rule)


def _concat(state: State, kernel: Kernel) -> Choice:
    """In place where a part was written into the whole; those that were not are moved there."""
    found = [state.stored[tensor.name] for tensor in kernel.inputs]
    whole, start = state.homes.get(kernel.output.name, (kernel.output, 0))
    there = {choice.kernel.output.name: choice.within for choice in state.choices if choice.within is not None}
    if not state.is_output(kernel) and any(there.get(tensor.name, (None,))[0] == whole for tensor in kernel.inputs):
        return _in_place(state, kernel, whole, start)
    seen = [tensor.shape for tensor in kernel.inputs] == [tensor.shape for tensor, _ in found]  # none is a reshaped one
    if seen and all(layout.block == BLOCK for _, layout in found):
        found = [state.want(tensor.name, Layout(BLOCK), exact=True) for tensor in kernel.inputs]
        return choice_of(kernel, "concat", found, Layout(BLOCK), "memory")
    return _plain(state, kernel)


def _in_place(state: State, kernel: Kernel, whole: Tensor, start: int) -> Choice:
    """A view of the whole, each part of which is at its place or is copied to it."""
    read = []
    channel = start
    for name in kernel.anchor.inputs:
        tensor = state.network.tensors[name]
        home = next((c.within for c in state.choices if c.kernel.output.name == name), None)
        if home != (whole, channel):
            source, layout = state.stored[name]
            source, layout = (source, layout) if source.shape == tensor.shape else state.plain(tensor)
            part = dataclasses.replace(tensor, name=state.fresh(f"{name}@{kernel.output.name}", tensor))
            while part.name in state.stored:  # the same tensor twice in one concatenation
                part = dataclasses.replace(part, name=f"{part.name}'")
            state.homes[part.name] = (whole, channel)
            state.reorder(source, layout, part, Layout(BLOCK))
            name = part.name
        read.append(state.stored[name])
        channel += tensor.shape[1]
    pitch = whole.shape[1] // BLOCK if whole.shape[0] > 1 and whole != kernel.output else 0
    sources, layouts = zip(*read, strict=True)
    return Choice(kernel, "view", sources, layouts, Layout(BLOCK, pitch=pitch), "none", within=(whole, start))


def _elementwise(state: State, kernel: Kernel) -> Choice:
    """In the layout of its operands if they share one and broadcast nothing but pixels and channels; else plain."""
    shape = kernel.output.shape
    gates = [tensor for tensor in kernel.inputs if tensor.shape != shape and tensor.shape == (*shape[:2], 1, 1)]
    full = [state.stored[tensor.name] for tensor in kernel.inputs if tensor not in gates]
    layout = full[0][1] if full else PLAIN
    constants = [state.network.constants[name] for name in kernel.constants]
    same = layout.block > 1 and all(have.block == layout.block and tensor.shape == shape for tensor, have in full)
    same = same and _all_float32(kernel)  # blocks hold nothing else
    if same and all(constant.dtype == "float32" and is_per_channel(constant, shape) for constant in constants):
        read = [state.gate(tensor) if tensor in gates else state.stored[tensor.name] for tensor in kernel.inputs]
        return choice_of(kernel, "elementwise", read, Layout(layout.block), "memory")
    rule = "memory" if _all_float32(kernel) else "fallback"  # vectors of other types are left to LLVM
    return choice_of(kernel, "elementwise", [state.plain(tensor) for tensor in kernel.inputs], PLAIN, rule)
