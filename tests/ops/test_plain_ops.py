"""Windows, matrix products and movements in plain layout, of any rank and dtype, against the reference: what the
blocked expressions of test_operators.py leave to these.

Weights arrive at run time; what moves elements must agree bit for bit, what sums them within the error of the sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from agreement import Array, agree, drawn, ints, model
from tvm import te

import tvmcnn
from tvmcnn.network import Node, Tensor
from tvmcnn.ops import PLAIN, move

# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 17), (5, 3, 4), {"strides": [2], "pads": [1, 2]}),
        ((2, 6, 31), (9, 2, 3), {"group": 3, "dilations": [3], "auto_pad": "SAME_UPPER"}),
        ((1, 4, 9, 7), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 1], "dilations": [1, 2]}),
        ((2, 5, 8, 33), (5, 1, 2, 3), {"group": 5, "auto_pad": "SAME_LOWER", "strides": [1, 2]}),
        ((1, 3, 5, 6, 7), (4, 3, 2, 3, 1), {"strides": [1, 2, 3], "pads": [1, 0, 2, 0, 1, 0]}),
        ((2, 4, 4, 5, 6), (6, 2, 3, 2, 2), {"group": 2, "dilations": [1, 2, 1]}),
    ],
    ids=str,
)
def test_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    agree("Conv", drawn(*x), drawn(*w, seed=1), drawn(w[0]), terms=math.prod(w[1:]), **attributes)


def test_conv_of_doubles() -> None:
    agree("Conv", drawn(1, 3, 9, 8, dtype="float64"), drawn(4, 3, 2, 3, dtype="float64"), terms=18, pads=[1, 1, 0, 2])


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 9), (3, 4, 5), {"strides": [3], "pads": [1, 2], "output_padding": [1]}),
        ((1, 4, 5, 7), (4, 3, 2, 2), {"strides": [2, 2]}),
        ((2, 6, 5, 4), (6, 2, 3, 4), {"group": 3, "strides": [2, 3], "pads": [1, 0, 2, 1]}),
        ((1, 2, 6, 5), (2, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
        ((1, 2, 5, 4), (2, 3, 3, 2), {"strides": [2, 3], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 2, 5, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [3, 2], "output_shape": [13, 12]}),
        ((1, 2, 3, 4, 5), (2, 3, 2, 3, 2), {"strides": [2, 1, 3]}),
    ],
    ids=str,
)
def test_conv_transpose(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    bias = drawn(w[1] * attributes.get("group", 1))
    agree("ConvTranspose", drawn(*x), drawn(*w, seed=1), bias, terms=w[0] * math.prod(w[2:]), **attributes)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8"])
def test_max_pool(dtype: str) -> None:
    for shape, attributes in (
        ((2, 3, 17), {"kernel_shape": [4], "strides": [3], "pads": [1, 2]}),
        ((1, 3, 9, 11), {"kernel_shape": [3, 2], "dilations": [2, 3], "ceil_mode": 1, "strides": [2, 2]}),
        ((2, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2, 3]}),
    ):
        agree("MaxPool", drawn(*shape, dtype=dtype), **attributes)


@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_indices(order: int) -> None:
    """The first of equal maxima; negative values, which padding must not beat."""
    x = -np.abs(np.round(drawn(2, 3, 7, 9)))
    attributes = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1], "storage_order": order}
    agree("MaxPool", x, outputs=2, **attributes)


def test_average_and_lp_pools() -> None:
    x, y, z = drawn(2, 3, 17), drawn(1, 3, 9, 11), drawn(2, 2, 5, 6, 7)
    for counted in (0, 1):
        agree("AveragePool", x, terms=4, kernel_shape=[4], strides=[3], pads=[1, 2], count_include_pad=counted)
        attributes = {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 3], "pads": [1, 0, 1, 1]}
        agree("AveragePool", y, terms=6, dilations=[2, 1], count_include_pad=counted, **attributes)
        agree("AveragePool", z, terms=12, kernel_shape=[2, 3, 2], auto_pad="SAME_LOWER", count_include_pad=counted)
    for p in (1, 2, 3):
        agree("LpPool", x, terms=64, kernel_shape=[4], strides=[2], p=p)
        agree("LpPool", y, terms=64, kernel_shape=[3, 2], pads=[1, 1, 0, 0], dilations=[1, 2], p=p)
        agree("GlobalLpPool", z, terms=256, p=p)
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        for tensor in (x, y, z):
            agree(op, tensor, terms=256)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mean_of_padding_alone(dtype: str) -> None:
    """Both columns of the dilated window lie beside the image: 0 / 0, where TVM would divide by a literal 0."""
    x = drawn(1, 3, 6, 1, dtype=dtype)
    window = {"kernel_shape": [2, 2], "dilations": [1, 2], "pads": [0, 1, 1, 1], "count_include_pad": 0}
    proto = model("AveragePool", [x], 1, 20, **window)
    (found,) = tvmcnn.backend.run_model(proto, [x])
    assert found.shape == (1, 3, 6, 1)
    assert np.isnan(found).all()


# ---- matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((7,), (7,)),
        ((5, 7), (7,)),
        ((7,), (7, 9)),
        ((5, 7), (7, 33)),
        ((3, 5, 7), (7, 9)),
        ((2, 1, 5, 7), (3, 7, 4)),
        ((5, 7), (2, 3, 7, 4)),
        ((6, 512), (512, 640)),
        ((1, 16), (16, 17)),
    ],
    ids=str,
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    agree("MatMul", drawn(*a), drawn(*b, seed=1), terms=a[-1])


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "uint32"])
def test_matmul_of_other_dtypes(dtype: str) -> None:
    agree("MatMul", drawn(5, 7, dtype=dtype), drawn(7, 9, dtype=dtype, seed=1), terms=7)


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_gemm(turned: tuple[int, int]) -> None:
    a, b = drawn(5, 7), drawn(7, 18, seed=1)
    a, b = a.T.copy() if turned[0] else a, b.T.copy() if turned[1] else b
    for c in ((5, 18), (18,), (5, 1), ()):
        agree("Gemm", a, b, drawn(*c), terms=8, transA=turned[0], transB=turned[1], alpha=0.5, beta=1.5)
    agree("Gemm", a, b, terms=8, transA=turned[0], transB=turned[1])


# ---- movements ------------------------------------------------------------------------------------------------------

X = (2, 3, 5, 7)
MOVEMENTS: list[tuple[str, list[Array], dict[str, Any]]] = [
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [], {"perm": [3, 0, 1, 2]}),
    ("Transpose", [], {}),
    ("Slice", [ints(1, 6), ints(9, 0), ints(2, 3), ints(2, -2)], {}),
    ("Slice", [ints(-4), ints(-1), ints(-2)], {}),
    ("Pad", [ints(0, 1, 0, 2, 0, 0, 3, 1)], {}),
    ("Pad", [ints(0, -1, 2, 0, 0, 0, -1, 3)], {}),
    ("Pad", [ints(0, 0, 2, 6, 1, 1, 4, 0)], {"mode": "reflect"}),
    ("Pad", [ints(0, 0, 2, 9, 1, 1, 4, 0)], {"mode": "edge"}),
    ("Pad", [ints(0, 0, 2, 5, 1, 1, 4, 0)], {"mode": "wrap"}),
    ("Reshape", [ints(0, -1, 7)], {}),
    ("Flatten", [], {"axis": 2}),
    ("Unsqueeze", [ints(0, -1)], {}),
    ("Expand", [ints(4, 1, 3, 1, 1)], {}),
    ("Tile", [ints(1, 2, 1, 3)], {}),
    ("Gather", [ints(2, -1, 0)], {"axis": 3}),
    ("Gather", [ints(1, 0, -2, 1).reshape(2, 2)], {"axis": 1}),
    ("GatherElements", [np.random.default_rng(2).integers(-5, 5, (2, 3, 4, 7))], {"axis": 2}),
    ("GatherND", [ints(1, 2, 0, -1, 1, 2).reshape(3, 2)], {}),
    ("GatherND", [ints(2, 0, 1, 4).reshape(2, 1, 2)], {"batch_dims": 1}),
    ("Concat", [drawn(2, 4, 5, 7, seed=3), drawn(2, 1, 5, 7, seed=4)], {"axis": 1}),
    ("Concat", [drawn(2, 3, 5, 9, seed=3)], {"axis": -1}),
    ("Identity", [], {}),
    ("Trilu", [np.array(1)], {"upper": 0}),
]


@pytest.mark.parametrize(("op", "more", "attributes"), MOVEMENTS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MOVEMENTS)])
def test_movement(op: str, more: list[Array], attributes: dict[str, Any]) -> None:
    for dtype in ("float32", "int64", "bool") if op not in ("Concat", "Trilu") else ("float32",):
        x = drawn(*X, dtype=dtype)
        if op == "Expand":
            x = x[:, :, :1]
        agree(op, x, *more, **attributes)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str) -> None:
    agree("DepthToSpace", drawn(2, 12, 5, 3), blocksize=2, mode=mode)
    agree("DepthToSpace", drawn(1, 18, 4, 5), blocksize=3, mode=mode)
    agree("SpaceToDepth", drawn(2, 3, 6, 9), blocksize=3)


def test_center_crop_pad() -> None:
    """Odd and even differences, cropped along one axis and padded along another; some axes alone."""
    x = drawn(9, 4, 7, 6)
    for shape in ((6, 7, 7, 9), (4, 4, 2, 1), (12, 11, 10, 6)):
        agree("CenterCropPad", x, ints(*shape), known=(1,))
    for axes in ([0, 2], [-1, 1]):
        agree("CenterCropPad", x, ints(6, 9), known=(1,), axes=axes)
    agree("CenterCropPad", drawn(9, 4, dtype="int32"), ints(6, 7))


def test_split_and_dropout() -> None:
    agree("Split", drawn(2, 7, 3), ints(1, 4, 2), outputs=3, axis=1)
    agree("Split", drawn(2, 7, 3), outputs=3, axis=1, num_outputs=3)
    agree("Split", drawn(6, 5), outputs=2, opset=12)
    agree("Dropout", drawn(3, 5), outputs=2)
    agree("Squeeze", drawn(2, 1, 5, 1), ints(1))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_outside(dtype: str) -> None:
    """At run time, beyond both ends: the first and the last element, and no memory around the tensor is read."""
    x = drawn(3, 5, 7)
    places = np.array([-5 - 3, -5, -1, 0, 4, 5 + 3, 5, -6], dtype)
    inside = np.clip(np.where(places < 0, places + 5, places), 0, 4)

    def run(op: str, indices: Array, **attributes: Any) -> Array:
        return np.asarray(tvmcnn.backend.run_model(model(op, [x, indices], 1, 20, **attributes), [x, indices])[0])

    np.testing.assert_array_equal(run("Gather", places, axis=1), x[:, inside])
    whole, kept = (np.broadcast_to(v[None, :, None], (3, 8, 7)).copy() for v in (places, inside))
    np.testing.assert_array_equal(run("GatherElements", whole, axis=1), np.take_along_axis(x, kept, axis=1))
    if dtype == "int64":
        pairs = np.stack([np.full(8, -3 - 3), places], axis=1)
        np.testing.assert_array_equal(run("GatherND", pairs), x[0, inside])
        pairs = np.stack([np.full(8, 3 + 3), places], axis=1)
        np.testing.assert_array_equal(run("GatherND", pairs), x[2, inside])


def test_indices() -> None:
    indices = np.array([[3, -1], [0, 9]])
    agree("OneHot", indices, ints(5), np.array([-2, 7], np.float32), axis=1)
    agree("ReverseSequence", drawn(5, 3, 7), ints(4, 1, 5), time_axis=0, batch_axis=1)


@pytest.mark.parametrize("perm", [*itertools.permutations(range(3))])
def test_transpose_in_squares(perm: tuple[int, ...]) -> None:
    """Axes that squares of 32 divide, that smaller ones do, and that none does."""
    for shape in ((64, 3, 96), (40, 3, 28), (2, 37, 71)):
        agree("Transpose", drawn(*shape), perm=list(perm))


def test_nothing_and_one() -> None:
    """Tensors without elements and without axes."""
    agree("Concat", drawn(2, 0, 3), drawn(2, 4, 3), axis=1)
    agree("Transpose", drawn(3, 0, 5))
    agree("Pad", drawn(3, 0, 5), ints(0, 2, 1, 1, 0, 0))
    agree("MatMul", drawn(3, 0), drawn(0, 5), terms=1)
    agree("Identity", drawn())
    agree("Unsqueeze", drawn(), ints(0))


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def shifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The expression on its first operand with the last axis one further, the end taken twice."""
    from tvm import te, tirx

    def wrong(node: Node, output: Tensor, x: Any, *rest: Any) -> Any:
        last = x.shape[-1] - 1
        moved = te.compute(x.shape, lambda *i: x[(*i[:-1], tirx.min(i[-1] + 1, last))], name="moved")
        return function(node, output, moved, *rest)

    return wrong


