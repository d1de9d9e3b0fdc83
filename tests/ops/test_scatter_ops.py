"""ScatterElements, ScatterND and their kin against the reference: indices at run time, in order, and constant ones,
for which each place of the output takes its element.
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
from tvmcnn.choose.cpu import sequences
from tvmcnn.errors import ModelError
from tvmcnn.importer import import_model
from tvmcnn.importer.operators import scatter

DTYPES = ("float32", "float64", "int8", "int32", "int64", "uint16", "bool")
X = (3, 5, 70)  # columns of more than a tile


def places(*shape: int, extent: int) -> Array:
    """Indices from both ends, most of them several times."""
    return np.random.default_rng(shape).integers(-extent, extent, shape)


def tuples(*shape: int, depth: int) -> Array:
    """Index tuples into the first axes of X."""
    return np.stack([places(*shape, extent=extent) for extent in X[:depth]], axis=-1)


def scattered(op: str, dtype: str, indices: Array, shape: tuple[int, ...], **attributes: object) -> None:
    """One scatter at run time, whose sums have as many terms as there are updates at most."""
    inexact = dtype.startswith("float") and attributes.get("reduction") in ("add", "mul")
    operands = drawn(*X, dtype=dtype), indices, drawn(*shape, dtype=dtype, seed=1)
    agree(op, *operands, terms=16 if inexact else 0, **attributes)


@pytest.mark.parametrize("reduction", scatter.REDUCTIONS)
def test_scatter_elements(reduction: str) -> None:
    for axis, shape, dtypes in (
        (1, (2, 9, 66), DTYPES),
        (-1, (3, 2, 9), DTYPES[:1]),
        (0, (9, 5, 70), DTYPES[:1]),
        (1, (3, 2, 70), DTYPES[:1]),
    ):
        for dtype in dtypes:
            indices = places(*shape, extent=X[axis])
            scattered("ScatterElements", dtype, indices, shape, axis=axis, reduction=reduction)


@pytest.mark.parametrize("reduction", scatter.REDUCTIONS)
def test_scatter_nd(reduction: str) -> None:
    for lead, depth, dtypes in (
        ((4, 2), 2, DTYPES),
        ((9,), 3, DTYPES[:1]),
        ((4,), 1, DTYPES[:1]),
        ((), 2, DTYPES[:1]),
    ):
        for dtype in dtypes:
            shape = (*lead, *X[depth:])
            scattered("ScatterND", dtype, tuples(*lead, depth=depth), shape, reduction=reduction)


@pytest.mark.parametrize("rows", [15, 18, 33, 37])
def test_parts(rows: int, tmp_path: Path) -> None:
    """Data in parts of some rows, the last of which have fewer or none: no part writes behind the data."""
    data, indices = drawn(rows, 48), ints(rows - 1, 0, -1)[:, None]
    for reduction in ("none", "add"):
        proto = model("ScatterND", [data, indices, drawn(3, 48)], 1, 20, reduction=reduction)
        tvmcnn.compile(proto, output=tmp_path / "parts.so")  # which runs it between guards
        agree("ScatterND", data, indices, drawn(3, 48, seed=1), terms=4, reduction=reduction)


def test_parts_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more elements than a tile has columns: a part begins at its first row, here the fourth."""
    for name, number in (("WHOLE_ROW", 5), ("SCANNED", 1), ("TILES", 2)):
        monkeypatch.setattr(sequences, name, number)
    agree("ScatterND", drawn(6, 12), ints(4).reshape(1, 1), drawn(1, 12, seed=1))


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_nan(op: str) -> None:
    """Not a number, there already or among the updates, in whichever comes first."""
    data = np.array([np.nan, 1, 2, np.nan, -1], np.float32)
    updates = np.array([3, np.nan, 0, np.nan, 5], np.float32)
    indices = ints(0, 1, 2, 3, 1) if op == "ScatterElements" else ints(0, 1, 2, 3, 1)[:, None]
    for reduction in scatter.REDUCTIONS:
        agree(op, data, indices, updates, reduction=reduction)


