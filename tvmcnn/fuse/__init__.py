"""Fuse: the nodes of a Network become Kernels, each an anchor with the epilogue that can run in its registers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tvmcnn.blocks import BLOCK
from tvmcnn.fuse.regions import regions
from tvmcnn.network import BYTES, IN_BYTES, Array, Kernel, Network, Node, Shape

ELEMENTWISE = frozenset(
    """
    Add Sub Mul Div Mod Pow Sum Mean Max Min Relu Clip LeakyRelu PRelu ThresholdedRelu Elu Celu Selu Sigmoid HardSigmoid
    Shrink HardSwish Swish Softplus Softsign Mish Gelu Erf Exp Log Sqrt Reciprocal Abs Neg Sign Floor Ceil Round Sin Cos
    Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh Less LessOrEqual Greater GreaterOrEqual Equal And Or Xor Not
    BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift IsNaN IsInf Where Cast BatchNormalization
    """.split()  # noqa: SIM905 (sixty quoted words read worse)
)
ANCHORS = ("Conv", "Gemm")  # reductions long enough to hide an epilogue
POOLS = ("MaxPool", "AveragePool")  # those with a window
RECURRENT = ("GRU", "LSTM", "RNN")  # whose node has the products with R alone
OF_INTEGERS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")  # products of integers of 8 bits
SQUASHING = ("Clip", "Erf", "HardSigmoid", "Min", "Sigmoid", "Softsign", "Tanh")  # into an interval
MONOTONE = ("Relu", "Clip")  # never decreasing, also after rounding
MIN_PROLOGUE_CHANNELS = BLOCK  # with fewer the image is read plain, and its pixels one by one
# Their answers jump: a kernel ends with one and stores it, so that a check sees on which side each element is.
JUMPING = ("Ceil", "Floor", "Mod", "Round", "Shrink", "Sign", "ThresholdedRelu")
# Polynomials with a dozen constants. Between a convolution's accumulators these find no registers: in the epilogue y ·
# Sigmoid(y) took 0.86 ns an element and in a kernel of its own 0.6 (AVX2), EfficientNet-B0 16.0 against 14.6 ms. Nor
# before one: with GELU as a prologue FastViT-T8 took 21.3 ms, and 18.6 with it apart (AVX2; 8.87 and 8.44 by AVX-512).
LONG = frozenset("Erf Exp Log Sigmoid Tanh Gelu Mish Softplus Elu Celu Selu Swish Pow Sin Cos".split())  # noqa: SIM905
# About how often a formula names its operand. The kernel has it once (ops/operands.Let), but TVM's analyses write names
# out: 16 in 16 are 256 to them, and four Tanh in one kernel kept TVM busy for 36 s.
REPEATS = {
    **dict.fromkeys(
        ("LeakyRelu", "PRelu", "ThresholdedRelu", "HardSwish", "Softsign", "Sign", "Mod", "Max", "Min", "Shrink"), 3
    ),
    **dict.fromkeys(LONG, 16),
}
MOST_COPIES = 64  # Sigmoid and LeakyRelu are one kernel, Sigmoid and Tanh two
MAX_FUSED_WINDOW = 9  # positions of a fused pool: each needs accumulators of its own


def is_anchor(network: Network, node: Node) -> bool:
    """True for a convolution of float32 images, or a product of float32 matrices, whose weight and bias are constant.

    These have schedules of their own; all others run in plain layout. A Gemm with attributes is no such product.
    """
    if node.op not in ANCHORS or node.inputs[0] in network.constants or (node.op == "Gemm" and node.attributes):
        return False
    tensor = network.tensors[node.output]
    fixed = all(name in network.constants for name in node.inputs[1:])
    fixed = fixed and node.inputs[1] not in node.inputs[2:]  # a weight is packed as one, and no bias then
    return fixed and tensor.dtype == "float32" and (len(tensor.shape) == 4 or node.op == "Gemm")


@dataclass
class _Group:
    """A kernel in the making."""

    nodes: list[Node]
    prologue: list[Node] = field(default_factory=list)

    @property
    def anchor(self) -> Node:
        return self.nodes[0]

    @property
    def last(self) -> str:
        """The tensor that the group makes."""
        return self.nodes[-1].output

    @property
    def made(self) -> set[str]:
        return {node.output for node in (*self.prologue, *self.nodes)}

    @property
    def pooled(self) -> bool:
        return any(node.op in POOLS for node in self.nodes)


def fuse(network: Network, *, together: bool = True) -> tuple[Kernel, ...]:
    """Kernels in execution order; every node is in exactly one. Not `together`, each has its own.

    Conv, Add(bias), Relu, MaxPool 2x2    -->  k0_conv: Conv+Add+Relu+MaxPool
    BatchNormalization, Relu, Conv 1x1    -->  k0_conv: BatchNormalization+Relu+Conv

    A node joins the kernel of its producer if it is that tensor's only reader, if the tensor is no output of the
    network, and if its other operands are there by then: a constant for each channel, or a tensor computed earlier.
    A pool joins a convolution if its windows tile the map: no two share a pixel, none reaches into padding. What runs
    on each element joins the convolution that reads it, as its prologue, if that reads each pixel once and no padding.
    """
    groups = _Fusion(network).groups if together else [_Group([node]) for node in network.nodes]
    return tuple(_kernel(network, index, group) for index, group in enumerate(groups))


class _Fusion:
    """The greedy walk over the nodes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.outputs = {tensor.name for tensor in network.outputs}
        self.readers = Counter(name for node in network.nodes for name in {*node.inputs})
        self.regions = regions(network, ELEMENTWISE - {*JUMPING})
        self.groups: list[_Group] = []
        self.ending: dict[str, _Group] = {}  # tensor -> the group that makes it
        self.made: set[str] = {tensor.name for tensor in network.inputs}
        for node in network.nodes:
            if node.output not in self.made:  # as part of a region
                self.add(node)

    def add(self, node: Node) -> None:
        candidates = [self.ending[name] for name in node.inputs if name in self.ending]
        found = ((group, nodes) for group in candidates for nodes in (self.region(group, node),) if nodes)
        group, nodes = next(found, (None, (node,)))
        before = self.ending.get(node.inputs[0]) if node.inputs else None
        if group is not None:
            del self.ending[group.last]
            group.nodes += nodes
        elif before is not None and self.becomes_prologue(before, node):
            del self.ending[before.last]
            group = before
            group.prologue, group.nodes = group.nodes, [node]
        else:
            group = _Group([node])
            self.groups.append(group)
        self.ending[nodes[-1].output] = group
        self.made |= {each.output for each in nodes}

    def region(self, group: _Group, node: Node) -> tuple[Node, ...]:
        """What joins the epilogue of `group` with its reader `node`: that alone, or all the nodes of its region."""
        if self.ends_here(group, node):
            return (node,) if self.takes(group, node) else ()
        region = self.regions.get(group.last, ())
        if not region or region[0] is not node or group.nodes[-1].op in JUMPING or not self.fusable(group):
            return ()
        if group.anchor.op in ANCHORS and any(each.op in LONG for each in region):
            return ()
        if _copies((*group.nodes, *region)) > MOST_COPIES:
            return ()
        made = {group.last, *(each.output for each in region)}
        return region if all(self.joins(group, each, made) for each in region) else ()

    def ends_here(self, group: _Group, node: Node) -> bool:
        """True if nobody but `node` wants the tensor that the group makes."""
        return (
            group.nodes[-1].op not in JUMPING
            and group.last in node.inputs
            and self.readers[group.last] == 1
            and group.last not in self.outputs
        )

    def takes(self, group: _Group, node: Node) -> bool:
        """True if `node`, the only reader, can be the epilogue's next."""
        if not self.fusable(group):
            return False
        if node.op in ("QLinearAdd", "QLinearMul"):
            return self.joins_bytes(group, node)
        if node.op not in ELEMENTWISE:
            return self.tiles(group, node)
        return _copies((*group.nodes, node)) <= MOST_COPIES and self.joins(group, node, {group.last})

    def fusable(self, group: _Group) -> bool:
        """True if the kernel of `group` has an epilogue."""
        known = group.anchor.op in ELEMENTWISE or is_anchor(self.network, group.anchor)
        return known or IN_BYTES in group.anchor.attributes

    def joins(self, group: _Group, node: Node, values: set[str]) -> bool:
        """True if the element-wise `node` can be computed of `values`, which the epilogue has, and other operands."""
        network = self.network
        made = network.tensors[node.output]
        places = (network.constants if name in network.constants else network.tensors for name in node.inputs)
        types = {str(place[name].dtype) for place, name in zip(places, node.inputs, strict=True)}
        if types | {made.dtype} != {"float32"}:
            return False
        if made.shape != network.tensors[group.last].shape:
            return False  # the other operand broadcasts the anchor's output to something larger
        return all(name in values or self.fits(group, name, made.shape) for name in node.inputs)

    def joins_bytes(self, group: _Group, node: Node) -> bool:
        """True if a sum or product with another image of bytes can be the epilogue of a convolution of bytes."""
        network, shape = self.network, self.network.tensors[node.output].shape
        others = [name for name in node.inputs[:2] if name != group.last]
        return (
            IN_BYTES in group.anchor.attributes
            and len(group.nodes) == len(others) == 1
            and network.tensors[group.last].shape == shape
            and others[0] in network.tensors
            and network.tensors[others[0]].dtype in BYTES
            and self.fits(group, others[0], shape)
            and others[0] not in group.anchor.inputs
        )

    def fits(self, group: _Group, name: str, shape: Shape) -> bool:
        """True if the epilogue of `group` can read operand `name` beside a value of `shape`."""
        if name in self.network.constants:
            if name in {*group.anchor.inputs[1:2], *_operands(group.prologue)} and group.anchor.op in ANCHORS:
                return False  # packed for the anchor or the prologue, in another order than an epilogue reads
            channels = len(shape) - 1 if group.anchor.op == "Gemm" else None
            return is_per_channel(self.network.constants[name], shape, channels)
        if name not in self.made:
            return False
        later = self.groups[self.groups.index(group) + 1 :]
        # The anchor reads its own operand in another layout and at other places than an epilogue would.
        own = group.anchor.op in ANCHORS and name in {*group.anchor.inputs, *_operands(group.prologue)}
        there = not any(name in other.made for other in later)
        return self.network.tensors[name].shape == shape and there and not group.pooled and not own

    def tiles(self, group: _Group, node: Node) -> bool:
        """True for a pool whose windows lie side by side inside the map that the convolution `group` makes."""
        network = self.network
        if node.op not in POOLS or group.anchor.op != "Conv" or group.pooled or "frames" in node.attributes:
            return False
        if any(name in network.tensors and name not in group.made for name in _operands(group.nodes[1:])):
            return False  # a residual is read pixel by pixel, and behind the pool only its windows have coordinates
        (kh, kw), (h, w) = node["kernel_shape"], network.tensors[node.inputs[0]].shape[2:]
        oh, ow = network.tensors[node.output].shape[2:]
        inside = oh * kh <= h and ow * kw <= w
        tiled = node["strides"] == (kh, kw) and node["dilations"] == (1, 1) and not any(node["pads"])
        return tiled and inside and kh * kw <= MAX_FUSED_WINDOW

    def becomes_prologue(self, group: _Group, node: Node) -> bool:
        """True if the convolution `node` can compute what the element-wise `group` makes as it reads it."""
        network = self.network
        if node.op != "Conv" or not is_anchor(network, node) or not self.ends_here(group, node):
            return False
        shape = network.tensors[group.last].shape
        once = node["group"] == 1 and set(node["kernel_shape"]) == {1} and not any(node["pads"])
        # What all maps of a lone row share is one thread's: four dense layers of 500 positions took 4.1 ms with it, and
        # 2.5 apart (AVX2).
        if not once or shape[1] < MIN_PROLOGUE_CHANNELS or shape[2] == 1:
            return False
        if group.prologue or any(each.op not in ELEMENTWISE or each.op in LONG for each in group.nodes):
            return False
        names = {name for name in _operands(group.nodes) if name in network.constants}
        given = [network.constants[name] for name in names]
        read = [name for name in _operands(group.nodes) if name not in {*group.made, *network.constants}]
        stored = [network.tensors[name] for name in read]
        gates = (shape, (*shape[:2], 1, 1))
        return (
            bool(stored)
            and stored[0].shape == shape
            and not names & {*node.inputs[1:]}  # a constant is packed once, for one reader
            and all(constant.dtype == np.float32 for constant in given)
            and all(tensor.shape in gates and tensor.dtype == "float32" for tensor in stored)
            and all(is_per_channel(constant, shape) for constant in given)
        )


