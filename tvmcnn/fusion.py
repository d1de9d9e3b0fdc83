"""Fuse: the nodes of a Network become Kernels, each an anchor with the epilogue that can run in its registers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tvmcnn.network import Array, Kernel, Network, Node, Shape

ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "Tanh", "BatchNormalization", "Cast")
ANCHORS = ("Conv", "Gemm")  # reductions long enough to hide an epilogue
POOLS = ("MaxPool", "AveragePool")  # those with a window
MONOTONE = ("Relu", "Clip", "Sigmoid", "Tanh")  # never decreasing, also after rounding
MAX_FUSED_WINDOW = 9  # positions of a fused pool: each needs accumulators of its own


def is_anchor(network: Network, node: Node) -> bool:
    """True for a convolution of float32 images, or a product of float32 matrices, whose weight and bias are constant.

    These have schedules of their own; all others run in plain layout.
    """
    if node.op not in ANCHORS or node.inputs[0] in network.constants or node.attributes.get("transA"):
        return False
    tensor = network.tensors[node.output]
    fixed = all(name in network.constants for name in node.inputs[1:])
    return fixed and tensor.dtype == "float32" and (len(tensor.shape) == 4 or node.op == "Gemm")


def fuse(network: Network) -> tuple[Kernel, ...]:
    """Kernels in execution order; every node is in exactly one.

    Conv, Add(bias), Relu, MaxPool 2x2
      -->
    k0_conv: Conv+Add+Relu+MaxPool

    A node joins the kernel of its producer if it is that tensor's only reader, if the tensor is no output of the
    network, and if its other operands are there by then: a constant for each channel, or a tensor computed earlier.
    A pool joins a convolution if its windows tile the map: no two share a pixel, none reaches into padding.
    """
    readers: dict[str, int] = {}
    for node in network.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    outputs = {tensor.name for tensor in network.outputs}
    groups: list[list[Node]] = []
    group_of: dict[str, int] = {}  # tensor -> the group that ends in it
    for node in network.nodes:
        ends = [group_of[name] for name in node.inputs if name in group_of]
        index = next((i for i in ends if _joins(network, groups[i], node, readers, outputs, groups, i)), None)
        if index is not None:
            groups[index].append(node)
        else:
            groups.append([node])
            index = len(groups) - 1
        group_of = {name: i for name, i in group_of.items() if i != index}
        group_of[node.output] = index
    return tuple(_kernel(network, index, group) for index, group in enumerate(groups))


def _joins(
    network: Network,
    group: list[Node],
    node: Node,
    readers: dict[str, int],
    outputs: set[str],
    groups: list[list[Node]],
    index: int,
) -> bool:
    last, anchor = group[-1].output, group[0]
    if last not in node.inputs or readers[last] > 1 or last in outputs:
        return False
    if anchor.op not in ELEMENTWISE and not is_anchor(network, anchor):
        return False
    if node.op not in ELEMENTWISE:
        return _tiles(network, group, node)
    made = network.tensors[node.output]
    others = [network.tensors[name] for name in node.inputs if name in network.tensors]
    if any(tensor.dtype != "float32" for tensor in (made, *others, network.tensors[last])):
        return False
    shape = network.tensors[last].shape
    if made.shape != shape:
        return False  # the other operand broadcasts the anchor's output to something larger
    made_later = {n.output for g in groups[index + 1 :] for n in g}
    channels = len(shape) - 1 if anchor.op == "Gemm" else None

    def fits(name: str) -> bool:
        if name in network.constants:
            return is_per_channel(network.constants[name], shape, channels)
        if name == last:
            return True
        # The anchor reads its own operand in another layout and at other places than an epilogue would.
        own = anchor.op in ANCHORS and name in anchor.inputs
        return network.tensors[name].shape == shape and name not in made_later and not _pooled(group) and not own

    return all(fits(name) for name in node.inputs)


def _pooled(group: Iterable[Node]) -> bool:
    return any(node.op in POOLS for node in group)


def _tiles(network: Network, group: list[Node], node: Node) -> bool:
    """True for a pool whose windows lie side by side inside the map that the convolution `group` makes."""
    if node.op not in POOLS or group[0].op != "Conv" or _pooled(group):
        return False
    made = {n.output for n in group}
    if any(name in network.tensors and name not in made for n in group[1:] for name in n.inputs):
        return False  # a residual is read pixel by pixel, and behind the pool only its windows have coordinates
    (kh, kw), (h, w) = node["kernel_shape"], network.tensors[node.inputs[0]].shape[2:]
    oh, ow = network.tensors[node.output].shape[2:]
    inside = oh * kh <= h and ow * kw <= w
    tiled = node["strides"] == (kh, kw) and node["dilations"] == (1, 1) and not any(node["pads"])
    return tiled and inside and kh * kw <= MAX_FUSED_WINDOW


def is_per_channel(constant: Array, shape: Shape, channels: int | None = None) -> bool:
    """True if `constant` broadcasts to `shape` with one value for all, or one for each index of axis `channels`.

    Without `channels` that is axis 1 of an image and the last axis of anything else.
    """
    if constant.size == 1:
        return constant.ndim <= len(shape)
    aligned = (1,) * (len(shape) - constant.ndim) + constant.shape
    axis = channels if channels is not None else 1 if len(shape) == 4 else len(shape) - 1
    wanted = tuple(extent if a == axis else 1 for a, extent in enumerate(shape))
    return aligned == wanted


def _kernel(network: Network, index: int, group: list[Node]) -> Kernel:
    inside = {node.output for node in group}
    names = list(dict.fromkeys(name for node in group for name in node.inputs if name not in inside))
    weight = {group[0].inputs[1]} if is_anchor(network, group[0]) else set()
    given = {name: network.constants[name] for name in names if name in network.constants}
    single = {name: array for name, array in given.items() if array.size == 1 and array.dtype == np.float32}
    literal = group[0].op in ELEMENTWISE or weight
    scalars = {name: float(array.reshape(())) for name, array in single.items() if literal and name not in weight}
    return Kernel(
        name=f"k{index}_{group[0].op.lower()}",
        nodes=tuple(group),
        inputs=tuple(network.tensors[name] for name in names if name not in given),
        output=network.tensors[group[-1].output],
        hidden=tuple(network.tensors[node.output] for node in group[:-1]),
        constants=tuple(name for name in given if name not in scalars),
        scalars=scalars,
    )


def pool_of(kernel: Kernel) -> Node | None:
    """The pool in the epilogue of a convolution, if there is one."""
    return next((node for node in kernel.nodes[1:] if node.op in POOLS), None)


def window_size(kernel: Kernel) -> tuple[int, int]:
    """Rows and columns of the window of the pool in the epilogue; 1 x 1 without one."""
    pool = pool_of(kernel)
    return pool["kernel_shape"] if pool is not None else (1, 1)


def deinterleaved(kernel: Kernel, height: int, lanes: int) -> tuple[int, int, int]:
    """(rows, phases, pitch) of the copy that a convolution with columns in the lanes reads, for each input map.

    `height` rows and `lanes` columns come out behind the pool. Column phases·j + f of the padded image is at (f, j).
    """
    p, q = window_size(kernel)
    (sh, sw), (dh, dw), (kh, kw) = (kernel.anchor[name] for name in ("strides", "dilations", "kernel_shape"))
    phases = sw * q
    rows = (height * p - 1) * sh + (kh - 1) * dh + 1
    return rows, phases, lanes + ((q - 1) * sw + (kw - 1) * dw) // phases


def pool_first(kernel: Kernel) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The epilogue as (what runs on each pixel before the pool, what runs after it), with a max pool moved forward.

    Conv, Add(bias), Relu, MaxPool 2x2 --> Conv, MaxPool 2x2, Add(bias), Relu    (a quarter of the adds, the same bits)

    Rounding never reverses an order, so max(f(a), f(b)) = f(max(a, b)) exactly where f never decreases (libm's e^x and
    tanh keep to that on 390,000 neighbouring floats tried). Adding a constant of the channel is such an f; adding
    another tensor differs from pixel to pixel of a window.
    """
    pool, epilogue = pool_of(kernel), kernel.nodes[1:]
    if pool is None:
        return (), epilogue
    position = epilogue.index(pool)
    before, after = epilogue[:position], epilogue[position + 1 :]
    known = {*kernel.constants, *kernel.scalars}
    monotone = all(node.op in MONOTONE or (node.op == "Add" and known & {*node.inputs}) for node in before)
    return ((), before + after) if pool.op == "MaxPool" and monotone else (before, after)


def multiply_accumulates(network: Network, kernel: Kernel) -> int:
    """Multiply-accumulates of a kernel's convolution or matrix product; 0 for the rest."""
    node = kernel.anchor
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    x, weight = (
        network.constants[name].shape if name in network.constants else network.tensors[name].shape
        for name in node.inputs[:2]
    )
    output = network.tensors[node.output].size
    if node.op == "Conv":
        return output * math.prod(weight[1:])
    if node.op == "ConvTranspose":
        return math.prod(x) * math.prod(weight[1:])
    return output * x[0 if node.attributes.get("transA") else -1]
