"""Chains of operators of one quantised operand as tables: every byte, what is one, and what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import model_of
from chains import CHAINS, Chain, every_byte
from quantised import TYPES, Quantised, equal, operators

import tvmcnn
from tvmcnn.check.reference import integers, reference
from tvmcnn.check.reference.one_byte import SMOOTH
from tvmcnn.fuse.passes import simplified
from tvmcnn.fuse.real_functions import FUNCTIONS
from tvmcnn.importer import import_model
from tvmcnn.network import Network

SCALE, ZERO = np.float32(0.0234), 7
Array = np.ndarray[Any, Any]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each QuantizeLinear that the oracle evaluates ends a function of one byte."""
    found, real = list[bool](), integers.function_of_one_byte

    def asked(*given: Any) -> Array | None:
        answer = real(*given)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(integers, "function_of_one_byte", asked)
    return found


def network(model: onnx.ModelProto) -> Network:
    return simplified(import_model(model))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op for node in network(model).nodes]


def test_both_know_the_same_operators() -> None:
    """Identity and Dropout, which the importer takes out, aside; all are among the chains."""
    assert set(FUNCTIONS) == SMOOTH - {"Identity", "Dropout"}
    assert {name.split("-")[0] for name in CHAINS} >= set(FUNCTIONS)


@pytest.mark.parametrize("y_type", TYPES)
@pytest.mark.parametrize("x_type", TYPES)
def test_every_byte_of_every_operator(x_type: str, y_type: str, target: str, tmp_path: Path, said: list[bool]) -> None:
    """All 256, equal to the oracle's; many fall within the range of y."""
    g = Quantised(3)
    g.opset = 24
    zeros = {"uint8": 131, "int8": -13}
    x = g.source(4, 64, dtype=x_type, zero=zeros[x_type])
    made = {name: g.up(chain(g, x), 0.0211, np.array(zeros[y_type], y_type)) for name, chain in CHAINS.items()}
    model = g.finished(*made.values(), dtype=y_type)
    compiled = equal(model, tmp_path, target)
    assert set(operators(compiled)) == {"Table"}
    given = every_byte(x_type)
    said.clear()
    wanted = reference(model, {"x0": given})
    assert said == [True] * len(CHAINS)
    for (name, tensor), found in zip(made.items(), tvmcnn.load(compiled.path)(given), strict=True):
        np.testing.assert_array_equal(found, wanted[tensor], err_msg=name)
        assert len(np.unique(found)) > 10 or name == "Clip-crossed", name


def test_a_chain_is_rounded_once() -> None:
    """Where float32 between would give another byte the oracle and the table have that of float64, of x in float32."""
    g = Quantised(3)
    x = g.source(4, 64, zero=131)
    scale = _scale_that_tells()
    y = g.up(g.node("Mul", g.node("Exp", x), g.constant(np.float32(0.37))), scale, np.uint8(0))
    model = g.finished(y)
    given = every_byte("uint8")
    reals = ((given.astype(np.int32) - 131).astype(np.float32) * SCALE).astype(np.float64)
    value = (np.exp(reals) * np.float64(np.float32(0.37))).astype(np.float32)
    wanted = np.clip(np.rint(value / scale), 0, 255)
    apart = np.rint((np.exp(reals).astype(np.float32) * np.float32(0.37)) / scale)
    assert (wanted != np.clip(apart, 0, 255)).any()
    np.testing.assert_array_equal(reference(model, {"x0": given})[y], wanted)
    found = network(model)
    np.testing.assert_array_equal(found.constants[found.nodes[-1].inputs[1]], wanted.reshape(-1))


def _scale_that_tells() -> np.float32:
    """A scale of y at which a byte lies at a half, and on its other side if e^x is rounded before it is multiplied."""
    reals = ((np.arange(256) - 131).astype(np.float32) * SCALE).astype(np.float64)
    once = (np.exp(reals) * np.float64(np.float32(0.37))).astype(np.float32)
    twice = np.exp(reals).astype(np.float32) * np.float32(0.37)
    for place in np.flatnonzero(once != twice):
        for step in range(60):
            scale = np.float32(once[place] / (step + 0.5))
            for near in (scale, np.nextafter(scale, np.float32(0)), np.nextafter(scale, np.float32(1))):
                if np.rint(once[place] / near) != np.rint(twice[place] / near):
                    return np.float32(near)
    raise AssertionError("there is none")


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "QLinearSigmoid", "QLinearLeakyRelu"])
def test_operators_of_onnxruntime(op: str, tmp_path: Path) -> None:
    """They mean the same."""
    g = Quantised(3)
    own = {"domain": "com.microsoft"}
    x, zeros = g.bytes(4, 64), (g.array(np.uint8(131)), g.array(np.uint8(13)))
    if op.startswith("QLinear"):
        y = g.node(op, x, g.array(SCALE), zeros[0], g.array(np.float32(0.0211)), zeros[1], **own)
    else:
        y = g.up(g.node(op, g.down(x, SCALE, np.uint8(131)), **own), 0.0211, np.uint8(13))
    model = _with_microsofts(g, y)
    compiled = tvmcnn.compile(model, output=tmp_path / "q.so")
    assert operators(compiled) == ["Table"]
    given = every_byte("uint8")
    np.testing.assert_array_equal(tvmcnn.load(compiled.path)(given), reference(model, {"x0": given})[y])


