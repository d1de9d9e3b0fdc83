"""Operators that follow an axis or put it in order: CumSum, TopK, Hardmax, LpNormalization; MaxUnpool, Col2Im, EyeLike,
Shrink.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Array, agree, drawn, ints, model
from builders import Graph, model_of, node

import tvmcnn
from tvmcnn.check.jumps import admissible
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer import import_model
from tvmcnn.network import Node

X = (3, 5, 70)
NUMBERS = ("float32", "float64", "int8", "int32", "int64", "uint8", "uint64")


def one(op: str, arrays: list[Array | None], opset: int = 20, known: tuple[int, ...] = (), **attributes: Any) -> Array:
    """What a compiled node makes."""
    given = [array for place, array in enumerate(arrays) if array is not None and place not in known]
    return np.asarray(tvmcnn.backend.run_model(model(op, arrays, 1, opset, known, **attributes), given)[0])


# ---- CumSum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_cum_sum(axis: int) -> None:
    for attributes in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        agree("CumSum", drawn(*X), np.array(axis, np.int32), known=(1,), terms=70, **attributes)


def test_cum_sum_of_other_dtypes() -> None:
    """Integers wrap, as NumPy's do."""
    for dtype in ("float64", "int32", "int64", "uint32", "uint64"):
        agree("CumSum", drawn(*X, dtype=dtype), np.array(1), known=(1,), terms=5)
    large = np.full((3, 4), 2**30, np.int32)
    agree("CumSum", large, np.array(1), known=(1,))
    agree("CumSum", drawn(7), np.array(0), known=(1,), terms=7)
    agree("CumSum", drawn(3, 0), np.array(1), known=(1,))


# ---- TopK -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(axis: int, largest: int) -> None:
    """Few different values, so that most have equals: of those the first."""
    x = np.round(drawn(*X) / 8)
    for k in (1, 2, x.shape[axis] - 1, x.shape[axis]):
        agree("TopK", x, ints(k), outputs=2, known=(1,), axis=axis, largest=largest)


def test_long_columns() -> None:
    """Columns in order, in the wrong order and in none, of many more elements than are wanted, and of as many."""
    rising = np.arange(999, dtype=np.float32)
    x = np.stack([rising, rising[::-1], np.random.default_rng(1).permutation(rising), np.zeros(999, np.float32)])
    for k in (7, 64, 999):
        for largest in (0, 1):
            agree("TopK", x, ints(k), outputs=2, known=(1,), largest=largest)


def test_top_k_of_other_dtypes() -> None:
    for dtype in NUMBERS:
        for largest in (0, 1):
            agree("TopK", drawn(*X, dtype=dtype), ints(9), outputs=2, known=(1,), largest=largest)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_odd_values(largest: int) -> None:
    """NaN is greater than infinity, and all NaNs are equal; so are both zeros."""
    nan, inf = np.nan, np.inf
    x = np.array([[0.0, -0.0, nan, inf, -inf, nan, 1, -1, inf, nan, -inf, -0.0, 0.0]], np.float32)
    for k in (1, 3, 5, 13):
        agree("TopK", x, ints(k), outputs=2, known=(1,), largest=largest)


def test_top_k_of_older_opsets() -> None:
    """K is an attribute until opset 9; largest and sorted come with 11."""
    x = np.round(drawn(*X) / 8)
    agree("TopK", x, outputs=2, opset=9, k=4, axis=1)
    agree("TopK", x, ints(4), outputs=2, opset=10, known=(1,), axis=1)
    agree("TopK", x, ints(4), outputs=2, opset=11, known=(1,), axis=1, largest=0, sorted=1)
    agree("TopK", x, ints(4), outputs=2, opset=24, known=(1,), axis=1, sorted=0)


def test_no_elements_wanted() -> None:
    agree("TopK", drawn(3, 5), ints(0), outputs=2, known=(1,))
    agree("TopK", drawn(0, 5), ints(2), outputs=2, known=(1,))


