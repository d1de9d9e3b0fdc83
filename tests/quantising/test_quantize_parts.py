"""Parts of quantize by hand: samples, classes, comparison, what is prepared, and what runs both networks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import graph_of, model_of, node
from quantize_models import constants

from tvmcnn.check.reference import reference
from tvmcnn.errors import InputError
from tvmcnn.network import Tensor
from tvmcnn.progress import silent
from tvmcnn.quantising.compare import Accuracy, compare
from tvmcnn.quantising.prepare import _flatten_biases
from tvmcnn.quantising.samples import Sample, labelled, reader_for, spread
from tvmcnn.quantising.sessions import session
from tvmcnn.run.inputs import Pixels

Array = np.ndarray[Any, Any]


def test_samples(tmp_path: Path) -> None:
    """Evenly from the whole, in whole calls; folders are classes by their numbers, where their names are some."""
    assert spread(range(30), 5, 1) == [0, 6, 12, 18, 24]
    assert spread(range(10), 99, 4) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert spread(range(10), 1, 4) == [0, 2, 5, 7]
    files = [Sample(tmp_path / name / "a.png") for name in ("10", "3", "9")]
    found = labelled(files, tmp_path, None, 1000, lambda line: None)
    assert [sample.label for sample in found] == [10, 3, 9]
    loose = [*files, Sample(tmp_path / "b.png")]
    assert labelled(loose, tmp_path, None, 4, lambda line: None) == loose


def test_a_file_without_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32))
    reader = reader_for([Tensor("x", (1, 3), "float32"), Tensor("y", (1, 5), "float32")], Pixels())
    with pytest.raises(InputError, match="has no 'y', which the network takes; it has x"):
        reader.rows(tmp_path / "a.npz")


def test_comparison() -> None:
    """Answers that differ, by hand: scores, integers, and outputs of another length."""
    scores = {"scores": np.float32([[1, 3, 2]]), "boxes": np.float32([[[3, 4]]]), "index": np.int64([1, 7])}
    other = {"scores": np.float32([[1, 2, 3]]), "boxes": np.float32([[[3, 3]]]), "index": np.int64([1, 8])}
    answers = iter([scores, other, {**other, "boxes": np.zeros((1, 5, 2), np.float32)}])
    reader = reader_for([Tensor("x", (1, 2), "float32")], Pixels())
    samples = [Sample(Path("a.npy"), 0, 1), Sample(Path("a.npy"), 0, 1), Sample(Path("a.npy"))]
    reader = dataclasses.replace(reader, rows=lambda path: {"x": np.zeros((1, 2), np.float32)})
    found = compare(lambda x: scores, lambda x: next(answers), reader, samples, print, silent)
    assert found.samples == 3
    assert found.accuracy == Accuracy(2, before=2, after=1)
    first, boxes, index = found.outputs
    assert (first.output, first.same) == ("scores", 1 / 3)
    assert first.relative_error == pytest.approx(math.sqrt(4 / 42))
    assert (boxes.same, boxes.relative_error) == (None, math.inf)
    assert index.same == 4 / 6


def test_biases() -> None:
    """Biases of a Gemm get rank 1, for onnxruntime takes the first axis for channels; what a branch reads stays."""
    inner = graph_of([node("Identity", "kept", "b")], {}, "b")
    nodes = [
        node("Gemm", "x w row", "y0"),
        node("Gemm", "x v one", "y1", transB=1),
        node("If", "which", "y2", then_branch=inner, else_branch=inner),
    ]
    weights = {
        "w": np.ones((3, 5)),
        "v": np.ones((7, 3)),
        "row": np.arange(5.0).reshape(1, 5),
        "one": np.array([2.0]),
        "kept": np.array([4.0]),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    model = model_of(nodes, {"x": (1, 3), "which": (onnx.TensorProto.BOOL, ())}, "y0 y1 y2", weights)
    given = {"x": np.ones((1, 3), np.float32), "which": np.array(True)}
    wanted = reference(model, given, every_tensor=True)
    _flatten_biases(model)
    assert {name: array.shape for name, array in constants(model).items()} == {
        **{"w": (3, 5), "v": (7, 3), "kept": (1,)},
        **{"row.flat": (5,), "one.flat": (7,)},
    }
    found = reference(model, given, every_tensor=True)
    for name in ("y0", "y1", "y2"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_what_runs_both_networks() -> None:
    """Roundings are where the file has them: fused, onnxruntime's Add takes other sides of ties, and its sums of
    products saturate on CPUs without VNNI."""
    weights = {"s": np.float32(0.5), "z": np.uint8(0), "t": np.float32(1), "odd": np.uint8(3)}
    nodes = [
        node("DequantizeLinear", "x s z", "a"),
        node("DequantizeLinear", "y s z", "b"),
        node("Add", "a b", "c"),
        node("QuantizeLinear", "c t odd", "d"),
    ]
    x, y = np.arange(256, dtype=np.uint8)[None], np.full((1, 256), 2, np.uint8)
    model = model_of(nodes, {"x": x, "y": y}, {"d": x}, weights)
    found = session(model, "m")({"x": x, "y": y})["d"]
    np.testing.assert_array_equal(found, reference(model, {"x": x, "y": y})["d"])
