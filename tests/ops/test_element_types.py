"""Convolutions in blocks of channels, followed by every element type: bools, integers, float16 and float64.

One model has all the tails, so that each target compiles once; whatever is written past the end of an output meets a
page that nobody may touch, in the process that verifies.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import draw, model_of, node
from helpers import TARGETS, use_target
from onnx import TensorProto

import tvmcnn
from tvmcnn import packing
from tvmcnn.check.reference import reference
from tvmcnn.choose import cpu as choosing
from tvmcnn.choose.cpu.state import State
from tvmcnn.errors import VerifyError
from tvmcnn.network import PLAIN, Choice, Kernel, Layout, Node, Tensor

CHANNELS, HEIGHT, WIDTH = 16, 9, 13
TYPES = {
    "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE, "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
}  # fmt: skip


class Tails:
    """Conv 3 to 16 channels, |y|, and what follows it: `nodes` by `add`, each result an output of its type."""

    def __init__(self) -> None:
        self.nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 0]), node("Abs", "c", "r")]
        self.weights = {"w": draw(3, CHANNELS, 3, 3, 2)}
        self.outputs: dict[str, int] = {}

    def constant(self, array: object, dtype: str) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(array, dtype)
        return name

    def add(self, op: str, *inputs: str, out: int = 0, **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(node(op, inputs, name, **attributes))
        if out:
            self.outputs[name] = out
        return name

    def model(self) -> onnx.ModelProto:
        x = {"x": (3, 3, HEIGHT, WIDTH)}
        return model_of(self.nodes, x, self.outputs, self.weights, opset=18, name="tails")


def tails() -> onnx.ModelProto:
    """Casts to every type; comparisons; arithmetic with one element and with one a channel; moves of bools."""
    t = Tails()
    for code in TYPES.values():
        t.add("Cast", "r", to=code, out=code)
    integers = t.add("Cast", "r", to=TensorProto.INT32)
    t.add("Add", integers, t.constant(10, "int32"), out=TensorProto.INT32)
    per_channel = t.constant(np.arange(CHANNELS).reshape(CHANNELS, 1, 1), "int32")
    back = t.add("Cast", t.add("Mul", integers, per_channel), to=TensorProto.FLOAT)
    t.add("Conv", back, t.constant(np.full((2, CHANNELS, 1, 1), 0.25), "float32"), out=TensorProto.FLOAT)
    t.add("Mod", integers, t.constant(3, "int32"), out=TensorProto.INT32)
    mask = t.add("Greater", "c", t.constant(0.5, "float32"), out=TensorProto.BOOL)
    other = t.add("Less", "c", t.constant(1.25, "float32"))
    t.add("IsNaN", "c", out=TensorProto.BOOL)
    t.add("Where", t.add("Not", mask), "c", t.constant(-7, "float32"), out=TensorProto.FLOAT)
    t.add("Concat", mask, t.add("And", mask, other), axis=1, out=TensorProto.BOOL)
    t.add("Transpose", other, perm=[0, 2, 3, 1], out=TensorProto.BOOL)
    t.add("Reshape", mask, t.constant([3, -1, WIDTH], "int64"), out=TensorProto.BOOL)
    half = t.add("Cast", "c", to=TensorProto.FLOAT16)
    t.add("Slice", half, t.constant([1, 2], "int64"), t.constant([9, 11], "int64"), t.constant([2, 3], "int64"),
          out=TensorProto.FLOAT16)  # fmt: skip
    double = t.add("Cast", "r", to=TensorProto.DOUBLE)
    t.add("Mul", double, t.constant(1.5, "float64"), out=TensorProto.DOUBLE)
    return t.model()


@pytest.mark.parametrize("target", TARGETS)
def test_behind_a_convolution_in_blocks(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tails()
    compiled = tvmcnn.compile(model, target=use_target(target, monkeypatch), output=tmp_path / "tails.so")
    writes = {step.choice.kernel.anchor.op: step.choice.writes for step in compiled.program.steps}
    assert writes["Conv"].block > 1 or any(step.choice.writes.block > 1 for step in compiled.program.steps)
    x = np.random.default_rng(4).standard_normal((3, 3, HEIGHT, WIDTH)).astype(np.float32)
    expected = reference(model, {"x": x})
    for threads in (1, 2):
        net = tvmcnn.load(compiled.path, threads=threads)
        for info, found in zip(net.outputs, net.run(None, {"x": x}), strict=True):
            assert found.dtype == expected[info.name].dtype
            if found.dtype.kind == "f":
                spacing = 2 * np.finfo(found.dtype).eps
                np.testing.assert_allclose(found, expected[info.name], rtol=spacing, atol=1e-5 * np.abs(x).max())
            else:
                np.testing.assert_array_equal(found, expected[info.name], err_msg=info.name)


def test_a_type_that_is_dropped_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bool written through float32 code goes past the end of its output: SIGSEGV in the process that verifies."""
    real = choosing.decide

    def planted(state: State, kernel: Kernel) -> Choice:
        choice = real(state, kernel)
        return choice if kernel.output.dtype != "bool" else dataclasses.replace(choice, kernel=_as_float32(kernel))

    monkeypatch.setattr(choosing, "decide", planted)
    t = Tails()
    t.add("Greater", "c", t.constant(0.5, "float32"), out=TensorProto.BOOL)
    with pytest.raises(VerifyError, match=r"in kernel k\d+_greater \(.*SIGSEGV: it reads or writes outside"):
        tvmcnn.compile(t.model(), output=tmp_path / "tails.so")
    assert not (tmp_path / "tails.so").exists()


def _as_float32(kernel: Kernel) -> Kernel:
    return dataclasses.replace(kernel, output=dataclasses.replace(kernel.output, dtype="float32"))


def test_few_types_have_layouts() -> None:
    image = Tensor("x", (1, 16, 5, 7), "bool")
    kernel = Kernel("k0_not", (Node("Not", "n", ("x",), "y"),), (image,), dataclasses.replace(image, name="y"))
    Choice(kernel, "elementwise", (image,), (PLAIN,), PLAIN, "fallback")
    with pytest.raises(ValueError, match="tensor 'x' is bool in NCHW16c: only float32 and integers of 8 bits"):
        Choice(kernel, "elementwise", (image,), (Layout(16),), PLAIN, "fallback")


@pytest.mark.parametrize("block", [1, 16])
def test_one_value_for_all_channels_is_repeated(block: int) -> None:
    packed = packing.channels(np.array([[[2.5]]], np.float32), 18, block)
    np.testing.assert_array_equal(packed.reshape(-1)[:18], np.full(18, 2.5))
    np.testing.assert_array_equal(packed.reshape(-1)[18:], 0)