def test_old_names() -> None:
    """Scatter of opset 9, ScatterElements and ScatterND of opset 11, which have no reduction; int32 indices."""
    indices = places(3, 2, 9, extent=70).astype(np.int32)
    for op, opset in (("Scatter", 9), ("ScatterElements", 11)):
        agree(op, drawn(*X), np.abs(indices), drawn(3, 2, 9, seed=1), opset=opset, axis=2)
    agree("ScatterND", drawn(*X), tuples(4, depth=2), drawn(4, 70, seed=1), opset=11)


def test_nothing() -> None:
    """No updates, and data without elements."""
    agree("ScatterND", drawn(3, 5), np.zeros((0, 1), np.int64), drawn(0, 5))
    agree("ScatterElements", drawn(3, 5), np.zeros((0, 5), np.int64), drawn(0, 5))
    agree("ScatterElements", drawn(3, 0), np.zeros((3, 0), np.int64), drawn(3, 0), axis=0)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_outside(dtype: str) -> None:
    """At run time, beyond both ends: the first and the last element, and no memory around the tensor is written."""
    wide = np.array([-(2**31), -6, -5, 0, 4, 5, 2**31 - 1], dtype)
    if dtype == "int64":
        wide[0], wide[-1] = -(2**62), 2**62
    inside = np.array([0, 0, 0, 0, 4, 4, 4])
    x, updates = drawn(3, 5), drawn(3, 7, seed=1)

    def run(op: str, data: Array, indices: Array, values: Array, **attributes: int) -> Array:
        operands = [data, indices, values]
        return np.asarray(tvmcnn.backend.run_model(model(op, [*operands], 1, 20, **attributes), operands)[0])

    wanted = x.copy()
    for k, place in enumerate(inside):
        wanted[:, place] = updates[:, k]
    np.testing.assert_array_equal(run("ScatterElements", x, np.tile(wide, (3, 1)), updates, axis=1), wanted)
    if dtype == "int64":
        found = run("ScatterND", x.T.copy(), wide[:, None], updates.T.copy())
        np.testing.assert_array_equal(found, wanted.T)


# ---- constant indices -----------------------------------------------------------------------------------------------


def op_of(op: str, *arrays: Array, **attributes: object) -> str:
    """What import makes of a scatter whose indices are constant."""
    return import_model(model(op, [*arrays], 1, 20, known=(1,), **attributes)).nodes[-1].op


def box(*ranges: range) -> Array:
    """Index tuples of a box, as the assignment x[1:3, 2:4] = u is exported."""
    return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)


CONSTANT: list[tuple[str, Array, tuple[int, ...], str]] = [
    ("ScatterND", box(range(1, 3), range(2, 5)), (2, 3, 70), "ScatterBox"),
    ("ScatterND", box(range(1, 3), range(-3, 0)), (2, 3, 70), "ScatterBox"),
    ("ScatterND", box(range(3), range(1, 5), range(7, 67)), (3, 4, 60), "ScatterBox"),
    ("ScatterND", box(range(1, 2)), (1, 5, 70), "ScatterBox"),
    ("ScatterND", box(range(3), range(5)), (3, 5, 70), "Reshape"),
    ("ScatterND", ints(1, 2), (70,), "ScatterBox"),
    ("ScatterND", box(range(0, 3, 2), range(2, 5)), (2, 3, 70), "ScatterPlaces"),
    ("ScatterND", box(range(2, 0, -1), range(2, 5)), (2, 3, 70), "ScatterPlaces"),
    ("ScatterND", tuples(40, depth=3), (40,), "ScatterPlaces"),
    ("ScatterND", tuples(40, depth=2), (40, 70), "ScatterPlaces"),
]


