"""Whole models: a first tensor, then nodes behind tensors that are there, by a theme that leads to some layout."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
from hypothesis import strategies as st

# Modules that register their operators
from graphs import elementwise, moves, orders, recurrent, samples, sums, windows  # noqa: F401
from graphs.draft import DTYPES, EDGES, FLOATS, OPSETS, Array, Draft, Held, Skip
from graphs.elementwise import cast_to, partner
from graphs.growers import GROWERS
from graphs.windows import conv, placed

MOST_NODES = 12
CHANNELS = (16, 3, 17, 32, 8, 1, 15, 5, 24, 31)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TYPED = words("Cast Greater Less Equal IsNaN Where CastLike Not And Or Clip Sign Round Floor")
SHAPED = words(
    "Reshape Transpose Slice Concat Split Pad Flatten Unsqueeze Squeeze Tile Gather Resize DepthToSpace Expand"
    " GridSample"
)
PLAIN = words("Add Mul Sub Div Mod Max Min Pow BitwiseAnd BitShift Relu Neg Abs Sum Mean")
LAYERS = words(
    """
    Conv MaxPool AveragePool GlobalAveragePool BatchNormalization Relu Gemm MatMul Softmax ConvTranspose LpPool
    GroupNormalization InstanceNormalization LayerNormalization LRN GlobalMaxPool GlobalLpPool SpaceToDepth LSTM GRU RNN
    """
)


@dataclass(frozen=True, repr=False)
class Drawn:
    """A model with what it is run on, and how."""

    model: onnx.ModelProto
    inputs: dict[str, Array]
    target: str = "native"
    activations: bool = False  # compile and compare hidden tensors too
    split: bool = False  # share even the smallest kernels among threads
    tuned: int = 0  # the seed by which configs are taken from all that the tuner would try; 0: those of a compile
    skipped: tuple[str, ...] = field(default=(), compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the model's bytes."""
        return _again, (self.model.SerializeToString(), self.inputs, *self.way)

    @property
    def way(self) -> tuple[Any, ...]:
        """How it is compiled and run."""
        return self.target, self.activations, self.split, self.tuned

    @property
    def key(self) -> bytes:
        """Different for every other model, input or way to run it."""
        parts = [self.model.SerializeToString(), *(value.tobytes() for value in self.inputs.values())]
        return b"|".join([*parts, repr(self.way).encode()])

    def __repr__(self) -> str:
        way = [self.target, *(word for word in ("activations", "split") if getattr(self, word))]
        way += [f"tuned by {self.tuned}"] if self.tuned else []
        return f"{' '.join(way)}:\n{text_of(self.model)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # hypothesis' way to print
        printer.text(repr(self))


def _again(data: bytes, inputs: dict[str, Array], *way: Any) -> Drawn:
    return Drawn(onnx.load_model_from_string(data), inputs, *way)


def text_of(model: onnx.ModelProto) -> str:
    """The model as ONNX prints it, without the many numbers of a weight."""
    return re.sub(r"\{([^{}\n]{60})[^{}\n]*\}", r"{\1…}", onnx.printer.to_text(model))


TARGETS = ("native", "x86-64-v3")


@st.composite
def models(draw: Callable[[st.SearchStrategy[Any]], Any], targets: tuple[str, ...] = TARGETS) -> Drawn:
    """A model of 2 to 12 nodes."""
    d = Draft(draw)
    theme = THEMES[d.integer(0, len(THEMES) - 1)]
    d.opset = d.choice(OPSETS) if d.chance(1, 3) else OPSETS[0]
    with contextlib.suppress(Skip):
        theme(d)
    more = d.integer(2, 8)
    tries = 0
    while (len(d.nodes) < more or len(d.nodes) < 2) and len(d.nodes) < MOST_NODES - 3 and tries < 40:
        tries += 1
        with contextlib.suppress(Skip):
            step(d)
    made = [name for node in d.nodes for name in node.output]
    shown = [name for name in made if d.chance(1, 12)]
    way = {"target": d.choice(targets), "activations": d.chance(1, 5), "split": d.chance(1, 3)}
    way["tuned"] = d.integer(1, 99) if d.chance(1, 3) else 0
    model = d.model(shown)
    return Drawn(model, d.inputs, **way, skipped=tuple(d.skipped))


