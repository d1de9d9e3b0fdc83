"""QuantizeLinear behind rounding errors: the integer beside is right at a half, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Graph
from onnx import TensorProto, helper
from quantised import Quantised

import tvmcnn
from tvmcnn.check.jumps import admissible, is_step, of_stored
from tvmcnn.check.random_inputs import drawn_inputs
from tvmcnn.errors import VerifyError
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Node
from tvmcnn.ops import formulas

QUANTIZE = Node("QuantizeLinear", "q", ("x", "s", "z"), "y")
ZERO_POINT = Node("DynamicZeroPoint", "z", ("x",), "y")
SCALE, ZERO = np.float32([2.0]), np.uint8([5])


def test_quantize_linear() -> None:
    x = np.array([1.0, 1.0 + 1e-7, 1.5, 2.9999999, 700.0, 505.0])
    expected = of_stored(QUANTIZE, [x, SCALE, ZERO], ["float32", "float32", "uint8"], x.shape)
    assert expected is not None and is_step(QUANTIZE)
    np.testing.assert_array_equal(expected, [5, 6, 6, 7, 255, 255])
    found = np.array([6, 5, 5, 6, 254, 254], np.uint8)
    near = admissible(QUANTIZE, [x, SCALE, ZERO], [1e-6, 0.0, 0.0], expected, found)
    np.testing.assert_array_equal(near, [True, True, False, True, False, False])
    far = admissible(QUANTIZE, [x, SCALE, ZERO], [1e-6, 0.0, 0.0], expected, expected + np.uint8(2))
    assert not far.any()
    exact = admissible(QUANTIZE, [x, SCALE, ZERO], [0.0, 0.0, 0.0], expected, found)
    assert not exact.any()
    by_scale = admissible(QUANTIZE, [x, SCALE, ZERO], [0.0, 1e-6, 0.0], expected, found)
    assert by_scale[0] and not by_scale[2]


def test_zero_point() -> None:
    """The zero point of the range −1 to 1 stands at 127½."""
    x = np.array([[-1.0, 0.5, 1.0]])
    expected = np.uint8(128)
    near = [admissible(ZERO_POINT, [x], [1e-6], expected, np.uint8(found)) for found in (126, 127, 128, 129)]
    np.testing.assert_array_equal(near, [False, True, True, False])
    assert not admissible(ZERO_POINT, [2 * x + 1], [1e-6], expected, np.uint8(127))


def test_a_float_kernel_between_integers_may_not_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part in a hundred is more than rounding, and seen in the integers behind it."""
    g = Quantised(2)
    x = g.down(g.bytes(3, 17), g.scale(17), np.full(17, 7, np.uint8), axis=1)  # with a scale a column it is no table
    y = g.up(g.node("Sigmoid", x), 0.004, np.uint8(0))
    model = g.finished(y)
    tvmcnn.compile(model, output=tmp_path / "q.so")
    real = formulas.FORMULAS["Sigmoid"]
    monkeypatch.setitem(formulas.FORMULAS, "Sigmoid", lambda x: real(x) * 1.01)
    with pytest.raises(VerifyError, match="sigmoid"):
        tvmcnn.compile(model, output=tmp_path / "q.so")


@pytest.mark.parametrize("moved", [False, True])
def test_integers_are_drawn_from_all(moved: bool) -> None:
    """A few small ones would not show a wrong zero point or bound."""
    g = Quantised(2)
    x = g.bytes(7, 33, dtype="int8")
    x = g.node("Transpose", x, perm=[1, 0]) if moved else x
    y = g.up(g.node("Sigmoid", g.down(x, 0.03, np.int8(3))), 0.004, np.uint8(0))
    (found,) = drawn_inputs(simplified(import_model(g.finished(y))), 0).values()
    assert found.dtype == np.int8
    assert len(np.unique(found)) > 100 and found.min() < -120 and found.max() > 120


def test_a_condition_before_a_product_of_bytes_is_drawn() -> None:
    """It has one byte an element, and is no integer."""
    g = Quantised(2)
    g.inputs.append(helper.make_tensor_value_info("test", TensorProto.BOOL, (5, 7)))
    x = g.node("Where", "test", g.bytes(5, 7), g.array(np.uint8(3)))
    made = g.finished(g.node("MatMulInteger", x, g.array(g.any_bytes(7, 9))), dtype="int32")
    assert drawn_inputs(simplified(import_model(made)), 0)["test"].dtype == bool


def test_only_integers_are_told_of(tmp_path: Path) -> None:
    g = Graph(1)
    g.output(g.node("Relu", g.input(3, 5)))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "f.so")
    assert "integers" not in str(compiled.verdict)
