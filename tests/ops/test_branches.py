"""Branches without copies: concatenations in place, prologues, residuals, gates; and the memory that they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Graph
from helpers import check, verified

import tvmcnn
from tvmcnn.compiler import Compiled

pytestmark = pytest.mark.slow


def batch_norm(g: Graph, x: str) -> str:
    channels = g.shape(x)[1]
    scale, variance = (g.constant(g.rng.uniform(0.5, 1.5, channels)) for _ in range(2))
    return g.node("BatchNormalization", x, scale, g.draw(channels), g.draw(channels), variance)


def steps(compiled: Compiled) -> list[str]:
    return [f"{step.choice.kernel.ops} {step.choice.algorithm}" for step in compiled.program.steps]


def dense_block(g: Graph, x: str, layers: int) -> str:
    """DenseNet's: each layer reads all that came before, through BatchNormalization, Relu and a 1x1 convolution."""
    for _ in range(layers):
        narrow = g.conv(g.node("Relu", batch_norm(g, x)), 48, (1, 1))
        grown = g.conv(g.node("Relu", narrow), 32, (3, 3), pads=[1, 1, 1, 1])
        x = g.node("Concat", x, grown, axis=1)
    return x


@pytest.mark.parametrize("batch", [1, 3])
def test_dense_block(batch: int, target: str, tmp_path: Path) -> None:
    """No copy and no pass of its own for the batch normalisations; nested concatenations are one memory."""
    g = Graph()
    x = g.conv(g.input(batch, 5, 9, 13), 16, (3, 2))
    x = dense_block(g, x, 3)
    g.output(g.conv(g.node("Relu", batch_norm(g, x)), 19, (1, 1), strides=[2, 2]))
    compiled = check(g.model(), tmp_path, target)
    names = steps(compiled)
    assert names.count("Concat view") == 3
    assert [name for name in names if name.startswith("BatchNormalization+Relu+Conv")] == [
        *["BatchNormalization+Relu+Conv+Relu direct"] * 3,
        "BatchNormalization+Relu+Conv direct",
    ]
    assert not [name for name in names if name.startswith(("Concat concat", "BatchNormalization elementwise"))]
    pitches = {step.choice.writes.pitch for step in compiled.program.steps if step.choice.within}
    assert pitches == {0} if batch == 1 else pitches == {0, 7}


@pytest.mark.parametrize("batch", [1, 3])
def test_concat_of_all_kinds_of_parts(batch: int, tmp_path: Path) -> None:
    """A pool, an element-wise kernel, a part that is also an output, one that comes twice, one of another block."""
    g = Graph()
    x = g.conv(g.input(batch, 5, 9, 13), 16, (3, 2))
    pooled = g.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    squashed = g.node("Sigmoid", x)
    seen = g.conv(x, 32, (1, 1))
    whole = g.node("Concat", pooled, squashed, seen, pooled, axis=1)
    g.output(seen, g.conv(whole, 7, (2, 3)), g.node("Relu", whole))
    other = g.node("Concat", squashed, g.node("Tanh", whole), axis=1)
    g.output(g.conv(other, 3, (1, 1)), g.node("GlobalAveragePool", other))
    names = steps(check(g.model(), tmp_path))
    assert names.count("Concat view") == 2
    assert names.count("Reorder reorder") >= 3  # pooled again, seen (an output), squashed (at home in the first)


@pytest.mark.parametrize("batch", [1, 3])
def test_residual_of_a_concat(batch: int, tmp_path: Path) -> None:
    """A sum reads one operand inside a concatenation and another outside: the strides differ, the kernel is one."""
    g = Graph()
    x = g.input(batch, 5, 9, 13)
    a, b = g.conv(x, 16, (3, 2)), g.conv(x, 16, (3, 2))
    c = g.node("Add", g.conv(x, 16, (3, 2)), a)
    whole = g.node("Concat", a, b, c, axis=1)
    g.output(g.conv(whole, 5, (1, 1)), g.conv(g.node("Mul", a, c), 3, (2, 1)))
    check(g.model(), tmp_path)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [32, 24, 7])
def test_gate(batch: int, channels: int, target: str, tmp_path: Path) -> None:
    """Squeeze and excite: one factor a map, computed at run time, multiplied as the next convolution reads."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(batch, 5, 9, 13), channels, (3, 2)))
    squeezed = g.conv(g.node("GlobalAveragePool", x), 9, (1, 1))
    gate = g.node("Sigmoid", g.conv(g.node("Relu", squeezed), channels, (1, 1)))
    gated = g.node("Mul", x, gate)
    g.output(g.conv(gated, 17, (1, 1)))
    names = steps(check(g.model(), tmp_path, target))
    assert ("Mul+Conv direct" in names) == (channels >= 16)
    assert "Mul elementwise" in names or channels >= 16


def test_prologue_before_few_maps(tmp_path: Path) -> None:
    """Few enough for columns in the lanes, where a kernel without a prologue would go."""
    g = Graph()
    g.output(g.conv(g.node("Relu", batch_norm(g, g.input(1, 16, 6, 14))), 3, (1, 1)))
    assert "BatchNormalization+Relu+Conv direct" in steps(check(g.model(), tmp_path))


@pytest.mark.parametrize("channels", [17, 20, 30])
def test_prologue_of_no_whole_blocks(channels: int, target: str, tmp_path: Path) -> None:
    """What divides by 0 in the lanes past the channels is 0 there: times a weight of 0, infinity would be NaN."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(3, 5, 9, 13), channels, (3, 2)))
    divided = g.node("Div", x, g.constant(np.linspace(1, 2, channels).reshape(1, channels, 1, 1)))
    g.output(x, g.conv(divided, 7, (1, 1)))
    assert "Div+Conv direct" in steps(check(g.model(), tmp_path, target))


