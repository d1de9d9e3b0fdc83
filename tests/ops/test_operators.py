"""Numbers: every operator at awkward sizes against the NumPy reference, for both vector widths.

No two dimensions of an input are equal, so that a swap shows. Many cases share one model of several outputs, because
compiling costs more than running.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, lenet, mnist8
from helpers import GUARD, SPLIT, assert_within, check, error_bounds, feeds, use_target

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.compiler import Compiled
from tvmcnn.errors import UnsupportedError

EDGES = (7, 8, 9, 15, 16, 17, 31, 33)  # around the vectors of 8 and 16 floats


# ---- convolutions ---------------------------------------------------------------------------------------------------


def test_conv_at_vector_edges_of_channels(target: str, tmp_path: Path) -> None:
    """Input channels and maps at the edges; maps beside channels, so that all pairs of a block's state occur."""
    g = Graph()
    for place, channels in enumerate(EDGES):
        x = g.input(1, channels, 5, 6)
        g.output(g.conv(x, EDGES[place - 3], (3, 2), bias=place % 2 == 0))
    algorithms = {s.choice.algorithm for s in check(g.model(), tmp_path, target).program.steps}
    assert algorithms >= {"direct"}


def test_groups_beside_another_image(tmp_path: Path) -> None:
    """Three groups that share blocks, and a sum with an image of as many channels as they have maps: in the open
    variant too, which shows what is hidden."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 5, 7, 9), 24, (1, 1)))
    y = g.conv(x, 33, (2, 3), group=3, pads=[1, 1, 0, 1])
    g.output(g.node("Relu", g.node("Add", y, g.input(1, 33, 7, 9))))
    compiled = check(g.model(), tmp_path)
    assert any(step.choice.kernel.ops == "Conv+Add+Relu" for step in compiled.program.steps)


def test_conv_at_vector_edges_of_width(target: str, tmp_path: Path) -> None:
    """Output widths at the edges, with three maps for columns in the lanes, and with twenty for channels."""
    g = Graph()
    for place, width in enumerate(EDGES):
        x = g.input(1, 2, 5, width + 2)
        g.output(g.conv(x, 32 if place % 3 == 0 else 3, (2, 3), bias=place % 2 == 0))
    algorithms = {s.choice.algorithm for s in check(g.model(), tmp_path, target).program.steps}
    assert algorithms >= {"direct", "columns"}


CONVS: dict[str, list[tuple[tuple[int, int, int, int], int, tuple[int, int], dict[str, Any]]]] = {
    "strides": [
        ((1, 3, 11, 14), 5, (3, 2), {"strides": [2, 2]}),
        ((2, 17, 9, 12), 18, (3, 2), {"strides": [2, 1]}),
        ((1, 16, 10, 13), 32, (1, 1), {"strides": [2, 2]}),
        ((1, 4, 8, 37), 3, (2, 3), {"strides": [1, 2]}),
    ],
    "pads": [
        ((1, 1, 6, 9), 4, (3, 3), {"pads": [1, 1, 1, 1]}),
        ((1, 3, 7, 12), 2, (3, 4), {"pads": [2, 0, 1, 3]}),
        ((2, 17, 5, 8), 16, (3, 3), {"pads": [0, 2, 1, 0], "strides": [2, 1]}),
        ((1, 20, 6, 9), 33, (3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((1, 5, 9, 16), 3, (2, 4), {"auto_pad": "SAME_LOWER"}),
        ((1, 6, 7, 10), 17, (2, 3), {"auto_pad": "VALID"}),
        ((1, 2, 3, 5), 19, (3, 5), {"pads": [2, 4, 2, 4]}),
    ],
    "dilations": [
        ((1, 18, 9, 11), 17, (3, 2), {"dilations": [2, 3]}),
        ((1, 2, 11, 25), 3, (2, 3), {"dilations": [3, 2], "pads": [1, 2, 0, 1], "strides": [1, 2]}),
        ((1, 21, 12, 10), 21, (3, 3), {"dilations": [2, 1], "group": 21}),
    ],
    "groups": [
        ((1, 6, 7, 9), 8, (3, 2), {"group": 2, "pads": [1, 0, 1, 1]}),
        ((2, 9, 6, 8), 15, (2, 3), {"group": 3}),
        ((1, 32, 5, 7), 64, (3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
        ((1, 48, 5, 6), 48, (1, 2), {"group": 3, "strides": [2, 1]}),
    ],
    "groups that share blocks": [  # the last alone where their number is odd
        ((1, 32, 5, 7), 64, (3, 2), {"group": 4, "pads": [1, 1, 1, 0]}),
        ((2, 24, 6, 8), 24, (2, 3), {"group": 3, "strides": [1, 2]}),
        ((1, 48, 4, 9), 16, (3, 3), {"group": 2, "dilations": [1, 2]}),
        ((1, 40, 5, 6), 120, (1, 1), {"group": 5}),
    ],
    "depthwise": [
        *[((1, c, 9, 12), c, (3, 2), {"group": c, "pads": [1, 1, 1, 0]}) for c in (7, 17, 33)],
        ((2, 16, 8, 11), 16, (3, 3), {"group": 16, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((1, 5, 7, 9), 10, (3, 3), {"group": 5}),  # with a multiplier
        ((1, 16, 7, 9), 48, (2, 3), {"group": 16, "strides": [1, 2]}),
    ],
    "1x1": [
        ((1, 17, 6, 8), 31, (1, 1), {}),
        ((3, 32, 5, 7), 16, (1, 1), {}),
        ((1, 3, 5, 33), 2, (1, 1), {}),
        ((1, 1, 5, 6), 1, (1, 1), {}),
    ],
    "covering": [
        ((1, 16, 5, 6), 33, (5, 6), {}),
        ((3, 7, 2, 4), 17, (2, 4), {}),
        ((2, 11, 3, 4), 5, (3, 4), {"strides": [2, 3]}),
        ((1, 3, 2, 5), 4, (2, 5), {"pads": [0, 0, 0, 1]}),
    ],
    "images": [
        ((1, 1, 28, 30), 6, (5, 5), {}),
        ((1, 3, 15, 18), 16, (7, 6), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
        ((1, 130, 4, 6), 40, (3, 2), {}),
        ((3, 1, 6, 10), 2, (3, 3), {}),
    ],
}


@pytest.mark.parametrize("family", CONVS)
def test_conv(family: str, target: str, tmp_path: Path) -> None:
    """Every second one without a bias."""
    g = Graph()
    for place, (shape, maps, kernel, attributes) in enumerate(CONVS[family]):
        g.output(g.conv(g.input(*shape), maps, kernel, bias=place % 2 == 0, **attributes))
    check(g.model(), tmp_path, target)


def test_two_groups_in_a_block(target: str, tmp_path: Path) -> None:
    """In the lanes, with an epilogue, so that the open variant reads their filters; where 4 are in a block, plain."""
    g = Graph()
    x = g.conv(g.input(1, 3, 9, 11), 56, (1, 1))
    for group in (7, 14):
        g.output(g.node("Relu", g.node("Add", g.conv(x, 56, (3, 3), group=group, pads=[1, 1, 1, 1]), x)))
    compiled = check(g.model(), tmp_path, target)
    assert grouped_algorithms(compiled) == ["direct", "grouped"]
    said = "groups: 1 of 2 grouped convolutions compute two or three groups as one; NaN and inf spread from one to"
    assert compiled.manifest["groups"].startswith(said)
    exact = tvmcnn.compile(g.model(), target, tmp_path / "exact.so", exact=True, verify=False)
    assert grouped_algorithms(exact) == ["grouped", "grouped"]
    assert exact.manifest["groups"] == ""


def grouped_algorithms(compiled: Compiled) -> list[str]:
    choices = [step.choice for step in compiled.program.steps]
    return [choice.algorithm for choice in choices if choice.kernel.anchor.attributes.get("group", 1) > 1]


@pytest.mark.parametrize("channels", [1, 19])
def test_conv_with_epilogue_and_pool(channels: int, target: str, tmp_path: Path) -> None:
    """One kernel each: the bias as an Add, what may move behind a max pool and what may not, both pools of 2 and 3."""
    g = Graph()
    x = g.input(2, channels, 20, 29)
    per_channel = (5, 1, 1) if channels == 1 else (18, 1, 1)
    maps, kernels = per_channel[0], []
    for op, size in (("MaxPool", 2), ("MaxPool", 3), ("AveragePool", 2), ("AveragePool", 3)):
        y = g.node("Relu", g.node("Add", g.conv(x, maps, (3, 3), bias=False), g.draw(*per_channel)))
        kernels.append(g.node(op, y, kernel_shape=[size, size], strides=[size, size]))
    y = g.node("Mul", g.conv(x, maps, (3, 2)), g.draw(*per_channel))  # negative factors turn a maximum into a minimum
    kernels.append(g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))
    y = g.node("Sigmoid", g.conv(x, maps, (2, 3)))
    y = g.node("AveragePool", y, kernel_shape=[1, 2], strides=[1, 2])
    kernels.append(g.node("Sub", g.draw(*per_channel), y))
    y = g.node("MaxPool", g.conv(x, maps, (3, 3)), kernel_shape=[2, 3], strides=[2, 3])
    kernels.append(g.node("Tanh", g.node("Div", y, g.constant(np.float32(3)))))
    g.output(*kernels)
    compiled = check(g.model(), tmp_path, target)
    anchors = [step.choice.kernel for step in compiled.program.steps if step.choice.kernel.anchor.op == "Conv"]
    assert len(anchors) == len(kernels) and all(len(kernel.nodes) > 1 for kernel in anchors)
    assert not any(step.choice.kernel.anchor.op.endswith("Pool") for step in compiled.program.steps)


def test_pools_that_do_not_fuse(target: str, tmp_path: Path) -> None:
    """After a convolution: overlapping windows, padded ones, one that ceil_mode cuts, one with holes, one too large."""
    g = Graph(opset=19)  # since which an average may have holes
    x = g.input(1, 3, 13, 16)
    for attributes in (
        {"kernel_shape": [3, 3], "strides": [2, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [2, 3]},
        {"kernel_shape": [4, 3], "strides": [4, 3]},
    ):
        for op, maps in (("MaxPool", 17), ("AveragePool", 16)):
            g.output(g.node(op, g.node("Relu", g.conv(x, maps, (3, 2))), **attributes))
    check(g.model(), tmp_path, target)


@pytest.mark.parametrize("first", [True, False], ids=["residual-first", "residual-last"])
def test_conv_with_residual(first: bool, target: str, tmp_path: Path) -> None:
    """Fused whatever side the residual stands on: an input, a blocked tensor, one of a batch."""
    g = Graph()
    for shape, group in (((1, 17, 5, 6), 1), ((3, 16, 4, 7), 1), ((1, 18, 4, 9), 18), ((1, 6, 5, 7), 2)):
        x = g.input(*shape)
        stem = g.node("Relu", g.conv(x, shape[1], (1, 1)))
        other = g.node("Tanh", g.conv(x, shape[1], (1, 1)))
        for residual in (x, other) if group == 1 else (other,):
            y = g.conv(stem, shape[1], (3, 3), pads=[1, 1, 1, 1], group=group)
            g.output(g.node("Relu", g.node("Add", *((residual, y) if first else (y, residual)))))
    compiled = check(g.model(), tmp_path, target)
    assert not any(step.choice.kernel.anchor.op == "Add" for step in compiled.program.steps)


def test_residual_that_is_the_own_input(target: str, tmp_path: Path) -> None:
    """conv(x) + x by columns, by channels, from few channels, depthwise, and a product: x is read in two ways."""
    g = Graph()
    for shape, group in (((1, 1, 40, 30), 1), ((1, 3, 9, 11), 1), ((2, 18, 5, 7), 1), ((1, 17, 6, 9), 17)):
        x = g.node("Relu", g.input(*shape))
        y = g.conv(x, shape[1], (3, 3), pads=[1, 1, 1, 1], group=group)
        g.output(g.node("Add", x, y))
    f = g.node("Flatten", g.conv(g.input(3, 2, 4, 6), 2, (1, 2)))
    g.output(g.node("Add", g.node("Gemm", f, g.draw(40, 40)), f))
    check(g.model(), tmp_path, target)


def test_pool_behind_a_residual(target: str, tmp_path: Path) -> None:
    """The residual has a value for each pixel of the pool's window."""
    g = Graph()
    x = g.input(1, 18, 9, 12)
    for op in ("MaxPool", "AveragePool"):
        y = g.node("Add", g.conv(x, 17, (2, 3)), g.node("Tanh", g.conv(x, 17, (2, 3))))
        g.output(g.node(op, y, kernel_shape=[2, 2], strides=[2, 2]))
    check(g.model(), tmp_path, target)


