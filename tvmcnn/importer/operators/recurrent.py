"""LSTM, GRU and RNN: one product of the input with W for all times, then a node that runs over time.

    y, y_h = LSTM(x, w, r, b)
      -->
    gates = Gemm(x, w', b')        (T, B, D·4·H): all gates of both directions, without what the state adds to them
    states = LSTM(gates, r')       (T + 1, D, B, H): Y, and behind it the rows of Y_h and Y_c that are wanted
    y, y_h = Slice(states), Slice(states)

T is the number of times, B the batch, I the input's size, D the number of directions and H the hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import Meaning, Unsupported, Value, derived, floats, named, typed
from tvmcnn.importer.operators.move import part
from tvmcnn.importer.operators.shape import transpose, view
from tvmcnn.network import Shape, dims

Activation = tuple[str, tuple[float, ...]]  # its name and its numbers, alpha before beta

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
USUAL = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# The activations with their numbers, alpha before beta; None where ONNX has no default
ACTIVATIONS: dict[str, tuple[float | None, ...]] = {
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"), ()),
    **{"LeakyRelu": (0.01,), "ThresholdedRelu": (1.0,), "Elu": (1.0,), "HardSigmoid": (0.2, 0.5)},
    **{"Affine": (None, None), "ScaledTanh": (None, None)},
}
OUTPUTS = ("Y", "Y_h", "Y_c")


@dataclass(frozen=True)
class _Layer:
    """A node's operands, those that are left out None, and the attributes that all three operators have."""

    op: str
    x: Value
    w: Value
    r: Value
    b: Value | None
    sequence_lens: Value | None
    initial_h: Value | None
    initial_c: Value | None
    p: Value | None
    activations: Sequence[str] | None
    alphas: Sequence[float]
    betas: Sequence[float]
    clip: float | None
    direction: str
    hidden_size: int | None
    layout: int
    wanted: tuple[bool, ...]
    linear_before_reset: bool = False
    coupled: bool = False  # the input and the forget gate

    @property
    def extents(self) -> tuple[int, int, int, int, int]:
        """(T, B, I, D, H)"""
        times, batch = self.x.shape[:2] if self.layout == 0 else self.x.shape[1::-1]
        return times, batch, self.x.shape[2], DIRECTIONS[self.direction], self.r.shape[2]


@named("RNN")
def rnn(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    wanted_: tuple[bool, ...],
) -> tuple[Meaning, ...]:
    """ONNX RNN: h = f(W·x + R·h + b) over time."""
    operands = (x, w, r, b, sequence_lens, initial_h, None, None)
    numbers = (activations, activation_alpha, activation_beta, clip)
    return _meanings(_Layer("RNN", *operands, *numbers, direction, hidden_size, layout, wanted_))


@named("GRU")
def gru(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    wanted_: tuple[bool, ...],
) -> tuple[Meaning, ...]:
    """ONNX GRU: h = (1 − z) · g(W·x + R·(r · h)) + z · h over time, with an update gate z and a reset gate r."""
    operands = (x, w, r, b, sequence_lens, initial_h, None, None)
    numbers = (activations, activation_alpha, activation_beta, clip)
    words = (direction, hidden_size, layout, wanted_)
    return _meanings(_Layer("GRU", *operands, *numbers, *words, linear_before_reset=bool(linear_before_reset)))


@named("LSTM")
def lstm(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    initial_c: Value | None = None,
    p: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    wanted_: tuple[bool, ...],
) -> tuple[Meaning, ...]:
    """ONNX LSTM: c = f · c + i · g(W·x + R·h), h = o · tanh c over time, with gates i, o and f."""
    operands = (x, w, r, b, sequence_lens, initial_h, initial_c, p)
    numbers = (activations, activation_alpha, activation_beta, clip)
    words = (direction, hidden_size, layout, wanted_)
    return _meanings(_Layer("LSTM", *operands, *numbers, *words, coupled=bool(input_forget)))


