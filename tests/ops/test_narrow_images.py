"""Images between kernels in bfloat16: which are, what is in them, and that nothing else is rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph
from helpers import U, feeds
from onnx import ModelProto, numpy_helper

import tvmcnn
from tvmcnn import choose, packing, targets
from tvmcnn.artifact.container import read_manifest
from tvmcnn.configs import AmxConfig
from tvmcnn.errors import VerifyError
from tvmcnn.network import Choice, Layout, Tensor, stored_bytes
from tvmcnn.reweighting import reweight
from tvmcnn.run.runner import Runner, _Frame

Array = np.ndarray[Any, Any]
HALF_SPACING = 2.0**-8  # of bfloat16, relative to the number below: 8 bits of mantissa
TARGETS = ("x86-64-v4-bf16", "x86-64-v4-amx")


def on_this_cpu(target: str) -> Any:
    missing = bool(targets.TARGETS[target].missing())
    return pytest.param(target, marks=pytest.mark.skipif(missing, reason=f"this CPU is no {target}"))


runs = pytest.mark.parametrize("target", [on_this_cpu(target) for target in TARGETS])


def compiled(model: ModelProto, target: str, folder: Path, **options: Any) -> Any:
    return tvmcnn.compile(model, target, folder / "net.so", precision="bf16", own_records=False, **options)


def block_of_a_resnet() -> Graph:
    """A residual that is multiplied and added, pads, a pool, an odd number of maps, and a map that is an output."""
    g = Graph(3)
    a = g.node("Relu", g.conv(g.input(2, 24, 11, 17), 40, (1, 1)))
    b = g.node("Relu", g.conv(a, 37, (3, 2), pads=[1, 0, 1, 1]))
    c = g.node("Relu", g.node("Add", g.conv(b, 40, (1, 1)), a))
    d = g.node("MaxPool", c, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1])
    e = g.conv(d, 48, (3, 3), pads=[1, 1, 1, 1], strides=[2, 1])
    g.output(g.node("Relu", g.conv(e, 33, (1, 1))))
    return g


def blocks_of_32() -> Graph:
    """Images that AMX loads tiles from, with and without a halo, beside others that it packs: for a stride, and of a
    halo that is wider than the pads."""
    g = Graph(4)
    a = g.node("Relu", g.conv(g.input(2, 24, 11, 17), 64, (1, 1)))
    b = g.node("Relu", g.conv(a, 96, (3, 2), pads=[1, 0, 1, 1]))
    c = g.node("Relu", g.node("Add", g.conv(b, 64, (1, 1)), a))
    d = g.node("MaxPool", c, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1])
    d = g.node("Relu", g.conv(g.node("Relu", g.conv(d, 64, (1, 1))), 64, (3, 3), pads=[1, 1, 1, 1], group=64))
    e = g.node("Relu", g.conv(d, 64, (1, 1)))
    f = g.node("Relu", g.conv(e, 32, (1, 1)))
    h = g.node("Relu", g.conv(f, 96, (2, 3), pads=[1, 1, 0, 1], strides=[2, 1]))
    i = g.node("Relu", g.node("Add", g.conv(h, 64, (1, 1)), g.conv(h, 64, (3, 5), pads=[1, 2, 1, 2])))
    g.output(g.node("Relu", g.conv(i, 33, (1, 1))))
    return g


def as_bfloat16(x: Array) -> Array:
    """The nearest numbers of 8 bits of mantissa, in float64, of two the even one."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def is_bfloat16(x: Array) -> bool:
    return bool(np.all(x.view(np.uint32) & np.uint32(0xFFFF) == 0))