def test_one_memory_under_two_shapes(target: str, tmp_path: Path) -> None:
    """Both convolutions want their input with the same halo: a copy for one shape is none for the other."""
    g = Graph()
    x = g.node("Relu", g.input(1, 2, 6, 10))
    turned = g.node("Reshape", x, g.constant(np.array([1, 3, 8, 5])))
    for y in (x, turned):
        g.output(g.conv(y, 17, (3, 3), pads=[1, 1, 1, 1]))
    check(g.model(), tmp_path, target)


def test_long_rows(target: str, tmp_path: Path) -> None:
    """What would fill the stack if a whole row were kept: Softmax along 70,001, 5,003 columns, a dilation of 40."""
    g = Graph()
    row = g.input(1, 70_001)
    g.output(g.node("Softmax", row, axis=1))
    m = g.input(4, 8)
    g.output(g.node("Gemm", m, g.draw(8, 5_003)))
    g.output(g.conv(g.input(1, 1, 85, 90), 5, (3, 3), dilations=[40, 40], pads=[40, 40, 40, 40]))
    check(g.model(), tmp_path, target)


def test_gemm_bias_shapes(tmp_path: Path) -> None:
    """One value a column, in a row or alone; one a row is no bias of the columns, also where rows equal columns."""
    g = Graph()
    x = g.input(4, 7)
    shapes = ((4,), (1, 4), (1,), (1, 1), (4, 1), (4, 4))
    g.output(*(g.node("Gemm", x, g.draw(7, 4), g.draw(*shape)) for shape in shapes))
    check(g.model(), tmp_path)