def _meanings(layer: _Layer) -> tuple[Meaning, ...]:
    """One for each output of the operator, parts of what the node over time makes."""
    _check(layer)
    times, batch, _, directions, hidden = layer.extents
    kept = [name for name, wanted in zip(OUTPUTS, layer.wanted, strict=False) if wanted]
    if times == 0 and kept != ["Y"]:
        raise Unsupported("its sequences have no steps; at least one is needed for Y_h and Y_c")
    states = _states(layer, kept)
    value, first, found = made("states", states), 0, []
    for name in OUTPUTS[: 3 if layer.op == "LSTM" else 2]:
        rows = times if name == "Y" else 1
        sizes = (rows, directions, batch, hidden)
        whole = name == "Y" == "".join(kept)
        output = states if whole else part(value, (first, 0, 0, 0), sizes, (1,) * 4, sizes[name != "Y" :])
        if layer.layout:
            output = _turned(made(name, output), (2, 0, 1, 3) if name == "Y" else (1, 0, 2))
        found.append(output)
        first += rows if name in kept else 0
    return tuple(found)


def _states(layer: _Layer, kept: Sequence[str]) -> Meaning:
    """The node that runs over time: (rows, D, B, H), T rows for Y and one each for Y_h and Y_c, those of `kept`."""
    times, batch, _, directions, hidden = layer.extents
    folded = _bias(layer)
    operands = {
        "b": layer.b if folded is None else None,
        "initial_h": _state(layer, layer.initial_h),
        "initial_c": _state(layer, layer.initial_c),
        "p": layer.p,
        "sequence_lens": _lengths(layer),
    }
    arriving = {name: value for name, value in operands.items() if value is not None}
    attributes = {
        "activations": _activations(layer),
        "clip": layer.clip,
        "direction": layer.direction,
        "linear_before_reset": layer.linear_before_reset,
        "input_forget": layer.coupled,
        "times": times,
        "outputs": tuple(kept),
        "arriving": tuple(arriving),
    }
    recurrent = _transposed("recurrent_weight", layer.r, (0, 2, 1))
    rows = sum(times if name == "Y" else 1 for name in kept)
    inputs = (_gates(layer, folded), recurrent, *arriving.values())
    return Meaning(layer.op, inputs, (rows, directions, batch, hidden), attributes)


def _gates(layer: _Layer, bias: Value | None) -> Value:
    """What the input gives each gate at all times: (T, B, D·G·H)."""
    times, batch, depth, directions, hidden = layer.extents
    x = layer.x if layer.layout == 0 else made("x", _turned(layer.x, (1, 0, 2)))
    columns = directions * GATES[layer.op] * hidden
    if layer.w.data is not None:
        weight = derived("input_weight", layer.w.data.reshape(columns, depth).T, layer.w.dtype)
    else:
        flat = made("input_weight.flat", view(layer.w, (columns, depth)))
        weight = made("input_weight", _turned(flat, (1, 0)))
    product = "MatMul" if weight.data is None or x.dtype != "float32" or depth == 0 else "Gemm"
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return made("gates", Meaning(product, inputs, (times, batch, columns)))


def _bias(layer: _Layer) -> Value | None:
    """The sum of both biases of each gate, (D·G·H,), where the product with the input can add it.

    The bias that a reset gate scales, with linear_before_reset, stays behind that; a MatMul adds none.
    """
    fits = layer.w.data is not None and layer.x.dtype == "float32" and layer.x.shape[2] > 0
    if layer.b is None or layer.b.data is None or layer.linear_before_reset or not fits:
        return None
    *_, directions, hidden = layer.extents
    both = layer.b.data.reshape(directions, 2, GATES[layer.op] * hidden)
    return derived("bias", (both[:, 0] + both[:, 1]).reshape(-1))


def _state(layer: _Layer, initial: Value | None) -> Value | None:
    """An initial state as (D, B, H); None where it is all zeros."""
    if initial is None or (initial.data is not None and not initial.data.any()):
        return None
    return _transposed(initial.name, initial, (1, 0, 2)) if layer.layout else initial


def _lengths(layer: _Layer) -> Value | None:
    """The lengths of the sequences; None where each is known to have all the times."""
    lengths = layer.sequence_lens
    whole = lengths is not None and lengths.data is not None and bool((lengths.data >= layer.extents[0]).all())
    return None if whole else lengths