def _copies(nodes: Sequence[Node]) -> int:
    """How often the first value stands in the last, written out."""
    made = {node.output for node in nodes}
    return math.prod(REPEATS.get(node.op, 1) * max(1, sum(name in made for name in node.inputs)) for node in nodes)


def _operands(nodes: Iterable[Node]) -> list[str]:
    return [name for node in nodes for name in node.inputs]


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


def _kernel(network: Network, index: int, group: _Group) -> Kernel:
    anchor, made = group.anchor, group.made
    nodes = (anchor, *group.prologue, *group.nodes[1:])  # the weight first; the image before a residual
    names = list(dict.fromkeys(name for name in _operands(nodes) if name not in made))
    weight = {anchor.inputs[1]} if is_anchor(network, anchor) else set()
    given = {name: network.constants[name] for name in names if name in network.constants}
    single = {name: array for name, array in given.items() if array.size == 1 and array.dtype == np.float32}
    literal = anchor.op in ELEMENTWISE or weight
    scalars = {name: float(array.reshape(())) for name, array in single.items() if literal and name not in weight}
    return Kernel(
        name=f"k{index}_{anchor.op.lower()}",
        nodes=tuple(group.nodes),
        prologue=tuple(group.prologue),
        inputs=tuple(network.tensors[name] for name in names if name not in given),
        output=network.tensors[group.last],
        hidden=tuple(network.tensors[node.output] for node in (*group.prologue, *group.nodes)[:-1]),
        constants=tuple(name for name in given if name not in scalars),
        scalars=scalars,
    )


