"""Layers that run over time."""

from __future__ import annotations

import numpy as np

from graphs.draft import Draft, Held
from graphs.growers import filled, grows

HIDDEN = (5, 16, 7, 17, 33, 1, 8, 24)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
BOUNDED = ("Tanh", "Sigmoid", "Softsign", "HardSigmoid")  # by which no state grows from step to step


@grows("LSTM", "GRU", "RNN", when=lambda held: held.rank == 3 and filled(held) and held.size <= 4000)
def layer(d: Draft, op: str, x: Held) -> None:
    """With some of the optional operands, each constant or an input, and some of the attributes."""
    hidden, depth, layout = d.choice(HIDDEN), x.shape[2], int(d.since(op) >= 14 and d.chance(1, 5))
    times, batch = x.shape[layout], x.shape[1 - layout]
    direction = d.choice(("forward", "bidirectional", "reverse"))
    directions, rows = 1 + (direction == "bidirectional"), GATES[op] * hidden
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)

    def given(shape: tuple[int, ...], terms: int) -> Held:
        held = d.weight(shape, x.dtype, terms)
        return d.input(held.value) if d.chance(1, 6) else held

    lengths = np.random.default_rng(d.integer(0, 99)).integers(0 if d.chance(1, 4) else 1, times + 1, batch, np.int32)
    operands = [
        x,
        given((directions, rows, depth), depth),
        given((directions, rows, hidden), hidden),
        given((directions, 2 * rows), 1) if d.chance(3, 4) else None,
        (d.input(lengths) if d.chance(1, 2) else d.constant(lengths)) if d.chance(1, 3) else None,
        given(state, 1) if d.chance(1, 3) else None,
    ]
    if op == "LSTM":
        operands += [given(state, 1) if d.chance(1, 3) else None]
        operands += [given((directions, 3 * hidden), 1) if d.chance(1, 5) else None]
    words: dict[str, object] = {"hidden_size": hidden}
    words |= {"direction": direction} if direction != "forward" else {}
    words |= {"layout": 1} if layout else {}
    words |= {"clip": 0.5} if d.chance(1, 6) else {}
    words |= {"linear_before_reset": 1} if op == "GRU" and d.chance(1, 2) else {}
    words |= {"input_forget": 1} if op == "LSTM" and d.chance(1, 6) else {}
    if d.chance(1, 4):
        words["activations"] = [d.choice(BOUNDED) for _ in range(directions * {"RNN": 1, "GRU": 2, "LSTM": 3}[op])]
    d.node(op, operands, outputs=d.integer(1, 3 if op == "LSTM" else 2), **words)
