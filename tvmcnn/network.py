"""The words that the stages hand on: Tensor, Node, Network, Kernel, Layout, Choice, Step, Program.

Frozen dataclasses that check themselves when made and print themselves when asked.
What other words mean here:

    image      a tensor N x C x H x W, and one of its N
    volume     a tensor N x C x D x H x W of D frames, each of them an image; unfolded: several frames as one image
    map        one output channel of a convolution, or one channel where it is read
    block      16 channels that lie side by side (NCHW16c), one or two vectors
    halo       zeros around an image in memory, which a convolution reads instead of asking where the border is
    anchor     the node that decides how a kernel is computed: its convolution, product or pool
    prologue   nodes before the anchor that are computed as it reads; epilogue: those after it, in its registers
    kernel     nodes that run as one; a choice: the kernel with every decision made; a step: its call in the chain
    rule       a schedule by name; config: the numbers that it reads; record: a config that was measured
    tile       what a rule computes at once in registers; band: a part of an image's rows; task: what a thread takes
    arena      one piece of memory for all tensors between kernels, which share it as their lifetimes allow
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tvmcnn.configs import Config
from tvmcnn.half_weights import HalfWeights, expanded, narrowed

Numbers = TypeVar("Numbers", bound=Config)
Shape = tuple[int, ...]
Asked = tuple[int | None, ...]  # a shape that a user asks for: None leaves the leading dimension open
Array = npt.NDArray[Any]
Pads = tuple[int, int, int, int]  # top, left, bottom, right: the order of ONNX's `pads` for two axes
NO_PADS: Pads = (0, 0, 0, 0)
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # the `perm` of NCHW to NHWC, and back
FLOAT32 = "float32"
BYTES = ("int8", "uint8")
BFLOAT16_BITS = "uint16"  # the type that has them, for neither NumPy nor C knows bfloat16
# The attribute of a convolution of bytes that there is a kernel for; True where its sums are rounded within int32
IN_BYTES = "in_bytes"
INDEX_LIMIT = 2**31 - 1  # elements of one stored tensor: kernels index by int32
VIEW = "view"  # the algorithm without code: the output lies in memory that other kernels wrote
ALIGNMENT = 64  # bytes: one cache line, one AVX-512 vector


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


def unmoved(perm: Sequence[int]) -> int:
    """How many of the last axes a permutation leaves where they are."""
    return next((i for i, axis in enumerate(reversed(perm)) if axis != len(perm) - 1 - i), len(perm))


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def dims(shape: Sequence[int | None]) -> str:
    """(1, 6, 28, 28) --> 1x6x28x28, (None, 6) --> Nx6"""
    return "x".join("N" if extent is None else str(extent) for extent in shape) or "scalar"


@dataclass(frozen=True)
class Tensor:
    """A named value of the network: its ONNX name, logical shape (images: N, C, H, W) and dtype.

    Along the axes of `counts` it has as many elements as a scalar, the tensor of that name, says at run time; `shape`
    has the most that there can be, for which there is memory.
    """

    name: str
    shape: Shape
    dtype: str
    counts: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        if any(extent < 0 for extent in self.shape):
            raise ValueError(f"tensor '{self.name}' has an open dimension: {self.shape}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of one element; a bool takes one."""
        return np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        kind = "" if self.dtype == "float32" else f" {self.dtype}"
        most = f", axis {', '.join(str(axis) for axis, _ in self.counts)} at most" if self.counts else ""
        return f"{self.name} {dims(self.shape)}{kind}{most}"


def counted(array: Array, counts: Sequence[tuple[int, str]], numbers: Mapping[str, Array]) -> Array:
    """The part of `array` that counts: along each axis of `counts` the first so many elements as the tensor of that
    name, one of `numbers`, says.
    """
    if not counts:
        return array
    ends = {axis: int(numbers[name]) for axis, name in counts}
    return array[tuple(slice(ends.get(axis)) for axis in range(array.ndim))]


