"""Every kind of mistake is planted once, by a real edit of an expression, a rule or the layout, compiled and run.

The comparison that `tvmcnn.compile` makes must catch it, name the first tensor that is wrong, and leave no file.
Without the edit the same model passes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph
from helpers import short_reduction
from onnx import helper
from tvm import te, tirx

import tvmcnn
from tvmcnn import layout, ops, packing
from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.choose.cpu import choose, frames
from tvmcnn.choose.records import load_records
from tvmcnn.codegen import over_time
from tvmcnn.codegen.cpu import call
from tvmcnn.errors import VerifyError
from tvmcnn.fuse import exact_sums, fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model, operators
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Channel, Choice, Network, Pixel, Step
from tvmcnn.ops import (
    bf16,
    conv,
    dense,
    dense_bf16,
    dense_dots,
    direct,
    dots,
    elementwise,
    few_maps,
    formulas,
    lanes,
    matmul,
    move,
    norm,
    operands,
    pool,
    quantised,
    recurrent,
    regions,
    resize,
    shape,
)
from tvmcnn.ops import winograd as expressions
from tvmcnn.targets import TARGETS

pytestmark = pytest.mark.slow

Plant = Callable[[pytest.MonkeyPatch], None]
Build = Callable[[Graph], str]


@dataclass(frozen=True)
class Bug:
    """A model, the edit, and the first tensor that it makes wrong."""

    name: str
    build: Build  # adds the nodes, names the tensor that must be told, and leaves outputs to `model_of`
    plant: Plant
    target: str = "x86-64-v3"
    precision: str = "fp32"


# ---- models: each returns the tensor that the bug makes wrong first -------------------------------------------------


def padded_conv(**attributes: Any) -> Build:
    """A convolution between two other kernels, so that the right one of several must be told."""

    def build(g: Graph) -> str:
        channels = attributes.get("channels", 18)
        x = g.node("Relu", g.conv(g.input(1, 3, 9, 12), channels, (1, 1)))
        y = g.conv(x, attributes.get("maps", 31), (3, 2), pads=[1, 0, 0, 2], group=attributes.get("group", 1))
        g.output(g.node("Sigmoid", g.node("MaxPool", y, kernel_shape=[3, 3])))
        return y

    return build


def winograd_conv(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(1, 3, 14, 9), 32, (1, 1)))
    y = g.conv(x, 48, (3, 3), pads=[2, 0, 1, 2])
    g.output(y)
    return y


def normalised_conv(g: Graph) -> str:
    """A convolution whose image is made in its own kernel, and shown by another."""
    x = g.conv(g.input(1, 3, 13, 9), 32, (3, 2))
    moments = [g.draw(32), g.draw(32), g.draw(32), g.constant(np.abs(g.rng.standard_normal(32)) + 0.5)]
    y = g.conv(g.node("Relu", g.node("BatchNormalization", x, *moments)), 48, (1, 1))
    g.output(y, g.node("Sigmoid", x))
    return y


def large_product(g: Graph) -> str:
    y = g.node("Gemm", g.node("Tanh", g.input(3, 131)), g.draw(131, 257), g.draw(257))
    g.output(y)
    return y


def pixels_conv(g: Graph) -> str:
    y = g.conv(g.input(1, 6, 5, 7), 9, (1, 1), group=3)
    g.output(y)
    return y


def columns_conv(g: Graph) -> str:
    y = g.conv(g.input(1, 1, 14, 18), 3, (3, 3))
    g.output(g.node("MaxPool", g.node("Relu", y), kernel_shape=[2, 2], strides=[2, 2]))
    return y


def fused(anchor: str, *epilogue: tuple[str, dict[str, Any]], hidden: int | None = None) -> Build:
    """Conv or Gemm and what fuses into it; the wrong tensor is the one after `hidden` epilogue nodes, else the last."""

    def build(g: Graph) -> str:
        if anchor == "Conv":
            y = g.conv(g.input(1, 5, 9, 12), 32, (2, 3))
        else:
            y = g.node("Gemm", g.input(3, 18), g.draw(18, 21), g.draw(21))
        made = [y]
        for op, attributes in epilogue:
            made.append(g.node(op, made[-1], **attributes))
        g.output(made[-1])
        return made[-1 if hidden is None else hidden]

    return build


def one(op: str, *dims: int, constants: tuple[Any, ...] = (), **attributes: Any) -> Build:
    """One operator behind a Tanh."""

    def build(g: Graph) -> str:
        y = g.node(op, g.node("Tanh", g.input(*dims)), *(g.constant(c) for c in constants), **attributes)
        g.output(y)
        return y

    return build


def blocked(op: str, **attributes: Any) -> Build:
    """One operator on the blocked tensor of a convolution."""

    def build(g: Graph) -> str:
        y = g.node(op, g.node("Relu", g.conv(g.input(1, 5, 9, 12), 31, (2, 3))), **attributes)
        g.output(y)
        return y

    return build


def volume(op: str, batch: int = 1, channels: int = 31, **attributes: Any) -> Build:
    """One operator on the volume of a convolution, which lies in blocks of channels if it has so many."""

    def build(g: Graph) -> str:
        x = g.node("Relu", g.conv(g.input(batch, 2, 6, 7, 12), channels, (1, 2, 4)))
        y = g.conv(x, 33, (3, 1, 1), **attributes) if op == "Conv" else g.node(op, x, **attributes)
        g.output(g.node("Tanh", y))
        return y

    return build


def scattered(op: str, indices: Any, updates: tuple[int, ...], **attributes: Any) -> Build:
    """A scatter behind a Tanh, by constant indices."""

    def build(g: Graph) -> str:
        x = g.node("Tanh", g.input(5, 17))
        y = g.node(op, x, g.constant(np.array(indices)), g.draw(*updates), **attributes)
        g.output(y)
        return y

    return build


def best(g: Graph) -> str:
    """The wrong tensor is that of the indices, which are computed before the values."""
    x = g.node("Tanh", g.input(5, 17))
    g.nodes.append(helper.make_node("TopK", [x, g.constant(np.array([4]))], ["values", "places"], name="top"))
    g.output("values", g.node("Cast", "places", to=onnx.TensorProto.FLOAT))
    return "places"


def large_softmax(g: Graph) -> str:
    """Values of hundreds, whose e^x overflows."""
    y = g.node("Softmax", g.node("Mul", g.input(3, 17), g.constant(np.float32(100))), axis=1)
    g.output(y)
    return y


def turned(g: Graph) -> str:
    """A cube, so that an inverted permutation of three axes stays inside."""
    x = g.node("Reshape", g.input(2, 32), g.constant(np.array([4, 4, 4])))
    y = g.node("Transpose", x, perm=[1, 2, 0])
    g.output(y)
    return y


def joined(channels: int) -> Build:
    def build(g: Graph) -> str:
        x = g.input(1, 5, 6, 9)
        y = g.node("Concat", g.conv(x, channels, (3, 2)), g.conv(x, channels, (3, 2)), axis=1)
        g.output(y)
        return y

    return build


def residual(g: Graph) -> str:
    """x is read by the second kernel and the fourth; the third is where its place could be taken."""
    y = x = g.node("Relu", g.conv(g.input(1, 5, 6, 9), 18, (1, 1)))
    for op in ("Sigmoid", "Tanh"):
        y = g.node(op, g.conv(y, 18, (1, 1)))
    y = g.node("Add", g.conv(y, 18, (1, 1)), x)
    g.output(y)
    return y


def two_operands(g: Graph) -> str:
    y = g.node("Sub", g.input(3, 17), g.input(3, 17))
    g.output(y)
    return y


def shared_blocks(g: Graph) -> str:
    """Two groups that are computed as one."""
    y = g.conv(g.input(1, 24, 9, 12), 40, (3, 2), group=2)
    g.output(y)
    return y


def product(g: Graph) -> str:
    y = g.node("MatMul", g.input(3, 35, 18), g.input(3, 18, 37))
    g.output(y)
    return y


def normalized(g: Graph) -> str:
    y = g.node("InstanceNormalization", g.node("Tanh", g.input(2, 3, 5, 7)), g.draw(3), g.draw(3))
    g.output(y)
    return y


def layer(op: str, **attributes: Any) -> Build:
    """A layer of 37 columns behind a Tanh, in both directions; its sequences have different lengths."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]

    def build(g: Graph) -> str:
        x = g.node("Tanh", g.input(5, 3, 6))
        r = g.constant(g.rng.standard_normal((2, gates * 37, 37)) / 6)
        operands = (x, g.draw(2, gates * 37, 6), r, g.draw(2, 2 * gates * 37))
        y = g.node(op, *operands, direction="bidirectional", hidden_size=37, **attributes)
        g.output(y)
        return y

    return build


