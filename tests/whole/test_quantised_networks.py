"""Networks that onnxruntime quantises: all integers equal to the oracle's in every byte, on both targets, at one and
two threads, and outputs equal to onnxruntime's own kernels on integers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, lenet
from data import SHIPPED
from helpers import TARGETS, use_target
from quantised import any_input, equal, operators

import tvmcnn
from tvmcnn.check.bisect import bisect
from tvmcnn.digits import Normalisation, load_mnist
from tvmcnn.ops import dots as expressions
from tvmcnn.reweighting import reweight

quantization = pytest.importorskip("onnxruntime.quantization")
pytestmark = [pytest.mark.slow, pytest.mark.numbers]

Array = np.ndarray[Any, Any]
FORMS = {
    "qdq-u8s8": ("QDQ", "QUInt8", "QInt8", {}),
    "qdq-u8s8-channels": ("QDQ", "QUInt8", "QInt8", {"per_channel": True, "reduce_range": True}),
    "qdq-s8s8-channels": ("QDQ", "QInt8", "QInt8", {"per_channel": True}),
    "qdq-u8u8": ("QDQ", "QUInt8", "QUInt8", {}),
    "qop-u8s8-channels": ("QOperator", "QUInt8", "QInt8", {"per_channel": True}),
    "qop-s8s8": ("QOperator", "QInt8", "QInt8", {}),
    "qop-u8u8": ("QOperator", "QUInt8", "QUInt8", {}),
}


class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A few drawn inputs, from which onnxruntime takes the ranges."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.left = [any_input(model, seed) for seed in range(4)]

    def get_next(self) -> dict[str, Array] | None:
        return self.left.pop() if self.left else None


def quantised(model: onnx.ModelProto, form: str, folder: Path) -> onnx.ModelProto:
    """The model as onnxruntime quantises it."""
    logging.disable(logging.WARNING)  # it recommends to prepare the model first
    try:
        layout, activations, weights, more = FORMS[form]
        onnx.save(model, folder / "f.onnx")
        quantization.quantize_static(
            folder / "f.onnx",
            folder / "q.onnx",
            Samples(model),
            quant_format=getattr(quantization.QuantFormat, layout),
            activation_type=getattr(quantization.QuantType, activations),
            weight_type=getattr(quantization.QuantType, weights),
            **more,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "q.onnx")


def convolutions() -> onnx.ModelProto:
    """Convolutions and products alone, of which onnxruntime has kernels on integers that round as ours."""
    g = Graph(1)
    x = g.node("Relu", g.conv(g.input(2, 3, 17, 13), 16, (3, 3), pads=[1, 1, 1, 1], strides=[2, 1]))
    x = g.node("Clip", g.conv(x, 24, (1, 1)), g.constant(np.float32(0)), g.constant(np.float32(6)))
    x = g.node("Relu", g.conv(x, 24, (3, 3), group=24, pads=[1, 1, 1, 1]))
    x = g.node("MaxPool", g.conv(x, 33, (2, 3)), kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Flatten", x)
    g.output(g.node("Gemm", x, g.draw(10, g.shape(x)[1]), g.draw(10), transB=1))
    return g.model()


def residual() -> onnx.ModelProto:
    """What networks of today have besides: residuals, gates, pools, branches, activations in float32."""
    g = Graph(2)
    x = g.node("Relu", g.conv(g.input(1, 3, 17, 14), 16, (3, 3), pads=[1, 1, 1, 1]))
    y = g.conv(x, 16, (3, 3), pads=[1, 1, 1, 1])
    x = g.node("Relu", g.node("Add", x, y))
    gate = g.node("Sigmoid", g.conv(g.node("GlobalAveragePool", x), 16, (1, 1)))
    x = g.node("Mul", x, gate)
    y = g.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = g.node("Concat", x, y, axis=1)
    x = g.node("LeakyRelu", g.conv(x, 9, (1, 1)), alpha=0.1)
    x = g.node("Resize", x, "", g.constant(np.float32([1, 1, 2, 2])), mode="nearest")
    g.output(g.node("Softmax", g.node("Transpose", x, perm=[0, 2, 3, 1]), axis=-1))
    return g.model()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [convolutions, residual])
def test_network(build: Any, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantised(build(), form, tmp_path)
    given = any_input(model, 11)
    bits = set()
    for place, name in enumerate(TARGETS):
        target = use_target(name, monkeypatch)
        compiled = equal(model, tmp_path, target, threads=1 + place)
        assert not [note for note in compiled.program.network.notes if "float32" in note]
        for threads in (1, 2):
            answer = tvmcnn.load(compiled.path, threads=threads)(*given.values())
            bits.add(answer.tobytes())
    assert len(bits) == 1 or build is residual  # whose Softmax differs by rounding
    if build is convolutions:
        session = onnxruntime(model)
        np.testing.assert_array_equal(answer, session.run(None, given)[0])


def onnxruntime(model: onnx.ModelProto) -> Any:
    """A session with all that it fuses."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