def test_prologue_is_not_taken(tmp_path: Path) -> None:
    """Not before padding, whose zeros come behind the activation; not where a pixel is read many times; not twice."""
    g = Graph()
    x = g.conv(g.input(1, 5, 9, 13), 16, (3, 2))
    act = g.node("Relu", batch_norm(g, x))
    g.output(g.conv(g.node("Tanh", batch_norm(g, x)), 7, (3, 3), pads=[1, 1, 1, 1]))
    g.output(g.conv(g.node("Sigmoid", batch_norm(g, x)), 7, (1, 1), pads=[1, 0, 0, 1]))
    g.output(g.conv(act, 3, (1, 1)), g.conv(act, 4, (1, 1)))
    assert not [step for step in check(g.model(), tmp_path).program.steps if step.choice.kernel.prologue]


def test_a_max_behind_a_relu(target: str, tmp_path: Path) -> None:
    """What TVM names for several expressions is read in the first, before it is there: of maps that fill no blocks."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 1, 10), 21, (1, 1)))
    y = g.node("Relu", g.conv(x, 31, (1, 3), pads=[0, 1, 0, 1]))
    g.output(g.node("Max", y, g.draw(31, 1, 1)))
    assert "Conv+Relu+Max direct" in steps(verified(g.model(), tmp_path, target))


def test_a_prologue_begins_with_its_image(tmp_path: Path) -> None:
    """Not with a gate, which has one pixel a map, though the product names it first."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 5, 9, 13), 32, (3, 2)))
    gate = g.node("Sigmoid", g.conv(g.node("GlobalAveragePool", x), 32, (1, 1)))
    g.output(g.conv(g.node("Mul", gate, x), 17, (1, 1)))
    program = check(g.model(), tmp_path).program
    assert not [step for step in program.steps if step.choice.kernel.prologue]


def test_arena_is_reused(tmp_path: Path) -> None:
    """A chain needs two tensors at a time; the bound is what lives at one step, and here the plan reaches it."""
    g = Graph()
    x = g.input(1, 16, 9, 13)
    for _ in range(6):
        x = g.node("MaxPool", g.node("Sigmoid", x), kernel_shape=[2, 3], pads=[0, 1, 1, 1])
    g.output(x)
    program = check(g.model(), tmp_path).program
    tensor = 4 * int(np.prod([1, 16, 9, 13]))
    assert program.arena_lower_bound == program.arena_bytes <= 2 * (tensor + 64)


@pytest.mark.parametrize("gate", ["input", "output", "inner"])
def test_a_plain_gate_is_read_to_its_end(gate: str, tmp_path: Path) -> None:
    """17 maps are two blocks of 16: the second of a plain gate has one value, and 15 that are another tensor's, or
    nobody's. Verification has the page behind it closed."""
    g = Graph(9)
    x = g.conv(g.input(3, 5, 7, 9), 17, (3, 2))
    y = g.input(3, 17, 1, 1) if gate == "input" else g.node("Softmax", g.node("GlobalAveragePool", x), axis=1)
    m = g.node("Mul", g.node("Tanh", x), y)
    g.output(g.conv(m, 16, (1, 1)), g.node("Mul", g.node("Relu", x), y), *([y] if gate == "output" else []))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "gate.so")
    plain = [
        source.name
        for step in compiled.program.steps
        for source, layout in zip(step.choice.sources, step.choice.reads, strict=True)
        if step.choice.makes.block > 1 and layout.plain and source.shape[2:] == (1, 1)
        if step.choice.algorithm != "reorder"
    ]
    assert bool(plain) == (gate == "inner")


@pytest.mark.parametrize("op", ["Tanh", "LeakyRelu", "Sigmoid", "Mul", "Pow"])
def test_activations_in_a_row_compile(op: str, tmp_path: Path) -> None:
    """Written out in one expression they would be 16 times as long with each, squares twice."""
    g = Graph(11)
    x = y = g.conv(g.input(1, 3, 7, 9), 17, (3, 2))
    for _ in range(8 if op != "Mul" else 16):
        x, y = ((g.node(op, v, v) if op in ("Mul", "Pow") else g.node(op, v)) for v in (x, y))
    g.output(x, g.node("Mul", y, x))
    tvmcnn.compile(g.model(), output=tmp_path / "row.so", verify=op not in ("Mul", "Pow"))  # which are infinite soon