def test_concat_with_a_constant(tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Concat", g.input(2, 3), g.draw(2, 4), axis=1))
    check(g.model(), tmp_path)


def test_residual_computed_after_the_convolution(tmp_path: Path) -> None:
    """The Add joins the later of two convolutions, never the one that runs before its other operand is there."""
    g = Graph()
    x = g.input(1, 16, 5, 6)
    early, late = g.conv(x, 18, (3, 2)), g.conv(x, 18, (3, 2))
    g.output(g.node("Add", early, late))
    names = [step.choice.kernel.ops for step in check(g.model(), tmp_path).program.steps]
    assert [name for name in names if name != "Reorder"] == ["Conv", "Conv+Add"]


def test_same_tensor_twice(tmp_path: Path) -> None:
    """x + x and x · x, of an input and of a convolution, and a concatenation of one tensor with itself."""
    g = Graph()
    x = g.input(2, 5, 6, 7)
    y = g.conv(x, 16, (3, 2))
    g.output(g.node("Add", x, x), g.node("Mul", y, y), g.node("Concat", y, y, axis=1))
    check(g.model(), tmp_path)


# ---- element-wise ---------------------------------------------------------------------------------------------------


def test_unary(target: str, tmp_path: Path) -> None:
    """Alone, in ranks 1 to 5, and on a blocked tensor whose lanes are not full."""
    g = Graph()
    images = [g.input(*shape) for shape in ((), (33,), (2, 3, 5, 17), (2, 3, 4, 5, 7))]
    images.append(g.node("MaxPool", g.conv(g.input(1, 4, 6, 9), 17, (3, 2)), kernel_shape=[2, 2]))
    for x in images:
        g.output(*(g.node(op, x) for op in ("Relu", "Sigmoid", "Tanh")))
        g.output(g.node("Tanh", g.node("Clip", x, g.constant(np.float32(-0.5)), g.constant(np.float32(0.75)))))
    g.output(g.node("Clip", x, "", g.constant(np.float32(1))), g.node("Clip", x, g.constant(np.float32(-1))))
    check(g.model(), tmp_path, target)


def test_saturating_values(tmp_path: Path) -> None:
    """Far past where e^x overflows: Sigmoid is 0 or 1, Tanh ±1, Softmax a row of 0 and 1."""
    g = Graph()
    x = g.node("Mul", g.input(3, 17), g.constant(np.float32(1000)))
    g.output(g.node("Sigmoid", x), g.node("Tanh", x), g.node("Softmax", x, axis=1))
    check(g.model(), tmp_path)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_binary(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants and tensors on both sides, broadcasting either of them; a blocked tensor with each kind of constant."""
    g = Graph()

    def away_from_zero(*shape: int) -> str:  # as a divisor
        return g.constant(np.copysign(g.rng.uniform(0.5, 2, shape), g.rng.standard_normal(shape)))

    def shifted(x: str) -> str:
        return g.node("Add", g.node("Relu", x), g.constant(np.float32(0.5)))

    x, row, column = g.input(2, 3, 5, 9), g.input(9), g.input(5, 1)
    for shape in ((), (1,), (9,), (5, 1), (3, 1, 1), (1, 3, 1, 1), (2, 1, 1, 9), (2, 3, 5, 9), (4, 1, 1, 1, 1)):
        g.output(g.node(op, x, away_from_zero(*shape)))
    g.output(*(g.node(op, away_from_zero(*shape), shifted(x)) for shape in ((), (3, 1, 1), (7, 1, 1, 1, 1))))
    g.output(g.node(op, x, shifted(row)), g.node(op, row, shifted(column)), g.node(op, column, shifted(x)))
    y = g.node("MaxPool", g.conv(g.input(1, 4, 6, 8), 18, (3, 2)), kernel_shape=[2, 2])
    z = g.node("MaxPool", g.conv(g.input(1, 5, 6, 8), 18, (3, 2)), kernel_shape=[2, 2])
    g.output(
        *(g.node(op, y, away_from_zero(*shape)) for shape in ((1,), (18, 1, 1), (1, 18, 1, 1), (3, 6), (18, 3, 6)))
    )
    g.output(
        g.node(op, away_from_zero(18, 1, 1), shifted(y)), g.node(op, y, shifted(z)), g.node(op, y, shifted(g.input(6)))
    )
    check(g.model(), tmp_path, use_target("x86-64-v3" if op in ("Add", "Div") else SPLIT, monkeypatch))


def test_batch_normalization(target: str, tmp_path: Path) -> None:
    """Standing alone after a pool (blocked and plain) and on other ranks; folded into a convolution."""
    g = Graph()

    def normalized(x: str) -> str:
        c = g.shape(x)[1]
        variance = g.constant(g.rng.uniform(0.5, 2, c))
        return g.node("BatchNormalization", x, g.draw(c), g.draw(c), g.draw(c), variance, epsilon=1e-3)

    x = g.input(2, 5, 9, 10)
    y = g.node("MaxPool", g.conv(x, 17, (3, 2)), kernel_shape=[3, 2], strides=[2, 1])
    folded = g.conv(x, 19, (2, 3))
    bare = g.conv(x, 6, (2, 3), bias=False)
    g.output(normalized(g.node("AveragePool", x, kernel_shape=[2, 2])), normalized(y))
    g.output(normalized(g.input(3, 7)), normalized(g.input(2, 4, 9)))
    g.output(g.node("Relu", normalized(folded)), normalized(bare), normalized(g.node("Relu", g.conv(x, 18, (1, 1)))))
    net = check(g.model(), tmp_path, target)
    assert {folded, bare} <= set(net.program.network.folded)


def test_softmax(tmp_path: Path) -> None:
    """Every axis of every rank up to 4, with leading axes of 1 too."""
    g = Graph()
    for shape in ((17,), (1, 10), (3, 33), (1, 3, 8), (2, 3, 9), (1, 5, 3, 4), (2, 3, 4, 17)):
        x = g.input(*shape)
        g.output(*(g.node("Softmax", x, axis=axis) for axis in range(-1, len(shape) - 1)))
    check(g.model(), tmp_path)


@pytest.mark.parametrize("shape", [(1, 5003, 3, 16), (1, 3, 16, 8011)], ids=str)
def test_softmax_of_long_rows_spares_the_stack(shape: tuple[int, ...], target: str, tmp_path: Path) -> None:
    """A vector of rows side by side is as long as all of them: workers of the pool have stacks of 256 KB."""
    g = Graph()
    g.output(g.node("Softmax", g.input(*shape), axis=max(range(4), key=lambda axis: shape[axis])))
    compiled = tvmcnn.compile(g.model(), target=target, output=tmp_path / "x.so", verify=False)
    frames = [int(found) for found in re.findall(r"subq\s+\$(\d+), %rsp", compiled.code["asm"]())]
    assert max(frames, default=0) < 64 << 10, frames


# ---- pools ----------------------------------------------------------------------------------------------------------

POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 3]},
    {"kernel_shape": [3, 2], "strides": [2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [2, 0, 1, 1]},
    {"kernel_shape": [2, 4], "strides": [3, 3], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1},
    {"kernel_shape": [4, 3], "strides": [3, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 4], "strides": [1, 3], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [2, 3], "auto_pad": "VALID", "strides": [2, 2]},
    {"kernel_shape": [7, 2]},
]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
def test_pool(op: str, blocked: bool, target: str, tmp_path: Path) -> None:
    """Every second window takes part in one of the tests only; the plain rule is the same for all targets."""
    g = Graph(opset=19)  # dilated average pools came at 19
    x = g.input(2, 5, 11, 12)
    x = g.node("Relu", g.conv(x, 31, (2, 1))) if blocked else x
    for attributes in POOLS:
        g.output(g.node(op, x, **attributes))
        if op == "AveragePool":
            g.output(g.node(op, x, count_include_pad=1, **attributes))
    g.output(g.node(op, x, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 2, 0, 1]), g.node("GlobalAveragePool", x))
    rules = {step.choice.rule for step in check(g.model(), tmp_path, target).program.steps}
    assert ("pool" in rules) == blocked


def test_max_pool_of_minus_infinity(tmp_path: Path) -> None:
    """A window of -inf, or of it and padding, is -inf: the reduction may not start from the lowest finite number."""
    g = Graph()
    g.output(g.node("MaxPool", g.input(1, 2, 5, 7), kernel_shape=[2, 3], pads=[1, 0, 0, 1]))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "pool.so", verify=False)
    x = np.arange(70, dtype=np.float32).reshape(1, 2, 5, 7)
    x[0, 0] = -np.inf
    found = tvmcnn.load(compiled.path)(x)
    (wanted,) = tvmcnn.reference(g.model(), x).values()
    assert np.isneginf(wanted[0, 0]).all()
    assert np.array_equal(found, wanted)


def test_pool_of_columns(tmp_path: Path) -> None:
    """Plain rows that were rounded up to whole vectors: what lies past the image never wins, nor counts."""
    g = Graph()
    y = g.conv(g.input(1, 2, 9, 16), 3, (3, 3))
    y = g.node("Sub", y, g.constant(np.float32(50)))  # the zeros of the halo are now the largest
    for op in ("MaxPool", "AveragePool"):
        g.output(g.node(op, y, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), g.node(op, y, kernel_shape=[3, 3]))
    g.output(g.node("GlobalAveragePool", y))
    assert any(step.choice.algorithm == "columns" for step in check(g.model(), tmp_path).program.steps)


# ---- dense ----------------------------------------------------------------------------------------------------------


def test_gemm(target: str, tmp_path: Path) -> None:
    """Rows, depth and columns at the edges; transB, alpha and beta; the bias in every shape; an epilogue."""
    g = Graph()
    for place, edge in enumerate(EDGES):
        x = g.input((1, 3, 2, 34)[place % 4], edge)
        n = EDGES[place - 3] + 1
        g.output(g.node("Gemm", x, g.draw(edge, n), g.draw(n)), g.node("Gemm", x, g.draw(n, edge), transB=1))
    x = g.input(5, 21)
    for shape in ((18,), (1, 18), (1,), ()):
        g.output(g.node("Gemm", x, g.draw(21, 18), g.draw(*shape), alpha=-0.75, beta=3.0))
    y = g.node("Gemm", x, g.draw(18, 21), g.draw(18), transB=1)
    g.output(g.node("Sigmoid", g.node("Mul", g.node("Relu", y), g.draw(18))))
    g.output(g.node("Add", g.node("Gemm", x, g.draw(21, 1)), g.input(5, 1)))
    check(g.model(), tmp_path, target)


def test_matmul(target: str, tmp_path: Path) -> None:
    """Stacks of 0 to 3 leading axes, each with the Add of a bias, of a tensor, of what broadcasts along other axes."""
    g = Graph()
    for shape, n in (((7,), 17), ((1, 33), 9), ((2, 5, 7), 16), ((2, 3, 5, 7), 9), ((2, 3, 1, 4), 1)):
        x, k = g.input(*shape), shape[-1]
        g.output(g.node("Relu", g.node("Add", g.node("MatMul", x, g.draw(k, n)), g.draw(n))))
        g.output(g.node("Tanh", g.node("Add", g.node("MatMul", x, g.draw(k, n)), g.input(*shape[:-1], n))))
    product = g.node("MatMul", g.input(2, 5, 3, 7), g.draw(7, 9))
    g.output(g.node("Add", product, g.draw(5, 1, 1)))  # axis 1 of a stack is no channel
    check(g.model(), tmp_path, target)


def test_chain_of_dense_layers(target: str, tmp_path: Path) -> None:
    """Rows rounded up to whole vectors between matrix products, not so where others read them too."""
    g = Graph()
    for rows in (1, 3):
        x = g.input(rows, 20)
        y = g.node("Relu", g.node("Gemm", x, g.draw(20, 13), g.draw(13)))
        z = g.node("Add", g.node("Gemm", y, g.draw(13, 17), g.draw(17)), g.input(rows, 17))
        w = g.node("Gemm", z, g.draw(17, 6))
        g.output(g.node("Gemm", w, g.draw(6, 9)), g.node("Softmax", w, axis=1))
    check(g.model(), tmp_path, target)


# ---- shape ----------------------------------------------------------------------------------------------------------


def test_concat(tmp_path: Path) -> None:
    """Whole blocks of channels stay blocked, others go through plain memory; other axes and ranks; reshaped parts."""
    g = Graph()
    x = g.input(2, 3, 6, 9)
    a, b, c = g.conv(x, 16, (3, 2)), g.conv(x, 32, (3, 2)), g.conv(x, 17, (3, 2))
    g.output(g.conv(g.node("Concat", a, b, a, axis=1), 5, (2, 2)), g.node("Concat", a, c, axis=1))
    g.output(g.node("Concat", a, g.conv(x, 16, (1, 2)), axis=2), g.node("Concat", g.conv(x, 16, (3, 1)), a, axis=3))
    g.output(g.node("Concat", a, g.conv(g.input(1, 3, 6, 9), 16, (3, 2)), axis=0))
    g.output(g.node("Concat", g.node("Flatten", a), g.node("Flatten", b), axis=1))
    g.output(*(g.node("Concat", g.input(3, 7), g.input(3, 9), g.input(3, 1), axis=axis) for axis in (1, -1)))
    g.output(g.node("Concat", g.input(5), g.input(17), axis=0))
    steps = check(g.model(), tmp_path).program.steps
    blocks = [step.choice.writes.block for step in steps if step.choice.kernel.anchor.op == "Concat"]
    assert sorted(blocks) == [1] * 8 + [16]


def test_moves(tmp_path: Path) -> None:
    """Pad (also negative, with a value, of any rank), Transpose, Flatten, Reshape; plain, blocked, columns' tensors."""
    g = Graph()
    plain, wide = g.input(2, 3, 5, 9), g.conv(g.input(1, 2, 6, 17), 3, (2, 3))
    for x in (plain, wide, g.conv(plain, 18, (2, 3))):
        g.output(g.node("Pad", x, g.constant(np.array([0, 1, 2, 0, 0, 3, 1, 2])), g.constant(np.float32(-1.5))))
        g.output(g.node("Pad", x, g.constant(np.array([0, -1, 1, -2, 0, 2, -1, -1]))))
        g.output(*(g.node("Transpose", x, perm=perm) for perm in ([0, 2, 3, 1], [3, 0, 1, 2], [1, 0, 3, 2])))
        g.output(g.node("Transpose", x), *(g.node("Flatten", x, axis=axis) for axis in (0, 1, 2, 3, 4)))
        n, c, h, w = g.shape(x)
        g.output(
            g.node("Reshape", x, g.constant(np.array([w, -1, c]))),
            g.node("Reshape", x, g.constant(np.array([0, 0, -1]))),
        )
        g.output(g.node("Relu", g.node("Reshape", x, g.constant(np.array([h, n * c * w])))))
    g.output(g.node("Pad", g.input(5, 7), g.constant(np.array([1, 2, 0, -3]))))
    g.output(g.node("Transpose", g.input(5, 17)), g.node("Transpose", g.input(2, 3, 4, 5, 7), perm=[4, 2, 0, 3, 1]))
    check(g.model(), tmp_path)


def test_readers_of_a_reshaped_image(tmp_path: Path) -> None:
    """Every kind of kernel reads a tensor that is stored under another shape."""
    g = Graph()
    y = g.conv(g.input(1, 3, 9, 10), 32, (3, 3))
    x = g.node("Reshape", y, g.constant(np.array([2, 16, 4, 14])))
    g.output(
        g.conv(x, 5, (3, 3)), g.conv(x, 17, (4, 14)), g.conv(x, 16, (2, 3), group=16), g.conv(x, 6, (1, 2), group=2)
    )
    g.output(g.node("MaxPool", x, kernel_shape=[2, 3]), g.node("GlobalAveragePool", x), g.node("Softmax", x, axis=1))
    g.output(g.node("Add", x, g.draw(16, 1, 1)), g.node("Concat", x, x, axis=1), g.node("Transpose", x))
    g.output(g.node("Gemm", g.node("Flatten", x), g.draw(896, 9)), g.node("Add", g.conv(x, 16, (1, 1)), x))
    check(g.model(), tmp_path)


# ---- the graph ------------------------------------------------------------------------------------------------------


def test_dropout_and_identity_vanish(tmp_path: Path) -> None:
    g = Graph()
    x = g.input(2, 3, 5, 9)
    y = g.node("Dropout", g.node("Identity", g.conv(x, 4, (2, 3))))
    g.output(g.node("Relu", y))
    compiled = check(g.model(), tmp_path)
    assert [step.choice.kernel.ops for step in compiled.program.steps if step.choice.algorithm != "reorder"] == [
        "Conv+Relu"
    ]
    assert "identity" in compiled.program.network.folded[y]


def test_output_that_passes_an_input_through(tmp_path: Path) -> None:
    """Copies of an input, and three names of one tensor: each output is written."""
    g = Graph()
    x = g.input(3, 7)
    y = g.node("Relu", x)
    g.output(g.node("Identity", x), g.node("Dropout", x), g.node("Reshape", x, g.constant(np.array([3, 7]))))
    g.output(y, g.node("Identity", y), g.node("Identity", g.node("Identity", y)), g.node("Flatten", y))
    check(g.model(), tmp_path)


def test_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    """Without a node between there is one name for two arrays."""
    g = Graph()
    x = g.input(3, 7)
    g.output(g.node("Relu", x), x)
    with pytest.raises(UnsupportedError, match="output 'x0' is an input"):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so")


def test_several_inputs_and_outputs(target: str, tmp_path: Path) -> None:
    """Outputs that are read inside, blocked and plain, by several kernels; an input that nobody reads; batch 3."""
    g = Graph()
    x, y, _ = g.input(3, 2, 8, 19), g.input(3, 5, 6, 7), g.input(3, 4)
    a, b = g.conv(x, 4, (3, 3)), g.conv(y, 17, (3, 2))
    relu = g.node("Relu", b)
    g.output(a, b, relu, g.node("MaxPool", relu, kernel_shape=[2, 2]), g.conv(relu, 6, (1, 1)))
    g.output(g.node("Sigmoid", a), g.node("Flatten", a), g.node("Gemm", g.node("Flatten", b), g.draw(408, 8)))
    check(g.model(), tmp_path, target)


def test_every_step_count_of_the_arena(tmp_path: Path) -> None:
    """A tensor that lives to the last step, beside short-lived ones of every size: nothing overwrites it."""
    g = Graph()
    x = g.input(1, 16, 5, 6)
    kept, y = g.node("Sigmoid", g.conv(x, 16, (1, 1))), x
    for size in (33, 7, 48, 16):
        y = g.node("Relu", g.conv(y, size, (1, 1)))
    g.output(g.node("Mul", y, kept), g.node("Add", g.node("MaxPool", kept, kernel_shape=[1, 1]), kept))
    check(g.model(), tmp_path)


@pytest.mark.parametrize("build", [lenet, mnist8])
@pytest.mark.parametrize("batch", [1, 3])
def test_whole_networks(build: Any, batch: int, target: str, tmp_path: Path) -> None:
    assert check(build(batch), tmp_path, target).fallbacks == 0


@pytest.mark.parametrize("name", ["mnist-8", "lenet5-ccoltong", "squeezenet-fp32-cast"])
def test_trained_networks(name: str, test_data: Path, tmp_path: Path) -> None:
    """Trained weights, every tensor."""
    check(onnx.load(test_data / "models" / name / "model.onnx"), tmp_path)


def test_open_batch_is_bound(tmp_path: Path) -> None:
    """The same model at batch 5 by the argument, and row by row the same answers."""
    model = lenet(1)
    net = tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "five.so", batch=5).path)
    x = np.random.default_rng(3).standard_normal(net.inputs[0].shape).astype(np.float32)
    five, one = net(x), tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "one.so").path)
    for row, image in zip(five, x, strict=True):
        given = {"x0": image[None]}
        values = reference(model, given, every_tensor=True)
        name = net.outputs[0].name
        assert_within(name, row[None], values[name], error_bounds(model, values)[name])
        assert_within(name, one(image[None]), values[name], error_bounds(model, values)[name])