def step(d: Draft) -> None:
    """One more operator behind one of the tensors."""
    kind = d.integer(0, 14)
    names = (TYPED, TYPED, SHAPED, SHAPED, PLAIN, LAYERS, LAYERS)[kind] if kind < 7 else tuple(GROWERS)
    held = d.pick(lambda held: any(GROWERS[name].fits(d, held) for name in names))
    if held is None:
        raise Skip("nothing to grow from")
    fitting = [name for name in names if GROWERS[name].fits(d, held)]
    op = d.choice(fitting)
    before = (len(d.nodes), len(d.pool))
    try:
        GROWERS[op].grow(d, op, held)
    except Skip as reason:
        d.skipped.append(f"{op} skipped: {reason}")
        if len(d.nodes) == before[0]:
            raise


# ---- themes ---------------------------------------------------------------------------------------------------------


def batch(d: Draft) -> int:
    return d.choice((1, 1, 3))


def anything(d: Draft) -> None:
    """A tensor of any rank and type."""
    dtype = d.choice(DTYPES) if d.chance(2, 3) else "float32"
    shape: list[int] = []
    for _ in range(d.choice((4, 2, 3, 1, 5, 0))):
        room = 4000
        for extent in shape:
            room //= max(extent, 1)
        shape.append(min(d.extent(), max(room, 1)))
    x = d.input(d.numbers(shape, dtype))
    if d.chance(1, 3):
        d.input(d.numbers(x.shape, d.choice((dtype, "bool", "int64", "float32"))))


def picture(d: Draft, dtype: str = "float32", channels: int | None = None) -> Held:
    channels = channels or d.choice(CHANNELS)
    side = (*range(4, 15), *EDGES, 3, 1)
    height, width = d.choice(side), d.choice(side)
    while channels * height * width > 5000:
        height, width = (height + 1) // 2, (width + 2) // 2
    return d.input(d.numbers((batch(d), channels, height, width), dtype))


def blocks(d: Draft) -> None:
    """Convolutions in blocks of channels, with what fuses, then what changes the type or the shape."""
    x = picture(d, d.choice(FLOATS) if d.chance(1, 8) else "float32")
    for _ in range(d.choice((1, 1, 2, 3))):
        x = layer(d, x)


def layer(d: Draft, x: Held, maps: int | None = None) -> Held:
    """A convolution and sometimes its normalisation, a residual, an activation and a pool."""
    before = x
    if d.chance(1, 6):
        x = d.node("Relu", [x])[0]
    x = conv(d, x, maps, keep=d.chance(1, 2))
    if d.chance(1, 5):
        GROWERS["BatchNormalization"].grow(d, "BatchNormalization", x)
        x = d.pool[-1]
    if d.chance(1, 3):
        residual = before if before.shape == x.shape and before.dtype == x.dtype else partner(d, x, keep=True)
        x = d.node("Add", [x, residual])[0]
    if d.chance(1, 2):
        x = d.node(d.choice(("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish")), [x])[0]
    if d.chance(1, 5):
        x = d.node("MaxPool", [x], **placed(d, x.shape[2:], [2, 2]))[0]
    return x


def winograd(d: Draft) -> None:
    """3 x 3 filters of stride 1 on whole blocks, large enough for tiles to pay."""
    channels = d.choice((16, 32, 48, 20))
    height, width = d.integer(6, 15), d.integer(6, 15)
    x = d.input(d.numbers((batch(d), channels, height, width), "float32", 0))
    if d.chance(1, 2):
        x = d.node("Relu", [x])[0]
    x = conv(d, x, d.choice((32, 48, 64, 33)), 3, keep=True)
    if d.chance(1, 3):
        x = d.node("Add", [x, partner(d, x, keep=True)])[0]
    if d.chance(1, 3):
        x = d.node("Relu", [x])[0]
    if d.chance(1, 4):
        d.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])


