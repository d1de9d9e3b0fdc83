"""Convolutions of integers by VNNI and by products of 16 bits: equal to the oracle in every byte, in every class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantised import Quantised, equal

import tvmcnn
from tvmcnn import targets
from tvmcnn.compiler import Compiled
from tvmcnn.network import PLAIN, Layout

CLASSES = ("x86-64-v3", "x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni")
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "padded": ((2, 37, 9, 12), (45, 37, 3, 2), {"pads": [1, 0, 2, 1]}),
    "few": ((1, 3, 17, 15), (19, 3, 5, 7), {"strides": [2, 3], "pads": [2, 3, 1, 0]}),
    "five": ((2, 5, 11, 13), (33, 5, 3, 3), {"pads": [1, 1, 1, 1]}),
    "dilated": ((1, 24, 11, 16), (17, 24, 3, 2), {"dilations": [2, 3], "auto_pad": "SAME_LOWER"}),
    "depthwise": ((2, 41, 7, 8), (41, 1, 3, 5), {"group": 41, "pads": [1, 2, 1, 2]}),
    "grouped": ((1, 64, 8, 31), (96, 32, 1, 2), {"group": 2}),
    "pointwise": ((1, 70, 7, 9), (80, 70, 1, 1), {}),
    "many": ((1, 260, 5, 6), (144, 260, 3, 3), {"pads": [1, 1, 1, 1]}),
}


@pytest.fixture(params=CLASSES)
def isa(request: pytest.FixtureRequest) -> str:
    """A class of CPUs that this machine is of."""
    if missing := targets.TARGETS[request.param].missing():
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    return str(request.param)


def layouts(compiled: Compiled) -> list[Layout]:
    """What the convolutions of bytes read."""
    return [step.choice.reads[0] for step in compiled.program.steps if step.choice.algorithm == "dots"]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("x_type", "zero", "y_type"), [("uint8", 201, "int8"), ("int8", -77, "uint8")])
def test_convolution(name: str, x_type: str, zero: int, y_type: str, isa: str, tmp_path: Path) -> None:
    """A scale a map, a bias, a Relu, weights and activations of the whole range."""
    shape, kernel, attributes = SHAPES[name]
    g = Quantised(1)
    w_scale = g.scale(kernel[0])
    inputs = [g.source(*shape, dtype=x_type, zero=zero, scale=0.03), g.weight(*kernel, scale=w_scale)]
    y = g.node("Conv", *inputs, g.bias(kernel[0], np.float32(0.03) * w_scale), **attributes)
    compiled = equal(
        g.finished(g.up(g.node("Relu", y), 2.7, np.array(5, y_type)), dtype=y_type), tmp_path, isa, threads=2
    )
    (read,) = layouts(compiled)
    assert (read.block, read.filled) == ({3: 4, 5: 8}.get(shape[1], 16), zero if any(read.halo) else 0)


@pytest.mark.parametrize("w_zero", [94, 128])
def test_weights_that_leave_8_bits(w_zero: int, isa: str, tmp_path: Path) -> None:
    """Unsigned weights less their zero point: in 16 bits, unless it is 128."""
    g = Quantised(2)
    weight = g.weight(21, 18, 2, 3, dtype="uint8", zero=w_zero, scale=0.02)
    y = g.node("Conv", g.source(1, 18, 7, 10), weight, pads=[0, 1, 1, 2])
    compiled = equal(g.finished(g.up(y, 1.9, np.uint8(77))), tmp_path, isa)
    (terms,) = (s.choice.config.terms for s in compiled.program.steps if s.choice.algorithm == "dots")
    assert terms == (4 if w_zero == 128 and isa.endswith("vnni") else 2)


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("turned", [False, True])
def test_residuals(op: str, turned: bool, isa: str, tmp_path: Path) -> None:
    """Sums and products with another image join the convolution; its own integers are shown all the same."""
    g = Quantised(3)
    x = g.source(1, 17, 9, 11, zero=130)
    other = g.up(g.node("Conv", x, g.weight(34, 17, 1, 1)), 1.1, np.uint8(140))
    mine = g.up(g.node("Conv", x, g.weight(34, 17, 3, 3), pads=[1, 1, 1, 1]), 2.3, np.int8(-9))
    down = [g.down(mine, 2.3, np.int8(-9)), g.down(other, 1.1, np.uint8(140))]
    y = g.node("Relu", g.node(op, *(down[::-1] if turned else down)))
    compiled = equal(g.finished(g.up(y, 2.9 if op == "Add" else 90.0, np.uint8(31))), tmp_path, isa, threads=2)
    assert "QLinearConv+QLinear" + op in [step.choice.kernel.ops for step in compiled.program.steps]


def test_residuals_that_do_not_join(isa: str, tmp_path: Path) -> None:
    """The convolution's own image, a sum of it and itself, and one of another shape."""
    g = Quantised(4)
    x = g.source(1, 18, 6, 7, zero=3, scale=0.05)
    made = [g.up(g.node("Conv", x, g.weight(18, 18, 1, 1)), 1.5, np.uint8(100)) for _ in range(3)]
    first, second, third = (g.down(each, 1.5, np.uint8(100)) for each in made)
    gate = g.down(g.bytes(1, 18, 1, 1), 0.01, np.uint8(0))
    sums = [g.node("Add", first, x), g.node("Add", second, second), g.node("Mul", third, gate)]
    ends = [g.up(each, scale, np.uint8(111)) for each, scale in zip(sums, (1.7, 3.1, 2.0), strict=True)]
    compiled = equal(g.finished(*ends), tmp_path, isa)
    assert not any("+" in step.choice.kernel.ops for step in compiled.program.steps)


