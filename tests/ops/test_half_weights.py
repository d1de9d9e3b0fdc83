"""Weights in float16 and bfloat16: every rule with its own network, both ways to expand, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from half_weight_models import (
    BY_TILE,
    EXPANDED,
    KINDS,
    RULES,
    Build,
    by_hand,
    dense,
    direct,
    draws,
    made,
    scaled,
    transposed,
    turned,
    with_rounded,
)
from helpers import TARGETS, feeds, use_target

import tvmcnn
from tvmcnn import half_weights
from tvmcnn.check.reference import half_weights as oracle
from tvmcnn.check.reference import reference
from tvmcnn.compiler import Compiled
from tvmcnn.errors import VerifyError
from tvmcnn.half_weights import STORED, HalfWeights, narrowed, rounded
from tvmcnn.importer import half_weights as importing
from tvmcnn.importer import nodes
from tvmcnn.ops import operands

Plant = Callable[[pytest.MonkeyPatch], None]
pytestmark = pytest.mark.slow


# ---- rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rounding(kind: str) -> None:
    """Ties, subnormal numbers, zeros and any bits: the compiler's, the oracle's and that by hand agree."""
    rng = np.random.default_rng(3)
    any_bits = rng.integers(0, 1 << 32, 200_000, np.uint64).astype(np.uint32).view(np.float32)
    ties = (rng.integers(0, 1 << 19, 50_000).astype(np.uint32) << 12 | 1 << 12).view(np.float32)
    others = (rng.integers(0, 1 << 16, 50_000).astype(np.uint32) << 16 | 1 << 15).view(np.float32)
    small = np.float32(2.0**-24) * np.arange(-40, 40, dtype=np.float32) / 4
    named = np.float32([0, -0.0, 65504, 1, 1 + 2**-11, 1 + 2**-8, 1 + 3 * 2**-8])
    array = np.concatenate([any_bits, ties, others, small, named])
    array = array[np.abs(array) <= np.float32(half_weights.LARGEST[kind])]
    found, wanted = rounded(array, kind), by_hand(array, kind)
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    np.testing.assert_array_equal(oracle.to_half(array, half_weights.WORDS[kind]), wanted)
    special = rounded(np.array([np.nan, np.inf, -np.inf], np.float32), kind)
    assert np.isnan(special[0])
    assert special[1:].tolist() == [np.inf, -np.inf]
    assert not half_weights.holds(kind, np.full(2000, 1 + 2**-13, np.float32))
    assert half_weights.holds(kind, np.full(2000, 1.5, np.float32))
    assert not half_weights.holds(kind, np.full(20, 1.5, np.float32))
    assert not half_weights.holds("fp32", np.full(2000, 1.5, np.float32))


def test_errors() -> None:
    """Errors are relative of normal numbers, absolute of smaller ones."""
    array = np.float32([1 + 2**-11, 3 * 2.0**-26, 1.5])
    assert half_weights.errors(array, "fp16") == (2**-11 / (1 + 2**-11), 2.0**-26)


@pytest.mark.parametrize("kind", KINDS)
def test_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large weight is looked through in parts: none is left out, whatever is at its end."""
    array = rounded(draws(3, 41, 50), kind)
    array[-1, -1] = np.float32(1 + 2**-12)
    whole = half_weights.errors(array, kind), oracle.to_half(array, half_weights.WORDS[kind])
    assert whole[0][0] > 0
    for module in (half_weights, oracle):
        monkeypatch.setattr(module, "PART", 77)
    assert not half_weights.holds(kind, array)
    assert half_weights.errors(array, kind) == whole[0]
    np.testing.assert_array_equal(oracle.to_half(array, half_weights.WORDS[kind]), whole[1])
    array[-1, -1] = 1
    assert half_weights.holds(kind, array)


# ---- every rule -----------------------------------------------------------------------------------------------------


def halves(compiled: Compiled, kind: str) -> list[str]:
    """The weights that are stored in a half type."""
    packed = (pair for step in compiled.program.steps for pair in step.packed.items())
    return [name for name, tensor in packed if tensor.dtype == STORED[kind]]


