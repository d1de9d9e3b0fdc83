"""Choose: each kernel gets its algorithm, layouts, rule and config. The one place that decides.

Layouts follow the network once, front to back: convolutions write NCHW16c, what can works in the layout that it finds,
the rest reads plain tensors; a reorder is added only where reader and writer differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvmcnn.bands import in_bands
from tvmcnn.configs import SoftmaxConfig, StreamedConfig, WinogradConfig
from tvmcnn.defaults import (
    BLOCK,
    columns_config,
    dense_config,
    direct_config,
    images_config,
    pixels_config,
    rows_config,
    winograd_config,
)
from tvmcnn.estimate import microseconds
from tvmcnn.fusion import (
    ELEMENTWISE,
    POOLS,
    deinterleaved,
    is_anchor,
    is_per_channel,
    pool_of,
    window_size,
)
from tvmcnn.network import (
    FLOAT,
    NO_PADS,
    PLAIN,
    Choice,
    Kernel,
    Layout,
    Network,
    Node,
    Pads,
    Tensor,
    round_up,
)
from tvmcnn.records import Records, kernel_words
from tvmcnn.targets import Target
from tvmcnn.tasks import tasks
from tvmcnn.turns import take_turns
from tvmcnn.variants import as_streamed, as_winograd, winograd_data
from tvmcnn.winograd import halo

Config = Any  # one of the dataclasses of configs.py, or None for a rule without numbers

GLOBAL_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
BLOCKED_POOLS = (*POOLS, "LpPool", *GLOBAL_POOLS)  # those that have expressions in any layout of float32 images
# Reductions whose columns lie side by side in plain layout: the rule "rows" fits.
ROWS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "MaxPoolIndices", "LRN", *BLOCKED_POOLS)
MOVES = (  # one stage each, which maps elements: the rule "memory" fits
    *("Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Pad"),
    *("Range", "Reshape", "ReverseSequence", "Shape", "Slice", "SpaceToDepth", "Tile", "Transpose", "Trilu"),
)
LANES = (  # reductions that have an expression with the terms in the lanes
    *("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceProd"),
    *("ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool"),
)
ROW_LIMIT = 4096  # columns of a product whose rows cannot be padded: their accumulators may have to lie on the stack
MAX_TAPS = 16  # of a Resize in one expression: cubic has 4 x 4
IMAGE_LIMIT = 32 << 10  # bytes of a deinterleaved image: "columns" keeps it on the stack, in L1


@dataclass
class _Walk:
    """The state of the front-to-back walk: by tensor name the stored tensor (an image seen flat has another) and its
    layout, and the choices made so far.
    """

    network: Network
    target: Target
    records: Records
    exact: bool  # direct convolution only
    readers: Mapping[str, frozenset[str]]  # by tensor name the anchors of the kernels that read it
    stored: dict[str, tuple[Tensor, Layout]]
    halos: Mapping[str, Pads]  # by tensor name the zeros that its readers want around it
    homes: dict[str, tuple[Tensor, int]]  # parts of a concatenation: the whole, and the channel they start at in it
    images: int  # side by side, in convolutions and matrix products
    choices: list[Choice] = field(default_factory=list)

    def want(self, name: str, layout: Layout, *, exact: bool = False) -> tuple[Tensor, Layout]:
        """The tensor in a layout that covers `layout`, by a reorder if need be (one for all readers that agree)."""
        tensor, have = self.stored[name]
        if have.like(layout) or (have.covers(layout) and not exact):
            return tensor, have
        if layout == PLAIN and len(tensor.shape) == 2 and tensor.shape[0] == 1:
            return tensor, PLAIN  # a single row's halo lies behind it
        copy = self.fresh(f"{tensor.name}@{layout}", tensor)
        if copy not in self.stored:
            self.reorder(tensor, have, Tensor(copy, tensor.shape), layout)
        return self.stored[copy]

    def fresh(self, name: str, tensor: Tensor) -> str:
        """`name` for a copy of `tensor`, marked until no ONNX tensor and no copy in another shape has it."""
        while name in self.network.tensors or (name in self.stored and self.stored[name][0].shape != tensor.shape):
            name += "'"
        return name

    def plain(self, tensor: Tensor) -> tuple[Tensor, Layout]:
        """The tensor in plain layout and under its own shape, even if it is stored under one it was reshaped from."""
        stored, layout = self.want(tensor.name, PLAIN, exact=True)
        return dataclasses.replace(stored, shape=tensor.shape), layout

    def reorder(self, tensor: Tensor, have: Layout, output: Tensor, layout: Layout) -> None:
        node = Node("Reorder", output.name, (tensor.name,), output.name)
        kernel = Kernel("reorder", (node,), (tensor,), output)
        self.add(Choice(kernel, "reorder", (tensor,), (have,), layout, "memory"))

    def tuned(self, kernel: Kernel, rule: str, computed: Config) -> tuple[Config, str]:
        """The recorded config of the kernel and "record", or the computed one and "default"."""
        found = self.records.find(kernel_words(self.network, kernel), rule, self.target)
        return (computed, "default") if found is None else (found, "record")

    def add(self, choice: Choice) -> None:
        """The next kernel, numbered. One that makes a part of a concatenation writes it there."""
        kernel = choice.kernel
        home = self.homes.get(kernel.output.name)
        if choice.writes == Layout(BLOCK) and not choice.is_view:  # whose parts lie where they were written
            if home is not None:
                pitch = home[0].shape[1] // BLOCK if home[0].shape[0] > 1 else 0  # a lone image is followed by none
                choice = dataclasses.replace(choice, writes=Layout(BLOCK, pitch=pitch), within=home)
            elif (around := self.halos.get(kernel.output.name, NO_PADS)) != NO_PADS:
                choice = dataclasses.replace(choice, writes=Layout(BLOCK, around))
        kernel = dataclasses.replace(kernel, name=f"k{len(self.choices)}_{kernel.anchor.op.lower()}")
        choice = dataclasses.replace(choice, kernel=kernel, tasks=tasks(self.network, choice, self.target))
        self.choices.append(choice)
        self.stored[kernel.output.name] = (kernel.output, choice.writes)


def choose(
    network: Network, kernels: Sequence[Kernel], target: Target, records: Records, *, exact: bool = False
) -> tuple[Choice, ...]:
    """The kernels in the order they run, reorders among them, each with every decision made.

    `exact` convolves directly, as the formula is written; otherwise by Winograd where that is faster.
    Outputs of the network are plain. A Reshape costs nothing: its tensor is the same memory under another name.
    """
    choices = _walked(network, kernels, target, records, exact=exact, images=1)
    if _is_tiny(network, choices, target):
        others = _walked(network, kernels, target, records, exact=exact, images=target.lanes)
        choices = min(choices, others, key=lambda each: microseconds(network, each, target))
    return in_bands(network, take_turns(network, choices, target), target)


def _is_tiny(network: Network, choices: Sequence[Choice], target: Target) -> bool:
    """True for a batch of whole vectors of images whose maps are too few for channels in the lanes."""
    batches = {tensor.shape[0] if tensor.shape else 0 for tensor in network.inputs}
    whole = all(batch > 0 and batch % target.lanes == 0 for batch in batches)
    return whole and any(choice.rule == "columns" for choice in choices)


def _walked(
    network: Network, kernels: Sequence[Kernel], target: Target, records: Records, *, exact: bool, images: int
) -> list[Choice]:
    """The choices from front to back, with `images` of them in the lanes of convolutions and matrix products."""
    readers: dict[str, frozenset[str]] = {}
    for kernel in kernels:
        for tensor in kernel.inputs:
            readers[tensor.name] = readers.get(tensor.name, frozenset()) | {kernel.anchor.op}
    stored = {tensor.name: (tensor, PLAIN) for tensor in network.inputs}
    walk = _Walk(network, target, records, exact, readers, stored, {}, _homes(network, kernels), images)
    walk = dataclasses.replace(walk, halos=_halos(walk, kernels))
    outputs = {tensor.name for tensor in network.outputs}
    for kernel in kernels:
        is_output = kernel.output.name in outputs
        if kernel.output.size == 0:
            walk.stored[kernel.output.name] = (kernel.output, PLAIN)  # nothing to compute, nothing to store
            continue
        if kernel.anchor.op == "Reshape" and kernel.inputs and not is_output:
            walk.stored[kernel.output.name] = walk.stored[kernel.anchor.inputs[0]]
            continue
        choice = _decide(walk, kernel, is_output)
        if is_output and not choice.writes.plain:
            inner = Tensor(walk.fresh(f"{kernel.output.name}@{choice.writes}", kernel.output), kernel.output.shape)
            walk.add(dataclasses.replace(choice, kernel=dataclasses.replace(choice.kernel, output=inner)))
            walk.reorder(inner, choice.writes, kernel.output, PLAIN)
        else:
            walk.add(choice)
    return walk.choices


def _halos(walk: _Walk, kernels: Sequence[Kernel]) -> dict[str, Pads]:
    """The halo that the convolutions reading a tensor want, by its name: who makes the tensor leaves room for it.

    Conv 1x1 -> t -> Conv 3x3, pads 1    -->  t is stored with a halo of 1, no kernel copies it into one
    """
    halos: dict[str, Pads] = {}
    for kernel in kernels:
        node, image = kernel.anchor, next(iter(kernel.inputs), None)
        if node.op != "Conv" or image is None or len(image.shape) != 4 or not is_anchor(walk.network, node):
            continue
        found = _winograd_config(walk, kernel)
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


def _decide(walk: _Walk, kernel: Kernel, is_output: bool) -> Choice:
    op = kernel.anchor.op
    if is_anchor(walk.network, kernel.anchor):
        return _conv(walk, kernel, is_output) if op == "Conv" else _dense(walk, kernel, is_output)
    if op in ELEMENTWISE:
        return _elementwise(walk, kernel)
    if op in ("Softmax", "LogSoftmax"):
        axis = kernel.anchor["axis"]
        columns = kernel.output.shape[-1] if axis == len(kernel.output.shape) - 1 > 0 else 0
        config = SoftmaxConfig(axis, in_lanes=columns >= BLOCK and _all_float32(kernel))
        read = [walk.plain(tensor) for tensor in kernel.inputs]
        return _choice(kernel, "softmax", read, PLAIN, "softmax", (config, "default"))
    if kernel.inputs and kernel.inputs[0].dtype == kernel.output.dtype == "float32":
        if op in BLOCKED_POOLS and len(kernel.output.shape) == 4:
            return _pool(walk, kernel)
        if op == "Resize" and walk.stored[kernel.inputs[0].name][1].block > 1 and _resizes_maps(kernel):
            layout = Layout(BLOCK)
            return _choice(kernel, "resize", [_image(walk, kernel.inputs[0], layout)], layout, "memory")
        if op == "DepthToSpace" and walk.stored[kernel.inputs[0].name][1].block > 1 and _moves_blocks(kernel):
            layout = Layout(BLOCK)
            return _choice(kernel, "depth_to_space", [_image(walk, kernel.inputs[0], layout)], layout, "memory")
        if op == "Concat" and _joins_blocks(kernel):
            return _concat(walk, kernel, is_output)
    return _plain(walk, kernel)


def _plain(walk: _Walk, kernel: Kernel) -> Choice:
    """Any operator, rank and dtype."""
    read = [walk.plain(tensor) for tensor in kernel.inputs]
    if _reduces_rows(kernel):
        return _choice(kernel, "lanes", read, PLAIN, "lanes")
    if kernel.anchor.op in ROWS or _keeps_last(walk.network, kernel):
        return _choice(kernel, "plain", read, PLAIN, "rows", (rows_config(walk.network, kernel), "default"))
    moves = kernel.anchor.op in MOVES or "factors" in kernel.anchor.attributes
    return _choice(kernel, "plain", read, PLAIN, "memory" if moves else "fallback")


def _keeps_last(network: Network, kernel: Kernel) -> bool:
    """True for a reduction along axes other than the last, whose columns then lie side by side."""
    node = kernel.anchor
    given = (*kernel.inputs, *(Tensor(name, network.constants[name].shape) for name in kernel.constants))
    return "axes" in node.attributes and len(given[0].shape) - 1 not in node["axes"] and bool(kernel.output.shape)


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


def _pool(walk: _Walk, kernel: Kernel) -> Choice:
    tensor, layout = walk.stored[kernel.inputs[0].name]
    if tensor.shape != kernel.inputs[0].shape or layout.images > 1:
        tensor, layout = walk.plain(kernel.inputs[0])
    if layout.block == 1 and _reduces_rows(kernel):
        return _choice(kernel, "lanes", [walk.plain(kernel.inputs[0])], PLAIN, "lanes")
    algorithm = "global_pool" if kernel.anchor.op in GLOBAL_POOLS else "pool"
    rule = "pool" if layout.block > 1 else "fallback"
    return _choice(kernel, algorithm, [(tensor, layout)], Layout(layout.block), rule)


def _choice(
    kernel: Kernel,
    algorithm: str,
    read: Sequence[tuple[Tensor, Layout]],
    writes: Layout,
    rule: str,
    config: tuple[Config, str] = (None, "default"),
) -> Choice:
    tensors, layouts = tuple(tensor for tensor, _ in read), tuple(layout for _, layout in read)
    return Choice(kernel, algorithm, tensors, layouts, writes, rule, *config)


# ---- convolutions ---------------------------------------------------------------------------------------------------


def _conv(walk: _Walk, kernel: Kernel, is_output: bool) -> Choice:
    node, image, residuals = kernel.anchor, kernel.inputs[0], kernel.inputs[1:]
    weight = walk.network.constants[node.inputs[1]]
    group, maps, channels = node["group"], weight.shape[0], image.shape[1]
    pads: Pads = node["pads"]
    covers = group == 1 and weight.shape[2:] == image.shape[2:] and pads == NO_PADS and node["dilations"] == (1, 1)
    covers = covers and maps <= ROW_LIMIT
    alone = not residuals and not kernel.prologue
    if covers and pool_of(kernel) is None and alone:
        return _dense(walk, kernel, is_output)
    if walk.images > 1 and group == 1 and alone and image.shape[0] % walk.images == 0:
        tile = images_config(maps, kernel.output.shape[3], math.prod(window_size(kernel)), 0, walk.target)
        read = [_image(walk, image, Layout(halo=pads, images=walk.images))]
        return _choice(kernel, "conv_images", read, Layout(images=walk.images), "images", (tile, "default"))
    if group == 1 and alone and _fits_columns(walk, kernel):
        width = kernel.output.shape[3]
        writes = Layout(1, (0, 0, 0, round_up(width, walk.target.lanes) - width))
        config = walk.tuned(kernel, "columns", columns_config(kernel, maps, width, walk.target))
        return _choice(kernel, "columns", [walk.plain(image)], writes, "columns", config)
    if group == channels == maps:
        algorithm, depth = "depthwise", 0
    elif group == 1 or (channels // group % BLOCK == 0 and maps // group % BLOCK == 0):
        algorithm, depth = "direct", channels // group
    else:
        read = [_image(walk, image, Layout(1, pads)), *(walk.plain(tensor) for tensor in residuals)]
        if pool_of(kernel) is not None:
            return _choice(kernel, "grouped", read, PLAIN, "fallback")
        if _fits_pixels(kernel):
            config = walk.tuned(kernel, "pixels", pixels_config(kernel, group, walk.target))
            return _choice(kernel, "pixels", read, PLAIN, "pixels", config)
        return _choice(kernel, "grouped", read, PLAIN, "rows", (rows_config(walk.network, kernel), "default"))
    if algorithm == "direct" and (found := _winograd_config(walk, kernel)) is not None:
        return _winograd(walk, kernel, *found)
    few = algorithm == "direct" and channels < BLOCK and walk.stored[image.name][1].block == 1
    block = 1 if few else BLOCK
    read = [_image(walk, image, Layout(block, pads))]
    read += [_gate(walk, t) if t.shape[2:] == (1, 1) else _image(walk, t, Layout(BLOCK)) for t in residuals]
    computed = direct_config(kernel, maps, min(depth, block), walk.target)
    return _choice(kernel, algorithm, read, Layout(BLOCK), "direct", walk.tuned(kernel, "direct", computed))


def _winograd_config(walk: _Walk, kernel: Kernel) -> tuple[WinogradConfig | StreamedConfig, str] | None:
    """The config with its tier, or None where direct convolution is faster: by record, else by estimate."""
    if walk.exact:
        return None
    words = kernel_words(walk.network, kernel)
    recorded = walk.records.fastest(words, ("winograd", "streamed", "direct"), walk.target)
    if recorded is None:
        computed = winograd_config(kernel, walk.target)
        return None if computed is None else (computed, "default")
    return None if recorded == "direct" else (walk.records.find(words, recorded, walk.target), "record")


def _winograd(walk: _Walk, kernel: Kernel, config: WinogradConfig | StreamedConfig, tier: str) -> Choice:
    """The convolution by Winograd: its tiles read a halo that fills the last row and column of them."""
    image, residuals = kernel.inputs[0], kernel.inputs[1:]
    pads = halo(kernel.anchor, image.shape, config.tile)
    read = [_image(walk, image, Layout(BLOCK, pads))]
    read += [_gate(walk, t) if t.shape[2:] == (1, 1) else _image(walk, t, Layout(BLOCK)) for t in residuals]
    choice = _choice(kernel, "direct", read, Layout(BLOCK), "direct", (None, tier))
    if isinstance(config, WinogradConfig):
        return as_winograd(choice, config)
    data = winograd_data(choice, config.tile)
    if data.kernel.output.name not in walk.stored:  # else another convolution has had it made
        walk.add(data)
    return as_streamed(choice, config, data.kernel.output, walk.target)


def _image(walk: _Walk, tensor: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
    """The tensor in `layout`; one that is stored under another shape goes through plain memory."""
    if walk.stored[tensor.name][0].shape != tensor.shape:
        walk.stored[tensor.name] = walk.plain(tensor)
    return walk.want(tensor.name, layout)


def _fits_pixels(kernel: Kernel) -> bool:
    """True for 1x1 filters that read every pixel of maps of at least one vector, unpadded."""
    node = kernel.anchor
    once = node["kernel_shape"] == node["strides"] == (1, 1) and node["pads"] == NO_PADS
    return once and not kernel.prologue and math.prod(kernel.output.shape[2:]) >= BLOCK


def _fits_columns(walk: _Walk, kernel: Kernel) -> bool:
    """True if columns fill the lanes better than channels do, and the image is small enough for the stack."""
    _, maps, height, width = kernel.output.shape
    lanes = round_up(width, walk.target.lanes)
    rows, phases, pitch = deinterleaved(kernel, height, lanes)
    size = kernel.inputs[0].shape[1] * rows * phases * pitch * FLOAT
    return width / lanes > maps / round_up(maps, BLOCK) and size <= IMAGE_LIMIT


# ---- the rest -------------------------------------------------------------------------------------------------------


def _dense(walk: _Walk, kernel: Kernel, is_output: bool) -> Choice:
    """A matrix product reads its rows as they lie in memory, halo and all; only a stack of matrices must be plain."""
    image = kernel.inputs[0]
    rows = kernel.output.shape[0]
    source, layout = walk.stored[image.name]
    if layout.images > 1:
        if (
            source.shape[0] == rows
            and len(kernel.inputs) == 1
            and kernel.output.size == math.prod(kernel.output.shape[:2])
        ):
            maps = kernel.output.shape[1]
            depth = math.prod(source.shape[1:])
            tile = images_config(maps, rows // walk.images, 1, depth, walk.target)
            writes = Layout(images=walk.images)
            return _choice(kernel, "dense_images", [(source, layout)], writes, "images", (tile, "default"))
        source, layout = walk.plain(image)
    if len(kernel.output.shape) != 2 and kernel.anchor.op == "Gemm":
        source, layout = walk.plain(image)
        rows = math.prod(kernel.output.shape[:-1])
    elif source.shape[0] != rows:
        source, layout = walk.plain(image)
    maps = kernel.output.shape[1 if kernel.anchor.op == "Conv" else -1]
    depth = math.prod(layout.physical(source.shape)) // rows
    config, tier = walk.tuned(kernel, "dense", dense_config(rows, depth, maps, walk.target))
    read = [(source, layout), *(walk.plain(tensor) for tensor in kernel.inputs[1:])]
    # Rows of whole tiles cost nothing where only matrix products read them, and where a row has several tiles they keep
    # the accumulators in registers. Not with a second tensor in the epilogue, whose rows have no halo to read.
    inner = not is_output and walk.readers.get(kernel.output.name) == frozenset({"Gemm"})
    tiled = maps > config.width and maps % config.width > 0
    padded = len(kernel.output.shape) == 2 and len(kernel.inputs) == 1 and (inner or tiled)
    writes = Layout(1, (0, 0, 0, round_up(maps, config.width) - maps)) if padded else PLAIN
    return _choice(kernel, "dense", read, writes, "dense", (config, tier))


def _concat(walk: _Walk, kernel: Kernel, is_output: bool) -> Choice:
    """In place where a part was written into the whole; those that were not are moved there."""
    found = [walk.stored[tensor.name] for tensor in kernel.inputs]
    whole, start = walk.homes.get(kernel.output.name, (kernel.output, 0))
    there = {choice.kernel.output.name: choice.within for choice in walk.choices if choice.within is not None}
    if not is_output and any(there.get(tensor.name, (None,))[0] == whole for tensor in kernel.inputs):
        return _in_place(walk, kernel, whole, start)
    seen = [tensor.shape for tensor in kernel.inputs] == [tensor.shape for tensor, _ in found]  # none is a reshaped one
    if seen and all(layout.block == BLOCK for _, layout in found):
        found = [walk.want(tensor.name, Layout(BLOCK), exact=True) for tensor in kernel.inputs]
        return _choice(kernel, "concat", found, Layout(BLOCK), "memory")
    return _plain(walk, kernel)


def _in_place(walk: _Walk, kernel: Kernel, whole: Tensor, start: int) -> Choice:
    """A view of the whole, each part of which is at its place or is copied to it."""
    read = []
    channel = start
    for name in kernel.anchor.inputs:
        tensor = walk.network.tensors[name]
        home = next((c.within for c in walk.choices if c.kernel.output.name == name), None)
        if home != (whole, channel):
            source, layout = walk.stored[name]
            source, layout = (source, layout) if source.shape == tensor.shape else walk.plain(tensor)
            part = Tensor(walk.fresh(f"{name}@{kernel.output.name}", tensor), tensor.shape)
            while part.name in walk.stored:  # the same tensor twice in one concatenation
                part = dataclasses.replace(part, name=f"{part.name}'")
            walk.homes[part.name] = (whole, channel)
            walk.reorder(source, layout, part, Layout(BLOCK))
            name = part.name
        read.append(walk.stored[name])
        channel += tensor.shape[1]
    pitch = whole.shape[1] // BLOCK if whole.shape[0] > 1 and whole != kernel.output else 0
    sources, layouts = zip(*read, strict=True)
    return Choice(kernel, "view", sources, layouts, Layout(BLOCK, pitch=pitch), "none", within=(whole, start))


def _elementwise(walk: _Walk, kernel: Kernel) -> Choice:
    """In the layout of its operands if they share one and broadcast nothing but pixels and channels; else plain."""
    shape = kernel.output.shape
    gates = [tensor for tensor in kernel.inputs if tensor.shape != shape and tensor.shape == (*shape[:2], 1, 1)]
    full = [walk.stored[tensor.name] for tensor in kernel.inputs if tensor not in gates]
    layout = full[0][1] if full else PLAIN
    constants = (walk.network.constants[name] for name in kernel.constants)
    same = layout.block > 1 and all(have.block == layout.block and tensor.shape == shape for tensor, have in full)
    if same and all(is_per_channel(constant, shape) for constant in constants):
        read = [_gate(walk, tensor) if tensor in gates else walk.stored[tensor.name] for tensor in kernel.inputs]
        return _choice(kernel, "elementwise", read, Layout(layout.block), "memory")
    rule = "memory" if _all_float32(kernel) else "fallback"  # vectors of other types are left to LLVM
    return _choice(kernel, "elementwise", [walk.plain(tensor) for tensor in kernel.inputs], PLAIN, rule)


def _gate(walk: _Walk, tensor: Tensor) -> tuple[Tensor, Layout]:
    """One value a map, as squeeze-and-excite blocks make them: read in any layout, under its own shape."""
    stored, layout = walk.stored[tensor.name]
    return (stored, layout) if stored.shape == tensor.shape else walk.plain(tensor)
