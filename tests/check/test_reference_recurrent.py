"""The reference's LSTM, GRU and RNN beside onnxruntime's: what ONNX's node cases leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import draw, one_node
from one_node import Array, session

from tvmcnn.check.reference import reference

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIMES, BATCH, DEPTH, HIDDEN = 5, 3, 6, 4


def operands(op: str, directions: int) -> list[Array | None]:
    """All that a layer reads but sequence_lens, which is None."""
    gates, rng = GATES[op], np.random.default_rng(directions)
    shapes: list[tuple[int, ...]] = [
        (TIMES, BATCH, DEPTH),
        (directions, gates * HIDDEN, DEPTH),
        (directions, gates * HIDDEN, HIDDEN),
        (directions, 2 * gates * HIDDEN),
        (),
        (directions, BATCH, HIDDEN),
        *([(directions, BATCH, HIDDEN), (directions, 3 * HIDDEN)] if op == "LSTM" else []),
    ]
    return [draw(rng, *shape) if shape else None for shape in shapes]


def agree(op: str, given: list[Array | None], **attributes: Any) -> None:
    """All outputs of both."""
    outputs = 3 if op == "LSTM" else 2
    model, feeds = one_node(op, 14, given, outputs=outputs, hidden_size=HIDDEN, **attributes)
    wanted = session(model).run(None, feeds)
    for ours, theirs in zip(reference(model, feeds).values(), wanted, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, (3, 0, 5)])
def test_directions_and_lengths(op: str, direction: str, lengths: tuple[int, ...] | None) -> None:
    given = operands(op, 2 if direction == "bidirectional" else 1)
    given[4] = None if lengths is None else np.array(lengths, np.int32)
    agree(op, given, direction=direction)


@pytest.mark.parametrize("op", GATES)
def test_clip(op: str) -> None:
    """It bounds what the gates' activations are given, not the cell that h is given."""
    agree(op, operands(op, 1), clip=0.3)


def test_coupled_gates() -> None:
    agree("LSTM", operands("LSTM", 1), input_forget=1)


def test_linear_before_reset() -> None:
    agree("GRU", operands("GRU", 2), direction="bidirectional", linear_before_reset=1)


@pytest.mark.parametrize("name", ["Relu", "Softsign", "Softplus", "LeakyRelu", "Elu", "HardSigmoid"])
def test_activations(name: str) -> None:
    agree("RNN", operands("RNN", 1), activations=[name])


def test_numbers_of_activations() -> None:
    """They go to the activations that have some, in their order."""
    names = ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "ScaledTanh", "Elu"]
    words = {"activation_alpha": [0.3, 0.7, 1.1, 0.9], "activation_beta": [0.4, 0.6]}
    agree("LSTM", operands("LSTM", 2), direction="bidirectional", activations=names, **words)