def _activations(layer: _Layer) -> tuple[tuple[Activation, ...], ...]:
    """The activations of each direction; each takes the next of the numbers that it has."""
    directions, usual = DIRECTIONS[layer.direction], USUAL[layer.op]
    names = list(layer.activations) if layer.activations else [*usual] * directions
    count = len(usual) * directions
    if layer.op == "RNN" and directions == 1 and names == ["Tanh", "Tanh"]:  # ONNX's default, whatever the direction
        names = ["Tanh"]
    if len(names) != count:
        raise ModelError(f"it has {len(names)} activations; {layer.op} needs {count} for direction {layer.direction}")
    numbers = {"activation_alpha": list(layer.alphas), "activation_beta": list(layer.betas)}
    given = {word: len(values) for word, values in numbers.items()}
    found: list[Activation] = []
    for name in names:
        if name not in ACTIVATIONS:
            raise Unsupported(f"its activation '{name}' is none of ONNX's, which are {', '.join(sorted(ACTIVATIONS))}")
        words = zip(numbers.items(), ACTIVATIONS[name], strict=False)
        taken = [(word, values.pop(0) if values else default) for (word, values), default in words]
        if missing := [word for word, value in taken if value is None]:
            raise ModelError(f"its activation {name} has no {missing[0]}, for which ONNX has no default")
        found.append((name, tuple(float(cast(float, value)) for _, value in taken)))
    if spare := next((word for word, values in numbers.items() if values), None):
        taken_of = given[spare] - len(numbers[spare])
        raise ModelError(f"{spare} has {given[spare]} numbers; its activations {', '.join(names)} take {taken_of}")
    return tuple(tuple(found[first : first + len(usual)]) for first in range(0, count, len(usual)))


def _check(layer: _Layer) -> None:
    """Raise ModelError or Unsupported for operands and attributes that do not fit together."""
    floats(layer.x, layer.w, layer.r, layer.b, layer.initial_h, layer.initial_c, layer.p)
    typed(("int32",), layer.sequence_lens)
    if layer.direction not in DIRECTIONS:
        raise ModelError(f"direction is '{layer.direction}'; allowed are {', '.join(DIRECTIONS)}")
    if layer.layout not in (0, 1):
        raise ModelError(f"layout is {layer.layout}; allowed are 0 and 1")
    if layer.clip is not None and not layer.clip >= 0:
        raise ModelError(f"clip is {layer.clip}; it must be at least 0")
    if len(layer.x.shape) != 3 or len(layer.r.shape) != 3:
        raise ModelError(f"X is {dims(layer.x.shape)} and R is {dims(layer.r.shape)}; both must have three axes")
    _, batch, depth, directions, hidden = layer.extents
    if layer.hidden_size not in (None, hidden):
        raise ModelError(f"hidden_size is {layer.hidden_size}, but R is {dims(layer.r.shape)}")
    gates, state = GATES[layer.op], (directions, batch, hidden) if layer.layout == 0 else (batch, directions, hidden)
    wanted: list[tuple[str, Value | None, Shape]] = [
        ("W", layer.w, (directions, gates * hidden, depth)),
        ("R", layer.r, (directions, gates * hidden, hidden)),
        ("B", layer.b, (directions, 2 * gates * hidden)),
        ("sequence_lens", layer.sequence_lens, (batch,)),
        ("initial_h", layer.initial_h, state),
        ("initial_c", layer.initial_c, state),
        ("P", layer.p, (directions, 3 * hidden)),
    ]
    for role, value, shape in wanted:
        if value is not None and value.shape != shape:
            raise ModelError(
                f"its {role} '{value.name}' is {dims(value.shape)}; for X {dims(layer.x.shape)}, a hidden size of"
                f" {hidden} and direction {layer.direction} it must be {dims(shape)}"
            )


def made(name: str, meaning: Meaning) -> Value:
    """An operand that a node of its own makes."""
    return Value(name, meaning.shape, meaning.dtype or meaning.inputs[0].dtype, maker=meaning)


def _transposed(name: str, value: Value, perm: Sequence[int]) -> Value:
    """The operand with its axes in another order: a constant is turned now."""
    if value.data is not None:
        return derived(name, np.transpose(value.data, perm), value.dtype)
    return made(name, _turned(value, perm))


def _turned(value: Value, perm: Sequence[int]) -> Meaning:
    return cast(Meaning, transpose(value, perm=perm))