@pytest.mark.parametrize("kept", ["values", "indices"])
def test_one_output(kept: str, tmp_path: Path) -> None:
    """Nobody reads the other: no kernel makes values that none wants."""
    outputs = {"values": ["kept", "spare"], "indices": ["spare", "kept"]}[kept]
    dtype = np.float32 if kept == "values" else np.int64
    proto = model_of(
        [node("TopK", ["x", "k"], outputs)], {"x": X}, {"kept": np.zeros((3, 5, 6), dtype)}, {"k": ints(6)}
    )
    compiled = tvmcnn.compile(proto, output=tmp_path / "one.so")
    assert [n.op for n in import_model(proto).nodes] == ["TopK", *(["GatherElements"] if kept == "values" else [])]
    x = drawn(*X)
    np.testing.assert_array_equal(tvmcnn.load(compiled.path)(x), reference(proto, {"x": x})["kept"])


def test_top_k_behind_layers(tmp_path: Path) -> None:
    """Scores that round, and values gathered by their indices, with every tensor compared."""
    g = Graph(opset=17)
    scores = g.node("Softmax", g.node("Flatten", g.conv(g.input(2, 3, 9, 8), 7, (3, 3))))
    g.nodes.append(node("TopK", [scores, g.constant(ints(5))], ["best", "where"]))
    g.output("best", g.node("CumSum", "best", g.constant(np.array(1))))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "behind.so")
    assert compiled.verdict is not None and compiled.verdict.passed


def test_ties_within_an_error() -> None:
    """An index may stand for one whose element is as large within the error, but not twice in a column."""
    top = Node("TopK", "top", ("x",), "y", {"along": (1, 2), "largest": True})
    x = np.array([[5.0, 4.0, 4.0 + 1e-6, 1.0]])
    wanted = np.array([[0, 2]])
    for found, allowed in (([0, 1], [True, True]), ([0, 3], [True, False]), ([2, 2], [False, False])):
        said = admissible(top, [x], [1e-6], wanted, np.array([found]))
        np.testing.assert_array_equal(said, [allowed])


# ---- along one axis -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax(axis: int) -> None:
    """The first of equal maxima."""
    for dtype in ("float32", "float64"):
        agree("Hardmax", np.round(drawn(3, 5, 7, dtype=dtype)), axis=axis)
    agree("Hardmax", np.round(drawn(3, 5, 7)), opset=11, axis=axis % 3)
    agree("Hardmax", np.round(drawn(3, 5, 7)), opset=7)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int) -> None:
    """Zeros stay, whatever their norm."""
    for axis in (0, 1, -1):
        for dtype, unit in (("float32", 2.0**-24), ("float64", 2.0**-53)):
            x = drawn(3, 5, 7, dtype=dtype)
            x[:, 2], x[1], x[..., 3] = 0, 0, 0
            for opset in (7, 22):
                proto = model("LpNormalization", [x], 1, opset, axis=axis, p=p)
                wanted = reference(proto, {"x0": x})["y0"]
                found = one("LpNormalization", [x], opset, axis=axis, p=p)
                np.testing.assert_allclose(found, wanted, rtol=16 * unit, atol=0)


def test_shrink() -> None:
    for dtype in NUMBERS:
        agree("Shrink", drawn(*X, dtype=dtype), lambd=1.5, bias=0.5)
    agree("Shrink", drawn(*X))


# ---- windows put back -----------------------------------------------------------------------------------------------