@dataclass(frozen=True)
class Node:
    """One operator that makes one tensor, with every attribute explicit: `auto_pad` resolved, defaults filled in.

    `op` and the attribute names are ONNX's. `inputs` names tensors or constants of the network. An ONNX node with
    several outputs is as many Nodes.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def __str__(self) -> str:
        words = " ".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.output} = {self.op}({', '.join(self.inputs)}) {words}".rstrip()


@dataclass(frozen=True)
class Original:
    """The ONNX tensor or constant that a pass has in another form.

    A batch of frames N x D x C x H x W has the axes of a volume N x C x D x H x W in the `order` 0, 2, 1, 3, 4.
    """

    tensor: Tensor  # as ONNX has it
    order: tuple[int, ...] = ()  # how its axes follow each other in memory, where that is not ONNX's order
    array: Array | None = field(default=None, compare=False)  # of a constant, where it holds other elements now
    shown: bool = True  # False where the memory does not have its elements, each of them once


@dataclass(frozen=True)
class Network:
    """A CNN with all shapes closed: nodes in execution order, weights as constants."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Array]
    folded: Mapping[str, str]  # ONNX tensors that no kernel computes, each with the reason
    metadata: Mapping[str, str] = field(default_factory=dict)  # the file's own key-value pairs
    notes: tuple[str, ...] = ()  # what import decided and must say: a bound dimension, a converted opset
    # What is behind names that a pass has in another rank, and behind views and constants that it added
    originals: Mapping[str, Original] = field(default_factory=dict)
    half_weights: HalfWeights = field(default_factory=HalfWeights)  # what weights were rounded to, and which
    # The name of the leading dimension of each input that the file leaves open, which nobody bound: it is 1 here
    open_batch: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """The shape of an operand, a tensor or a constant."""
        constant = self.constants.get(name)
        return constant.shape if constant is not None else self.tensors[name].shape

    def original(self, name: str) -> Original:
        """A tensor as ONNX has it: its name and shape there, and the order of its axes here."""
        return self.originals.get(name) or Original(self.tensors[name])

    def known_name(self, name: str) -> str:
        """The name by which ONNX knows a tensor or a constant."""
        return self.originals[name].tensor.name if name in self.originals else name

    def known_constant(self, name: str) -> Array | None:
        """A constant as ONNX knows it; None for a tensor."""
        array, original = self.constants.get(name), self.originals.get(name)
        if array is None or original is None:
            return array
        return array.reshape(original.tensor.shape) if original.array is None else original.array

    @functools.cached_property
    def makers(self) -> Mapping[str, Node]:
        """The node that makes each tensor, by the tensor's name."""
        return {node.output: node for node in self.nodes}

    @functools.cached_property
    def known_makers(self) -> Mapping[str, Node]:
        """The node that computes each tensor, by the name that ONNX has for it: no view or copy in another form."""
        inputs = {tensor.name for tensor in self.inputs}
        found: dict[str, Node] = {}
        for node in self.nodes:
            if (name := self.known_name(node.output)) not in inputs:
                found.setdefault(name, node)
        return found

    def __str__(self) -> str:
        head = f"{self.name}: {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"
        return "\n".join([head, *(f"  {node}" for node in self.nodes)])


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one compiled function: the anchor first, then its epilogue in order.

    A prologue is applied to the anchor's first operand as it is read: the BatchNormalization and Relu of a DenseNet.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]  # those of the prologue, the anchor and the epilogue (a residual, say), in this order
    output: Tensor
    prologue: tuple[Node, ...] = ()
    hidden: tuple[Tensor, ...] = ()  # ONNX tensors that live in registers only
    constants: tuple[str, ...] = ()  # arrays read at run time, the weight first
    scalars: Mapping[str, float] = field(default_factory=dict)  # constants of one value: literals in the code

    @property
    def anchor(self) -> Node:
        """The node that decides the algorithm."""
        return self.nodes[0]

    @property
    def dtype(self) -> str:
        """The element type that it computes with: its first input's, or its output's where it has none."""
        return (self.inputs[0] if self.inputs else self.output).dtype

    @property
    def item_bytes(self) -> int:
        """Bytes of an element of that type."""
        return np.dtype(self.dtype).itemsize

    @property
    def all_nodes(self) -> tuple[Node, ...]:
        """The nodes in the order that they compute."""
        return (*self.prologue, *self.nodes)

    @property
    def ops(self) -> str:
        """Conv+Relu+MaxPool"""
        return "+".join(node.op for node in self.all_nodes)

    def __str__(self) -> str:
        return f"{self.name}: {self.ops} {', '.join(map(str, self.inputs))} -> {self.output}"


class Channel(NamedTuple):
    """A channel index as (block, lane): channel = block * size + lane."""

    block: Any
    lane: Any
    size: int

    @property
    def flat(self) -> Any:
        """The index among all channels."""
        return self.block if self.size == 1 else self.block * self.size + self.lane