@pytest.mark.parametrize(("op", "indices", "shape", "becomes"), CONSTANT)
def test_constant_scatter_nd(op: str, indices: Array, shape: tuple[int, ...], becomes: str) -> None:
    assert op_of(op, drawn(*X), indices, drawn(*shape)) == becomes
    for dtype in ("float32", "int8"):
        agree(op, drawn(*X, dtype=dtype), indices, drawn(*shape, dtype=dtype, seed=1), known=(1,))


def test_constant_scatter_elements() -> None:
    """Places of single elements, of whole slices, and boxes."""
    slices = np.broadcast_to(ints(4, 0, 4)[:, None], (3, 3, 70)).copy()
    neighbours = np.broadcast_to(ints(3, 4)[:, None], (2, 2, 66)).copy()
    for indices, becomes in (
        (places(2, 9, 66, extent=5), "ScatterPlaces"),
        (slices, "ScatterPlaces"),
        (neighbours, "ScatterBox"),
        (slices[:, :1], "ScatterBox"),
    ):
        shape = indices.shape
        assert op_of("ScatterElements", drawn(*X), indices, drawn(*shape), axis=1) == becomes
        agree("ScatterElements", drawn(*X), indices, drawn(*shape, seed=1), known=(1,), axis=1)


def test_constant_reductions() -> None:
    """Constant indices of sums, which are followed in order as others are."""
    indices = tuples(40, depth=2)
    agree("ScatterND", drawn(*X), indices, drawn(40, 70, seed=1), known=(1,), terms=40, reduction="add")
    agree(
        "ScatterElements", drawn(*X), places(3, 9, 70, extent=5), drawn(3, 9, 70), known=(1,), axis=1, reduction="max"
    )


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_a_slice_assignment_between_layers(reduction: str, tmp_path: Path) -> None:
    """Behind a convolution, whose image lies in blocks, and before one; compile compares every tensor."""
    g = Graph(opset=18)
    x = g.conv(g.input(1, 3, 9, 8), 16, (3, 3), pads=[1, 1, 1, 1])
    rows = g.node("Slice", g.node("Relu", x), *(g.constant(ints(value)) for value in (2, 7, 2)))
    indices = g.constant(box(range(1), range(16), range(3, 8)))
    g.output(g.conv(g.node("ScatterND", x, indices, rows, reduction=reduction), 5, (1, 1)))
    report = tvmcnn.compile(g.model(), output=tmp_path / "between.so")
    assert report is not None


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "indices", "shape", "attributes", "said"),
    [
        ("ScatterND", ints(1, 5)[None], (1, 70), {}, "index 5 of 'x1' is outside an axis of 5 of 3x5x70"),
        ("ScatterND", ints(-4)[None], (1, 5, 70), {}, "index -4 of 'x1' is outside an axis of 3 of 3x5x70"),
        ("ScatterND", ints(1, 2)[None], (1, 69), {}, "updates are 1x69; these indices into 3x5x70 take 1x70"),
        ("ScatterND", ints(1, 2, 0, 0)[None], (1,), {}, "index tuples of 4 into the 3 axes of 3x5x70"),
        ("ScatterND", ints(1)[None], (1, 5, 70), {"reduction": "avg"}, "reduction is 'avg'; allowed are none, add"),
        ("ScatterElements", np.full((3, 1, 70), 5), (3, 1, 70), {"axis": 1}, "index 5 of 'x1' is outside an axis of 5"),
        ("ScatterElements", np.zeros((4, 1, 70), int), (4, 1, 70), {"axis": 1}, "not exceed the first along any axis"),
        ("ScatterElements", np.zeros((3, 1, 70), int), (3, 2, 70), {"axis": 1}, "the last two must be alike"),
    ],
)  # fmt: skip
def test_refused(op: str, indices: Array, shape: tuple[int, ...], attributes: dict[str, Any], said: str) -> None:
    names = ["x0", "x1", "x2"]
    given = {"x0": drawn(*X), "x2": drawn(*shape)}
    proto = model_of([node(op, names, ["y"], **attributes)], given, {"y": X}, {"x1": indices}, opset=18)
    with pytest.raises(ModelError, match=re.escape(said)):
        import_model(proto)