def is_depthwise(kernel: Kernel) -> bool:
    """True for a convolution of an image that arrives, of as many groups as channels and maps."""
    anchor = kernel.anchor
    if (
        anchor.op not in ("Conv", "QLinearConv")
        or not kernel.inputs
        or len(kernel.inputs[0].shape) != len(kernel.output.shape)
    ):
        return False
    return bool(anchor["group"] == kernel.inputs[0].shape[1] == kernel.output.shape[1])


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

    Rounding never reverses an order, so max(f(a), f(b)) = f(max(a, b)) exactly where f never decreases. Adding a
    constant of the channel is such an f; adding another tensor differs from pixel to pixel of a window, and polynomials
    such as those of Sigmoid and Tanh may fall by a bit between neighbours.
    """
    pool, epilogue = pool_of(kernel), kernel.nodes[1:]
    if pool is None:
        return (), epilogue
    position = epilogue.index(pool)
    before, after = epilogue[:position], epilogue[position + 1 :]
    known = {*kernel.constants, *kernel.scalars}
    monotone = all(node.op in MONOTONE or (node.op == "Add" and known & {*node.inputs}) for node in before)
    return ((), before + after) if pool.op == "MaxPool" and monotone else (before, after)


def squashes(kernel: Kernel) -> bool:
    """True for a convolution whose epilogue cuts its values down to a few: Clip to [0, 1] of what reaches 150.

    The rounding errors of Winograd are relative to the largest sum of products, and would be to that of the result.
    y · Sigmoid(y) is as large as y.
    """
    large = {kernel.anchor.output}
    for node in kernel.nodes[1:]:
        if node.op not in SQUASHING and large & {*node.inputs}:
            large.add(node.output)
    return kernel.output.name not in large


def multiply_accumulates(network: Network, kernel: Kernel) -> int:
    """Multiply-accumulates of a kernel's convolutions, matrix products and recurrences; 0 for the rest."""
    return sum(_products(network, node) for node in kernel.nodes)


def _products(network: Network, node: Node) -> int:
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul", *OF_INTEGERS, *RECURRENT):
        return 0
    x, weight = (network.shape(name) for name in node.inputs[:2])
    if node.op in RECURRENT:
        return math.prod(x[:2]) * math.prod(weight)  # times, batch
    output = network.tensors[node.output].size
    if node.op in ("Conv", "QLinearConv", "ConvInteger"):
        return output * math.prod(weight[1:])
    if node.op == "ConvTranspose":
        return math.prod(x) * math.prod(weight[1:])
    return output * x[0 if node.attributes.get("transA") else -1]