def sampled(**attributes: Any) -> Build:
    """Blocks of channels and part of one, at places anywhere."""

    def build(g: Graph) -> str:
        x = g.node("Tanh", g.input(1, 19, 5, 7))
        y = g.node("GridSample", x, g.draw(1, 4, 6, 2), **attributes)
        g.output(y)
        return y

    return build


def pooled_regions(op: str, channels: int, **attributes: Any) -> Build:
    """Regions of whole images and of parts of a pixel."""

    def build(g: Graph) -> str:
        corners = g.rng.uniform(-1, 12, (5, 2, 2))
        corners.sort(axis=1)
        rois = corners.reshape(5, 4)
        x = g.node("Tanh", g.input(1, channels, 9, 11))
        if op == "RoiAlign":
            y = g.node(op, x, g.constant(rois), g.constant(np.zeros(5, int)), **attributes)
        else:
            y = g.node(op, x, g.constant(np.c_[np.zeros(5), rois]), **attributes)
        g.output(y)
        return y

    return build


def deformed(g: Graph) -> str:
    g.opset = 19
    y = g.node("DeformConv", g.node("Tanh", g.input(1, 32, 6, 7)), g.draw(5, 32, 2, 3), g.draw(1, 12, 5, 5))
    g.output(y)
    return y


def spectra(g: Graph) -> str:
    constants = (g.constant(np.int64(7)), g.constant(np.hanning(16)))
    y = g.node("STFT", g.node("Tanh", g.input(3, 40, 1)), *constants)
    g.output(y)
    return y


# ---- edits ----------------------------------------------------------------------------------------------------------


def attribute(expression: str, **changed: Callable[[Any], Any]) -> Plant:
    """The expression computes its node with other attributes than the node has."""
    real = ops.EXPRESSIONS[expression]

    def edited(step: Step, given: Any) -> Any:
        node = step.choice.kernel.anchor
        values = {name: change(node[name]) for name, change in changed.items()}
        other = dataclasses.replace(node, attributes={**node.attributes, **values})
        kernel = dataclasses.replace(step.choice.kernel, nodes=(other, *step.choice.kernel.nodes[1:]))
        return real(dataclasses.replace(step, choice=dataclasses.replace(step.choice, kernel=kernel)), given)

    return lambda patch: patch.setitem(ops.EXPRESSIONS, expression, edited)


def of_integers(op: str, **changed: Callable[[Any], Any]) -> Plant:
    """The same of one operator on integers, of which others have no such attributes."""
    plant = attribute("quantised", **changed)

    def planted(patch: pytest.MonkeyPatch) -> None:
        real = ops.EXPRESSIONS["quantised"]
        plant(patch)
        other = ops.EXPRESSIONS["quantised"]
        patch.setitem(
            ops.EXPRESSIONS,
            "quantised",
            lambda step, given: (other if step.choice.kernel.anchor.op == op else real)(step, given),
        )

    return planted


def formula(op: str, edited: Callable[..., Any]) -> Plant:
    return lambda patch: patch.setitem(formulas.FORMULAS, op, edited)


def repacked(algorithm: str, edit: Callable[[Any], Any]) -> Plant:
    """The weights lie in memory as `edit` has them."""
    real = ALGORITHMS[algorithm]
    assert real.weight is not None
    edited = dataclasses.replace(real, weight=lambda choice, weight: real.weight(choice, edit(weight)))
    return lambda patch: patch.setitem(ALGORITHMS, algorithm, edited)


def swapped(axis: int) -> Callable[[Any], Any]:
    """The first two along `axis` change places."""

    def edit(weight: Any) -> Any:
        order = np.arange(weight.shape[axis])
        order[:2] = 1, 0
        return np.take(weight, order, axis)

    return edit