@pytest.mark.parametrize(("kind", "target"), [*zip(KINDS, TARGETS, strict=True)])
@pytest.mark.parametrize("build", RULES, ids=lambda build: build.__name__)
def test_rule(build: Build, kind: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library computes, and shows, what NumPy makes of the rounded weights; nothing of the unrounded ones."""
    model, target = made(build), use_target(target, monkeypatch)
    compiled = tvmcnn.compile(model, target, tmp_path / "x.so", weights=kind, own_records=False)
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    assert halves(compiled, kind)
    expanded = any(step.choice.expanded for step in compiled.program.steps)
    assert build in BY_TILE or expanded == (build in EXPANDED)
    names = set(compiled.manifest["weights"]["rounded"]) - {"transpose0"}
    names |= {"c0"} if build is turned else set()
    given, net = feeds(model), tvmcnn.load(compiled.path, threads=2)
    (wanted,) = reference(with_rounded(model, kind, names), given).values()
    (exact,) = reference(model, given).values()
    found, scale = net.run(None, given)[0], np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 3e-6 * scale
    assert np.abs(found - exact).max() > 3e-5 * scale


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def rounded_twice(patch: pytest.MonkeyPatch) -> None:
    """Through a type of one more bit: a number just above a tie becomes one, and goes to the even side."""
    right = importing.rounded

    def twice(array: np.ndarray, kind: str) -> np.ndarray:
        bits = array.view(np.uint32) + np.uint32(1 << 11 if kind == "fp16" else 1 << 14)
        return right((bits & np.uint32(0xFFFFF000 if kind == "fp16" else 0xFFFF8000)).view(np.float32), kind)

    patch.setattr(importing, "rounded", twice)


def toward_zero(patch: pytest.MonkeyPatch) -> None:
    masks = {"fp16": 0xFFFFE000, "bf16": 0xFFFF0000}
    cut = lambda array, kind: (array.view(np.uint32) & np.uint32(masks[kind])).view(np.float32)  # noqa: E731
    patch.setattr(importing, "rounded", cut)


def unrounded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(importing, "rounded", lambda array, kind: array)


def unannounced(patch: pytest.MonkeyPatch) -> None:
    right = importing.round_weights

    def silent(*given: object) -> tuple[dict[str, np.ndarray], HalfWeights]:
        constants, made_ = right(*given)  # type: ignore[arg-type]
        return constants, HalfWeights(made_.kind)

    patch.setattr(nodes, "round_weights", silent)


def stored_rounded_again(patch: pytest.MonkeyPatch) -> None:
    """Packing that does not ask whether the weight is a number of the type: here of one that was scaled."""
    from tvmcnn import layout

    patch.setattr(layout, "holds", lambda kind, array: kind != "fp32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("plant", "build"),
    [
        (rounded_twice, direct),
        (toward_zero, direct),
        (unrounded, direct),
        (unannounced, direct),
        (rounded_twice, dense),
        (toward_zero, transposed),
        (stored_rounded_again, scaled),
    ],
)
def test_planted(
    plant: Plant,
    build: Build,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right without the bug; refused with it."""
    model = made(build)
    assert tvmcnn.compile(model, "x86-64-v3", tmp_path / "x.so", weights=kind).verdict is not None
    plant(monkeypatch)
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is"):
        tvmcnn.compile(model, "x86-64-v3", tmp_path / "y.so", weights=kind)
    assert not (tmp_path / "y.so").exists()


def test_planted_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of a bfloat16 one place too low."""
    monkeypatch.setenv("TVMCNN_CACHE", "off")  # whose kernels are known by their sources, not by what is patched
    right = operands.tirx.const

    def lower(value: float, dtype: str) -> object:
        return right(15 if (value, dtype) == (16, "uint32") else value, dtype)

    monkeypatch.setattr(operands.tirx, "const", lower)
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is"):
        tvmcnn.compile(made(direct), "x86-64-v3", tmp_path / "x.so", weights="bf16", jobs=1)


def test_narrowed_is_lossless() -> None:
    """What is stored, expanded again, is what was rounded: bit for bit."""
    for kind in KINDS:
        array = rounded(draws(5, 999), kind)
        stored = narrowed(array, kind)
        assert stored.dtype == STORED[kind]
        np.testing.assert_array_equal(half_weights.expanded(stored, kind), array)