def test_one_image_with_two_zero_points(isa: str, tmp_path: Path) -> None:
    """Two readers that take the same integers for other numbers: each has its own around its copy."""
    g = Quantised(5)
    x = g.up(g.node("Conv", g.source(1, 16, 8, 9), g.weight(32, 16, 1, 1)), 1.5, np.uint8(100))
    made = []
    for zero, maps in ((11, 23), (240, 25)):
        down = g.down(x, 0.7, np.uint8(zero))
        made.append(g.up(g.node("Conv", down, g.weight(maps, 32, 3, 3), pads=[1, 1, 1, 1]), 9.0, np.uint8(120)))
    assert {layout.filled for layout in layouts(equal(g.finished(*made), tmp_path, isa))} == {0, 11, 240}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_images_stay_in_blocks(dtype: str, isa: str, tmp_path: Path) -> None:
    """Pools, sums and concatenations of whole blocks are made where they lie."""
    g = Quantised(6)
    scale, zero = 1.5, np.array(-100 if dtype == "int8" else 99, dtype)

    def again(x: str, scale: float = scale) -> str:
        return g.down(g.up(x, scale, zero), scale, zero)

    x = again(g.node("Conv", g.source(1, 7, 21, 23), g.weight(32, 7, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    left = again(g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    right = again(g.node("AveragePool", x, kernel_shape=[2, 3], strides=[2, 2], pads=[1, 1, 0, 1], count_include_pad=1))
    both = again(g.node("Concat", left, again(g.node("Add", left, right)), axis=1))
    y = again(g.node("Conv", both, g.weight(48, 64, 3, 3), pads=[1, 1, 1, 1]), 40.0)
    mean = g.up(g.node("GlobalAveragePool", y), 8.0, zero)
    compiled = equal(g.finished(mean, dtype=dtype), tmp_path, isa, threads=2)
    plain = [s.choice for s in compiled.program.steps if s.choice.algorithm in ("plain", "quantised")]
    assert not plain
    assert all(s.choice.writes != PLAIN for s in compiled.program.steps[:-1] if not s.choice.is_view)


def test_floats_between(isa: str, tmp_path: Path) -> None:
    """A tensor that leaves the integers and comes back, as 33 channels of which a block has one."""
    g = Quantised(7)
    x = g.up(g.node("Conv", g.source(1, 20, 6, 7), g.weight(33, 20, 1, 1)), 1.5, np.uint8(100))
    y = g.node("Conv", g.node("Softplus", g.down(x, 1.5, np.uint8(100))), g.weight(35, 33, 1, 1))
    equal(g.finished(x, g.up(y, 7.0, np.uint8(60))), tmp_path, isa)


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_one_integer_a_channel(op: str, isa: str, tmp_path: Path) -> None:
    """A scale or shift of maps that is quantised too, as of a BatchNormalization taken apart: read in blocks."""
    g = Quantised(8)
    x = g.up(g.node("Conv", g.source(2, 20, 6, 7), g.weight(39, 20, 1, 1)), 1.5, np.uint8(100))
    of_maps = g.down(g.array(g.any_bytes(39, 1, 1)), 0.04, np.int8(3))
    y = g.node(op, g.down(x, 1.5, np.uint8(100)), of_maps)
    compiled = equal(g.finished(g.up(y, 2.5, np.uint8(60))), tmp_path, isa, threads=2)
    assert "quantised_blocks" in [step.choice.algorithm for step in compiled.program.steps]


def test_moves_in_blocks(isa: str, tmp_path: Path) -> None:
    """Whole blocks of a Split, the last of them not full, and a nearest Resize by a factor and by none."""
    g = Quantised(9)
    scale, zero = 1.5, np.uint8(100)
    x = g.up(g.node("Conv", g.source(2, 20, 6, 7), g.weight(57, 20, 1, 1)), scale, zero)
    f = g.down(x, scale, zero)

    def cut(first: int, last: int, *rest: int) -> str:
        starts, ends = ([first, *rest[:1]], [last, *rest[1:]]) if rest else ([first], [last])
        axes = [1, 2][: len(starts)]
        return g.node("Slice", f, *(g.array(np.array(each, np.int64)) for each in (starts, ends, axes)))

    parts = [cut(0, 16), cut(16, 48), cut(32, 57, 1, 4), cut(5, 21)]
    sizes = [g.array(np.array(each, np.int64)) for each in ((2, 57, 12, 21), (2, 57, 5, 11))]
    parts += [g.node("Resize", f, "", "", each, mode="nearest") for each in sizes]
    made = [g.up(g.node("Add", part, part), 2 * scale, np.uint8(90)) for part in parts]
    compiled = equal(g.finished(*made), tmp_path, isa, threads=2)
    used = [step.choice.algorithm for step in compiled.program.steps]
    assert (used.count("slice"), used.count("resize")) == (3, 2)


@pytest.mark.parametrize(("isa", "instruction"), [("x86-64-v3-vnni", "{vex}\tvpdpbusd"), ("x86-64-v3", "vpmaddwd")])
def test_instructions(isa: str, instruction: str, tmp_path: Path) -> None:
    """What multiplies is VNNI's where the class has it; code is compiled anywhere."""
    g = Quantised(10)
    y = g.node("Conv", g.source(1, 35, 6, 7), g.weight(33, 35, 3, 2))
    compiled = tvmcnn.compile(g.finished(g.up(y, 3.5, np.uint8(60))), isa, tmp_path / "q.so", verify=False)
    text = compiled.code["asm"]()
    assert instruction in text
    assert ("vpdpbusd" in text) == isa.endswith("vnni")
    assert "vpmaddubsw" not in text
