"""Convolutions of factors in bfloat16: the same numbers as NumPy has, of factors that it rounds in a way of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph, drawn, graph_of, lenet, model_of, node
from helpers import U, feeds
from onnx import ModelProto, helper, numpy_helper

import tvmcnn
from tvmcnn import targets
from tvmcnn.artifact.container import read_manifest
from tvmcnn.artifact.lock import lock_of
from tvmcnn.choose.cpu import bf16 as choosing
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.cpu.defaults import winograd_config
from tvmcnn.choose.records import NONE
from tvmcnn.compiler import Compiled
from tvmcnn.configs import PairsConfig, WinogradConfig
from tvmcnn.errors import TvmcnnError
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.precision import rounded
from tvmcnn.reweighting import reweight

Array = np.ndarray[Any, Any]
TARGET = "x86-64-v4-bf16"
runs = pytest.mark.skipif(bool(targets.TARGETS[TARGET].missing()), reason="this CPU has no AVX512-BF16")

SHAPES: dict[str, tuple[tuple[int, ...], int, tuple[int, int], dict[str, Any]]] = {
    "padded": ((2, 37, 9, 12), 45, (3, 2), {"pads": [1, 0, 2, 1]}),
    "half a block": ((1, 9, 17, 33), 48, (3, 3), {"strides": [2, 1], "pads": [1, 1, 0, 2]}),
    "a block and a few": ((1, 19, 17, 15), 35, (5, 7), {"strides": [2, 3], "pads": [2, 3, 1, 0]}),
    "dilated": ((1, 24, 11, 17), 48, (3, 2), {"dilations": [2, 3], "pads": [2, 3, 1, 0]}),
    "pointwise": ((3, 70, 7, 9), 80, (1, 1), {}),
    "strided pointwise": ((1, 33, 13, 10), 64, (1, 1), {"strides": [2, 3]}),
    "three by three": ((1, 32, 8, 10), 48, (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "bands": ((1, 48, 57, 60), 64, (3, 2), {"pads": [1, 1, 1, 0]}),
    "one row between pads": ((1, 33, 1, 41), 48, (3, 2), {"pads": [1, 0, 1, 1]}),
    "parts": ((1, 260, 5, 6), 512, (3, 2), {"pads": [1, 1, 1, 1]}),
}


def convolution(name: str) -> ModelProto:
    """A convolution between other kernels, so that its image has a halo and lies in blocks."""
    shape, maps, kernel, attributes = SHAPES[name]
    g = Graph(3)
    g.output(g.node("Relu", g.conv(g.input(*shape), maps, kernel, **attributes)))
    return g.model()


def compiled(model: ModelProto, folder: Path, **options: Any) -> Compiled:
    options = {"precision": "bf16", "own_records": False, **options}
    return tvmcnn.compile(model, TARGET, folder / "net.so", **options)


def pairs(compiled: Compiled) -> list[PairsConfig]:
    """The configs of the convolutions of bfloat16."""
    return [step.choice.config for step in compiled.program.steps if isinstance(step.choice.config, PairsConfig)]


def as_bfloat16(x: Array) -> Array:
    """The nearest numbers of 8 bits of mantissa: by the distance to both neighbours, of equal ones the even."""
    below = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    above = ((x.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    odd = (x.view(np.uint32) >> np.uint32(16)) & np.uint32(1)
    up = (np.abs(above - x) < np.abs(x - below)) | ((np.abs(above - x) == np.abs(x - below)) & (odd == 1))
    return np.where(up, above, below)


def convolved(x: Array, model: ModelProto) -> tuple[Array, Array]:
    """The convolution of `model`, tap by tap in float64 of rounded factors, and the size of its sums' terms."""
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    given = {a.name: list(a.ints) for a in model.graph.node[0].attribute if a.ints}
    (sh, sw), (dh, dw) = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    top, left, bottom, right = given.get("pads", [0] * 4)
    image = np.pad(as_bfloat16(x), ((0, 0), (0, 0), (top, bottom), (left, right)))
    kh, kw = weight.shape[2:]
    height = (image.shape[2] - (kh - 1) * dh - 1) // sh + 1
    width = (image.shape[3] - (kw - 1) * dw - 1) // sw + 1
    sums = np.zeros((2, x.shape[0], weight.shape[0], height, width))
    for i in range(kh):
        for j in range(kw):
            under = image[:, :, i * dh :, j * dw :][:, :, : (height - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw]
            taps = as_bfloat16(np.ascontiguousarray(weight[:, :, i, j]))
            sums[0] += np.einsum("nchw,mc->nmhw", under, taps)
            sums[1] += np.einsum("nchw,mc->nmhw", np.abs(under), np.abs(taps))
    return sums[0] + bias.reshape(1, -1, 1, 1), sums[1]


@runs
@pytest.mark.parametrize("name", SHAPES)
def test_convolution(name: str, tmp_path: Path) -> None:
    """Within float32's rounding of the sums, and the same bits with one thread and two."""
    model = convolution(name)
    made = compiled(model, tmp_path)
    (config,) = pairs(made)
    assert config.bands > 1 or name != "bands"
    assert config.parts > 1 or name != "parts"
    (x,) = feeds(model).values()
    one, two = (tvmcnn.load(made.path, threads=threads)(x) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    wanted, size = convolved(x, model)
    terms = np.prod(model.graph.initializer[0].dims[1:])
    assert np.all(np.abs(one - np.maximum(wanted, 0)) <= (2 + np.sqrt(terms)) * U * (size + np.abs(wanted)))
    exact = np.maximum(tvmcnn.reference(model, feeds(model))[model.graph.output[0].name], 0)
    assert np.abs(one - exact).max() > 2**-13 * np.abs(exact).max()  # factors are rounded


@runs
def test_the_instruction(tmp_path: Path) -> None:
    """Two convolutions by vdpbf16ps, whose images vcvtneps2bf16 rounds; no call is left of it."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 9, 12), 32, (3, 2)))
    g.output(g.conv(x, 48, (1, 1)))
    made = compiled(g.model(), tmp_path)
    text = made.code["asm"]()
    assert len(pairs(made)) == 2
    assert text.count("vdpbf16ps") >= 2 * 8
    assert text.count("vcvtneps2bf16") >= 2
    assert "tvmcnn_dot" not in text


def after_a_sum(g: Graph) -> None:
    """A residual, whose own convolution reads what it is added to."""
    x = g.node("Relu", g.conv(g.input(1, 5, 11, 14), 32, (1, 1)))
    y = g.node("Relu", g.conv(x, 48, (1, 1)))
    z = g.conv(y, 32, (3, 2), pads=[1, 1, 1, 0])
    g.output(g.node("Relu", g.node("Add", z, x)))


def before_a_pool(g: Graph) -> None:
    x = g.node("Relu", g.conv(g.input(2, 18, 12, 19), 48, (3, 2)))
    g.output(g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))


def behind_a_prologue(g: Graph) -> None:
    """DenseNet's: what is normalised is concatenated, and read by others."""
    x = g.conv(g.input(1, 20, 13, 16), 32, (3, 2), strides=[1, 2])
    moments = [g.draw(32), g.draw(32), g.draw(32), g.constant(np.abs(g.rng.standard_normal(32)) + 0.5)]
    y = g.node("Relu", g.node("BatchNormalization", x, *moments))
    g.output(g.node("Relu", g.conv(y, 48, (1, 1))), g.node("Sigmoid", x))


def folded(g: Graph) -> None:
    """Scales of its maps, one of them zero, are part of the weights that are rounded."""
    y = g.conv(g.input(1, 24, 9, 20), 48, (2, 3), bias=False)
    g.output(g.node("Relu", g.node("Mul", normalised(g, y, 48), g.draw(48, 1, 1))))


def normalised(g: Graph, x: str, maps: int) -> str:
    """A BatchNormalization, part of the weights before it: it scales some maps by negative numbers, one by zero."""
    scale = g.rng.standard_normal(maps)
    scale[3] = 0
    moments = [g.constant(scale), g.draw(maps), g.draw(maps), g.constant(np.abs(g.rng.standard_normal(maps)) + 0.5)]
    return str(g.node("BatchNormalization", x, *moments))


def folded_without_taps(g: Graph) -> None:
    """Rows of taps that meet nothing but padding are left out of the weights that are scaled."""
    g.output(normalised(g, g.conv(g.input(1, 24, 1, 20), 48, (5, 3), pads=[2, 1, 2, 1], bias=False), 48))


def folded_volumes(g: Graph) -> None:
    """The weights of frames have their taps in another order, and one plane of them none."""
    weight = g.draw(48, 24, 3, 2, 3)
    y = g.node("Conv", g.input(1, 24, 1, 7, 10), weight, pads=[1, 0, 1, 1, 0, 1], kernel_shape=[3, 2, 3])
    g.output(normalised(g, y, 48))


def folded_matrix(g: Graph) -> None:
    """Maps are the columns of the matrix."""
    g.output(normalised(g, g.node("Gemm", g.input(27, 131), g.draw(131, 258), g.draw(258)), 258))


def folded_transposed(g: Graph) -> None:
    """Maps are the second axis of the weight, whose taps are turned round."""
    y = g.node("ConvTranspose", g.input(1, 40, 6, 9), g.draw(40, 32, 2, 2), g.draw(32), pads=[1, 0, 0, 1])
    g.output(normalised(g, y, 32))


def concatenated(g: Graph) -> None:
    x = g.node("Relu", g.conv(g.input(2, 16, 7, 18), 32, (1, 1)))
    g.output(g.node("Concat", g.conv(x, 48, (1, 1)), g.conv(x, 16, (1, 1)), axis=1))


def deep(g: Graph) -> None:
    """The image of each is off by what the ones before it have rounded; at last by few sums."""
    x = g.node("Relu", g.conv(g.input(1, 16, 14, 20), 32, (3, 2)))
    for maps in (48, 33, 40, 64):
        x = g.node("Relu", g.conv(x, maps, (2, 2), bias=maps > 40))
    x = g.node("GlobalAveragePool", x)
    g.output(g.conv(x, 7, (1, 1)))


def matrices(g: Graph) -> None:
    """Rows of odd numbers of terms, a matrix that is turned and scaled, one whose product is hidden, a lone row."""
    x = g.node("Add", g.node("MatMul", g.input(2, 27, 131), g.draw(131, 258)), g.draw(258))
    y = g.node("Gemm", g.input(3, 301), g.draw(157, 301), g.draw(157), transB=1, alpha=0.7, beta=1.3)
    z = g.node("Relu", g.node("Gemm", g.input(1, 97), g.draw(97, 203), g.draw(203)))
    g.output(g.node("Relu", x), y, g.node("Softmax", g.node("Gemm", z, g.draw(203, 90))))


def transposed(g: Graph) -> None:
    x = g.input(1, 17, 6, 9)
    g.output(g.node("ConvTranspose", x, g.draw(17, 32, 2, 2), g.draw(32), strides=[2, 2]))


def sequence(g: Graph) -> None:
    x = g.input(1, 24, 70)
    g.output(g.node("Relu", g.node("Conv", x, g.draw(33, 24, 5), g.draw(33), strides=[2])))


GRAPHS = (
    *(after_a_sum, before_a_pool, behind_a_prologue, concatenated, deep, transposed, sequence, matrices),
    *(folded, folded_without_taps, folded_volumes, folded_matrix, folded_transposed),
)


@runs
@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_networks(build: Callable[[Graph], None], activations: bool, tmp_path: Path) -> None:
    """Verified against an oracle that rounds the same factors: what differs is float32's rounding of sums."""
    g = Graph(4)
    build(g)
    made = compiled(g.model(), tmp_path, activations=activations)
    rules = [step.choice.rule for step in made.program.steps]
    assert rules.count("pairs") == len(pairs(made))
    assert rules.count("dense_pairs") == {matrices: 4, folded_matrix: 1}.get(build, 0)
    assert rules.count("dense_pairs") or pairs(made)
    assert made.verdict is not None and made.verdict.passed
    assert not made.fallbacks
    if build is not behind_a_prologue:  # which shows its image by another kernel
        assert all(error.bound <= 3e-4 * error.scale for error in made.verdict.outputs)


@runs
def test_rows_by_threads(tmp_path: Path) -> None:
    """Each range of tasks rounds the rows for itself: the same bits with one thread and two."""
    g = Graph(5)
    g.output(g.node("MatMul", g.input(197, 385), g.draw(385, 770)))
    made, (x,) = compiled(g.model(), tmp_path), feeds(g.model()).values()
    assert max(step.choice.tasks for step in made.program.steps) > 1
    one, two = (tvmcnn.load(made.path, threads=threads)(x) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    weight = numpy_helper.to_array(g.initializers[0])
    wanted, size = as_bfloat16(x) @ as_bfloat16(weight), np.abs(x) @ np.abs(weight)
    assert np.all(np.abs(one - wanted) <= (2 + np.sqrt(385)) * U * size)


def call_twice() -> ModelProto:
    """A function of one convolution, called twice."""
    body = [node("Conv", "x w", "c", "inner"), node("Relu", "c", "y")]
    block = helper.make_function("d", "Block", ["x", "w"], ["y"], body, [helper.make_opsetid("", 17)])
    calls = [node("Block", "x w1", "t", domain="d"), node("Block", "t w2", "u", domain="d"), node("Sigmoid", "u", "z")]
    weights = {"w1": drawn(48, 20, 3, 2), "w2": drawn(33, 48, 1, 1)}
    return model_of(calls, {"x": (1, 20, 9, 19)}, "z", weights, functions=[block])


def branched() -> ModelProto:
    """A convolution in the branch that a constant chooses."""
    branches = {
        f"{word}_branch": graph_of([node("Conv", f"x w{word}", f"y{word}")], {}, [f"y{word}"], name=word)
        for word in ("then", "else")
    }
    nodes = [node("If", "yes", "t", **branches), node("Relu", "t", "z")]
    weights = {"yes": np.array(True), "wthen": drawn(48, 20, 3, 2), "welse": drawn(48, 20, 3, 2, seed=2)}
    return model_of(nodes, {"x": (1, 20, 9, 19)}, "z", weights)


@runs
@pytest.mark.parametrize("build", [call_twice, branched])
def test_products_inside(build: Callable[[], ModelProto], tmp_path: Path) -> None:
    """The oracle finds the products of functions and branches too."""
    made = compiled(build(), tmp_path)
    assert pairs(made)
    assert made.verdict is not None
    stored = {name for name, (_, layout) in made.program.places.items() if layout.narrow}
    sums = [error for error in made.verdict.tensors if error.name not in stored]
    assert all(error.bound <= 3e-4 * error.scale for error in sums) and len(sums) > len(stored)


@runs
def test_numbers_that_are_none(tmp_path: Path) -> None:
    """NaN stays NaN, infinity infinite; what is halfway goes to the even neighbour."""
    g = Graph()
    g.output(g.conv(g.input(1, 16, 1, 6), 32, (1, 1), bias=False))
    model = g.model()
    weight = np.zeros((32, 16, 1, 1), np.float32)
    weight[np.arange(16), np.arange(16)] = 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, model.graph.initializer[0].name))
    x = np.zeros((1, 16, 1, 6), np.float32)
    patterns = [0x7F800001, 0xFFFFFFFF, 0x7F800000, 0x3F808000, 0x3F818000, 0x3F808001]
    x[0, 3, 0] = np.array(patterns, np.uint32).view(np.float32)
    made = tvmcnn.load(compiled(model, tmp_path, verify=False).path)(x)
    assert np.isnan(made[0, 3, 0, :2]).all()
    np.testing.assert_array_equal(made[0, 3, 0, 2:], np.float32([np.inf, 1, 1 + 2**-6, 1 + 2**-7]))


def test_rounded() -> None:
    """Rounding by integers is rounding by the distances, and to bfloat16 exactly."""
    x = np.concatenate([feeds(lenet(1))["x0"].reshape(-1), np.float32([0, -0.0, 1, 2.0**-100, 3e38, np.inf, -np.inf])])
    halves = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8000)).view(np.float32)
    for array in (x[np.isfinite(x)], halves):
        found = (rounded(array, "bf16").astype(np.uint32) << np.uint32(16)).view(np.float32)
        np.testing.assert_array_equal(found, as_bfloat16(array))
    assert rounded(np.float32([np.inf, -np.inf, -0.0]), "bf16").tolist() == [0x7F80, 0xFF80, 0x8000]
    nans = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan((rounded(nans, "bf16").astype(np.uint32) << np.uint32(16)).view(np.float32)).all()


