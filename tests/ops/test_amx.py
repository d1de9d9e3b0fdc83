"""Convolutions by AMX: bytes equal to the oracle's, bfloat16 within float32's rounding of the sums."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph
from helpers import feeds
from onnx import TensorProto, helper
from quantised import Quantised, equal
from tvm import te

import tvmcnn
from tvmcnn import packing, targets
from tvmcnn.choose.cpu import amx as choosing
from tvmcnn.compiler import Compiled
from tvmcnn.configs import AmxConfig
from tvmcnn.errors import VerifyError
from tvmcnn.ops import amx
from tvmcnn.packed_band import PackedBand
from tvmcnn.schedule.x86 import quads

TARGET = "x86-64-v4-amx"
MISSING = targets.TARGETS[TARGET].missing()
runs = pytest.mark.skipif(bool(MISSING), reason=f"this CPU lacks {', '.join(MISSING)}")

# Image, filters, attributes: (maps, channels) of whole blocks and not, pixels that fill no tile, phases of strides
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "padded": ((2, 37, 9, 12), (45, 37, 3, 2), {"pads": [1, 0, 2, 1]}),
    "pointwise": ((1, 70, 7, 9), (80, 70, 1, 1), {}),
    "strided": ((3, 66, 13, 11), (32, 66, 3, 5), {"strides": [2, 3], "pads": [1, 2, 0, 1]}),
    "pointwise, strided": ((1, 33, 13, 17), (64, 33, 1, 1), {"strides": [3, 2]}),
    "dilated": ((1, 40, 11, 16), (17, 40, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 2, 2]}),
    "strided and dilated": ((1, 64, 19, 18), (48, 64, 3, 2), {"dilations": [3, 1], "strides": [2, 2]}),
    "bands": ((1, 32, 37, 23), (32, 32, 3, 3), {"pads": [1, 1, 1, 1]}),
    "parts": ((1, 160, 5, 6), (192, 160, 3, 3), {"pads": [1, 1, 1, 1]}),
    "one row": ((1, 48, 1, 41), (32, 48, 1, 3), {"pads": [0, 1, 0, 1]}),
    "one column": ((1, 48, 39, 1), (96, 48, 5, 1), {"pads": [2, 0, 2, 0]}),
    "three channels": ((2, 3, 31, 36), (32, 3, 5, 7), {"strides": [2, 2], "pads": [2, 3, 2, 3]}),
    "three channels, wide": ((1, 3, 30, 41), (64, 3, 2, 11), {"strides": [4, 3], "pads": [0, 5, 1, 5]}),
    "five channels": ((1, 5, 21, 22), (16, 5, 3, 5), {"strides": [1, 3], "dilations": [2, 1], "pads": [2, 1, 0, 3]}),
    "sixteen channels": ((1, 16, 13, 17), (48, 16, 2, 3), {"pads": [1, 1, 0, 1]}),
    "one column of nine channels": ((2, 9, 39, 1), (32, 9, 3, 2), {"strides": [2, 4], "pads": [1, 0, 0, 1]}),
    "as few pixels as a tile": ((1, 64, 2, 8), (16, 64, 1, 1), {}),
}


def in_bytes(name: str, x_type: str, zero: int, y_type: str) -> onnx.ModelProto:
    """A convolution between integers, with a scale a map, a bias and a Relu."""
    shape, kernel, attributes = SHAPES[name]
    g = Quantised(1)
    scale = g.scale(kernel[0])
    given = [g.source(*shape, dtype=x_type, zero=zero, scale=0.03), g.weight(*kernel, scale=scale)]
    y = g.node("Conv", *given, g.bias(kernel[0], np.float32(0.03) * scale), **attributes)
    return g.finished(g.up(g.node("Relu", y), 2.7, np.array(5, y_type)), dtype=y_type)


def configs(compiled: Compiled) -> list[AmxConfig]:
    """Configs of the convolutions by AMX."""
    return [step.choice.config for step in compiled.program.steps if isinstance(step.choice.config, AmxConfig)]


@runs
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("x_type", "zero", "y_type"), [("uint8", 201, "int8"), ("int8", -77, "uint8")])
def test_bytes(name: str, x_type: str, zero: int, y_type: str, tmp_path: Path) -> None:
    """Weights and activations of the whole range, on two threads."""
    compiled = equal(in_bytes(name, x_type, zero, y_type), tmp_path, TARGET, threads=2)
    (config,) = configs(compiled)
    (height,) = (step.choice.kernel.output.shape[2] for step in compiled.program.steps if step.choice.rule == "amx")
    assert config.rows < height / 2 or name != "bands"
    assert config.parts > 1 or name != "parts"


@runs
@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("width", [3, 11])  # fewer pixels than are narrowed at once, and more
def test_residuals_of_bytes(op: str, width: int, tmp_path: Path) -> None:
    """Sums and products with another image join the convolution; its own integers are shown all the same."""
    g = Quantised(3)
    x = g.source(1, 48, 9, width, zero=130)
    other = g.up(g.node("Conv", x, g.weight(34, 48, 1, 1)), 1.1, np.uint8(140))
    mine = g.up(g.node("Conv", x, g.weight(34, 48, 3, 3), pads=[1, 1, 1, 1]), 2.3, np.int8(-9))
    down = [g.down(mine, 2.3, np.int8(-9)), g.down(other, 1.1, np.uint8(140))]
    y = g.node("Relu", g.node(op, *down))
    compiled = equal(g.finished(g.up(y, 2.9 if op == "Add" else 90.0, np.uint8(31))), tmp_path, TARGET, threads=2)
    assert len(configs(compiled)) == 2


@runs
@pytest.mark.parametrize(("low", "high"), [(-1.0, 5.0), (0.0, 6.0)])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bounds_of_bytes(low: float, high: float, dtype: str, tmp_path: Path) -> None:
    """A Clip whose bounds are within the type's."""
    g = Quantised(4)
    y = g.node("Conv", g.source(1, 64, 5, 9, zero=111), g.weight(32, 64, 1, 1, scale=0.001))
    y = g.node("Clip", y, g.array(np.float32(low)), g.array(np.float32(high)))
    equal(g.finished(g.up(y, 0.09, np.array(33, dtype)), dtype=dtype), tmp_path, TARGET)