def flipped_pads(patch: pytest.MonkeyPatch) -> None:
    real = operators.windows._slide

    def edited(*given: Any, **named: Any) -> Any:
        attributes, extents = real(*given, **named)
        top, left, bottom, right = attributes["pads"]
        return {**attributes, "pads": (bottom, right, top, left)}, extents

    patch.setattr(operators.windows, "_slide", edited)


def resized(mode: str) -> Callable[[Graph], str]:
    """Blocks of channels, between two convolutions."""

    def build(g: Graph) -> str:
        x = g.conv(g.input(1, 16, 5, 7), 31, (1, 1))
        sizes = g.constant(np.array([1, 31, 9, 13]))
        y = g.conv(g.node("Resize", x, "", "", sizes, mode=mode), 4, (1, 1), bias=False)
        g.output(y)
        return g.nodes[1].output[0]

    return build


def shifted_taps(patch: pytest.MonkeyPatch) -> None:
    """Every tap of a Resize is the pixel before."""
    real = resize._weighted
    patch.setattr(
        resize, "_weighted", lambda tables, read: real(tables, lambda *i: read(*(tirx.max(k - 1, 0) for k in i)))
    )


def shorter_step(patch: pytest.MonkeyPatch) -> None:
    """The frames of a signal follow each other by a sample less."""

    def edited(node: Any, output: Any, x: te.Tensor) -> te.Tensor:
        return move.frames(dataclasses.replace(node, attributes={"step": node["step"] - 1}), output, x)

    patch.setitem(ops.PLAIN, "Frames", edited)


def earlier_frames(patch: pytest.MonkeyPatch) -> None:
    """The frames of a window begin one too early, in plain layout."""

    def edited(node: Any, output: Any, x: te.Tensor) -> te.Tensor:
        other = {**node.attributes, "begin": node["begin"] + 1}
        return move.unfold_frames(dataclasses.replace(node, attributes=other), output, x)

    patch.setitem(ops.PLAIN, "UnfoldFrames", edited)


def shifted_view(patch: pytest.MonkeyPatch) -> None:
    """Frames that are unfolded in place are looked for a block of channels further."""

    def edited(*given: Any, within: Any) -> Choice:
        return Choice(*given, within=(within[0], within[1] + 16))

    patch.setattr(frames, "Choice", edited)


def filled_ends(patch: pytest.MonkeyPatch) -> None:
    """A pixel of the frame of padding in front of a volume is 0.747 (0x3f3f3f3f) and not 0."""
    real = call._ends

    def edited(step: Step) -> str:
        before = step.choice.end_bytes[0]
        return real(step) + (f"  memset(A({step.arguments[-1].offset - before}), 0x3f, 64);\n" if before else "")

    patch.setattr(call, "_ends", edited)


def short_samples(patch: pytest.MonkeyPatch) -> None:
    """The last sample of a bin, of as many as it has pixels, is left out."""
    right = regions.limited
    edited = lambda value, low, high: right(value - 1 if low == 0 and high > 10 else value, low, high)  # noqa: E731
    patch.setattr(regions, "limited", edited)


def images_in_lanes(wrong: int) -> Build:
    """A LeNet for as many images as any vector has lanes; the wrong tensor is that of its first or second anchor."""

    def build(g: Graph) -> str:
        conv = g.conv(g.input(16, 1, 28, 30), 6, (7, 7))
        x = g.node("MaxPool", g.node("Relu", conv), kernel_shape=[2, 2], strides=[2, 2])
        gemm = g.node("Gemm", g.node("Flatten", x), g.draw(792, 25), g.draw(25))
        g.output(g.node("Relu", gemm))
        return (conv, gemm)[wrong]

    return build


def first_conv(g: Graph) -> str:
    """It reads the caller's image and pads it itself."""
    y = g.conv(g.input(1, 3, 13, 10), 16, (2, 3), strides=[2, 2], pads=[1, 0, 0, 2])
    g.output(g.node("Relu", y))
    return y


def depth_to_space(g: Graph) -> str:
    """Blocks of channels, between two convolutions."""
    x = g.conv(g.input(1, 3, 5, 7), 64, (1, 1))
    y = g.node("DepthToSpace", x, blocksize=2)
    g.output(g.conv(y, 5, (1, 1)))
    return y


def swapped_pixels(patch: pytest.MonkeyPatch) -> None:
    """The second and the third block of four change places, and with them the pixels right of and below the first."""
    order = {1: 2, 2: 1}

    def edited(block: Any, lane: Any, size: int) -> Channel:
        other = tirx.Select(block == 1, order[1], tirx.Select(block == 2, order[2], block))
        return Channel(other, lane, size)

    patch.setattr(move, "Channel", edited)


def turned_image(wrong: int) -> Build:
    """Blocks of channels to rows of them, and rows to blocks: the first or the second Transpose will be wrong."""

    def build(g: Graph) -> str:
        rows = g.node("Transpose", g.conv(g.input(1, 3, 5, 7), 48, (1, 1)), perm=[0, 2, 3, 1])
        blocks = g.node("Transpose", g.node("Exp", rows), perm=[0, 3, 1, 2])
        g.output(g.conv(blocks, 40, (3, 3)))
        return (rows, blocks)[wrong]

    return build


def crossed_pixels(patch: pytest.MonkeyPatch) -> None:
    """The first two pixels of a row change places where an image is written in blocks."""
    real = shape.output_pixel

    def edited(*given: Any) -> Pixel:
        pixel = real(*given)
        return pixel._replace(w=tirx.Select(pixel.w == 0, 1, tirx.Select(pixel.w == 1, 0, pixel.w)))

    patch.setattr(shape, "output_pixel", edited)


def shifted_channels(patch: pytest.MonkeyPatch) -> None:
    """The second block of channels is read where the first is wanted, and the other way round."""

    def edited(block: Any, lane: Any, size: int) -> Channel:
        return Channel(tirx.Select(block == 0, 1, tirx.Select(block == 1, 0, block)), lane, size)

    patch.setattr(shape, "Channel", edited)