# ---- what is chosen, and what is said of it -------------------------------------------------------------------------


def test_lenet_stays_float32(tmp_path: Path) -> None:
    """It has too few channels: the same kernels, and one sentence that says so."""
    lines: list[str] = []
    made = compiled(lenet(1), tmp_path, report=lines.append, verify=not targets.TARGETS[TARGET].missing())
    assert read_manifest(made.path)["precision"] == "float32, factors of products and images between in bfloat16"
    other = compiled(lenet(1), tmp_path, precision="fp32", verify=False)
    assert [step.choice for step in made.program.steps] == [step.choice for step in other.program.steps]
    reasons = "2 of fewer than 8 channels, 1 over the whole image, 2 Gemm of fewer than 16,384 weights"
    assert f"bfloat16: 0 of 5 kernels with products; in float32 {reasons}; and 0 of 3 images between kernels" in lines
    assert lines[0].endswith("; float32, factors of products and images between in bfloat16")


def mixed(g: Graph) -> None:
    """One of each that stays float32, and one that does not."""
    x = g.node("Relu", g.conv(g.input(1, 3, 24, 28), 32, (3, 3), pads=[1, 1, 1, 1]))
    x = g.node("Relu", g.conv(x, 64, (3, 3), pads=[1, 1, 1, 1]))
    x = g.node("Relu", g.conv(x, 64, (3, 3), pads=[1, 1, 1, 1], group=64))
    x = g.node("Relu", g.conv(x, 40, (1, 1)))
    g.output(x)


