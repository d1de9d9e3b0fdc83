"""Large weights stay in the file: what is taken out of the protobuf, and that the compiler's memory stays small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, model_of, node
from data import ROOT
from helpers import GUARD, check
from onnx import TensorProto, helper, numpy_helper

from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.onnx_file import read_model
from tvmcnn.onnx_file.large_weights import LARGE, MalformedError, without_large_weights


def dense(rows: int = 300, columns: int = 70, **changes: Any) -> onnx.ModelProto:
    """A Gemm whose weight is large and whose bias is small."""
    g = Graph(opset=changes.pop("opset", 17))
    g.output(g.node("Relu", g.node("Gemm", g.input(2, rows), g.draw(rows, columns), g.draw(columns))))
    model = g.model()
    assert rows * columns * 4 >= LARGE
    return model


def stripped(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    text, weights = without_large_weights(memoryview(model.SerializeToString()))
    return onnx.load_model_from_string(text), weights


def test_large_initializers_become_inputs() -> None:
    model = dense()
    small, weights = stripped(model)
    wanted = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert list(weights) == ["c0"]
    np.testing.assert_array_equal(weights["c0"], wanted["c0"])
    assert [t.name for t in small.graph.initializer] == ["c1"]
    added = small.graph.input[0]
    assert added == helper.make_tensor_value_info("c0", TensorProto.FLOAT, (300, 70))
    del small.graph.input[0]
    del model.graph.initializer[0]
    assert small == model


def test_an_initializer_that_is_an_input_stays_one() -> None:
    model = dense()
    model.graph.input.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, (300, 70)))
    small, weights = stripped(model)
    assert [value.name for value in small.graph.input] == ["x0", "c0"]
    assert list(weights) == ["c0"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int64"])
def test_dtypes(dtype: str) -> None:
    array = np.random.default_rng(1).integers(-99, 99, (250, 301)).astype(dtype)
    model = dense()
    model.graph.initializer.append(numpy_helper.from_array(array, "more"))
    found = stripped(model)[1]["more"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)


def test_floats_that_are_no_raw_data() -> None:
    model = dense()
    array = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(helper.make_tensor("c0", TensorProto.FLOAT, array.shape, array.reshape(-1)))
    np.testing.assert_array_equal(stripped(model)[1]["c0"], array)


def test_what_does_not_fit_its_shape_stays_for_the_check() -> None:
    model = dense()
    model.graph.initializer[0].dims[0] += 1
    small, weights = stripped(model)
    assert not weights
    assert small == model


def field(number: int, data: bytes) -> bytes:
    """A field of protobuf that has a length."""
    length = bytearray()
    rest = len(data)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + data


def test_dimensions_that_are_packed() -> None:
    """As writers of other languages have them: 300 is 172, 2 and 70 is 70."""
    model = dense()
    weight, *others = (onnx.TensorProto.FromString(each.SerializeToString()) for each in model.graph.initializer)
    wanted = numpy_helper.to_array(weight)
    del weight.dims[:]
    del model.graph.initializer[:]
    tensors = [field(1, bytes([172, 2, 70])) + weight.SerializeToString(), *(t.SerializeToString() for t in others)]
    graph = model.graph.SerializeToString() + b"".join(field(5, tensor) for tensor in tensors)
    model.ClearField("graph")
    _, weights = without_large_weights(memoryview(model.SerializeToString() + field(7, graph)))
    np.testing.assert_array_equal(weights["c0"], wanted)


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\xff", b"\x0b", b"\xff" * 12, b"\x00\x01"])
def test_what_is_no_protobuf(data: bytes) -> None:
    with pytest.raises(MalformedError):
        without_large_weights(memoryview(data))


@pytest.mark.parametrize("kind", ["path", "bytes", "proto"])
def test_every_source_gives_the_same_network(kind: str, tmp_path: Path) -> None:
    model = dense()
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    source = {"path": path, "bytes": path.read_bytes(), "proto": model}[kind]
    opened = read_model(source)
    assert list(opened.weights) == ["c0"]
    network = simplified(import_model(source))
    assert [tensor.name for tensor in network.inputs] == ["x0"]
    wanted = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert sorted(array.shape for array in network.constants.values()) == [(70,), (300, 70)]
    for array in network.constants.values():
        np.testing.assert_array_equal(array, next(w for w in wanted.values() if w.shape == array.shape))


@pytest.mark.parametrize("opset", [8, 17, 21])
def test_a_large_weight_is_folded_into_and_computed_with(opset: int, tmp_path: Path) -> None:
    """A BatchNormalization into the weight of a Conv, a Pad before it, and a Reshape of a weight."""
    g = Graph(opset=opset)
    x = g.conv(g.input(1, 40, 7, 9), 64, (3, 3), bias=False)
    x = g.node("BatchNormalization", x, *(g.constant(np.abs(g.rng.standard_normal(64)) + 0.5) for _ in range(4)))
    flat = g.node("Reshape", x, g.constant(np.array([1, -1])))
    weight = g.node("Reshape", g.draw(64 * 35, 16), g.constant(np.array([64 * 35, 16])))
    g.output(g.node("MatMul", flat, weight))
    model = g.model()
    assert len(read_model(model).weights) == 2
    check(model, tmp_path)


def test_external_data_is_mapped(tmp_path: Path) -> None:
    model = dense()
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    opened = read_model(path)
    assert list(opened.weights) == ["c0"]
    assert not opened.weights["c0"].flags.owndata
    for name, array in import_model(path).constants.items():
        np.testing.assert_array_equal(array, import_model(dense()).constants[name])


MEGABYTES = 160
PROGRAM = """
import resource, sys
import tvmcnn.compiler
from tvmcnn.importer import import_model
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
network = import_model(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
tvmcnn.compile(sys.argv[1], output=sys.argv[2], verify=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""


def test_memory(tmp_path: Path) -> None:
    """Ten weights of 16 MB. Import reads none; compiling holds the file's pages, which the system may drop, and one
    packed weight at a time.
    """
    rng, side = np.random.default_rng(2), 2000
    weights = {f"w{n}": rng.standard_normal((side, side), np.float32) for n in range(10)}
    nodes = [node("Gemm", f"t{n} w{n}", f"t{n + 1}", transB=1) for n in range(10)]
    model = model_of(nodes, {"t0": (1, side)}, {"t10": (1, side)}, weights, ir_version=onnx.IR_VERSION)
    path = tmp_path / "large.onnx"
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size >= MEGABYTES * 1e6
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "large.so")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=GUARD)
    imported, compiled = (int(line) / 1024 for line in done.stdout.split())
    assert imported < 40
    tvm = 200  # of TVM and LLVM themselves
    assert compiled < MEGABYTES + 4 * 16 + tvm