def branches(d: Draft) -> None:
    """Convolutions of one tensor that are joined along the channels, as Inception and DenseNet do."""
    x = picture(d)
    if d.chance(1, 2):
        x = layer(d, x, d.choice((16, 32)))
    parts = [x] if d.chance(1, 2) else []
    for _ in range(d.choice((2, 3))):
        part = conv(d, x, d.choice((16, 32, 48, 17)), d.choice((1, 3)), keep=True)
        if d.chance(1, 2):
            part = d.node(d.choice(("Relu", "Sigmoid")), [part])[0]
        parts.append(part)
    if d.chance(1, 5):
        dtype = d.choice(("bool", "int32", "uint8", "float16", "int64", "float64"))
        parts = [cast_to(d, part, dtype) for part in parts]
    x = d.node("Concat", parts, axis=1)[0]
    if x.is_float and d.chance(1, 3):
        conv(d, x, d.choice((16, 17, 3)), d.choice((1, 3)), keep=True)


def tiny(d: Draft) -> None:
    """A batch of whole vectors of small images with few maps, which lie in the lanes."""
    n = d.choice((16, 8, 32))
    x = d.input(d.numbers((n, d.choice((1, 2, 3)), d.integer(6, 12), d.integer(6, 12)), "float32"))
    for _ in range(d.choice((1, 2))):
        x = conv(d, x, d.choice((3, 4, 6)), d.choice((3, 2, 5)))
        if d.chance(1, 2):
            x = d.node("Relu", [x])[0]
        if min(x.shape[2:]) >= 4 and d.chance(2, 3):
            x = d.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])[0]
    if d.chance(1, 2):
        x = d.node("Flatten", [x])[0]
        GROWERS["Gemm"].grow(d, "Gemm", x)


def squeezed(d: Draft) -> None:
    """A gate of one value a map, as squeeze-and-excite blocks have."""
    x = layer(d, picture(d), d.choice((16, 32, 17)))
    gate = d.node("GlobalAveragePool", [x])[0]
    gate = conv(d, gate, x.shape[1], 1)
    if gate.shape[1] != x.shape[1]:
        raise Skip("the gate has other channels")
    gate = d.node("Sigmoid", [gate])[0]
    x = d.node("Mul", [x, gate])[0]
    if d.chance(1, 2):
        conv(d, x, d.choice((16, 24)), 1)


def sequences(d: Draft) -> None:
    """A layer over time, of a sequence or of the columns of an image, and perhaps another."""
    if d.chance(1, 2):
        x = layer(d, picture(d), d.choice((16, 5, 17)))
        columns = d.node("Reshape", [x, d.whole((x.shape[0], -1, x.shape[3]))])[0]
        x = d.node("Transpose", [columns], perm=[2, 0, 1])[0]
    else:
        dtype = d.choice(FLOATS) if d.chance(1, 4) else "float32"
        x = d.input(d.numbers((d.integer(1, 6), d.extent(), d.extent()), dtype))
    for _ in range(d.choice((1, 1, 2))):
        op = d.choice(("LSTM", "GRU", "RNN"))
        if not GROWERS[op].fits(d, x):
            raise Skip("no layer fits")
        before = len(d.nodes)
        GROWERS[op].grow(d, op, x)
        y = next(held for held in d.pool if held.name == d.nodes[before].output[0])
        x = d.node("Reshape", [y, d.whole((*y.shape[:2], -1))])[0]


THEMES: tuple[Callable[[Draft], None], ...] = (
    *(anything, blocks, branches, tiny, winograd, squeezed, sequences),
    *(anything, blocks, anything, blocks, anything, anything),
)
