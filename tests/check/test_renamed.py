"""Tensors that the library has under another name than the file, and outputs in float16 that others read: the oracle
and its bounds must follow what the library computes with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from builders import Graph

import tvmcnn
from tvmcnn.check import bounds
from tvmcnn.check.renamed import renamed
from tvmcnn.check.verify import Verdict
from tvmcnn.errors import VerifyError
from tvmcnn.importer import import_model


def compiled(model: onnx.ModelProto, folder: Path) -> Verdict:
    verdict = tvmcnn.compile(model, output=folder / "net.so").verdict
    assert verdict is not None
    return verdict


def copied(op: str, **attributes: Any) -> onnx.ModelProto:
    """Conv(x) that an output copies and a pool reads: import gives it the copy's name."""
    g = Graph()
    conv = g.conv(g.input(16, 2, 6, 7), 3, (3, 3), pads=[1, 1, 1, 1])
    copy = g.node(op, conv, **attributes)
    g.output(copy, g.node("Abs", g.node("MaxPool", conv, kernel_shape=[2, 3])))
    return g.model()


COPIES = [("Identity", {}), ("Cast", {"to": onnx.TensorProto.FLOAT})]


@pytest.mark.parametrize(("op", "attributes"), COPIES, ids=lambda value: str(value)[:8])
def test_a_copy_that_is_an_output(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    """What reads the copied tensor has the rounding errors of the convolution, not none."""
    verdict = compiled(copied(op, **attributes), tmp_path)
    pool = next(error for error in verdict.tensors if error.name.startswith("maxpool"))
    conv = next(error for error in verdict.outputs if error.name.startswith(op.lower()))
    assert 0.3 * conv.bound < pool.bound < 2 * conv.bound


def test_without_the_names_it_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "renamed", lambda network, values: {})
    with pytest.raises(VerifyError, match=r"differs from NumPy is maxpool"):
        compiled(copied("Identity"), tmp_path)


def test_a_step_that_an_output_copies(tmp_path: Path) -> None:
    """⌊7·x⌋ stands on the other side of some steps: a thousand times as much is seen by what reads it."""
    g = Graph()
    floor = g.node("Floor", g.node("Mul", g.conv(g.input(1, 32, 24, 25), 5, (3, 3)), g.constant(np.float32(7))))
    g.output(g.node("Identity", floor), g.node("Mul", floor, g.constant(np.float32(1000))))
    assert compiled(g.model(), tmp_path).passed


def test_only_equal_values_are_one_tensor() -> None:
    model = copied("Identity")
    network = import_model(model)
    (conv,) = [node.output for node in network.nodes if node.op == "Conv"]
    unknown = model.graph.node[0].output[0]
    values = {conv: np.arange(6.0).reshape(2, 3)}
    assert renamed(network, {**values, unknown: np.arange(6.0).reshape(2, 3)}) == {unknown: conv}
    assert renamed(network, {**values, unknown: np.arange(6.0).reshape(3, 2)}) == {}
    later = next(node.output for node in network.nodes if node.op == "Abs")
    assert renamed(network, {later: values[conv], unknown: values[conv], **values}) == {unknown: conv}
    assert renamed(network, {**values, unknown: np.arange(6.0).reshape(2, 3) + 1e-3}) == {}


HALF = """<ir_version: 8, opset_import: ["" : 17]>
half (float16[2,3,5,7] x) => (float16[2,3,5,7] between, float16[2,3,5,7] twice, float[2,3,5,7] wide) <float one = {1}> {
  between = Sigmoid (x)
  twice = Add (between, between)
  turned = Neg (twice)
  wide = CAST
}"""


@pytest.mark.parametrize("cast", ["Cast <to = 1> (turned)", "CastLike (turned, one)"])
def test_outputs_in_float16_that_others_read(cast: str, tmp_path: Path) -> None:
    """They are read as they were computed, in float32: with the rounded ones each would be a spacing off."""
    model = onnx.parser.parse_model(HALF.replace("CAST", cast))
    verdict = compiled(model, tmp_path)
    assert verdict.passed
    turned = next(error for error in verdict.tensors if error.name == "turned")
    assert turned.bound < 1e-5 * turned.scale


def test_steps_that_wrap_around(tmp_path: Path) -> None:
    """tanh(−9) is −1 in float32, and 255 in uint8; a little above, as the oracle has it, it is 0."""
    g = Graph()
    x = g.node("Tanh", g.node("Mul", g.conv(g.input(3, 5, 15, 17), 16, (3, 2)), g.constant(np.float32(6))))
    g.output(g.node("Cast", g.node("Cast", x, to=onnx.TensorProto.UINT8), to=onnx.TensorProto.FLOAT))
    assert compiled(g.model(), tmp_path).passed


OVERFLOW = """<ir_version: 8, opset_import: ["" : 17]>
wide (float[3,5,7] x) => (float[3,5,7] y) <float scale = {30.0}> {
  scaled = Mul (x, scale)
  large = Cosh (scaled)
  squared = Mul (large, large)
  y = Acosh (squared)
}"""


def test_what_overflows_in_float32(tmp_path: Path) -> None:
    """cosh(60)² is 3e51: from there on the library computes with infinity, and so must the oracle."""
    assert compiled(onnx.parser.parse_model(OVERFLOW), tmp_path).passed