def test_winograd_stays(tmp_path: Path) -> None:
    """F(4 x 4, 3 x 3) of float32 has 4 times fewer products, which is more than pairs gain."""
    g = Graph()
    mixed(g)
    lines: list[str] = []
    made = compiled(g.model(), tmp_path, verify=False, report=lines.append)
    algorithms = [step.choice.algorithm for step in made.program.steps if step.choice.kernel.anchor.op == "Conv"]
    assert algorithms == ["direct", "winograd", "depthwise", "bf16"]
    reasons = "1 of fewer than 8 channels, 1 by Winograd, 1 of several groups"
    assert f"bfloat16: 1 of 4 kernels with products; in float32 {reasons}; and 1 of 3 images between kernels" in lines
    without = compiled(g.model(), tmp_path, verify=False, exact=True)
    assert [step.choice.algorithm for step in without.program.steps].count("bf16") == 2


def test_winograd_of_small_tiles_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """F(2 x 2, 3 x 3) has 2.25 times fewer, F(2 x 2, 5 x 5) 2.8, F(4 x 4, 5 x 5) 6.25."""
    state: Any = dataclasses.make_dataclass("State", ["precision", "target"])("bf16", targets.TARGETS[TARGET])
    g = Graph()
    mixed(g)
    kernel = next(step.choice.kernel for step in _steps(g) if step.choice.algorithm == "winograd")
    assert isinstance(winograd_config(kernel, targets.TARGETS[TARGET]), WinogradConfig)
    taken = {
        (tile, side): choosing.multiplies_in_bf16(state, kernel, WinogradConfig(tile=tile, kernel=side))
        for tile in (2, 4)
        for side in (3, 5)
    }
    assert taken == {(2, 3): True, (2, 5): True, (4, 3): False, (4, 5): False}