class Pixel(NamedTuple):
    """The logical coordinates of one element of an image tensor."""

    n: Any
    channel: Channel
    h: Any
    w: Any


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory. Images: NCHW, NCHW{block}c or NCHW{images}n, with a halo of zeros around each map.

    block=16, halo=(1, 1, 1, 1) stores (N, C, H, W) as (N, ⌈C/16⌉, H+2, W+2, 16). A matrix may have a halo at its right,
    which rounds its rows up to whole vectors. Padding of floats, both the halo and the lanes past C, is zero always, so
    that a consumer may read it without a test; the halo of integers is `fill`, their zero point, and lanes past C hold
    anything: the weights there are zero. images=16 stores (N, C, H, W) as (N/16, C, H, W, 16), and a matrix (N, C) as
    (N/16, C, 16). Tensors of other rank are always plain.
    """

    block: int = 1
    halo: Pads = NO_PADS
    # Blocks from one image to the next where that is not its own: in a concatenation that this tensor is a part of, or
    # among unfolded frames, of which neighbours share some
    pitch: int = 0
    images: int = 1  # side by side
    fill: int = 0  # what the halo holds
    narrow: bool = False  # float32 rounded to bfloat16 as it is stored, in 2 bytes: see choose/cpu/narrow_images.py

    @staticmethod
    def of(output: Mapping[str, Any]) -> Layout:
        """The layout of a kernel's output by its entry in the manifest."""
        words = {name: output[name] for name in ("block", "pitch", "images", "narrow")}
        return Layout(halo=tuple(output["halo"]), **words)

    @property
    def plain(self) -> bool:
        """True where memory is the C-contiguous logical array."""
        return self.block == self.images == 1 and self.halo == NO_PADS and not self.narrow

    def physical(self, shape: Shape) -> Shape:
        """The stored shape of a tensor of logical `shape`."""
        if self.plain:
            return shape
        if self.images > 1:
            rest = Layout(halo=self.halo).physical(shape)[1:]
            return (shape[0] // self.images, *rest, self.images)
        top, left, bottom, right = self.halo
        if len(shape) == 2:
            return (shape[0], shape[1] + right)
        n, c, h, w = shape
        rows, columns = h + top + bottom, w + left + right
        return (n, c, rows, columns) if self.block == 1 else (n, -(-c // self.block), rows, columns, self.block)

    @property
    def without_halo(self) -> Layout:
        """The layout of the image alone."""
        return Layout(self.block, pitch=self.pitch, narrow=self.narrow)

    def stored_dtype(self, dtype: str) -> str:
        """The type of the elements in memory of a tensor of `dtype`: of bfloat16 its bits."""
        return BFLOAT16_BITS if self.narrow else dtype

    def item_bytes(self, dtype: str) -> int:
        """Bytes of one of them."""
        return np.dtype(self.stored_dtype(dtype)).itemsize

    def strides(self, shape: Shape) -> Shape:
        """Elements between neighbours along each stored axis of an image in blocks."""
        _, blocks, rows, columns, block = self.physical(shape)
        return ((self.pitch or blocks) * rows * columns * block, rows * columns * block, columns * block, block, 1)

    @property
    def filled(self) -> int:
        """What its halo holds, 0 where it has none."""
        return self.fill if self.halo != NO_PADS else 0

    def first(self, shape: Shape) -> int:
        """Elements before the first of the image: the halo above it and at its left."""
        return (self.halo[0] * self.physical(shape)[3] + self.halo[1]) * self.block if self.block > 1 else 0

    def like(self, other: Layout) -> bool:
        """True if both store a pixel at the same indices; the strides may differ."""
        ours, theirs = ((each.block, each.images, each.halo, each.filled, each.narrow) for each in (self, other))
        return ours == theirs

    def index(self, pixel: Pixel) -> tuple[Any, ...]:
        """Where an image stores the logical element `pixel`."""
        n, channel, h, w = pixel
        row, column = h + self.halo[0], w + self.halo[1]
        if self.images > 1:
            return (n // self.images, channel.flat, row, column, n % self.images)
        if self.block == 1:
            return (n, channel.flat, row, column)
        if channel.size == self.block:
            return (n, channel.block, row, column, channel.lane)
        if channel.size > 1 and self.block % channel.size == 0:  # so written, the lanes are seen to be neighbours
            parts = self.block // channel.size
            return (n, channel.block // parts, row, column, channel.block % parts * channel.size + channel.lane)
        return (n, channel.flat // self.block, row, column, channel.flat % self.block)

    def covers(self, other: Layout) -> bool:
        """True if a reader that wants `other` can read this layout as it is."""
        same = (self.block, self.images, self.narrow) == (other.block, other.images, other.narrow)
        same = same and (other.halo == NO_PADS or self.fill == other.fill)
        return same and all(a >= b for a, b in zip(self.halo, other.halo, strict=True))

    def pack(self, array: Array) -> Array:
        """The stored array of a logical one: (N, C, H, W) --> (N, ⌈C/16⌉, H+2, W+2, 16), padding zero."""
        if self.narrow:
            return dataclasses.replace(self, narrow=False).pack(narrowed(array, "bf16").view(BFLOAT16_BITS))
        if self.plain:
            return np.ascontiguousarray(array)
        if self.images > 1:
            stored = Layout(halo=self.halo).pack(array)
            grouped = stored.reshape(-1, self.images, *stored.shape[1:])
            return np.ascontiguousarray(np.moveaxis(grouped, 1, -1))
        top, left, bottom, right = self.halo
        if array.ndim == 2:
            return np.pad(array, ((0, 0), (0, right)))
        lanes = -array.shape[1] % self.block
        around = ((0, 0), (0, 0), (top, bottom), (left, right))
        padded = np.pad(np.pad(array, around, constant_values=self.fill), ((0, 0), (0, lanes), (0, 0), (0, 0)))
        if self.block == 1:
            return padded
        n, c, h, w = padded.shape
        return np.ascontiguousarray(padded.reshape(n, c // self.block, self.block, h, w).transpose(0, 1, 3, 4, 2))

    def unpack(self, stored: Array, shape: Shape) -> Array:
        """The logical array of a stored one: (N, ⌈C/16⌉, H+2, W+2, 16) --> (N, C, H, W)."""
        stored = stored.reshape(self.physical(shape))
        if self.narrow:
            stored = expanded(stored, "bf16")
        if self.plain:
            return stored
        if self.images > 1:
            inner = Layout(halo=self.halo)
            return inner.unpack(np.moveaxis(stored, -1, 1).reshape(inner.physical(shape)), shape)
        if len(shape) == 2:
            return stored[:, : shape[1]]
        n, c, h, w = shape
        top, left, _, _ = self.halo
        if self.block > 1:
            stored = stored.transpose(0, 1, 4, 2, 3).reshape(n, -1, *stored.shape[2:4])
        return stored[:, :c, top : top + h, left : left + w]

    def __str__(self) -> str:
        name = "plain" if self.block == 1 else f"NCHW{self.block}c"
        name = f"NCHW{self.images}n" if self.images > 1 else name
        name += f"/{self.pitch}" if self.pitch else ""
        name += f"+halo{','.join(map(str, self.halo))}" if self.halo != NO_PADS else ""
        name += "+bfloat16" if self.narrow else ""
        return f"{name}={self.filled}" if self.filled else name


PLAIN = Layout()


@dataclass(frozen=True)
class Choice:
    """A kernel with everything decided: algorithm, layouts, rule, config, and the tier that the config came from."""

    kernel: Kernel
    algorithm: str  # a key of algorithms.py, which names the tensor expression in ops/
    sources: tuple[Tensor, ...]  # the stored tensors behind kernel.inputs: copies by a reorder, or images seen flat
    reads: tuple[Layout, ...]
    writes: Layout
    rule: str  # names the schedule in schedule/
    config: Config | None = None  # the rule's frozen dataclass of tile sizes
    tier: str = "default"  # given, own or shipped record: measured, see records.py; default: computed from shapes
    # What holds the output, and the channel it starts at there: a concatenation, or a batch with images of zeros around
    within: tuple[Tensor, int] | None = None
    tasks: int = 1  # independent parts of the work, which threads share; 1 where that would not pay
    scratch_bytes: int = 0  # memory that each thread needs beside its stack
    reads_beyond: int = 0  # bytes past the end of its first source that it reads, and of which nothing comes
    skips_padding: bool = False  # taps that meet nothing but padding are left out, tile by tile
    expanded: bool = False  # a weight of a half type is float32 in scratch first, for several tiles to read

    def __post_init__(self) -> None:
        stored = (*zip(self.sources, self.reads, strict=False), (self.kernel.output, self.writes))
        for tensor, layout in stored:
            if not layout.plain and tensor.dtype not in (FLOAT32, *BYTES):
                kinds = f"only {FLOAT32} and integers of 8 bits have layouts"
                raise ValueError(f"tensor '{tensor.name}' is {tensor.dtype} in {layout}: {kinds}")
            if layout.narrow and tensor.dtype != FLOAT32:
                raise ValueError(f"tensor '{tensor.name}' is {tensor.dtype} in {layout}: only {FLOAT32} is rounded so")

    def numbers(self, kind: type[Numbers]) -> Numbers:
        """The config, which must be of that kind. Raises TypeError for another: the rule and the config disagree."""
        if not isinstance(self.config, kind):
            raise TypeError(f"{self.name}: rule {self.rule} has a {type(self.config).__name__}, not a {kind.__name__}")
        return self.config

    @property
    def makes(self) -> Layout:
        """The layout that the kernel's expression makes: a halo around blocks is set to zero apart from it, since a
        tile that crosses the border would be no tile of vectors."""
        return self.writes if self.writes.block == 1 else self.writes.without_halo

    @property
    def ends(self) -> tuple[int, int]:
        """The images of zeros before the first that the kernel makes, and behind its last."""
        if self.within is None or self.is_view:
            return 0, 0
        (whole, channel), made = self.within, self.kernel.output.shape
        before = channel // round_up(made[1], self.writes.block)
        return (before, whole.shape[0] - made[0] - before) if whole.shape[0] > made[0] else (0, 0)

    @property
    def end_bytes(self) -> tuple[int, int]:
        """The bytes of these."""
        before, after = self.ends
        if not before + after:
            return 0, 0
        image = stored_bytes(self.kernel.output, self.writes) // self.kernel.output.shape[0]
        return before * image, after * image

    @property
    def is_view(self) -> bool:
        """True if there is nothing to run."""
        return self.algorithm == VIEW

    @property
    def name(self) -> str:
        """The C symbol without the model's prefix, by which logs and profiles name the kernel."""
        return self.kernel.name

    def __str__(self) -> str:
        layouts = f"{', '.join(map(str, self.reads))} -> {self.writes}"
        return f"{self.kernel}  [{self.algorithm}, {layouts}, rule {self.rule}, {self.tier}]"


@dataclass(frozen=True)
class Place:
    """Where a value lives: an offset in bytes into the weights or the arena, or the user's input or output `index`."""

    space: str  # input, output, arena, weights
    index: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.space}[{self.index}]" if self.space in ("input", "output") else f"{self.space}+{self.offset}"


@dataclass(frozen=True)
class Step:
    """One call of the compiled chain: the kernel, the shapes it is declared with, and where each argument lives."""

    choice: Choice
    packed: Mapping[str, Tensor]  # the packed constants by ONNX name, in the order of `arguments`
    arguments: tuple[Place, ...]  # inputs, packed constants, output

    def __str__(self) -> str:
        return f"{self.choice.name}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True)
class Held:
    """Memory of the arena: the tensor that has it (the whole of a concatenation), from the step that first writes it to
    the last that reads it."""

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Program:
    """The network laid out: the steps in order and the plan of the arena."""

    network: Network
    steps: tuple[Step, ...]
    arena_bytes: int
    thread_bytes: int  # of scratch for each thread, behind those
    arena_lower_bound: int  # bytes alive at one step, at most: no plan needs less
    places: Mapping[str, tuple[Place, Layout]]  # every tensor that some kernel stores
    held: tuple[Held, ...] = ()

    def __str__(self) -> str:
        arena = f"arena {self.arena_bytes} B (at least {self.arena_lower_bound})"
        head = f"{self.network.name}: {arena}"
        return "\n".join([head, *(f"  {step}" for step in self.steps)])


def row_shape(source: Shape, depth: int) -> Shape:
    """The trailing axes of `source` that one row of a matrix product of `depth` terms covers."""
    return source[1:] if math.prod(source[1:]) == depth else (depth,)


def stored_bytes(tensor: Tensor, layout: Layout) -> int:
    """Bytes that a tensor takes in memory, padding included; what images share is counted once."""
    shape = layout.physical(tensor.shape)
    item = layout.item_bytes(tensor.dtype)
    if 0 < layout.pitch < shape[1]:
        return ((shape[0] - 1) * layout.pitch + shape[1]) * math.prod(shape[2:]) * item
    return math.prod(shape) * item


def moved_bytes(choice: Choice) -> int:
    """Bytes of the tensors that a kernel reads and of the one that it writes, without its constants."""
    read = sum(stored_bytes(source, layout) for source, layout in zip(choice.sources, choice.reads, strict=True))
    return read + stored_bytes(choice.kernel.output, choice.writes)