@pytest.mark.parametrize("op", ["Transpose", "Slice", "Pad", "Gather", "Tile", "GatherElements"])
def test_a_shifted_movement_is_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = next((o, more, attributes) for o, more, attributes in MOVEMENTS if o == op)
    monkeypatch.setitem(PLAIN, op, shifted(PLAIN[op]))
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        test_movement(*given)


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("Conv", [drawn(1, 2, 9), drawn(3, 2, 4)], {}),
        ("ConvTranspose", [drawn(1, 2, 9), drawn(2, 3, 4)], {}),
        ("MaxPool", [drawn(1, 2, 9)], {"kernel_shape": [3]}),
        ("LpPool", [drawn(1, 2, 9)], {"kernel_shape": [3]}),
        ("MatMul", [drawn(3, 9), drawn(9, 5)], {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shifted_window_is_caught(
    op: str, arrays: list[Array], attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(op, *arrays, terms=64, **attributes)
    monkeypatch.setitem(PLAIN, op, shifted(PLAIN[op]))
    with pytest.raises(AssertionError):
        agree(op, *arrays, terms=64, **attributes)


@pytest.mark.parametrize(
    ("begins", "shape", "run"),
    [((1, 0, 0), (4, 5, 7), 2), ((0, 2, 0), (3, 8, 7), 1), ((0, 0, 1), (3, 5, 8), 0), ((1, 0, -1), (5, 5, 6), 1)],
    ids=str,
)
def test_a_pad_walks_axes_without_a_border_as_one(begins: Sequence[int], shape: Sequence[int], run: int) -> None:
    """From a crop on inwards as well."""
    node = Node("Pad", "", ("x",), "y", {"begins": begins, "mode": "constant", "value": 0.0})
    made = move.pad(node, Tensor("y", tuple(shape), "float32"), te.placeholder((3, 5, 7)))
    assert made.op.attrs["run"] == run