def dropped_bias(patch: pytest.MonkeyPatch) -> None:
    """The fused expression reads 0 where the bias is: the second constant, after the weight."""
    real = operands.Operands.read

    def edited(self: Any, name: str, where: Any) -> Any:
        is_bias = list(self.constants).index(name) == 1 if name in self.constants else False
        return operands.float32(0.0) if is_bias else real(self, name, where)

    patch.setattr(operands.Operands, "read", edited)


def counted_twice(patch: pytest.MonkeyPatch) -> None:
    """What the last vector of a row has in common with the one before is in the sum twice."""
    patch.setattr(lanes, "tirx", SimpleNamespace(**{**vars(tirx), "Select": lambda test, neutral, found: found}))


def other_literals(module: Any) -> Plant:
    """Every literal but 0 is one too large: the divisor of a mean."""
    return lambda patch: patch.setattr(module, "float32", lambda v: operands.float32(v + 1 if v else v))


def windows_with_padding(patch: pytest.MonkeyPatch) -> None:
    real = packing.window_sizes

    def edited(choice: Choice) -> Any:
        node = choice.kernel.anchor
        counted = dataclasses.replace(node, attributes={**node.attributes, "count_include_pad": True})
        return real(dataclasses.replace(choice, kernel=dataclasses.replace(choice.kernel, nodes=(counted,))))

    patch.setattr(packing, "window_sizes", edited)


def no_maximum(patch: pytest.MonkeyPatch) -> None:
    """Subtracts min(max x, 0): nothing, where the largest value is positive."""
    real = norm.exp
    patch.setattr(norm, "exp", lambda e: real(e.a - tirx.min(e.b, operands.float32(0.0))))


