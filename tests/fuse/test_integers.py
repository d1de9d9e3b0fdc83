"""What becomes a kernel on integers, what does not, and what is told of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantised import Quantised, equal, operators

from tvmcnn.fuse import exact_sums
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Network

SCALE = np.float32(0.0234)


def network(model: onnx.ModelProto) -> Network:
    return simplified(import_model(model))


def test_tensors_between_are_told() -> None:
    """Each that no kernel makes is listed with the reason."""
    g = Quantised()
    x = g.source(1, 3, 5, 7)
    c = g.node("Conv", x, g.weight(4, 3, 2, 2))
    r = g.node("Relu", c)
    y = g.up(r, 0.4, np.uint8(9))
    found = network(g.finished(y))
    (conv,) = found.nodes
    assert (conv.op, conv.output) == ("QLinearConv", y)
    assert (conv["zero"], conv["to"], conv["low"], conv["high"]) == (7, 9, 9, 255)
    assert found.folded[c] == found.folded[r] == f"between integers: computed with the kernel of {y}"
    assert found.folded[x] == "dequantised for kernels that read the integers"
    assert found.constants[conv.inputs[1]].dtype == np.int8
    assert set(found.tensors) == {"x0", y}


def test_weights_less_their_zero_points() -> None:
    """In 8 bits where they fit, else in 16."""
    for zero, dtype in ((128, np.int8), (90, np.int16)):
        g = Quantised()
        y = g.up(g.node("Conv", g.source(1, 3, 5, 7), g.weight(4, 3, 2, 2, dtype="uint8", zero=zero)), 0.4, np.uint8(9))
        found = network(g.finished(y))
        assert found.constants[found.nodes[0].inputs[1]].dtype == dtype


def test_a_tensor_that_others_read_stays() -> None:
    """The float32 values of a Conv that is an output, or has two readers, are wanted."""
    for extra in (True, False):
        g = Quantised()
        c = g.node("Conv", g.source(1, 3, 5, 7), g.weight(4, 3, 2, 2))
        names = [g.up(c, 0.4, np.uint8(9))]
        names.append(g.up(g.node("Sigmoid", c), 0.1, np.uint8(0)) if extra else c)
        model = g.finished(*names)
        model.graph.output[1].type.tensor_type.elem_type = 2 if extra else 1
        found = network(model)
        assert [node.op for node in found.nodes if node.op.endswith("Conv")] == ["Conv"]


# ---- data movers ----------------------------------------------------------------------------------------------------

MOVES: dict[str, Callable[[Quantised, str], str]] = {
    "MaxPool": lambda g, x: g.node("MaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1]),
    "Reshape": lambda g, x: g.node("Reshape", x, g.constant(np.array([5, -1]))),
    "Transpose": lambda g, x: g.node("Transpose", x, perm=[0, 2, 3, 1]),
    "Slice": lambda g, x: g.node("Slice", x, *(g.constant(np.array([v])) for v in (1, 8, 2, 2))),
    "Pad": lambda g, x: g.node("Pad", x, g.constant(np.array([0, 1, 2, 0, 0, 0, 1, 1]))),
    "Pad-edge": lambda g, x: g.node("Pad", x, g.constant(np.array([0, 1, 2, 0, 0, 0, 1, 1])), mode="edge"),
    "Concat": lambda g, x: g.node("Concat", x, g.source(2, 3, 9, 12), axis=1),
    "Resize": lambda g, x: g.node("Resize", x, "", g.constant(np.float32([1, 1, 2, 3])), mode="nearest"),
    "Resize-uneven": lambda g, x: g.node("Resize", x, "", "", g.constant(np.array([2, 5, 13, 7])), mode="nearest"),
    "DepthToSpace": lambda g, x: g.node("DepthToSpace", g.node("Concat", *[x] * 4, axis=1), blocksize=2),
    "Gather": lambda g, x: g.node("Gather", x, g.constant(np.array([3, 0, 3])), axis=2),
    "two": lambda g, x: g.node("Transpose", g.node("MaxPool", x, kernel_shape=[2, 2]), perm=[0, 2, 3, 1]),
    "none": lambda g, x: x,
}


@pytest.mark.parametrize("name", MOVES)
def test_bytes_move(name: str, target: str, tmp_path: Path) -> None:
    """Between equal scales no float is made; the border of a Pad is the zero point."""
    g = Quantised(3)
    y = g.up(MOVES[name](g, g.source(2, 5, 9, 12)), SCALE, np.uint8(7))
    compiled = equal(
        g.finished(g.up(g.node("Softmax", g.down(y, SCALE, np.uint8(7))), 0.004, np.uint8(0))), tmp_path, target
    )
    kernels = [ops for ops in operators(compiled) if "Quant" not in ops and "quant" not in ops]
    assert len(kernels) - kernels.count("Concat") <= 3
    assert [ops for ops in operators(compiled) if "Linear" in ops] == ["DequantizeLinear", "QuantizeLinear"]


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("scale", [0.0235, 0.0468])
def test_other_scales_are_tables(name: str, scale: float, tmp_path: Path) -> None:
    """Each operand's bytes become those of the result's scale, and move then; the border of a Pad is its zero point."""
    g = Quantised(3)
    y = g.up(MOVES[name](g, g.source(2, 5, 9, 12)), scale, np.uint8(9))
    kernels = operators(equal(g.finished(y), tmp_path))
    assert "Table" in kernels
    assert not [ops for ops in kernels if "Linear" in ops]


def test_scales_of_channels_are_computed(tmp_path: Path) -> None:
    g = Quantised(3)
    x = g.down(g.bytes(2, 5, 9, 12), g.scale(5), np.full(5, 7, np.uint8), axis=1)
    y = g.up(g.node("MaxPool", x, kernel_shape=[3, 2]), 0.0468, np.uint8(7))
    assert operators(equal(g.finished(y), tmp_path)) == ["DequantizeLinear", "MaxPool", "QuantizeLinear"]


# ---- what has no form -----------------------------------------------------------------------------------------------


def _float_weight(g: Quantised) -> str:
    return g.node("Conv", g.source(1, 3, 5, 7), g.draw(4, 3, 2, 2))


def _computed_weight(g: Quantised) -> str:
    return g.node("Conv", g.source(1, 3, 5, 7), g.down(g.bytes(4, 3, 2, 2), g.scale(4), np.zeros(4, np.uint8), axis=0))


def _scales_of_channels(g: Quantised) -> str:
    w = g.weight(4, 3, 2, 2, scale=g.scale(3), zero=np.zeros(3), axis=1)
    return g.node("Conv", g.source(1, 3, 5, 7), w)


def _scales_of_rows(g: Quantised) -> str:
    return g.node("MatMul", g.source(5, 7), g.weight(7, 4, scale=g.scale(7), zero=np.zeros(7), axis=0))


def _many_products(g: Quantised) -> str:
    w = g.down(g.array(np.full((70000, 3), -128, np.int8)), 0.0321, np.int8(0))
    return g.node("MatMul", g.source(2, 70000, zero=0), w)


def _scaled_gemm(g: Quantised) -> str:
    return g.node("Gemm", g.source(5, 7), g.weight(7, 4), alpha=0.5)


def _scaled_activations(g: Quantised) -> str:
    x = g.down(g.bytes(1, 3, 5, 7), g.scale(3), np.zeros(3, np.uint8), axis=1)
    return g.node("Conv", x, g.weight(4, 3, 2, 2))


NONE = {
    "float-weight": (_float_weight, "its operand '{}' is not quantised"),
    "computed-weight": (_computed_weight, "its operand '{}' is computed, and has more than one scale"),
    "channels": (_scales_of_channels, "the scales of its weight are not one an output channel"),
    "rows": (_scales_of_rows, "the scales of its weight are not one an output channel"),
    "many": (_many_products, "sums of 70000 products may leave int32"),
    "alpha": (_scaled_gemm, "its alpha and beta must be 1, and A not transposed"),
    "activations": (_scaled_activations, "its operand '{}' has more than one scale"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_computed_in_float32_is_told(name: str, tmp_path: Path) -> None:
    """With the reason; and the oracle says the same of it, or no byte of a large sum would be right."""
    build, reason = NONE[name]
    g = Quantised(5)
    product = build(g)
    model = g.finished(g.up(product, 3.0, np.uint8(100)))
    found = network(model)
    (told,) = (note for note in found.notes if "float32" in note)
    node = next(each for each in model.graph.node if each.op_type in ("Conv", "MatMul", "Gemm"))
    start = f"'{node.name}' ({node.op_type}) is computed in float32, though it is quantised: "
    assert told in {start + reason.format(operand) for operand in node.input}
    if name != "many":
        kernels = operators(equal(model, tmp_path))
        assert [ops for ops in kernels if "QLinear" in ops] == []
        assert len(kernels) <= 4  # its constants are float32 by then


@pytest.mark.parametrize("more", [0, 1])
def test_sums_up_to_the_last_bit(more: int) -> None:
    """65,793 products of 255 by 128 are the most that int32 holds."""
    g = Quantised()
    w = g.down(g.array(np.full((65793 + more, 1), -128, np.int8)), 0.0321, np.int8(0))
    found = network(g.finished(g.up(g.node("MatMul", g.source(2, 65793 + more, zero=0), w), 3.0, np.uint8(1))))
    assert ("QLinearMatMul" in [node.op for node in found.nodes]) is (more == 0)


@pytest.mark.parametrize("least", [0, 1 << 60])
def test_names_that_the_file_has(least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants and tensors of a form take none of them."""
    monkeypatch.setattr(exact_sums, "LEAST", least)
    g = Quantised(5)
    x, w = g.source(1, 3, 5, 7), g.weight(4, 3, 2, 2)
    c = g.node("Conv", x, w, g.bias(4, SCALE * np.float32(0.0321)))
    y = g.up(c, 0.4, np.uint8(9))
    z = g.up(g.node("Conv", g.down(y, 0.4, np.uint8(9)), g.weight(5, 4, 1, 1)), 3.0, np.uint8(1))
    model = g.finished(z)
    words = ("weight", "multiplier", "bias", "sum", "centred")
    names = dict(zip([tensor.name for tensor in model.graph.initializer], words, strict=False))
    renamed = {old: f"{y}.{word}" for old, word in names.items()}
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for each in model.graph.node:
        each.input[:] = [renamed.get(name, name) for name in each.input]
    equal(model, tmp_path)
