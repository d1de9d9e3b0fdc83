"""Einsum as products of matrices: every place an index may have, beside numpy.einsum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import draw, model_of, node

import tvmcnn
from tvmcnn.errors import UnsupportedError
from tvmcnn.importer import import_model

SIZES = dict(zip("abcdhijkwy", (2, 3, 5, 4, 7, 6, 9, 8, 10, 11), strict=True))


def shapes(equation: str) -> list[tuple[int, ...]]:
    operands = "".join(equation.split()).partition("->")[0].split(",")
    return [tuple(SIZES[index] for index in indices) for indices in operands]


@pytest.mark.parametrize(
    "equation",
    [
        "ij,jk->ik",
        "ij,jk",  # the result is implied
        "bij , bkj -> bki",
        "byhwc,hkc->byhwk",  # rows y and w, columns k, of MViTv2's relative positions
        "byhwc,wkc->byhwk",
        "abcd,cdjk->jakb",  # two terms, two rows, two columns
        "ai,bi->ab",
        "ij,ij->ij",  # no sum
        "ij,ji->ij",
        "ij,ij->i",  # no row, no column
        "ij,ij->",
        "i,j->ji",  # no term
        "ij,k->jk",  # an index that one operand has alone is summed
        "abi->ia",
        "ab->ba",
        "abc->",
        "ab,bc,cd->da",
        "ab,ac,ad->bcd",  # an index of three operands
        "a,b,ab->",
    ],
)
def test_agrees_with_numpy(equation: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    feeds = {f"x{place}": draw(rng, *shape) for place, shape in enumerate(shapes(equation))}
    wanted = np.einsum("".join(equation.split()), *(array.astype(np.float64) for array in feeds.values()))
    einsum = node("Einsum", list(feeds), "y", equation=equation)
    model = model_of([einsum], feeds, {"y": wanted.shape}, {}, name="sum")
    verdict = tvmcnn.compile(model, output=tmp_path / "sum.so").verdict
    assert verdict is not None
    assert verdict.passed
    (found,) = tvmcnn.load(tmp_path / "sum.so").run(None, feeds)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_constant_operand(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    feeds, weight = {"x": draw(rng, *shapes("byhwc")[0])}, draw(rng, *shapes("hkc")[0])
    einsum = node("Einsum", ["x", "w"], "y", equation="byhwc,hkc->byhwk")
    wanted = np.einsum("byhwc,hkc->byhwk", feeds["x"], weight)
    model = model_of([einsum], feeds, {"y": wanted.shape}, {"w": weight}, name="sum")
    compiled = tvmcnn.compile(model, output=tmp_path / "sum.so")
    assert "MatMul" in {each.op for each in compiled.program.network.nodes}
    np.testing.assert_allclose(tvmcnn.load(tmp_path / "sum.so")(feeds["x"]), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("...ij,jk->...ik", "has an ellipsis; write an index for each axis"),
        ("ii,ij->j", "has an index twice in 'ii', which is not supported"),
        ("ij->ik", "does not fit its 2 operands"),
        ("ij,jk->im", "does not fit its 2 operands"),
        ("i1,1k->ik", "does not fit its 2 operands"),
    ],
)
def test_what_is_refused(equation: str, reason: str) -> None:
    feeds = {"x0": np.ones((3, 3), np.float32), "x1": np.ones((3, 4), np.float32)}
    einsum = node("Einsum", list(feeds), "y", name="the_sum", equation=equation)
    with pytest.raises(UnsupportedError, match=r"node 'the_sum' \(Einsum\): its equation '.*' ") as caught:
        import_model(model_of([einsum], feeds, {"y": (3, 4)}, {}, name="sum"))
    assert reason in str(caught.value)