def in_floats(name: str) -> onnx.ModelProto:
    """A convolution with what goes before and after it in one kernel."""
    shape, (maps, _, *kernel), attributes = SHAPES[name]
    g = Graph(3)
    g.output(g.node("Relu", g.conv(g.input(*shape), maps, tuple(kernel), **attributes)))
    return g.model()


def in_bf16(model: onnx.ModelProto, folder: Path) -> Compiled:
    return tvmcnn.compile(model, TARGET, folder / "net.so", precision="bf16", own_records=False)


def agrees(model: onnx.ModelProto, compiled: Compiled, *, rounding: float = 2**-6) -> None:
    """As `verify` has found with the same rounded factors; the same bits on two threads; and near the exact sums, but
    for the rounding: 2^-8 of each product, in sums of some hundred of either sign."""
    assert compiled.verdict is not None and compiled.verdict.passed
    given = feeds(model)
    ordered = [given[info.name] for info in tvmcnn.load(compiled.path).inputs]
    one, two = (tvmcnn.load(compiled.path, threads=threads)(*ordered) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    (wanted,) = tvmcnn.reference(model, given).values()
    assert 2**-13 < np.abs(one - wanted).max() / np.abs(wanted).max() < rounding


@runs
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16(name: str, tmp_path: Path) -> None:
    model = in_floats(name)
    compiled = in_bf16(model, tmp_path)
    assert len(configs(compiled)) == 1
    agrees(model, compiled)


@runs
def test_bfloat16_between_others(tmp_path: Path) -> None:
    """A scale and a Relu before the convolution, a sum and a pool behind it."""
    g = Graph(5)
    x = g.conv(g.input(1, 8, 14, 18), 48, (1, 1))
    before = g.node("Relu", g.node("Mul", g.node("Relu", x), g.draw(48, 1, 1)))
    y = g.node("Relu", g.conv(before, 48, (3, 3), pads=[1, 1, 1, 1]))
    z = g.node("Add", g.conv(y, 48, (1, 1)), x)
    g.output(g.node("MaxPool", g.node("Relu", g.conv(z, 40, (2, 3))), kernel_shape=[2, 2], strides=[2, 2]))
    compiled = in_bf16(g.model(), tmp_path)
    assert len(configs(compiled)) == 4
    agrees(g.model(), compiled)


def one_block_less(patch: pytest.MonkeyPatch) -> None:
    """The sum over the channels ends 64 bytes of them early."""

    def reduced(dom: Any, name: str) -> Any:
        return te.reduce_axis((0, dom[1] - 1) if name == "rb" else dom, name)

    patch.setattr(amx, "te", SimpleNamespace(**{**vars(te), "reduce_axis": reduced}))


def next_pixel(patch: pytest.MonkeyPatch) -> None:
    """The second column of a filter reads a pixel too far to the right."""
    real = PackedBand.tap

    def tap(self: PackedBand, axis: int, tap: Any) -> Any:
        phase, offset = real(self, axis, tap)
        return phase, offset * 2 if axis == 1 else offset

    patch.setattr(PackedBand, "tap", tap)


def swapped_maps(patch: pytest.MonkeyPatch) -> None:
    """The first two maps change places."""
    real = packing._in_tiles
    patch.setattr(packing, "_in_tiles", lambda choice, weight: real(choice, weight[[1, 0, *range(2, len(weight))]]))


def swapped_pixels(patch: pytest.MonkeyPatch) -> None:
    """The last two of four pixels change places as they are narrowed."""
    patch.setattr(quads, "IN_ORDER", [*quads.IN_ORDER[:32], *quads.IN_ORDER[48:], *quads.IN_ORDER[32:48]])
    patch.setattr(quads, "intrinsic", quads.intrinsic.__wrapped__)


@runs
@pytest.mark.parametrize("plant", [one_block_less, next_pixel, swapped_maps, swapped_pixels])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification refuses the library; of floats no pixels are narrowed together."""
    model = in_floats("padded") if precision == "bf16" else in_bytes("padded", "uint8", 201, "int8")
    plant(monkeypatch)
    if plant is swapped_pixels and precision == "bf16":
        in_bf16(model, tmp_path)
        return
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy"):
        tvmcnn.compile(model, TARGET, tmp_path / "net.so", precision=precision, own_records=False)


def test_the_instructions(tmp_path: Path) -> None:
    """Products of each kind of factors, between one configuration of the registers and one release."""
    kinds = {"tdpbusd": in_bytes("padded", "uint8", 3, "uint8"), "tdpbssd": in_bytes("padded", "int8", 3, "uint8")}
    for instruction, model in [*kinds.items(), ("tdpbf16ps", in_floats("padded"))]:
        precision = "bf16" if instruction == "tdpbf16ps" else "fp32"
        made = tvmcnn.compile(model, TARGET, tmp_path / "net.so", precision=precision, verify=False, own_records=False)
        words = re.findall(r"^\s+(tdp\w+|ldtilecfg|tilerelease|tilezero|vpackuswb)\s", made.code["asm"](), re.MULTILINE)
        assert words[0] == "ldtilecfg"
        assert words[-1] == "tilerelease"
        assert {word for word in words if word.startswith("tdp")} == {instruction}
        assert ("vpackuswb" in words) == (instruction != "tdpbf16ps")


def test_tiles_that_are_mostly_empty(tmp_path: Path) -> None:
    """Few products in a row, and fewer pixels than rows."""
    for image, filters in (((1, 3, 9, 11), (32, 3, 3, 4)), ((1, 64, 3, 5), (32, 64, 1, 1))):
        g = Quantised(6)
        y = g.up(g.node("Conv", g.source(*image), g.weight(*filters)), 2.0, np.uint8(9))
        made = tvmcnn.compile(g.finished(y), TARGET, tmp_path / "q.so", verify=False, own_records=False)
        assert not configs(made)


@pytest.mark.parametrize("name", SHAPES)
def test_tiles_are_within_the_registers_and_the_packed_image(name: str, tmp_path: Path) -> None:
    """No tap of the last run reaches behind the packed image, and a lone run is whole."""
    made = tvmcnn.compile(in_bytes(name, "uint8", 3, "uint8"), TARGET, tmp_path / "q.so", verify=False)
    (choice,) = (step.choice for step in made.program.steps if step.choice.rule == "amx")
    config = choice.numbers(AmxConfig)
    band = PackedBand.of(choice.kernel, config)
    height, width = (range(band.steps(axis)) for axis in (0, 1))
    last = max(band.first(rh, rw)[2] for rh in height for rw in width) + band.run
    assert (band.runs * band.pixels - 1) * band.spacing + last <= band.elements
    assert band.runs > 1 or band.sums == band.pixels
    assert config.maps * config.pixels + config.maps + config.pixels <= 8


def test_configs_of_more_than_eight_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="3 x 2 sums and their factors are 11 tiles, of 8"):
        AmxConfig(maps=3, pixels=2)


def drawn(seed: int) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """An image, filters and attributes at random, often at the edge of something: one row, one channel, few pixels."""
    rng = np.random.default_rng(seed)
    channels = int(rng.choice([3, 4, 7, 9, 16, 17, 33, 64, 65, 130]))
    maps, images = int(rng.choice([8, 17, 32, 40, 80, 112])), int(rng.integers(1, 4))
    kernel = [int(rng.choice(sizes)) for sizes in ([1, 2, 3, 5], [1, 2, 3, 7, 11])]
    strides, dilations = rng.integers(1, 4, 2).tolist(), rng.integers(1, 3, 2).tolist()
    pads = [int(rng.integers(0, kernel[axis % 2])) for axis in range(4)]
    taps = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    least = [max(1, tap - pads[axis] - pads[axis + 2]) for axis, tap in enumerate(taps)]
    rows, columns = (size + int(rng.choice([0, 1, 11, 30])) for size in least)
    return (images, channels, rows, columns), (maps, channels, *kernel), {
        "strides": strides, "dilations": dilations, "pads": pads
    }  # fmt: skip


@runs
@pytest.mark.parametrize("seed", range(16))
def test_drawn_convolutions(seed: int, tmp_path: Path) -> None:
    """Bytes of either sign between random scales, then the same shapes in bfloat16."""
    image, filters, attributes = drawn(seed)
    g = Quantised(seed)
    x = g.source(*image, dtype=("uint8", "int8")[seed % 2], zero=seed - 8 if seed % 2 else 16 * seed)
    y = g.node("Conv", x, g.weight(*filters), **attributes)
    scale = 0.02 * np.sqrt(np.prod(filters[1:]))
    equal(g.finished(g.up(y, scale, np.uint8(16 * seed))), tmp_path, TARGET, threads=2)
    g = Graph(seed)
    g.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, image))
    weight = g.constant((g.rng.standard_normal(filters) / np.sqrt(np.prod(filters[1:]))).astype(np.float32))
    g.output(g.node("Sigmoid", g.node("Conv", "x", weight, kernel_shape=filters[2:], **attributes)))
    in_bf16(g.model(), tmp_path)


@runs
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pixel_that_is_no_number_reaches_its_neighbours_only(precision: str, tmp_path: Path) -> None:
    """What a tile holds beside the taps is not multiplied, not even by 0; bytes know no such pixels."""
    g = Graph(9)
    g.output(g.conv(g.input(1, 3, 12, 40), 32, (2, 7), strides=[1, 2]))
    path = tmp_path / "net.so"
    tvmcnn.compile(g.model(), TARGET, path, precision=precision, own_records=False, exact=True)
    (x,) = feeds(g.model()).values()
    x[0, 1, 5, 21] = np.nan
    wrong = np.isnan(tvmcnn.load(path)(x)).any(axis=(0, 1))
    rows, columns = np.nonzero(wrong)
    assert ({*rows.tolist()}, {*columns.tolist()}) == ({4, 5}, {8, 9, 10})


@runs
def test_a_program_that_never_checks_has_the_registers(tmp_path: Path) -> None:
    """Linux lends them to a process that asks: the library does as it is loaded. The sum of the output is told."""
    made = tvmcnn.compile(in_bytes("pointwise", "uint8", 3, "uint8"), TARGET, tmp_path / "net.so", verify=False)
    (taken,), (given,) = tvmcnn.load(made.path).inputs, tvmcnn.load(made.path).outputs
    sizes = [int(np.prod(info.shape)) for info in (taken, given)]
    (tmp_path / "main.c").write_text(f"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
int32_t net_run(const uint8_t *x, uint8_t *y, void *arena);
int main(void) {{
  uint8_t *x = malloc({sizes[0]}), *y = malloc({sizes[1]});
  long sum = 0;
  for (int i = 0; i < {sizes[0]}; ++i) x[i] = (uint8_t)(i * 7);
  if (net_run(x, y, aligned_alloc(64, {1 << 20})) != 0) return 1;
  for (int i = 0; i < {sizes[1]}; ++i) sum += y[i];
  printf("%ld", sum);
  return 0;
}}
""")
    subprocess.run(["cc", "-o", "main", "main.c", "./net.so"], cwd=tmp_path, check=True)
    told = subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    x = (np.arange(sizes[0]) * 7).astype(np.uint8).reshape(taken.shape)
    assert int(told) == int(tvmcnn.load(made.path)(x).astype(np.int64).sum())


@runs
@pytest.mark.parametrize("config", [AmxConfig(1, 1, 2), AmxConfig(1, 3, 4, 2), AmxConfig(2, 1, 3, 3, prefetch=True)])
def test_any_config(config: AmxConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a record may ask for, in any parts."""
    monkeypatch.setattr(choosing, "amx_config", lambda kernel, target: config)
    monkeypatch.setattr(choosing, "_parts", lambda kernel, given: config.parts)
    g = Quantised(8)
    y = g.node("Conv", g.source(2, 130, 11, 13), g.weight(192, 130, 3, 3), pads=[1, 1, 1, 1])
    assert configs(equal(g.finished(g.up(y, 40.0, np.uint8(120))), tmp_path, TARGET, threads=2)) == [config]
