"""The arithmetic of multiples of the number of images, rule by rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from tvmcnn.importer.multiples import RULES, UNKNOWN

SIX, ROW = np.int64(6), np.array([1, 0, 0])
CASES: list[tuple[str, list[Any], dict[str, Any], dict[str, Any], Any]] = [
    # the operator, its operands, its constants by operand, its attributes, the result
    ("Mul", [[1, 0, 2], [0]], {"b": np.array([6])}, {}, [6, 0, 12]),
    ("Mul", [[1, 0, 2], [0]], {}, {}, [UNKNOWN, 0, UNKNOWN]),
    ("Mul", [[1, 0], [0, 0]], {"b": np.array([2, -3])}, {}, [UNKNOWN, 0]),
    ("Mul", [[0], [2, 1]], {"a": np.array([3])}, {}, [6, 3]),
    ("Mul", [[UNKNOWN], [0]], {"b": np.array([2])}, {}, [UNKNOWN]),
    ("Mul", [[1], [1]], {}, {}, None),
    ("Mul", [[0], [0, 0]], {}, {}, [0, 0]),
    ("Div", [12, 0], {"b": SIX}, {}, 2),
    ("Div", [8, 0], {"b": SIX}, {}, None),
    ("Div", [[12, 0], [0]], {"b": np.array([6])}, {}, None),
    ("Div", [UNKNOWN, 0], {"b": np.int64(1)}, {}, None),
    ("Div", [6, 0], {}, {}, None),
    ("Div", [0, 6], {"a": SIX}, {}, None),
    ("Div", [[0, 0], [0]], {}, {}, [0, 0]),
    ("Equal", [[1, 0], [0, 0]], {"b": np.array([-1, -1])}, {}, [0, 0]),
    ("Equal", [[1, 0], [0, 0]], {"b": np.array([-1, 4])}, {}, None),
    ("Equal", [[1], [0]], {}, {}, None),
    ("Where", [[0, 0], [0, 0], [3, 0]], {}, {}, [UNKNOWN, 0]),
    ("Where", [[0, 0], [3, 0], [3, 0]], {}, {}, [3, 0]),
    ("Where", [[0], [2], [3]], {}, {}, None),
    ("Where", [[1], [2], [2]], {}, {}, None),
    ("Add", [[1, 0], [0, 0]], {}, {}, None),
    ("Max", [[0, 0], [0]], {}, {}, [0, 0]),
    ("Cast", [[2, 0]], {}, {"to": 7}, [2, 0]),
    ("Cast", [[2, 0]], {}, {"to": 1}, None),
    ("Cast", [[0, 0]], {}, {"to": 1}, [0, 0]),
    ("Gather", [ROW, 0], {"b": np.int64(-3)}, {}, 1),
    ("Gather", [ROW, 0], {}, {}, None),
    ("Slice", [ROW, 0, 0], {"b": np.array([0]), "c": np.array([2])}, {}, [1, 0]),
    ("Slice", [ROW, 0, 0], {"b": np.array([0]), "c": np.array([2**62])}, {}, [1, 0, 0]),
    ("Slice", [ROW, 0, 0], {"b": np.array([0])}, {}, None),
    ("Concat", [[1], [0, 0]], {}, {"axis": 0}, [1, 0, 0]),
    ("Unsqueeze", [1, [0]], {"b": np.array([0])}, {}, [1]),
    ("Squeeze", [[1], [0]], {"b": np.array([0])}, {}, 1),
    ("Reshape", [[1, 0], [0, 0]], {"b": np.array([2, 1])}, {}, [[1], [0]]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_rule(case: int) -> None:
    op, operands, constants, attributes, wanted = CASES[case]
    names = list("abc")[: len(operands)]
    node = helper.make_node(op, names, ["y"], **attributes)
    found = RULES[op](node, [np.asarray(each) for each in operands], constants)
    assert (found is None) == (wanted is None)
    if found is not None:
        assert np.asarray(found).shape == np.shape(wanted)
        assert np.array_equal(found, wanted)
