"""Operators: how all kernels but convolutions and matrix products are computed, with layouts, rule and config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.convolution import conv
from tvmcnn.choose.cpu.defaults import matmul_config, rows_config
from tvmcnn.choose.cpu.dense_dots import multiplies_bytes, multiply_bytes
from tvmcnn.choose.cpu.dots import (
    convolve_bytes,
    convolves_bytes,
    in_blocks,
    lies_in_blocks,
    pool_bytes,
    pools_bytes,
    works_in_blocks,
)
from tvmcnn.choose.cpu.frames import unfold, unfolds_blocks
from tvmcnn.choose.cpu.product import dense
from tvmcnn.choose.cpu.samples import (
    deform_columns,
    grid_sample,
    pools_regions,
    regions,
    samples_grid,
    samples_windows,
)
from tvmcnn.choose.cpu.sequences import goes_in_order, in_order, over_time, runs_over_time
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.cpu.turned_images import turned_image, turns_image
from tvmcnn.choose.shared import GLOBAL_POOLS, LANES, MOVES, QUANTISED, SUMS_OF_BYTES, choice_of
from tvmcnn.configs import NormalizeConfig, SoftmaxConfig
from tvmcnn.fuse import ELEMENTWISE, POOLS, is_anchor, is_per_channel
from tvmcnn.network import ALIGNMENT, BYTES, PLAIN, Choice, Kernel, Layout, Network, Node, Tensor, round_up

BLOCKED_POOLS = (*POOLS, "LpPool", *GLOBAL_POOLS)  # those that have expressions in any layout of float32 images
# Reductions whose columns lie side by side in plain layout: the rule "rows" fits.
ROWS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "MaxPoolIndices", "LRN", *BLOCKED_POOLS)
NORMALIZATIONS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization")
MAX_TAPS = 16  # of a Resize in one expression: cubic has 4 x 4


def decide(state: State, kernel: Kernel) -> Choice:
    """Choose the first way of KERNELS that applies."""
    return next(make(state, kernel) for applies, make in KERNELS if applies(state, kernel))


# ---- when a way applies ---------------------------------------------------------------------------------------------


def _is_convolution(state: State, kernel: Kernel) -> bool:
    return kernel.anchor.op == "Conv" and is_anchor(state.network, kernel.anchor)


def _is_product(state: State, kernel: Kernel) -> bool:
    return is_anchor(state.network, kernel.anchor)


def _multiplies(state: State, kernel: Kernel) -> bool:
    """A product of float32 matrices of which none is a packed constant."""
    node = kernel.anchor
    if node.op != "MatMul" or len(kernel.output.shape) < 2 or not _all_float32(kernel):
        return False
    left, right = (state.network.shape(name) for name in node.inputs)
    matrices = len(left) > 1 and len(right) > 1 and left[-1] > 0
    return matrices and kernel.output.shape[-1] >= state.target.lanes(kernel.dtype)


def _is_elementwise(state: State, kernel: Kernel) -> bool:
    return kernel.anchor.op in ELEMENTWISE


def _is_softmax(state: State, kernel: Kernel) -> bool:
    return kernel.anchor.op in ("Softmax", "LogSoftmax")


def _normalizes(state: State, kernel: Kernel) -> bool:
    """A normalisation of rows of at least a vector, or of parts of them, each in one run of memory."""
    node, shape = kernel.anchor, kernel.output.shape
    if node.op not in NORMALIZATIONS or not kernel.inputs or not _all_float32(kernel) or not kernel.output.size:
        return False
    if node.op != "LayerNormalization":
        return math.prod(shape[2:]) >= BLOCK
    row = math.prod(shape[node["axis"] :])
    shapes = [state.network.shape(name) for name in node.inputs[1:]]
    return row >= BLOCK and all(math.prod(each) == row for each in shapes)  # one value for each element


def _pools_floats(state: State, kernel: Kernel) -> bool:
    return kernel.anchor.op in BLOCKED_POOLS and len(kernel.output.shape) == 4 and _keeps_float32(kernel)


def _resizes_blocks(state: State, kernel: Kernel) -> bool:
    """A Resize of rows and columns, with so few taps that all fit one expression, of maps that lie in blocks: of
    float32, or of bytes that it moves."""
    if kernel.anchor.op != "Resize" or not kernel.inputs or not _in_blocks(state, kernel):
        return False
    known = _keeps_float32(kernel) or (kernel.inputs[0].dtype in BYTES and _moves_pixels(kernel.anchor))
    return known and _resizes_maps(kernel)


def _is_quantised(state: State, kernel: Kernel) -> bool:
    return kernel.anchor.op in QUANTISED


def _takes_blocks_apart(state: State, kernel: Kernel) -> bool:
    """A DepthToSpace that takes whole blocks of channels apart."""
    node = kernel.anchor
    if node.op != "DepthToSpace" or not _keeps_float32(kernel) or not _in_blocks(state, kernel):
        return False
    maps: int = kernel.inputs[0].shape[1] // math.prod(node["blocksize"])
    return node["mode"] == "DCR" and maps % BLOCK == 0


def _slices_blocks(state: State, kernel: Kernel) -> bool:
    """A Slice of an image in blocks, as of a Split, that takes whole blocks of channels, or all that are left."""
    node, shape = kernel.anchor, kernel.output.shape
    if node.op != "Slice" or not kernel.inputs or len(shape) != 4 or not lies_in_blocks(state, kernel.inputs[0]):
        return False
    image, first, step = kernel.inputs[0], node["starts"][1], node["steps"][1]
    whole = shape[1] % BLOCK == 0 or first + shape[1] == image.shape[1]
    return step == 1 and first % BLOCK == 0 and whole


def _joins(state: State, kernel: Kernel) -> bool:
    return kernel.anchor.op == "Concat" and joins_blocks(kernel)


def _always(state: State, kernel: Kernel) -> bool:
    return True


def _in_blocks(state: State, kernel: Kernel) -> bool:
    return state.stored[kernel.inputs[0].name][1].block > 1


def _keeps_float32(kernel: Kernel) -> bool:
    return bool(kernel.inputs) and kernel.inputs[0].dtype == kernel.output.dtype == "float32"


def joins_blocks(kernel: Kernel) -> bool:
    """True for a Concat of images of float32, or of bytes, along their channels, each a whole number of blocks."""
    has_layout = _all_float32(kernel) or kernel.output.dtype in BYTES
    images = len(kernel.output.shape) == 4 and kernel.anchor["axis"] == 1 and has_layout
    return images and not kernel.constants and all(tensor.shape[1] % BLOCK == 0 for tensor in kernel.inputs)


def _moves_pixels(resize: Node) -> bool:
    return "factors" in resize.attributes or (resize["mode"] == "nearest" and resize["extrapolation"] is None)


def _resizes_maps(kernel: Kernel) -> bool:
    node, shape = kernel.anchor, kernel.output.shape
    if len(shape) != 4 or shape[:2] != kernel.inputs[0].shape[:2]:
        return False
    return "factors" in node.attributes or (set(node["axes"]) <= {2, 3} and node["taps"] <= MAX_TAPS)


def _reduces_rows(kernel: Kernel) -> bool:
    """True for a reduction of float32 elements along the last axes, of at least a vector of them each."""
    node = kernel.anchor
    if node.op not in LANES or not kernel.inputs or not kernel.output.shape or not _all_float32(kernel):
        return False
    shape = kernel.inputs[0].shape
    axes = tuple(node["axes"]) if "axes" in node.attributes else tuple(range(2, len(shape)))
    last = tuple(range(len(shape) - len(axes), len(shape)))
    return axes == last != () and last[0] > 0 and math.prod(shape[last[0] :]) >= BLOCK


def _keeps_last(network: Network, kernel: Kernel) -> bool:
    """True for a reduction along axes other than the last, whose columns then lie side by side."""
    node = kernel.anchor
    shapes = [
        *(tensor.shape for tensor in kernel.inputs),
        *(network.constants[name].shape for name in kernel.constants),
    ]
    return "axes" in node.attributes and len(shapes[0]) - 1 not in node["axes"] and bool(kernel.output.shape)


def _all_float32(kernel: Kernel) -> bool:
    return all(tensor.dtype == "float32" for tensor in (*kernel.inputs, kernel.output))


# ---- how it is made -------------------------------------------------------------------------------------------------


def _softmax(state: State, kernel: Kernel) -> Choice:
    axis = kernel.anchor["axis"]
    columns = kernel.output.shape[-1] if axis == len(kernel.output.shape) - 1 > 0 else 0
    config = SoftmaxConfig(axis, in_lanes=columns >= BLOCK and _all_float32(kernel))
    read = [state.plain(tensor) for tensor in kernel.inputs]
    return choice_of(kernel, "softmax", read, PLAIN, "softmax", (config, "default"))


def _matmul(state: State, kernel: Kernel) -> Choice:
    depth = state.network.shape(kernel.anchor.inputs[0])[-1]
    config = matmul_config(kernel, depth, state.target)
    scratch = round_up(depth * config.width * kernel.item_bytes, ALIGNMENT) if config.packed else 0
    read = [state.plain(tensor) for tensor in kernel.inputs]
    choice = choice_of(kernel, "matmul", read, PLAIN, "matmul", (config, "default"))
    return dataclasses.replace(choice, scratch_bytes=scratch)


def _normalize(state: State, kernel: Kernel) -> Choice:
    node, shape = kernel.anchor, kernel.output.shape
    if node.op == "LayerNormalization":
        config = NormalizeConfig(math.prod(shape[: node["axis"]]))
    else:
        parts = shape[1] // node["num_groups"] if node.op == "GroupNormalization" else 1
        config = NormalizeConfig(shape[0] * shape[1] // parts, parts)
    read = [state.plain(tensor) for tensor in kernel.inputs]
    return choice_of(kernel, "normalize", read, PLAIN, "normalize", (config, "default"))


def _resize(state: State, kernel: Kernel) -> Choice:
    layout = Layout(BLOCK)
    return choice_of(kernel, "resize", [state.image(kernel.inputs[0], layout)], layout, "memory")


def _depth_to_space(state: State, kernel: Kernel) -> Choice:
    layout = Layout(BLOCK)
    return choice_of(kernel, "depth_to_space", [state.image(kernel.inputs[0], layout)], layout, "memory")


def _plain(state: State, kernel: Kernel) -> Choice:
    """Any operator, rank and dtype."""
    read = [state.plain(tensor) for tensor in kernel.inputs]
    if _reduces_rows(kernel):
        return choice_of(kernel, "lanes", read, PLAIN, "lanes")
    if kernel.anchor.op in ROWS or _keeps_last(state.network, kernel):
        return choice_of(kernel, "plain", read, PLAIN, "rows", (rows_config(state.network, kernel), "default"))
    moves = kernel.anchor.op in MOVES or "factors" in kernel.anchor.attributes
    return choice_of(kernel, "plain", read, PLAIN, "memory" if moves else "fallback")


def _quantised(state: State, kernel: Kernel) -> Choice:
    """Sums of products a row of columns at a time, the rest element by element."""
    read = [state.plain(tensor) for tensor in kernel.inputs]
    if kernel.anchor.op in SUMS_OF_BYTES:
        config = rows_config(state.network, kernel)
        return choice_of(kernel, "quantised", read, PLAIN, "rows", (config, "default"))
    return choice_of(kernel, "quantised", read, PLAIN, "memory")


def _pool(state: State, kernel: Kernel) -> Choice:
    tensor, layout = state.stored[kernel.inputs[0].name]
    if tensor.shape != kernel.inputs[0].shape or layout.images > 1:
        tensor, layout = state.plain(kernel.inputs[0])
    if layout.block == 1 and _reduces_rows(kernel):
        return choice_of(kernel, "lanes", [state.plain(kernel.inputs[0])], PLAIN, "lanes")
    algorithm = "global_pool" if kernel.anchor.op in GLOBAL_POOLS else "pool"
    rule = "pool" if layout.block > 1 else "fallback"
    return choice_of(kernel, algorithm, [(tensor, layout)], Layout(layout.block), rule)


def _slice(state: State, kernel: Kernel) -> Choice:
    return choice_of(kernel, "slice", [state.stored[kernel.inputs[0].name]], Layout(BLOCK), "memory")


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


Applies: TypeAlias = Callable[[State, Kernel], bool]
Make: TypeAlias = Callable[[State, Kernel], Choice]
KERNELS: tuple[tuple[Applies, Make], ...] = (  # the first that applies
    (_is_convolution, conv),
    (_is_product, dense),
    (_multiplies, _matmul),
    (runs_over_time, over_time),
    (_is_elementwise, _elementwise),
    (_is_softmax, _softmax),
    (_normalizes, _normalize),
    (_pools_floats, _pool),
    (convolves_bytes, convolve_bytes),
    (multiplies_bytes, multiply_bytes),
    (works_in_blocks, in_blocks),
    (pools_bytes, pool_bytes),
    (_resizes_blocks, _resize),
    (samples_grid, grid_sample),
    (samples_windows, deform_columns),
    (pools_regions, regions),
    (_takes_blocks_apart, _depth_to_space),
    (turns_image, turned_image),
    (unfolds_blocks, unfold),
    (_joins, _concat),
    (_slices_blocks, _slice),
    (goes_in_order, in_order),
    (_is_quantised, _quantised),
    (_always, _plain),
)
