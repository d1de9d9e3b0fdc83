"""The onnx.backend API, on LeNet-5 and single nodes, and ONNX's own cases of the operators without run-time weights."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import pytest
from builders import graph_of, node
from data import LENET5
from onnx import helper

import tvmcnn
from tvmcnn.errors import InputError, TargetError, UnsupportedError


def drawn(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def test_one_library_a_shape() -> None:
    model = onnx.load(LENET5)
    prepared = tvmcnn.backend.prepare(model)
    for batch in (1, 3, 1):
        x = drawn(batch, 1, 32, 32)
        (scores,) = prepared.run([x])
        wanted = tvmcnn.reference(model, x)["scores"]
        assert np.abs(scores - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert len(prepared.libraries) == 2
    assert np.array_equal(prepared.run({"input": x})[0], prepared.run(x)[0])


def test_run_node() -> None:
    x = drawn(2, 3, 5, 7)
    (y,) = tvmcnn.backend.run_node(node("MaxPool", "x", "y", kernel_shape=[2, 3]), [x])
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 3), axis=(2, 3))
    assert np.array_equal(y, windows.max(axis=(4, 5)))
    (y,) = tvmcnn.backend.run_node(node("Softmax", "x", "y"), {"x": x[0, 0]}, opset_version=13)
    assert np.allclose(y.sum(axis=-1), 1, atol=1e-6)


def test_mistakes() -> None:
    model = onnx.load(LENET5)
    assert tvmcnn.backend.supports_device("CPU")
    assert not tvmcnn.backend.supports_device("ROCM:1")
    with pytest.raises(TargetError, match="device 'ROCM' is not supported; allowed are CPU and"):
        tvmcnn.backend.prepare(model, "ROCM")
    with pytest.raises(InputError, match="2 inputs given; the model takes 1: input"):
        tvmcnn.backend.run_model(model, [drawn(1, 1, 32, 32)] * 2)
    with pytest.raises(InputError, match="the inputs given are x; the model takes input"):
        tvmcnn.backend.run_model(model, {"x": drawn(1, 1, 32, 32)})
    with pytest.raises(UnsupportedError, match="operator Det is not supported"):
        tvmcnn.backend.run_node(node("Det", "x", "y"), [drawn(2, 3, 3)])


def test_compatible() -> None:
    assert tvmcnn.backend.is_compatible(onnx.load(LENET5))
    graph = graph_of([node("Det", "x", "y")], {"x": (2, 3, 3)}, {"y": (2,)}, name="det")
    assert not tvmcnn.backend.is_compatible(helper.make_model(graph, ir_version=10))


NAMES = [
    "add",
    "add_bcast",
    "averagepool_2d_ceil",
    "averagepool_2d_pads_count_include_pad",
    "averagepool_2d_same_lower",
    "averagepool_2d_strides",
    "concat_2d_axis_1",
    "concat_3d_axis_negative_2",
    "div",
    "flatten_axis2",
    "flatten_negative_axis1",
    "globalaveragepool",
    "maxpool_2d_ceil",
    "maxpool_2d_dilations",
    "maxpool_2d_pads",
    "maxpool_2d_same_upper",
    "mul",
    "mul_bcast",
    "relu",
    "sigmoid",
    "softmax_axis_0",
    "softmax_axis_1",
    "softmax_large_number",
    "sub",
    "sub_bcast",
    "tanh",
    "transpose_all_permutations_3",
    "transpose_default",
]
MODULES = "add averagepool concat div flatten globalaveragepool maxpool mul relu sigmoid softmax sub tanh transpose"


def node_cases() -> dict[str, Any]:
    """ONNX's node cases by name; importing an operator's module makes its cases (all of them would take 9 s)."""
    from onnx.backend.test.case import node as package

    for module in MODULES.split():
        importlib.import_module(f"{package.__name__}.{module}")
    return {case.name.removeprefix("test_"): case for case in package._NodeTestCases}


CASES = node_cases()


@pytest.mark.parametrize("name", NAMES)
def test_node_case(name: str) -> None:
    case = CASES[name]
    for inputs, outputs in case.data_sets:
        found = tvmcnn.backend.run_model(case.model, inputs)
        for ours, wanted in zip(found, outputs, strict=True):
            assert ours.shape == wanted.shape
            # Sums of at most 32 terms: 32 roundings of 2⁻²⁴, of values no larger than the largest output.
            assert np.abs(ours - wanted).max() <= 32 * 2.0**-24 * max(1.0, np.abs(wanted).max())