def test_reference_is_a_function_after_compile() -> None:
    """The module of the same name, which the compiler imports, must not take its place. In a process of its own."""
    code = "import tvmcnn; tvmcnn.compile; assert callable(tvmcnn.reference), tvmcnn.reference"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=GUARD)


# ---- random networks ------------------------------------------------------------------------------------------------


def random_network(seed: int) -> Graph:
    """Twelve or so operators in a row, with branches, concatenations and residuals, and two outputs."""
    g = Graph(seed)
    rng = np.random.default_rng([seed, 9])

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    shape = (pick(1, 2, 3), pick(1, 4, 5, 16, 18), pick(9, 12, 14), pick(10, 13, 17, 20))
    live = [g.input(*shape)]
    for _ in range(pick(8, 10, 12)):
        x = pick(*live[-3:])
        _, c, h, w = g.shape(x)
        kind = pick("conv", "conv", "conv", "depthwise", "pool", "activation", "binary", "concat", "residual", "norm")
        if kind == "conv":
            kernel = (min(pick(1, 2, 3), h), min(pick(1, 3, 4), w))
            group = pick(1, 1, 1, *(d for d in (2, 3) if c % d == 0))
            pads = [int(p) for p in rng.integers(0, 2, 4)]
            y = g.conv(x, group * pick(3, 4, 8, 16, 17), kernel, bias=pick(True, False), group=group, pads=pads)
            y = g.node(pick("Relu", "Tanh", "Sigmoid"), y) if pick(True, False) else y
            _, _, h, w = g.shape(y)
            if pick(True, False) and min(h, w) >= 4:
                y = g.node(pick("MaxPool", "AveragePool"), y, kernel_shape=[2, 2], strides=[2, 2])
        elif kind == "depthwise":
            y = g.conv(x, c, (min(3, h), min(2, w)), group=c, pads=[1, 0, 1, 1])
        elif kind == "pool":
            size = [min(pick(2, 3), h), min(pick(2, 3), w)]
            pads = [0, 0, *pick([0, 0], [1, 1])] if min(size) > 1 else [0] * 4
            y = g.node(pick("MaxPool", "AveragePool"), x, kernel_shape=size, strides=[1, pick(1, 2)], pads=pads)
        elif kind == "activation":
            y = g.node(pick("Relu", "Sigmoid", "Tanh"), x)
        elif kind == "binary":
            y = g.node(pick("Add", "Sub", "Mul"), x, g.draw(*pick((), (c, 1, 1), (w,), (h, 1))))
        elif kind == "concat":
            y = g.node("Concat", *pick((x, g.conv(x, 16, (1, 1))), (g.conv(x, 7, (1, 1)), x, x)), axis=1)
        elif kind == "residual":
            y = g.conv(x, c, (3, 3), pads=[1, 1, 1, 1]) if min(h, w) >= 3 else g.conv(x, c, (1, 1))
            y = g.node("Relu", g.node("Add", *pick((x, y), (y, x))))
        else:
            y = g.node("BatchNormalization", x, g.draw(c), g.draw(c), g.draw(c), g.constant(rng.uniform(0.5, 2, c)))
        live.append(y)
    flat = g.node("Flatten", pick(live[-1], g.node("GlobalAveragePool", live[-1])))
    scores = g.node("Gemm", flat, g.draw(g.shape(flat)[1], 10), g.draw(10))
    g.output(*dict.fromkeys([g.node("Softmax", scores, axis=1), live[-1], pick(*live[1:])]))
    return g


