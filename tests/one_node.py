"""Models of one node, by the reference and by onnxruntime; ONNX's own node cases."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from builders import one_node
from onnx import TensorProto, helper
from onnx.backend.test.loader import load_model_tests

from tvmcnn.check.reference import reference

Array = np.ndarray[Any, Any]
U = 2.0**-24  # the unit roundoff of float32: one operation is off by at most this much of its result


def evaluate(op: str, opset: int, arrays: list[Array | None], **attributes: Any) -> Array:
    """The reference's answer for one node."""
    return reference(*one_node(op, opset, arrays, **attributes))["y0"]


def session(model: onnx.ModelProto | str) -> Any:
    """Onnxruntime, on one thread and without the optimizations that change what is computed."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    text = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(text, options, providers=["CPUExecutionProvider"])


def both(op: str, opset: int, arrays: list[Array | None], **attributes: Any) -> tuple[Array, Array]:
    """One node by onnxruntime and by the reference, which must agree on shape and type."""
    model, feeds = one_node(op, opset, arrays, **attributes)
    theirs, ours = session(model).run(None, feeds)[0], reference(model, feeds)["y0"]
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    return theirs, ours


# --- ONNX's own node cases ---

ROUNDED_CASES = dict.fromkeys(  # expected values written with 4 digits
    (
        "test_averagepool_2d_ceil_last_window_starts_on_pad",
        "test_gridsample_bicubic",
        "test_roialign_aligned_false",
        "test_roialign_aligned_true",
    ),
    1e-4,
) | {"test_gru_seq_length": 1e-7}  # a difference of what saturates, in float32
OTHER_READING = {
    # length_resized is the size of the output, as the operator page says and onnxruntime reads it; ONNX's expected
    # values were made with 0.6 * 4 = 2.4 for 2, and with 0.8 * 4 = 3.2 for 3
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


def why_left_out(case: Any, known: Collection[str]) -> str | None:
    """Why a node case is not evaluated, None where it is."""
    graph = case.model.graph
    if not {node.op_type for node in graph.node} <= set(known):
        return "expanded into other operators"
    values = [value.type for value in [*graph.input, *graph.output]]
    if not all(value.HasField("tensor_type") for value in values):
        return "sequence or optional"
    for value in values:
        dtype = helper.tensor_dtype_to_np_dtype(value.tensor_type.elem_type)
        if dtype.kind not in "biuf" or dtype.isbuiltin != 1:
            return "a type that NumPy lacks"
    node = graph.node[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("training_mode") or case.name.startswith("test_training_"):
        return "training"
    return "another reading of the operator page" if case.name in OTHER_READING else None


def node_cases(known: Collection[str]) -> Iterator[Any]:
    """ONNX's node cases of some operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    yield from (case for case in cases if {node.op_type for node in case.model.graph.node} & set(known))


def assert_case(case: Any) -> None:
    """The reference on an ONNX node case, whose expected values NumPy made in the output's own precision."""
    for feeds, expected in data_of(case):
        answer = reference(case.model, feeds)
        assert len(answer) == len(expected)
        for ours, wanted in zip(answer.values(), expected, strict=True):
            assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
            if wanted.dtype.kind != "f":
                np.testing.assert_array_equal(ours, wanted)
                continue
            # a hundred roundings are more than any case makes on its way to one element
            slack = 100 * float(np.finfo(wanted.dtype).eps)
            finite = np.abs(wanted[np.isfinite(wanted)])
            floor = ROUNDED_CASES.get(case.name, 1e-2 * slack * float(finite.max(initial=0)))
            np.testing.assert_allclose(ours, wanted, rtol=slack, atol=floor)


def data_of(case: Any) -> Iterator[tuple[dict[str, Array], list[Array]]]:
    """What a case feeds by name, and what it expects."""
    names = [value.name for value in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        arrays, expected = ([_array(each) for each in values] for values in (inputs, outputs))
        yield dict(zip(names, arrays, strict=True)), expected


def _array(value: Any) -> Array:
    return onnx.numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