def _steps(g: Graph) -> tuple[Any, ...]:
    network = simplified(import_model(g.model()))
    return lay_out(network, choose(network, fuse(network), targets.TARGETS[TARGET], NONE), Weights()).steps


def test_no_pairs_where_there_are_tiles(tmp_path: Path) -> None:
    """CPUs with AMX multiply pairs at little more than half the rate of FMAs: what fills no tiles is float32."""
    lines: list[str] = []
    options: dict[str, Any] = {"verify": False, "report": lines.append, "precision": "bf16"}
    g = Graph()
    g.output(g.conv(g.node("Relu", g.conv(g.input(1, 3, 9, 12), 37, (1, 1))), 48, (3, 2)))
    tvmcnn.compile(g.model(), "x86-64-v4-amx", tmp_path / "net.so", **options)
    few = "1 whose channels and pixels are too few to fill tiles"
    assert f"bfloat16: 1 of 2 kernels with products; in float32 {few}; and 1 of 1 images between kernels" in lines


@runs
def test_other_weights(tmp_path: Path) -> None:
    """A library of bfloat16 takes a model's other weights, rounded."""
    made = compiled(convolution("padded"), tmp_path)
    model = convolution("padded")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array[::-1].copy() * np.float32(1.3), tensor.name))
    (verdict,) = reweight(made.path, model, tmp_path / "other.so")
    assert verdict.passed
    (x,) = feeds(model).values()
    fresh = compiled(model, tmp_path)
    np.testing.assert_array_equal(tvmcnn.load(tmp_path / "other.so")(x), tvmcnn.load(fresh.path)(x))


def test_a_lock_has_the_precision(tmp_path: Path) -> None:
    made = compiled(convolution("padded"), tmp_path, verify=False)
    (tmp_path / "lock.json").write_text(json.dumps(lock_of(read_manifest(made.path))))
    compiled(convolution("padded"), tmp_path, verify=False, locked=tmp_path / "lock.json")
    with pytest.raises(TvmcnnError, match="precision"):
        compiled(convolution("padded"), tmp_path, verify=False, locked=tmp_path / "lock.json", precision="fp32")