def test_dynamic_network(weights: str, target: str, tmp_path: Path) -> None:
    """Scales of what arrives; zero points of weights by channel."""
    logging.disable(logging.WARNING)
    onnx.save(lenet(2), tmp_path / "f.onnx")
    kind = getattr(quantization.QuantType, weights)
    quantization.quantize_dynamic(
        tmp_path / "f.onnx", tmp_path / "q.onnx", weight_type=kind, per_channel=weights == "QInt8"
    )
    logging.disable(logging.NOTSET)
    model = onnx.load(tmp_path / "q.onnx")
    compiled = equal(model, tmp_path, target)
    assert (operators(compiled).count("ConvInteger"), operators(compiled).count("Summed")) == (1, 2)
    assert operators(compiled).count("MatMulInteger") == 2
    given = any_input(model, 11)
    found, (theirs,) = tvmcnn.load(compiled.path)(*given.values()), onnxruntime(model).run(None, given)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_other_weights_and_a_guilty_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works on libraries works on those of integers: new weights, and finding out what is to blame."""
    model = quantised(convolutions(), "qdq-u8s8-channels", tmp_path)
    tvmcnn.compile(model, output=tmp_path / "q.so")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array((array // 2).astype(np.int8), tensor.name))
    (verdict,) = reweight(tmp_path / "q.so", model, tmp_path / "new.so")
    assert verdict.passed
    given = any_input(model, 11)
    answer = tvmcnn.load(tmp_path / "new.so")(*given.values())
    np.testing.assert_array_equal(answer, onnxruntime(model).run(None, given)[0])
    real = expressions.scaled
    monkeypatch.setattr(expressions, "scaled", lambda *given: 1.1 * real(*given))
    tvmcnn.compile(model, output=tmp_path / "wrong.so", verify=False)
    monkeypatch.undo()
    found = bisect(tmp_path / "wrong.so", model)
    assert found.first is not None and found.first.name == "relu1_QuantizeLinear_Output"
    assert "the file is not what this tvmcnn makes of the model" in str(found)


def test_lenet5_on_mnist(test_data: Path, tmp_path: Path) -> None:
    """The shipped network in integers recognises as many of 10,000 digits, but for one in a thousand."""
    digits = load_mnist(test_data / "data" / "mnist", "t10k")
    model = onnx.load(SHIPPED / "lenet5.onnx")
    facts = {entry.key: float(entry.value) for entry in model.metadata_props if entry.key in ("mean", "std")}
    pixels = Normalisation(facts["mean"], facts["std"]).apply(digits.images)
    samples = Samples(lenet(1))
    samples.left = [{model.graph.input[0].name: pixels[place : place + 1]} for place in range(100)]
    logging.disable(logging.WARNING)
    quantization.quantize_static(SHIPPED / "lenet5.onnx", tmp_path / "q.onnx", samples, per_channel=True)
    logging.disable(logging.NOTSET)
    right = []
    for path in (SHIPPED / "lenet5.onnx", tmp_path / "q.onnx"):
        tvmcnn.compile(path, output=tmp_path / "n.so", batch=250)
        net = tvmcnn.load(tmp_path / "n.so")
        found = np.concatenate([net(part).argmax(axis=1) for part in np.split(pixels, 40)])
        right.append(int((found == digits.labels).sum()))
    assert right[0] > 9900
    assert right[1] >= right[0] - 10


def test_the_log_counts(tmp_path: Path) -> None:
    """How many kernels compute on integers, how many in float32 and which."""
    lines = list[str]()
    model = quantised(residual(), "qdq-u8s8", tmp_path)
    compiled = tvmcnn.compile(model, output=tmp_path / "q.so", report=lines.append)
    (told,) = (line for line in lines if line.startswith("integers:"))
    assert told == "integers: 14 kernels compute on 8 bits, 1 in other types: Softmax", told
    verdict = next(line for line in lines if line.startswith("verified"))
    assert "of them integers and equal in every byte" in verdict
    assert compiled.verdict is not None and compiled.verdict.excused == 0
