"""Cast of floats that the type does not hold: ONNX leaves it open, and every CPU shall answer alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import model_of, node
from onnx import helper

import tvmcnn
from tvmcnn.check.reference import reference

BELOW = [-0.7, -1.5, -2.3, -129.5, -3e4, -0.0]
ABOVE = [300.7, 255.9, 4e4, 7e4, 2e9]


def cast(to: str, values: list[float], source: str, target: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a library and the oracle make of them; more than fill a vector, and a rest."""
    x = np.array(values * 5, source)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(to))
    nodes = [node("Cast", "x", "y", to=code)]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = model_of(nodes, {"x": (kind, x.shape)}, {"y": (code, x.shape)})
    path = tvmcnn.compile(model, target, folder / "cast.so", verify=False).path
    return tvmcnn.load(path)(x), reference(model, {"x": x})["y"]


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("to", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_wraps_around(to: str, source: str, target: str, tmp_path: Path) -> None:
    """−2.3 to uint16 is 65534: the lower bits of −2, as NumPy and onnxruntime have it."""
    np.testing.assert_array_equal(*cast(to, [*BELOW, *ABOVE], source, target, tmp_path))


@pytest.mark.parametrize("to", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint64"])
def test_of_what_no_number_is(to: str, target: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(*cast(to, [np.nan, np.inf, -np.inf, 1e19, 3.5], "float32", target, tmp_path))


@pytest.mark.parametrize("source", ["float32", "float64"])
def test_nan_is_true(source: str, target: str, tmp_path: Path) -> None:
    """It is other than 0, though TVM's own comparison says that it is not."""
    found, wanted = cast("bool", [np.nan, 0.0, -0.0, 1e-30, -np.inf], source, target, tmp_path)
    np.testing.assert_array_equal(found, wanted)
    assert found[0] and not found[1]