def test_max_unpool() -> None:
    """Behind the MaxPool that chose the places, whose windows overlap or not; a shape that is larger."""
    for dtype in ("float32", "float64"):
        for shape, attributes in (
            ((2, 3, 17), {"kernel_shape": [2], "strides": [2]}),
            ((2, 3, 8, 9), {"kernel_shape": [2, 3], "strides": [2, 3]}),
            ((1, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2]}),
            ((1, 2, 4, 6, 5), {"kernel_shape": [2, 3, 2], "strides": [2, 3, 1]}),
            ((1, 2, 5, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
        ):
            proto = model("MaxPool", [drawn(*shape, dtype=dtype)], 2, 20, **attributes)
            pooled = reference(proto, {"x0": drawn(*shape, dtype=dtype)})
            places = pooled["y1"] % max(1, pooled["y0"].size)  # of a MaxPool whose last pixels no window covers
            agree("MaxUnpool", pooled["y0"], places, **attributes)
    x, places = drawn(1, 2, 2, 3), np.array([5, 7, 0, 13, 22, 40]).repeat(2).reshape(1, 2, 2, 3)
    agree("MaxUnpool", x, places, ints(1, 2, 5, 8), known=(2,), kernel_shape=[2, 2], strides=[2, 2])


def test_places_outside() -> None:
    """At run time: the first and the last element of all."""
    x, places = drawn(1, 1, 2, 2), np.array([2**40, 5, -3, -(2**40)]).reshape(1, 1, 2, 2)
    wanted = np.zeros(16, np.float32)
    wanted[[15, 5, 13, 0]] = x.reshape(-1)
    found = one("MaxUnpool", [x, places], kernel_shape=[2, 2], strides=[2, 2])
    np.testing.assert_array_equal(found.reshape(-1), wanted)


@pytest.mark.parametrize(
    ("image", "block", "columns", "attributes"),
    [
        ((6, 10), (2, 5), 6, {"strides": [2, 5]}),
        ((5, 7), (2, 3), 20, {}),
        ((7, 9), (2, 3), 12, {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 1, 2]}),
        ((3, 4, 5), (2, 1, 3), 24, {}),
        ((11,), (4,), 6, {"strides": [2], "pads": [2, 1]}),
    ],
)
def test_col2im(image: tuple[int, ...], block: tuple[int, ...], columns: int, attributes: dict[str, Any]) -> None:
    x = drawn(2, 3 * int(np.prod(block)), columns)
    agree("Col2Im", x, ints(*image), ints(*block), known=(1, 2), terms=int(np.prod(block)), **attributes)


def test_eye_like() -> None:
    for k in (0, 2, -3, 9):
        agree("EyeLike", drawn(4, 7), k=k)
    for code, dtype in ((6, np.int32), (11, np.float64), (9, np.bool_)):
        found = one("EyeLike", [drawn(4, 7)], dtype=code)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.eye(4, 7, dtype=dtype))


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "operands", "weights", "attributes", "said"),
    [
        ("TopK", {"x": X}, {"k": ints(6)}, {"axis": 1}, "k is 6; axis 1 of 3x5x70 has 5 elements"),
        ("TopK", {"x": X}, {"k": ints(1, 2)}, {}, "its k 'k' is 2; it must be one value"),
        ("CumSum", {"x": X}, {"axis": ints(3)}, {}, "axis 3 is outside the 3 axes of its input"),
        ("LpNormalization", {"x": X}, {}, {"p": 3}, "its p is 3; ONNX has 1 and 2"),
        ("EyeLike", {"x": X}, {}, {}, "its input is 3x5x70; it must have two axes"),
        ("Col2Im", {"x": (1, 12, 7)}, {"i": ints(4, 5), "b": ints(2, 3)}, {}, "blocks of 2x3 of 4x5 make N x 6·C x 9"),
        ("Col2Im", {"x": (1, 12, 9)}, {"i": ints(4, 5), "b": ints(2, 3)}, {"pads": [1]}, "pads [1]; there must be 4"),
    ],
)
def test_refused(
    op: str, operands: dict[str, Any], weights: dict[str, Array], attributes: dict[str, Any], said: str
) -> None:
    nodes = [node(op, [*operands, *weights], ["y", *(["places"] if op == "TopK" else [])], **attributes)]
    with pytest.raises((ModelError, UnsupportedError), match=re.escape(said)):
        import_model(model_of(nodes, operands, {"y": (None,)}, weights, opset=18))


def test_operands_that_arrive_at_run_time() -> None:
    """K decides a shape; so would the axis of a CumSum, in the order of its loops."""
    for op, operand, role in (("TopK", np.array([3]), "k"), ("CumSum", np.array(1), "axis")):
        nodes = [node(op, ["x", "late"], ["y", *(["places"] if op == "TopK" else [])])]
        with pytest.raises(UnsupportedError, match=f"its {role} 'late' is computed at run time"):
            import_model(model_of(nodes, {"x": X, "late": operand}, {"y": (None,)}, opset=18))