@pytest.mark.parametrize("seed", range(16))
def test_random_network(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one by the schedules for AVX-512."""
    check(random_network(seed).model(), tmp_path, use_target(("x86-64-v3", SPLIT)[seed % 2], monkeypatch))


# ---- AVX-512, read rather than run ----------------------------------------------------------------------------------

SPILLS = 0.05  # of the FMAs; 45 in 84 is what a bad tile has


def hot_loops(body: str) -> list[list[str]]:
    """The innermost loops with an FMA in a function's assembly, each from its label to the jump back to it."""
    lines, labels, loops = body.splitlines(), {}, []
    for place, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = place
        jump = re.match(r"\s+j\w+\s+(\.LBB\w+)", line)
        if jump and jump[1] in labels:
            loops.append((labels[jump[1]], place))
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    return [lines[a:b] for a, b in inner if any("vfmadd" in line for line in lines[a:b])]


@pytest.mark.parametrize("build", [lenet, mnist8])
def test_avx512_code_keeps_its_accumulators_in_registers(build: Any, tmp_path: Path) -> None:
    """The code for x86-64-v4, loop by loop: whole vectors of 16 in convolutions, next to none of them on the stack."""
    compiled = tvmcnn.compile(build(1), target="x86-64-v4", output=tmp_path / "x.so", verify=False, activations=False)
    text = compiled.code["asm"]()
    for step in compiled.program.steps:
        if step.choice.rule not in ("direct", "columns", "dense"):
            continue
        (body,) = re.findall(rf"^{step.choice.name}:\n(.*?)^\.Lfunc_end", text, re.M | re.S)
        loops = hot_loops(body)
        assert loops, f"{step.choice.name} has no loop with an FMA"
        for loop in loops:
            fmas = sum("vfmadd" in line for line in loop)
            whole = sum("vfmadd" in line and "%zmm" in line for line in loop)
            stack = sum(bool(re.search(r"%[yz]mm.*\(%r[sb]p|\(%r[sb]p.*%[yz]mm", line)) for line in loop)
            text_ = f"{step.choice.name}: {fmas} FMAs, {whole} of 16 lanes, {stack} vectors of the stack"
            print(text_, step.choice.config)
            assert fmas >= 8, text_
            assert step.choice.rule == "dense" or whole == fmas, text_
            assert stack <= SPILLS * fmas, text_


# ---- the tolerance --------------------------------------------------------------------------------------------------


def test_the_tolerance_is_tight(tmp_path: Path) -> None:
    """One weight of 450 changed by one part in a thousand shows: the bounds are not just generous."""
    g = Graph()
    g.output(g.conv(g.input(1, 18, 9, 10), 17, (5, 5)))
    model = g.model()
    net = tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "x.so", verify=False).path)
    other = g.model()
    weight = np.frombuffer(other.graph.initializer[0].raw_data, np.float32).copy()
    weight[7] *= 1.001
    other.graph.initializer[0].raw_data = weight.tobytes()
    arrays = feeds(model)
    name = net.outputs[0].name
    for proto, passes in ((model, True), (other, False)):
        values = reference(proto, arrays, every_tensor=True)
        if passes:
            assert_within(name, net(arrays["x0"]), values[name], error_bounds(proto, values)[name])
        else:
            with pytest.raises(pytest.fail.Exception):
                assert_within(name, net(arrays["x0"]), values[name], error_bounds(proto, values)[name])