def _with_microsofts(g: Quantised, y: str) -> onnx.ModelProto:
    """A model of ONNX's operators and of onnxruntime's own, with one output of bytes."""
    return model_of(
        g.nodes,
        {"x0": (onnx.TensorProto.UINT8, (4, 64))},
        {y: (onnx.TensorProto.UINT8, (4, 64))},
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in g.initializers},
    )


def test_what_import_takes_out(tmp_path: Path, said: list[bool]) -> None:
    """An Identity or Dropout within a chain is none of it, to the oracle neither."""
    g = Quantised(3)
    x = g.node("Dropout", g.node("Tanh", g.node("Identity", g.source(4, 64, zero=131))))
    y = g.up(g.node("Dropout", x, g.constant(np.float32(0.3))), 0.008, np.uint8(100))
    model = g.finished(y)
    assert operators(equal(model, tmp_path)) == ["Table"]
    assert said and all(said)


# ---- what is none ---------------------------------------------------------------------------------------------------


def _two_readers(g: Quantised, x: str) -> str:
    y = g.node("Tanh", x)
    g.output(g.node("Exp", y))
    return y


def _an_output(g: Quantised, x: str) -> str:
    y = g.node("Tanh", x)
    g.output(y)
    return g.node("Exp", y)


NONE: dict[str, Chain] = {
    "two-readers": _two_readers,
    "an-output-between": _an_output,
    "scales-of-channels": lambda g, x: g.node("Tanh", g.down("x0", g.scale(5), np.zeros(5, np.uint8), axis=1)),
    "a-float-operand": lambda g, x: g.node("Mul", g.node("Tanh", x), g.input(3, 5, 17)),
    "a-constant-of-channels": lambda g, x: g.node("Exp", g.node("Mul", x, g.draw(5, 1))),
    "a-larger-shape": lambda g, x: g.node("Add", x, g.constant(np.full((2, 1, 1, 1), 0.3, np.float32))),
    "a-jump": lambda g, x: g.node("Floor", x),
    "another-operand": lambda g, x: g.node("Mul", g.node("Tanh", x), g.source(3, 5, 17)),
    "a-bound-that-arrives": lambda g, x: g.node("Clip", x, g.input()),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_table(name: str, tmp_path: Path, said: list[bool]) -> None:
    """And the oracle says so too."""
    g = Quantised(3)
    x = g.source(3, 5, 17)
    y = g.up(NONE[name](g, x), 0.0211, np.uint8(113))
    others = [*g.outputs]
    model = g.finished(*others, y)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = 1 if value.name in others else 2
    found = network(model)
    assert "Table" not in [node.op for node in found.nodes]
    assert "QuantizeLinear" in [node.op for node in found.nodes]
    assert tvmcnn.compile(model, output=tmp_path / "q.so").verdict.passed  # type: ignore[union-attr]
    assert said and not any(said)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_16_bits_have_no_table(dtype: str) -> None:
    g = Quantised(3)
    assert "Table" not in ops(g.finished(g.up(g.node("Tanh", g.source(3, 5)), 0.001, np.array(3, dtype)), dtype=dtype))
    g = Quantised(3)
    x = g.down(g.bytes(3, 5, dtype=dtype), 0.0001, np.array(3, dtype))
    assert "Table" not in ops(g.finished(g.up(g.node("Tanh", x), 0.01, np.uint8(3))))


# ---- integers of integers -------------------------------------------------------------------------------------------


def gated(g: Quantised, x: str, zero: int = 0) -> tuple[str, str]:
    """x · Sigmoid(x), quantised after each; and the quantised Sigmoid."""
    s = g.up(g.node("Sigmoid", x), 1 / 256, np.uint8(zero))
    return g.up(g.node("Mul", x, g.down(s, 1 / 256, np.uint8(zero))), 0.0203, np.uint8(13)), s


@pytest.mark.parametrize("seen", [False, True])
def test_pairs_between_parts_of_a_chain(seen: bool, target: str, tmp_path: Path) -> None:
    """All is one table, and one more where somebody wants the integers between."""
    g = Quantised(3)
    y, s = gated(g, g.source(2, 5, 7, 9, zero=131))
    z = g.up(g.node("Tanh", g.down(y, 0.0203, np.uint8(13))), 0.008, np.uint8(100))
    model = g.finished(*[s, z] if seen else [z])
    compiled = equal(model, tmp_path, target)
    assert operators(compiled) == ["Table"] * (1 + seen)
    folded = compiled.program.network.folded
    assert folded[y] == f"between integers: computed with the table of {z}"
    assert (s in folded) is not seen


def test_every_byte_of_a_chain_of_chains(target: str, tmp_path: Path) -> None:
    """Sums and products of bytes that depend on one; constants of one value; a pair of equal scales."""
    for x_type in TYPES:
        g = Quantised(3)
        zero = 131 if x_type == "uint8" else -5
        q = g.bytes(4, 64, dtype=x_type)
        x = g.down(q, 0.0234, np.array(zero, x_type))
        y, s = gated(g, x, 3)
        a = g.up(g.node("Add", g.down(s, 1 / 256, np.uint8(3)), g.down(y, 0.0203, np.uint8(13))), 0.03, np.int8(-7))
        a = g.up(g.down(a, 0.03, np.int8(-7)), 0.03, np.int8(-7))
        b = g.node("Add", g.down(a, 0.03, np.int8(-7)), g.weight(1))
        b = g.up(g.node("Relu", b), 0.029, np.int8(-99))
        z = g.up(g.node("Mul", g.down(b, 0.029, np.int8(-99)), x), 0.031, np.int8(5))
        model = g.finished(z, dtype="int8")
        compiled = equal(model, tmp_path, target)
        assert operators(compiled) == ["Table"]
        given = every_byte(x_type)
        found = tvmcnn.load(compiled.path)(given)
        np.testing.assert_array_equal(found, reference(model, {"x0": given})[z])
        assert len(np.unique(found)) > 50


def test_two_of_one_byte_and_another(tmp_path: Path) -> None:
    """The product with other bytes is no table; nor is that with more elements."""
    g = Quantised(3)
    x = g.source(1, 5, 7, 1)
    s = g.down(g.up(g.node("Sigmoid", x), 1 / 256, np.uint8(0)), 1 / 256, np.uint8(0))
    y = g.up(g.node("Mul", s, g.source(1, 5, 7, 1)), 0.02, np.uint8(13))
    z = g.up(
        g.node("Add", x, g.node("DequantizeLinear", g.array(np.full((2, 1, 1, 3), 5, np.uint8)), g.array(SCALE))),
        0.03,
        np.uint8(9),
    )
    compiled = equal(g.finished(y, z), tmp_path)
    assert sorted(operators(compiled)) == ["QLinearAdd", "QLinearMul", "Table"]


# ---- requantised ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x_type", "y_type"), [("uint8", "uint8"), ("int8", "uint8"), ("uint8", "int8")])
def test_another_scale(x_type: str, y_type: str, target: str, tmp_path: Path) -> None:
    g = Quantised(3)
    x = g.source(3, 5, 17, dtype=x_type)
    model = g.finished(g.up(x, 0.0311, np.array(9, y_type)), dtype=y_type)
    assert operators(equal(model, tmp_path, target)) == ["Table"]


def test_parts_of_other_scales(target: str, tmp_path: Path) -> None:
    """Parts of a Concat go through tables where their scale differs, others as they are; in blocks of channels, too."""
    g = Quantised(3)
    parts = [g.source(2, 5, 9, 7), g.source(2, 3, 9, 7, scale=0.031), g.source(2, 4, 9, 7, zero=99, dtype="int8")]
    y = g.up(g.node("Concat", *parts, axis=1), SCALE, np.uint8(ZERO))
    compiled = equal(g.finished(y), tmp_path, target)
    assert operators(compiled) == ["Table", "Table", "Concat"]


@pytest.mark.parametrize("width", [2, 3, 7, 8])
def test_in_blocks_of_channels(width: int, target: str, tmp_path: Path) -> None:
    """Between convolutions nothing is copied into another layout, and the halo holds the zero point."""
    g = Quantised(3)
    c = g.node("Conv", g.source(2, 18, 9, width), g.weight(19, 18, 1, 2))
    x = g.down(g.up(c, 0.3, np.int8(-7)), 0.3, np.int8(-7))
    y = g.up(g.node("HardSwish", x), 0.21, np.uint8(13))
    d = g.node("Conv", g.down(y, 0.21, np.uint8(13)), g.weight(33, 19, 3, 2), pads=[1, 0, 2, 1])
    compiled = equal(g.finished(g.up(d, 1.7, np.uint8(100))), tmp_path, target)
    table = next(step for step in compiled.program.steps if step.choice.kernel.ops == "Table")
    assert table.choice.writes.block == 16
    assert table.choice.writes.fill == 13
    assert [ops for ops in operators(compiled) if ops != "Reorder"] == ["QLinearConv", "Table", "QLinearConv"]


@pytest.mark.parametrize("shape", [(), (1,), (31,), (3, 33), (65,), (2, 1, 5, 3, 7), (7, 129), (2, 64)])
def test_any_rank(shape: tuple[int, ...], target: str, tmp_path: Path) -> None:
    g = Quantised(3)
    model = g.finished(g.up(g.node("Tanh", g.source(*shape, dtype="int8")), 0.008, np.uint8(120)))
    equal(model, tmp_path, target)
    assert ops(model) == ["Table"]