def convolved(x: Array, weight: Array, bias: Array, pads: list[int], strides: list[int]) -> tuple[Array, Array]:
    """A convolution of rounded factors in float64, tap by tap, and the size of its terms."""
    top, left, bottom, right = pads
    depthwise = weight.shape[1] == 1  # one filter a channel is multiplied in float32
    image = np.pad(x if depthwise else as_bfloat16(x), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(image, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    shift = bias.reshape(1, -1, 1, 1)
    w, axes = (weight[:, 0], "cij->nchw") if depthwise else (as_bfloat16(weight), "mcij->nmhw")
    size = np.einsum(f"nchwij,{axes}", np.abs(windows), np.abs(w))
    return np.einsum(f"nchwij,{axes}", windows, w) + shift, size + np.abs(shift)


def narrow_tensors(path: Path) -> list[str]:
    return [kernel["output"]["name"] for kernel in read_manifest(path)["kernels"] if kernel["output"]["narrow"]]


@pytest.mark.parametrize(("build", "stored"), [(block_of_a_resnet, 5), (blocks_of_32, 10)])
@runs
def test_each_image_is_its_sums_rounded_once(
    target: str, build: Callable[[], Graph], stored: int, tmp_path: Path
) -> None:
    """Every image is computed from those before it as they are stored: products of bfloat16, a residual as it is
    stored, sums in float32, and one rounding at last."""
    model = build().model()
    made = compiled(model, target, tmp_path)
    (x,) = feeds(model).values()
    found = tvmcnn.load(made.path, threads=1).activations(x)
    values = {"x0": x, **found}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes: dict[
        str, Array
    ] = {}  # of the terms of the sums that a tensor is made of, which fusion adds in another order
    narrow = narrow_tensors(made.path)
    assert len(narrow) == stored
    for node in model.graph.node:
        (name,) = node.output
        source = values[node.input[0]].astype(np.float64)
        if node.op_type == "Conv":
            attributes = {a.name: list(a.ints) for a in node.attribute}
            pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
            wanted, sizes[name] = convolved(source, arrays[node.input[1]], arrays[node.input[2]], pads, strides)
        elif node.op_type == "Add":
            wanted = source + values[node.input[1]].astype(np.float64)
        elif node.op_type == "Relu":
            wanted = np.maximum(source, 0)
        else:
            padded = np.pad(source, ((0, 0), (0, 0), (1, 0), (1, 1)), constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
            wanted = windows.max(axis=(4, 5))
        sizes.setdefault(name, sizes.get(node.input[0], np.zeros(())) if node.op_type != "MaxPool" else np.zeros(()))
        bound = 30 * U * (sizes[name] + np.abs(wanted))
        if name in narrow:
            assert is_bfloat16(values[name])
            bound = bound + HALF_SPACING * (np.abs(wanted) + bound)
            assert np.abs(values[name] - wanted).max() > 2.0**-10 * np.abs(wanted).max() or node.op_type == "MaxPool"
        assert np.all(np.abs(values[name] - wanted) <= bound), name


@pytest.mark.parametrize("build", [block_of_a_resnet, blocks_of_32])
@runs
def test_the_same_bytes_with_two_threads_and_without_activations(
    target: str, build: Callable[[], Graph], tmp_path: Path
) -> None:
    model = build().model()
    one = compiled(model, target, tmp_path)
    (x,) = feeds(model).values()
    wanted = tvmcnn.load(one.path, threads=1)(x)
    np.testing.assert_array_equal(tvmcnn.load(one.path, threads=2)(x), wanted)
    np.testing.assert_array_equal(tvmcnn.load(one.path, threads=1).step_by_step(x), wanted)
    (tmp_path / "silent").mkdir()
    silent = compiled(model, target, tmp_path / "silent", activations=False)
    np.testing.assert_array_equal(tvmcnn.load(silent.path, threads=1)(x), wanted)


@runs
def test_what_is_only_multiplied_changes_nothing(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding a kernel earlier makes no bit of the output another."""
    g = Graph(5)
    a = g.node("Relu", g.conv(g.input(1, 24, 19, 17), 40, (1, 1)))
    b = g.node("Relu", g.conv(a, 33, (3, 3), pads=[1, 1, 1, 1], strides=[1, 2]))
    g.output(g.node("Relu", g.conv(b, 48, (1, 1))))
    model = g.model()
    made = compiled(model, target, tmp_path)
    assert len(narrow_tensors(made.path)) == 2
    (x,) = feeds(model).values()
    narrow = tvmcnn.load(made.path, threads=1)(x)
    monkeypatch.setattr(choose.cpu, "narrowing", lambda network, choices, target: tuple(choices))
    (tmp_path / "wide").mkdir()
    wide = compiled(model, target, tmp_path / "wide", verify=False)
    assert not narrow_tensors(wide.path)
    np.testing.assert_array_equal(tvmcnn.load(wide.path, threads=1)(x), narrow)


@runs
def test_special_numbers(target: str, tmp_path: Path) -> None:
    """Infinity, NaN and what rounds up to infinity are as the instruction makes them, in the image and behind it."""
    g = Graph(7)
    x = g.input(1, 32, 1, 18)
    eye = np.eye(32, dtype=np.float32).reshape(32, 32, 1, 1)
    a = g.node("Conv", x, g.constant(eye))
    g.output(g.node("MaxPool", g.node("Conv", a, g.constant(eye)), kernel_shape=[1, 1]))
    made = compiled(g.model(), target, tmp_path, verify=False)
    assert narrow_tensors(made.path)[:1] == [a]
    given = np.zeros((1, 32, 1, 18), np.float32)
    given[0, :, 0, 3] = np.inf
    given[0, :, 0, 4] = np.nan
    given[0, :, 0, 5] = 3.0e38
    shown = tvmcnn.load(made.path, threads=1).activations(given)[a]
    assert np.isnan(shown[0, :, 0, 3]).all()  # infinity times the zeros of the matrix
    assert np.isnan(shown[0, :, 0, 4]).all()
    np.testing.assert_array_equal(shown[0, :, 0, 5], np.float32(as_bfloat16(np.float32([3.0e38]))[0]))
    assert not shown[0, :, 0, 6:].any()


# ---- which images are narrow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_who_reads_decides(target: str, tmp_path: Path) -> None:
    """An image stays float32 where one of its readers, or who makes it, cannot: a concatenation, a depthwise
    convolution, a plain reader, and outputs of the network."""
    g = Graph(1)
    stem = g.node("Relu", g.conv(g.input(1, 24, 19, 17), 48, (1, 1)))
    depthwise = g.node("Relu", g.conv(stem, 48, (3, 3), pads=[1, 1, 1, 1], group=48))
    both = g.node("Relu", g.conv(depthwise, 32, (1, 1)))
    joined = g.node("Concat", both, g.node("Relu", g.conv(depthwise, 64, (1, 1))), axis=1)
    sigmoid = g.node("Sigmoid", g.conv(joined, 40, (1, 1)))
    plain = g.node("Relu", g.conv(sigmoid, 80, (1, 1)))
    g.output(g.node("Softmax", plain, axis=3), g.conv(sigmoid, 35, (1, 1)))
    lines: list[str] = []
    made = compiled(g.model(), target, tmp_path, verify=False, report=lines.append)
    assert narrow_tensors(made.path) == [depthwise, sigmoid]
    (line,) = (line for line in lines if line.startswith("bfloat16: "))
    assert "in float32 1 of several groups; and 2 of 6 images between kernels" in line
    assert any("depthwise -> NCHW16c+bfloat16, rule" in line for line in lines)


def test_tiles_are_loaded_from_images_of_their_form(tmp_path: Path) -> None:
    """Which convolutions pack their image, and that an image is read beyond its end where its last tiles reach so far:
    there is room for that, and NaN there reaches no output."""
    made = compiled(blocks_of_32().model(), "x86-64-v4-amx", tmp_path, verify=False)
    choices = [step.choice for step in made.program.steps if isinstance(step.choice.config, AmxConfig)]
    packed = [each.kernel.anchor.output for each in choices if not each.config.in_place]
    assert packed == ["conv0", "conv16", "conv18"] and len(choices) == 10
    held = {each.name: each.bytes for each in made.program.held}
    beyond = [each for each in choices if each.reads_beyond]
    assert beyond
    for each in beyond:
        (source, layout), image = (each.sources[0], each.reads[0]), each.sources[0].name
        assert layout.block == 32 and held[image] >= stored_bytes(source, layout) + each.reads_beyond
    if targets.TARGETS["x86-64-v4-amx"].missing():
        return
    net = tvmcnn.load(made.path, threads=1)
    x = np.random.default_rng(3).standard_normal((2, 24, 11, 17)).astype(np.float32)
    outputs = []
    for value in (0, 0xFF):  # of bfloat16 and float32 NaN
        arena = np.full(net.manifest["arena_bytes"] + net.manifest["thread_bytes"] + 64, value, np.uint8)
        arena = arena[-arena.ctypes.data % 64 :]
        (info,) = net.outputs
        outputs.append(np.empty(info.shape, info.dtype))
        net.run_in([x], [outputs[-1]], arena)
    np.testing.assert_array_equal(*outputs)
    assert np.isfinite(outputs[0]).all()


def test_only_with_its_precision(tmp_path: Path) -> None:
    model = block_of_a_resnet().model()
    made = tvmcnn.compile(model, "x86-64-v4-amx", tmp_path / "net.so", verify=False, own_records=False)
    assert not narrow_tensors(made.path)


def test_the_arena_is_half_as_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = block_of_a_resnet().model()
    narrow = compiled(model, "x86-64-v4-amx", tmp_path, verify=False).program.arena_bytes
    monkeypatch.setattr(choose.cpu, "narrowing", lambda network, choices, target: tuple(choices))
    wide = compiled(model, "x86-64-v4-amx", tmp_path, verify=False).program.arena_bytes
    assert narrow < 0.7 * wide  # the image of the input and that of the output stay


# ---- in memory ------------------------------------------------------------------------------------------------------


def test_layout() -> None:
    """Pack rounds, unpack gives the rounded numbers back; what lies around them is zero."""
    layout = Layout(16, (1, 0, 2, 1), narrow=True)
    x = np.random.default_rng(2).standard_normal((2, 19, 3, 5)).astype(np.float32)
    stored = layout.pack(x)
    assert stored.dtype == np.uint16 and stored.shape == (2, 2, 6, 6, 16)
    np.testing.assert_array_equal(layout.unpack(stored, x.shape), as_bfloat16(x).astype(np.float32))
    assert not stored[:, :, 0].any() and not stored[:, :, -2:].any() and not stored[:, 1, :, :, 3:].any()
    assert stored_bytes(Tensor("x", x.shape, "float32"), layout) == stored.nbytes
    assert str(layout) == "NCHW16c+halo1,0,2,1+bfloat16"
    wide = dataclasses.replace(layout, narrow=False)
    assert not wide.covers(layout) and not layout.covers(wide) and not layout.like(wide)
    assert layout.without_halo == Layout(16, narrow=True) and not Layout(narrow=True).plain


def test_only_float32_is_narrow(tmp_path: Path) -> None:
    made = compiled(block_of_a_resnet().model(), "x86-64-v4-amx", tmp_path, verify=False)
    choice: Choice = next(step.choice for step in made.program.steps if step.choice.writes.narrow)
    tensor = dataclasses.replace(choice.kernel.output, dtype="int8")
    kernel = dataclasses.replace(choice.kernel, output=tensor)
    with pytest.raises(ValueError, match=r"is int8 in NCHW16c.*bfloat16: only float32 is rounded so"):
        dataclasses.replace(choice, kernel=kernel)


@runs
def test_a_frame_writes_what_it_reads(target: str, tmp_path: Path) -> None:
    """Other weights, and what `bisect` and the tuner put into the arena, go through the same layout."""
    model = block_of_a_resnet().model()
    made = compiled(model, target, tmp_path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array[::-1].copy(), tensor.name))
    (verdict,) = reweight(made.path, model, tmp_path / "other.so")
    assert verdict.passed
    (x,) = feeds(model).values()
    other: Runner = tvmcnn.load(tmp_path / "other.so", threads=1)
    (tmp_path / "fresh").mkdir()
    fresh = compiled(model, target, tmp_path / "fresh")
    np.testing.assert_array_equal(other(x), tvmcnn.load(fresh.path, threads=1)(x))
    with _Frame(other, (x,), other._allocate()) as frame:
        for index, kernel in enumerate(other.manifest["kernels"]):
            frame.step(index)
            if kernel["output"]["narrow"]:
                entry = kernel["stores"][0]
                before = frame.read(kernel["output"], entry)
                frame.write(kernel["output"], before)
                np.testing.assert_array_equal(frame.read(kernel["output"], entry), before)


# ---- what a check finds ---------------------------------------------------------------------------------------------


@runs
def test_an_image_off_by_a_spacing_is_refused(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias that is 1.5 spacings too large in one map of what is stored."""
    real = packing.by_channel

    def shifted(choice: Choice, array: Array) -> Array:
        packed = np.array(real(choice, array))
        if choice.writes.narrow and choice.kernel.anchor.op == "Conv":
            packed.reshape(-1)[2] += 0.1
        return packed

    monkeypatch.setattr(packing, "by_channel", shifted)
    for algorithm, how in choose.summary.ALGORITHMS.items():
        if how.operand is real:
            monkeypatch.setitem(choose.summary.ALGORITHMS, algorithm, dataclasses.replace(how, operand=shifted))  # type: ignore[arg-type]
    with pytest.raises(VerifyError, match="is not written"):
        compiled(block_of_a_resnet().model(), target, tmp_path)


def column_of_pixels() -> Graph:
    """A stride along rows that no row of the image shows."""
    g = Graph(6)
    a = g.node("Relu", g.conv(g.input(2, 24, 41, 1), 64, (1, 1)))
    g.output(g.node("Relu", g.conv(a, 33, (1, 1), strides=[2, 1])))
    return g


def pooled() -> Graph:
    """Pools in convolutions whose images are of the form that tiles are loaded from."""
    g = Graph(7)
    a = g.node("Relu", g.conv(g.input(2, 24, 14, 18), 64, (1, 1)))
    b = g.node("MaxPool", g.node("Relu", g.conv(a, 96, (1, 1))), kernel_shape=[2, 3], strides=[2, 3])
    c = g.node("Relu", g.conv(b, 64, (3, 1), pads=[1, 0, 1, 0]))
    g.output(g.node("AveragePool", g.conv(c, 33, (1, 1)), kernel_shape=[1, 2], strides=[1, 2]))
    return g


@pytest.mark.parametrize("build", [column_of_pixels, pooled])
@runs
def test_rows_of_the_image_that_sums_skip(target: str, build: Callable[[], Graph], tmp_path: Path) -> None:
    """Verified tensor by tensor; pooled images are read in place, those of a stride are not."""
    made = compiled(build().model(), target, tmp_path)
    assert made.verdict is not None and made.verdict.passed and narrow_tensors(made.path)
    tiles = [step.choice for step in made.program.steps if isinstance(step.choice.config, AmxConfig)]
    in_place = [choice.config.in_place for choice in tiles]
    wanted = [False, False] if build is column_of_pixels else [False, True, True, True]
    assert in_place == (wanted if target == "x86-64-v4-amx" else [])
