"""Whole models: a first tensor, then nodes behind tensors that are there, by a theme that leads to some layout."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import onnx
from hypothesis import strategies as st

# Modules that register their operators
from graphs import counted, elementwise, integers, moves, orders, recurrent, samples, sums, windows  # noqa: F401
from graphs.draft import OPSETS, Array, Draft, Skip
from graphs.growers import GROWERS
from graphs.themes import THEMES

MOST_NODES = 12


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TYPED = words("Cast Greater Less Equal IsNaN Where CastLike Not And Or Clip Sign Round Floor")
SHAPED = words(
    "Reshape Transpose Slice Concat Split Pad Flatten Unsqueeze Squeeze Tile Gather Resize DepthToSpace Expand"
    " GridSample"
)
PLAIN = words("Add Mul Sub Div Mod Max Min Pow BitwiseAnd BitShift Relu Neg Abs Sum Mean Swish")
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
    precision: str = "fp32"  # of factors, on targets that multiply such
    weights: str = "fp32"
    skipped: tuple[str, ...] = field(default=(), compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the model's bytes."""
        return _again, (self.model.SerializeToString(), self.inputs, *self.way)

    @property
    def way(self) -> tuple[Any, ...]:
        """How it is compiled and run."""
        return self.target, self.activations, self.split, self.tuned, self.precision, self.weights

    @property
    def key(self) -> bytes:
        """Different for every other model, input or way to run it."""
        parts = [self.model.SerializeToString(), *(value.tobytes() for value in self.inputs.values())]
        return b"|".join([*parts, repr(self.way).encode()])

    def __repr__(self) -> str:
        way = [self.target, *(word for word in ("activations", "split") if getattr(self, word))]
        way += [f"tuned by {self.tuned}"] if self.tuned else []
        way += [f"{name} {kind}" for name in ("precision", "weights") if (kind := getattr(self, name)) != "fp32"]
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
def models(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    targets: tuple[str, ...] = TARGETS,
    wanted: Collection[str] = (),
) -> Drawn:
    """A model of 2 to 12 nodes; of the operators that fit behind its tensors those that are `wanted`, if any does."""
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
            step(d, wanted)
    made = [name for node in d.nodes for name in node.output]
    shown = [name for name in made if d.chance(1, 12)]
    way = {"target": d.choice(targets), "activations": d.chance(1, 5), "split": d.chance(1, 3)}
    way["tuned"] = d.integer(1, 99) if d.chance(1, 3) else 0
    way["precision"] = "bf16" if d.chance(1, 6) else "fp32"
    way["weights"] = d.choice(("fp16", "bf16")) if d.chance(1, 10) else "fp32"
    model = d.model(shown)
    return Drawn(model, d.inputs, **way, skipped=tuple(d.skipped))


def step(d: Draft, wanted: Collection[str] = ()) -> None:
    """One more operator behind one of the tensors."""
    kind = d.integer(0, 14)
    names = (TYPED, TYPED, SHAPED, SHAPED, PLAIN, LAYERS, LAYERS)[kind] if kind < 7 else tuple(GROWERS)
    names = tuple(each for each in sorted(wanted) if any(GROWERS[each].fits(d, held) for held in d.pool)) or names
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