def inverted(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(perm.index(axis) for axis in range(len(perm)))


def other_order(patch: pytest.MonkeyPatch) -> None:
    real = shape._concat

    def edited(extents: Any, axis: int, parts: Any) -> Any:
        return real(extents, axis, parts[::-1])

    patch.setattr(shape, "_concat", edited)


def filled_halo(patch: pytest.MonkeyPatch) -> None:
    """The first pixel of a halo is 0.747 (0x3f3f3f3f) and not 0."""
    real = call._halo

    def edited(step: Step) -> str:
        made = real(step)
        return made and f"{made}  memset(A({step.arguments[-1].offset}), 0x3f, 64);\n"

    patch.setattr(call, "_halo", edited)


def other_matrix(patch: pytest.MonkeyPatch) -> None:
    """One factor of Winograd's input transform is off by a thousandth."""
    right = expressions.MATRICES[4, 3]
    rows = [list(row) for row in right.bt]
    rows[1][1] *= 1.001
    wrong = dataclasses.replace(right, bt=tuple(map(tuple, rows)))
    patch.setattr(expressions, "MATRICES", {**expressions.MATRICES, (4, 3): wrong})


def early_reuse(patch: pytest.MonkeyPatch) -> None:
    """The arena's plan knows the first reader of a tensor only, so that its place is taken while it lives."""
    real = layout._places

    def edited(network: Network, choices: Sequence[Choice]) -> Any:
        seen: set[str] = set()
        first = []
        for choice in choices:
            first.append(dataclasses.replace(choice, sources=tuple(s for s in choice.sources if s.name not in seen)))
            seen |= {source.name for source in choice.sources}
        return real(network, first)

    patch.setattr(layout, "_places", edited)


def shifted_tile(patch: pytest.MonkeyPatch) -> None:
    """The column that an accumulator belongs to is off by one inside its tile."""
    real = dense.te.compute

    def compute(extents: Any, function: Any, name: str) -> Any:
        made = real(extents, function, name=name)
        if name != "dense":
            return made
        width = int(made.shape[-1])
        return SumsOffByOne(made, width)

    patch.setattr(dense, "te", SimpleNamespace(**{**vars(te), "compute": compute}))


class SumsOffByOne:
    """The accumulators, read one column further."""

    def __init__(self, sums: te.Tensor, width: int) -> None:
        self.sums, self.width = sums, width

    def __getitem__(self, indices: tuple[Any, ...]) -> Any:
        *others, column = indices
        return self.sums[(*others, (column + 1) % self.width)]


def missing_finish(patch: pytest.MonkeyPatch) -> None:
    """The epilogue of a fused kernel stops before its last node."""
    patch.setattr(conv, "apply", lambda nodes, *rest: elementwise.apply(nodes[:-1], *rest))


def swapped_states(patch: pytest.MonkeyPatch) -> None:
    """The hidden state of a step is the next one's cell."""
    first, second = over_time.BECOMES
    patch.setattr(over_time, "BECOMES", {first: over_time.BECOMES[second], second: over_time.BECOMES[first]})


def other_gate(first: int, second: int) -> Plant:
    """Two gates change places where the step reads what the input gives them."""
    real, other = recurrent._gate, {first: second, second: first}
    return lambda patch: patch.setattr(
        recurrent, "_gate", lambda layer, at, gate, *rest: real(layer, at, other.get(gate, gate), *rest)
    )


def between_integers(op: str, dtype: str = "uint8", **attributes: Any) -> Build:
    """One operator between integers, of which the one that makes floats again is the last."""

    def build(g: Graph) -> str:
        scale, zero = stored(g, np.float32(0.05)), stored(g, np.array(113 if dtype == "uint8" else -5, dtype))
        x, *others = (
            g.node("DequantizeLinear", g.node("QuantizeLinear", g.input(1, 6, 9, 12), scale, zero), scale, zero)
            for _ in range(2 if op == "Add" else 1)
        )
        if op in ("Conv", "MatMul"):
            group = attributes.get("group", 0)
            kernel = (group or 7, 6 // (group or 1), 3, 2)  # 2 groups fill no blocks of channels: plain loops
            w = stored(g, g.rng.integers(-128, 128, kernel if op == "Conv" else (12, 17), np.int8))
            others = [g.node("DequantizeLinear", w, scale, stored(g, np.int8(0)))]
        y = g.node(op, x, *others, **attributes)
        other = scale if op == "Add" else stored(g, np.float32(0.5 if op in ("Conv", "MatMul") else 0.04))
        made = g.node("QuantizeLinear", y, other, zero)
        g.output(g.node("DequantizeLinear", made, other, zero))
        return made

    return build


def product_of_bytes(arriving: bool = False) -> Build:
    """A product between integers, by a constant matrix or by one that arrives; no instruction adds 13 terms by twos or
    fours."""

    def build(g: Graph) -> str:
        scale, zero, none = (stored(g, array) for array in (np.float32(0.05), np.uint8(113), np.int8(0)))
        q = g.node("QuantizeLinear", g.input(3, 13), scale, zero)
        if arriving:
            w = g.node("QuantizeLinear", g.input(13, 17), scale, none)
        else:
            w = stored(g, g.rng.integers(-128, 128, (13, 17), np.int8))
        factors = g.node("DequantizeLinear", q, scale, zero), g.node("DequantizeLinear", w, scale, none)
        half = stored(g, np.float32(0.5))
        made = g.node("QuantizeLinear", g.node("MatMul", *factors), half, zero)
        g.output(g.node("DequantizeLinear", made, half, zero))
        return made

    return build


def shorter(module: Any, axis: str) -> Plant:
    """One reduction of products of bytes ends early: of the terms, or of the rows of a filter."""

    def reduced(dom: Any, name: str) -> Any:
        return te.reduce_axis((0, dom[1] - 1) if name == axis else dom, name)

    return lambda patch: patch.setattr(module, "te", SimpleNamespace(**{**vars(te), "reduce_axis": reduced}))


def doubled_terms(patch: pytest.MonkeyPatch) -> None:
    """What the last group of terms shares with the one before is added twice."""
    other = SimpleNamespace(**{**vars(np), "where": lambda test, here, there: here})
    patch.setattr(packing, "np", other)


def without_zero_point(algorithm: str) -> Plant:
    """The offsets of a product of bytes have no zero point in them."""
    real = ALGORITHMS[algorithm]
    assert real.constants is not None

    def constants(choice: Choice, arrays: Any) -> Any:
        node = choice.kernel.anchor
        other = dataclasses.replace(node, attributes={**node.attributes, "zero": 0})
        kernel = dataclasses.replace(choice.kernel, nodes=(other,))
        return real.constants(dataclasses.replace(choice, kernel=kernel), arrays)

    return lambda patch: patch.setitem(ALGORITHMS, algorithm, dataclasses.replace(real, constants=constants))


def zeros_around(patch: pytest.MonkeyPatch) -> None:
    """Images of bytes have zeros around them, whatever their zero point."""
    real = call._halo
    patch.setattr(call, "_halo", lambda step: re.sub(r", \d+}, begin", ", 0}, begin", real(step)))


def joined_sum(g: Graph) -> str:
    """A convolution of bytes and what is added to it, which another has made."""
    scale, zero = stored(g, np.float32(0.5)), stored(g, np.uint8(113))
    x = g.node("DequantizeLinear", g.node("QuantizeLinear", g.input(1, 6, 9, 12), scale, zero), scale, zero)
    made = []
    for kernel in ((17, 6, 1, 1), (17, 6, 1, 1)):
        integers = stored(g, g.rng.integers(-128, 128, kernel, np.int8))
        w = g.node("DequantizeLinear", integers, scale, stored(g, np.int8(0)))
        q = g.node("QuantizeLinear", g.node("Conv", x, w), scale, zero)
        made.append(g.node("DequantizeLinear", q, scale, zero))
    total = g.node("QuantizeLinear", g.node("Add", *made), scale, zero)
    g.output(g.node("DequantizeLinear", total, scale, zero))
    return total


def one_more_added(patch: pytest.MonkeyPatch) -> None:
    """What is added to a convolution of bytes is one more than the integer that was stored."""
    real = dots.combined
    patch.setattr(dots, "combined", lambda node, a, b, scales: real(node, a, b + 1, scales))


def sliced(g: Graph) -> str:
    """A block of channels of three, without its first row."""
    bounds = (stored(g, np.array(each, np.int64)) for each in ([16, 1], [32, 7], [1, 2]))
    y = g.node("Slice", g.conv(g.input(1, 5, 9, 12), 48, (2, 3)), *bounds)
    g.output(g.node("Relu", y))
    return y


def pooled_bytes(g: Graph) -> str:
    """A mean of bytes in blocks of channels."""
    scale, zero = stored(g, np.float32(0.5)), stored(g, np.uint8(113))
    x = g.node("DequantizeLinear", g.node("QuantizeLinear", g.input(1, 6, 9, 12), scale, zero), scale, zero)
    integers = stored(g, g.rng.integers(-128, 128, (17, 6, 1, 1), np.int8))
    w = g.node("DequantizeLinear", integers, scale, stored(g, np.int8(0)))
    q = g.node("QuantizeLinear", g.node("Conv", x, w), scale, zero)
    mean = g.node("AveragePool", g.node("DequantizeLinear", q, scale, zero), kernel_shape=[3, 2])
    made = g.node("QuantizeLinear", mean, scale, zero)
    g.output(g.node("DequantizeLinear", made, scale, zero))
    return made


def stored(g: Graph, array: Any) -> str:
    """A constant of the type that it has."""
    g.initializers.append(onnx.numpy_helper.from_array(np.asarray(array), f"c{len(g.initializers)}"))
    return g.initializers[-1].name


def between_convolutions(g: Graph) -> str:
    """An activation of bytes in blocks of channels."""
    scale, zero = stored(g, np.float32(0.05)), stored(g, np.uint8(113))
    x = g.node("QuantizeLinear", g.input(1, 6, 9, 12), scale, zero)
    made = []
    for kernel in ((17, 6, 3, 2), (7, 17, 1, 3)):
        w = g.node(
            "DequantizeLinear", stored(g, g.rng.integers(-128, 128, kernel, np.int8)), scale, stored(g, np.int8(0))
        )
        x = g.node("QuantizeLinear", g.node("Conv", g.node("DequantizeLinear", x, scale, zero), w), scale, zero)
        x = g.node("QuantizeLinear", g.node("Tanh", g.node("DequantizeLinear", x, scale, zero)), scale, zero)
        made.append(x)
    g.output(g.node("DequantizeLinear", x, scale, zero))
    return made[0]


def other_entry(edit: Callable[[Any], Any]) -> Plant:
    """A table is read at other places."""

    def table(node: Any, output: Any, x: te.Tensor, entries: te.Tensor) -> te.Tensor:
        return te.compute(output.shape, lambda *i: entries[edit(x[i].astype("int32"))], name="out")

    def planted(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(ops.PLAIN, "Table", table)
        patch.setitem(quantised.EXPRESSIONS, "Table", table)

    return planted


def in_float32(plant: Plant) -> Plant:
    """A plant in sums of integers that the kernels of float32 compute."""

    def planted(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(exact_sums, "LEAST", 0)
        plant(patch)

    return planted


def cut_off(patch: pytest.MonkeyPatch) -> None:
    """Fractions of what is computed from integers are cut off instead of rounded."""
    real = quantised.stored
    patch.setattr(quantised, "stored", lambda value, node, dtype: real(tirx.floor(value), node, dtype))


def towards_zero(*modules: Any) -> Plant:
    """Round to the smaller of two neighbours in bfloat16, not to the nearest."""

    def narrowed(value: Any) -> Any:
        bits = tirx.reinterpret("uint32", value)
        return tirx.shift_right(bits, tirx.const(16, "uint32")).astype("uint16")

    def planted(patch: pytest.MonkeyPatch) -> None:
        for module in modules:
            patch.setattr(module, "narrowed", narrowed)

    return planted


def residual_as_bits(patch: pytest.MonkeyPatch) -> None:
    """Add the bits of a residual in bfloat16 as an integer."""
    patch.setattr(operands, "widened", lambda bits: bits.astype("float32"))


def weights_towards_zero(patch: pytest.MonkeyPatch) -> None:
    """So do the weights."""
    cut = np.uint32(0xFFFF0000)
    for algorithm in ("bf16", "dense_bf16"):
        repacked(algorithm, lambda weight: (weight.view(np.uint32) & cut).view(np.float32))(patch)


def narrow_image(g: Graph) -> str:
    """One that is multiplied and added: stored in bfloat16."""
    x = g.node("Relu", g.conv(g.input(1, 24, 9, 12), 40, (1, 1)))
    g.output(g.node("Add", g.conv(x, 40, (3, 2), pads=[1, 0, 1, 1]), x))
    return x


def narrow_residual(g: Graph) -> str:
    """The sum that reads one."""
    narrow_image(g)
    return g.outputs[0]


def in_bf16(name: str, build: Build, plant: Plant) -> Bug:
    """A bug in convolutions of bfloat16."""
    return Bug(f"bf16-{name}", build, plant, "x86-64-v4-bf16", "bf16")


RELU = ("Relu", {})
MAX2, AVERAGE2 = ((op, {"kernel_shape": [2, 2], "strides": [2, 2]}) for op in ("MaxPool", "AveragePool"))
WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}

BUGS = [
    in_bf16("short-sum", padded_conv(), shorter(bf16, "rh")),
    in_bf16("skipped-block", padded_conv(channels=40), shorter(bf16, "rb")),
    in_bf16("image-towards-zero", padded_conv(), towards_zero(direct)),
    in_bf16("image-towards-zero-in-a-prologue", normalised_conv, towards_zero(direct)),
    in_bf16("stored-towards-zero", narrow_image, towards_zero(operands)),
    in_bf16("residual-as-bits", narrow_residual, residual_as_bits),
    in_bf16("weights-towards-zero", padded_conv(), weights_towards_zero),
    in_bf16("weights-towards-zero-behind-a-prologue", normalised_conv, weights_towards_zero),
    in_bf16("swapped-channels", padded_conv(), repacked("bf16", swapped(1))),
    in_bf16("swapped-taps", padded_conv(), repacked("bf16", swapped(3))),
    in_bf16("filled-halo", padded_conv(), filled_halo),
    in_bf16("short-sum-of-rows", large_product, shorter(dense_bf16, "rk")),
    in_bf16("rows-towards-zero", large_product, towards_zero(dense_bf16)),
    in_bf16("matrix-towards-zero", large_product, weights_towards_zero),
    in_bf16("swapped-terms", large_product, repacked("dense_bf16", swapped(0))),
    Bug("integers-short-sum", between_integers("Conv", group=2), short_reduction(quantised)),
    Bug("dots-short-sum", between_integers("Conv"), shorter(dots, "rh")),
    Bug("dots-short-sum-of-a-channel", between_integers("Conv", group=6), shorter(dots, "rh")),
    Bug("dots-zero-point", between_integers("Conv"), without_zero_point("dots")),
    Bug("dots-zeros-around", between_integers("Conv", pads=[1, 0, 0, 1]), zeros_around),
    Bug("dots-residual", joined_sum, one_more_added),
    Bug("slice-first-block", sliced, attribute("slice", starts=lambda starts: (0, 0, *starts[2:]))),
    Bug("slice-row", sliced, attribute("slice", starts=lambda starts: (*starts[:2], 0, *starts[3:]))),
    Bug(
        "integers-other-window-in-blocks",
        pooled_bytes,
        attribute("quantised_pool", dilations=lambda d: (1, 2)),
    ),
    Bug("integers-short-product", product_of_bytes(arriving=True), short_reduction(quantised)),
    Bug("dense-dots-short-sum", product_of_bytes(), shorter(dense_dots, "rk")),
    Bug("dense-dots-terms-twice", product_of_bytes(), doubled_terms),
    Bug("dense-dots-zero-point", product_of_bytes(), without_zero_point("dense_dots")),
    Bug("dense-dots-bound", product_of_bytes(), attribute("dense_dots", high=lambda high: high - 100)),
    Bug(
        "integers-zero-point-in-padding",
        between_integers("Conv", group=2, pads=[1, 0, 0, 1]),
        of_integers("QLinearConv", zero=lambda z: z + 1),
    ),
    Bug("integers-other-bound", between_integers("Conv", group=2), of_integers("QLinearConv", low=lambda low: low + 1)),
    Bug(
        "integers-centred", between_integers("Conv", group=2), in_float32(of_integers("Centred", zero=lambda z: z + 1))
    ),
    Bug(
        "integers-requantised",
        between_integers("Conv", group=2),
        in_float32(of_integers("Requantised", to=lambda z: z + 1)),
    ),
    Bug("integers-cut-off", product_of_bytes(arriving=True), cut_off),
    Bug(
        "integers-other-window",
        between_integers("AveragePool", kernel_shape=[3, 2]),
        of_integers("QLinearAveragePool", dilations=lambda d: (1, 2)),
    ),
    Bug("integers-next-entry", between_integers("Tanh"), other_entry(lambda x: (x + 1) % 256)),
    Bug("integers-entries-from-the-least", between_integers("Tanh", "int8"), other_entry(lambda x: x + 128)),
    Bug("integers-next-entry-in-blocks", between_convolutions, other_entry(lambda x: tirx.min(x + 1, 255))),
    Bug("integers-other-zero", between_integers("Add"), of_integers("QLinearAdd", to=lambda z: z + 1)),
    Bug("resize-shifted-taps", resized("linear"), shifted_taps),
    Bug("resize-shifted-taps-nearest", resized("nearest"), shifted_taps),
    Bug("grid-sample-corners", sampled(), attribute("grid_sample", align_corners=lambda corners: not corners)),
    Bug(
        "grid-sample-padding-nearest",
        sampled(mode="nearest"),
        attribute("grid_sample", padding_mode=lambda mode: "border"),
    ),
    Bug(
        "roi-align-samples",
        pooled_regions("RoiAlign", 19, sampling_ratio=2, output_height=2),
        attribute("regions", sampling_ratio=lambda ratio: ratio + 1),
    ),
    Bug("roi-align-short-sum", pooled_regions("RoiAlign", 3, output_width=2), short_samples),
    Bug(
        "max-roi-pool-scale",
        pooled_regions("MaxRoiPool", 3, pooled_shape=[2, 3]),
        attribute("regions", spatial_scale=lambda scale: 1.1 * scale),
    ),
    Bug("deform-conv-pads", deformed, attribute("deform_columns", pads=lambda pads: (1, *pads[1:]))),
    Bug("stft-step", spectra, shorter_step),
    Bug(
        "unfold-frames-begin",
        volume("Conv", batch=3, pads=[1, 0, 0, 1, 0, 0]),
        attribute("unfold_frames", begin=lambda begin: begin + 1),
    ),
    Bug(
        "unfold-frames-dilation",
        volume("Conv", dilations=[2, 1, 1]),
        attribute("unfold_frames", dilation=lambda dilation: dilation - 1),
    ),
    Bug("unfold-frames-plain", volume("Conv", channels=3), earlier_frames),
    Bug("unfold-frames-in-place", volume("Conv"), shifted_view),
    Bug("unfold-frames-ends", volume("Conv", pads=[1, 0, 0, 1, 0, 0]), filled_ends),
    Bug(
        "max-pool-of-frames",
        volume("MaxPool", kernel_shape=[3, 2, 2], pads=[1, 0, 0, 0, 1, 1]),
        attribute("pool", pads=lambda pads: (0, *pads[1:])),
    ),
    Bug(
        "average-pool-of-frames-divisor",
        volume("AveragePool", kernel_shape=[3, 2, 2], pads=[2, 0, 1, 0, 0, 0]),
        windows_with_padding,
    ),
    Bug("conv-flipped-pads-first", first_conv, flipped_pads),
    Bug("conv-swapped-maps-images", images_in_lanes(0), repacked("conv_images", swapped(0))),
    Bug("gemm-swapped-maps-images", images_in_lanes(1), repacked("dense_images", swapped(1))),
    Bug("depth-to-space-swapped-pixels", depth_to_space, swapped_pixels),
    Bug("transpose-crossed-pixels", turned_image(1), crossed_pixels),
    Bug("transpose-shifted-channels", turned_image(0), shifted_channels),
    Bug("conv-flipped-pads", padded_conv(), flipped_pads),
    Bug("conv-flipped-pads-depthwise", padded_conv(maps=18, group=18), flipped_pads),
    Bug("conv-flipped-pads-grouped", padded_conv(channels=20, maps=24, group=4), flipped_pads),
    Bug("conv-swapped-taps-direct", padded_conv(), repacked("direct", swapped(3))),
    Bug("conv-swapped-maps-direct", padded_conv(), repacked("direct", swapped(0))),
    Bug("conv-swapped-channels-direct", padded_conv(), repacked("direct", swapped(1))),
    Bug("conv-swapped-taps-depthwise", padded_conv(maps=18, group=18), repacked("depthwise", swapped(2))),
    Bug("conv-swapped-taps-grouped", padded_conv(channels=20, maps=24, group=4), repacked("grouped", swapped(2))),
    Bug("conv-swapped-taps-shared-blocks", shared_blocks, repacked("direct", swapped(3))),
    Bug("conv-swapped-taps-few-maps", padded_conv(channels=70, maps=3), repacked("few_maps", swapped(3))),
    Bug("conv-swapped-channels-few-maps", padded_conv(channels=70, maps=3), repacked("few_maps", swapped(1))),
    Bug("conv-short-sum-few-maps", padded_conv(channels=70, maps=3), shorter(few_maps, "rb")),
    Bug("conv-short-total-few-maps", padded_conv(channels=70, maps=3), shorter(lanes, "rq")),
    Bug("conv-swapped-taps-columns", columns_conv, repacked("columns", swapped(3))),
    Bug("conv-short-sum-direct", fused("Conv", RELU), short_reduction(direct)),
    Bug("conv-dropped-bias", fused("Conv", RELU), dropped_bias),
    Bug("conv-dropped-epilogue", fused("Conv", RELU, ("Tanh", {})), missing_finish),
    Bug("conv-filled-halo", padded_conv(), filled_halo),
    Bug("winograd-other-matrix", winograd_conv, other_matrix),
    Bug("pixels-short-sum", pixels_conv, short_reduction(conv)),
    Bug("fused-average-pool-divisor", fused("Conv", AVERAGE2), other_literals(conv)),
    Bug("fused-relu-missing", fused("Conv", RELU, MAX2, hidden=1), formula("Relu", lambda x: x)),
    Bug("fused-residual-overwritten", residual, early_reuse),
    Bug("dense-relu-missing", fused("Gemm", RELU), formula("Relu", lambda x: x)),
    Bug("dense-dropped-bias", fused("Gemm", RELU), dropped_bias),
    Bug("dense-swapped-rows", fused("Gemm", RELU, hidden=0), repacked("dense", swapped(0))),
    Bug("dense-short-sum", fused("Gemm", RELU), short_reduction(dense)),
    Bug("matmul-short-sum", product, short_reduction(matmul)),
    Bug("normalize-short-sum", normalized, short_reduction(lanes)),
    Bug("normalize-counted-twice", normalized, counted_twice),
    Bug("normalize-divisor", normalized, other_literals(norm)),
    Bug("dense-shifted-tile", fused("Gemm", RELU), shifted_tile),
    Bug("max-pool-window", blocked("MaxPool", **WINDOW), attribute("pool", kernel_shape=lambda k: (k[0] - 1, k[1]))),
    Bug("max-pool-plain", one("MaxPool", 2, 3, 7, 9, **WINDOW), attribute("pool", pads=lambda p: (0, *p[1:]))),
    Bug("average-pool-divisor", blocked("AveragePool", **WINDOW), windows_with_padding),
    Bug("global-pool-divisor", blocked("GlobalAveragePool"), other_literals(pool)),
    Bug("global-pool-short-sum", one("GlobalLpPool", 2, 3, 7, 9), short_reduction(pool)),
    Bug("lanes-short-sum", one("GlobalAveragePool", 2, 3, 7, 9), short_reduction(lanes)),
    Bug("lanes-counted-twice", one("GlobalAveragePool", 2, 3, 5, 7), counted_twice),
    Bug("softmax-no-maximum", large_softmax, no_maximum),
    Bug("softmax-short-sum", one("Softmax", 3, 17, axis=1), short_reduction(lanes)),
    Bug("softmax-short-sum-across", one("Softmax", 3, 17, axis=0), short_reduction(norm)),
    Bug("rnn-short-sum", layer("RNN"), short_reduction(recurrent)),
    Bug("rnn-other-direction", layer("RNN"), attribute("recurrent", direction=lambda d: "forward")),
    Bug("gru-swapped-gates", layer("GRU"), other_gate(0, 1)),
    Bug(
        "gru-reset-before",
        layer("GRU", linear_before_reset=1),
        attribute("recurrent", linear_before_reset=lambda b: False),
    ),
    Bug("lstm-swapped-gates", layer("LSTM"), other_gate(1, 2)),
    Bug("lstm-swapped-columns", layer("LSTM"), repacked("recurrent", swapped(2))),
    Bug("lstm-swapped-states", layer("LSTM"), swapped_states),
    Bug("sub-operands-swapped", two_operands, formula("Sub", lambda a, b: b - a)),
    Bug("sigmoid-sign", one("Sigmoid", 3, 17), formula("Sigmoid", lambda x: 1 / (1 + tirx.exp(x)))),
    Bug(
        "clip-bound", one("Clip", 3, 17, constants=(np.float32(0), np.float32(0.5))), formula("Clip", lambda x, **b: x)
    ),
    Bug("transpose-inverted", turned, attribute("plain", perm=inverted)),
    Bug("concat-order-plain", joined(17), other_order),
    Bug("concat-order-blocked", joined(16), other_order),
    Bug("cum-sum-exclusive", one("CumSum", 3, 17, constants=(1,)), attribute("in_order", exclusive=lambda e: not e)),
    Bug(
        "scatter-without-sums",
        scattered("ScatterElements", [[2], [2], [0], [1], [2]], (5, 1), axis=1, reduction="add"),
        attribute("in_order", reduction=lambda word: "none"),
    ),
    Bug("top-k-least", best, attribute("in_order", largest=lambda largest: not largest)),
    Bug(
        "scatter-box-shifted",
        scattered("ScatterND", [[1], [2]], (2, 17)),
        attribute("plain", begins=lambda begins: (begins[0] + 1, *begins[1:])),
    ),
    Bug("pad-value", one("Pad", 3, 7, constants=(np.array([1, 0, 2, 1]),)), attribute("plain", value=lambda v: v + 1)),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_caught(bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the control, once a model, then the bug."""
    g = Graph()
    wrong = bug.build(g)
    model, path = g.model(), tmp_path / "net.so"
    if missing := TARGETS[bug.target].missing():
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    passes(model.SerializeToString(), bug.target, bug.precision)
    bug.plant(monkeypatch)
    with pytest.raises(VerifyError, match=rf"first tensor that differs from NumPy is {wrong}:"):
        tvmcnn.compile(model, target=bug.target, output=path, precision=bug.precision)
    assert list(tmp_path.iterdir()) == []


@functools.cache
def passes(model: bytes, target: str, precision: str) -> None:
    """Compile a model without a bug: it is right."""
    with tempfile.TemporaryDirectory() as folder:
        control = tvmcnn.compile(model, target, Path(folder) / "net.so", precision=precision)
        assert control.verdict is not None and control.verdict.passed and control.path.exists()


def test_a_caught_bug_leaves_the_old_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays, byte for byte."""
    g = Graph()
    fused("Gemm", RELU)(g)
    path = tvmcnn.compile(g.model(), target="x86-64-v3", output=tmp_path / "net.so").path
    before = path.read_bytes()
    monkeypatch.setitem(formulas.FORMULAS, "Relu", lambda x: x)
    with pytest.raises(VerifyError):
        tvmcnn.compile(g.model(), target="x86-64-v3", output=path)
    assert path.read_bytes() == before


def test_every_family_has_a_bug() -> None:
    """Each algorithm but the plain copies runs in some bug's model: a new one must come with a bug of its own."""
    seen = set()
    for bug in {(bug.build, bug.target): bug for bug in BUGS}.values():
        g = Graph()
        bug.build(g)
        network, records = simplified(import_model(g.model())), load_records(TARGETS[bug.target], own=False)
        choices = choose(network, fuse(network), TARGETS[bug.target], records, bug.precision)
        seen |= {step.choice.algorithm for step in lay_out(network, choices, Weights()).steps}
    by_records = {"streamed", "winograd_data"}  # which no default is: tests/choose/test_winograd.py plants theirs
    by_tiles = {"amx_int8", "amx_bf16"}  # tests/ops/test_amx.py
    for_cpus = {name for name, how in ALGORITHMS.items() if how.cpu}  # tests/codegen/test_cuda.py plants those of GPUs
    assert seen >= for_cpus - by_records - by_tiles
