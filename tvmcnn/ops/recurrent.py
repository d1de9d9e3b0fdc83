"""ONNX LSTM, GRU and RNN: one step as tensor expressions. codegen/over_time.py puts the loop over time around it.

A step reads the state that the one before left, h and c, and makes the next:

    sum[g, j]  = Σ_k h[k] · R[k, g, j]                      for each gate g
    next_h[j]  = f(gates[time, g, j] + sum[g, j], …)        and next_c
    y[time, j] = next_h[j]

where `gates` is the product of the input with W for all times. In tiles of rows of the batch by columns of the hidden
state, each tile with its columns of all gates: what a step makes of them stays in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.configs import RecurrentConfig
from tvmcnn.network import Node, Shape, Step
from tvmcnn.ops.formulas import FORMULAS, of
from tvmcnn.ops.functions import tanh
from tvmcnn.ops.operands import Let, Operands, literal
from tvmcnn.ops.tiles import Tiled, Tiles, stored

TIMES, OUTPUTS, STATES = "tvmcnn.times", "tvmcnn.outputs", "tvmcnn.states"  # attributes of a step's function
H, C = 0, 1  # the states
STATE_AXES, PACKED_AXES = 4, 5
Indices = Sequence[Any]  # direction, tile of rows, tile of columns, row and column in them
Activation = Callable[[Expr], Expr]

# Those that are no operators, or not as one: ONNX's page of LSTM has ≥ where that of ThresholdedRelu has >
ACTIVATIONS: dict[str, Callable[..., Expr]] = {
    "Affine": lambda x, alpha, beta: of(x, alpha) * x + of(x, beta),
    "ScaledTanh": lambda x, alpha, beta: of(x, alpha) * tanh(of(x, beta) * x),
    "ThresholdedRelu": lambda x, alpha: tirx.Select(x >= of(x, alpha), x, of(x, 0)),
}


@dataclass(frozen=True)
class Recurrence:
    """One step: the variable that counts the steps, how many there are, and what a step stores.

    Of the states "next_h" and "next_c" become the next step's "start_h" and "start_c", stages that the first step
    begins with; the others are parts of the kernel's output, in this order.
    """

    time: tirx.Var
    times: int
    outputs: tuple[Tiled, ...]
    states: tuple[Tiled, ...]

    def function(self, parameters: Sequence[te.Tensor]) -> tirx.PrimFunc:
        """The PrimFunc of a step: the number of the step, what it reads, and what it stores, as that lies in memory."""
        made = (*self.outputs, *self.states)
        func = te.create_prim_func([self.time, *parameters, *(each.tensor for each in made)])
        counts = {TIMES: self.times, OUTPUTS: len(self.outputs), STATES: len(self.states)}
        return stored(func, *made).with_attrs(counts)


@dataclass(frozen=True)
class _Layer:
    """The operands of a node by their roles, and its tiles."""

    node: Node
    operands: dict[str, te.Tensor]
    batch: int
    directions: int
    hidden: int
    rows: Tiles
    columns: Tiles
    time: tirx.Var

    @property
    def shape(self) -> Shape:
        """The extents of the indices."""
        return (self.directions, self.rows.count, self.columns.count, self.rows.tile, self.columns.tile)

    @property
    def dtype(self) -> str:
        """That of all floats."""
        return str(self.operands["gates"].dtype)

    def row(self, at: Indices) -> Any:
        """The row of the batch."""
        return self.rows.element(at[1], at[3])

    def column(self, at: Indices) -> Any:
        """The column of the hidden state."""
        return self.columns.element(at[2], at[4])

    def now(self, direction: Any) -> Expr:
        """The time of this step: the reverse direction begins with the last."""
        last = self.node["times"] - 1
        if self.node["direction"] == "bidirectional":
            return tirx.Select(direction == 0, self.time, last - self.time)
        return last - self.time if self.node["direction"] == "reverse" else self.time

    def lasts(self, at: Indices, value: Expr, otherwise: Expr) -> Expr:
        """`value` while the sequence lasts."""
        lengths = self.operands.get("sequence_lens")
        return value if lengths is None else tirx.Select(self.now(at[0]) < lengths[self.row(at)], value, otherwise)

    def activation(self, place: int, x: Expr, direction: Any, *, clipped: bool = True) -> Expr:
        """The activation at a place of ONNX's list, which may be another for each direction."""
        let = Let()
        value, limit = let(x), self.node["clip"]
        if limit is not None and clipped:
            value = let(FORMULAS["Clip"](value, min=-limit, max=limit))
        found = [each[place] for each in self.node["activations"]]
        results = [{**FORMULAS, **ACTIVATIONS}[name](value, *numbers) for name, numbers in dict.fromkeys(found)]
        return let.within(results[0] if len(results) == 1 else tirx.Select(direction == 0, *results))


def recurrent(step: Step, given: Operands) -> Recurrence:
    """A step of ONNX LSTM, GRU or RNN from gates (T, B, D·G·H) and R as (D, H, G·H), or packed (D, H/w, H, G, w)."""
    choice = step.choice
    node, config = choice.kernel.anchor, choice.numbers(RecurrentConfig)
    _, directions, batch, hidden = choice.kernel.output.shape
    names = ("gates", "recurrent_weight", *node["arriving"])
    operands = {role: given.tensor(name) for role, name in zip(names, node.inputs, strict=True)}
    rows, columns = Tiles(batch, config.rows), Tiles(hidden, config.width)
    layer = _Layer(node, operands, batch, directions, hidden, rows, columns, te.var("t", "int32"))
    states = [_start(layer, name) for name in ("start_h", "start_c")[: 2 if node.op == "LSTM" else 1]]
    out = STEPS[node.op](layer, *states)
    return Recurrence(layer.time, node["times"], tuple(_outputs(layer, out)), tuple(_next(layer, out)))


def _start(layer: _Layer, name: str) -> te.Tensor:
    """The state before the first step, by tiles of rows: (D, B/r, r, H)."""
    initial = layer.operands.get(name.replace("start", "initial"))
    shape = (layer.directions, layer.rows.count, layer.rows.tile, layer.hidden)

    def element(d: Any, tb: Any, i: Any, j: Any) -> Expr:
        return literal(0, layer.dtype) if initial is None else initial[d, layer.rows.element(tb, i), j]

    return te.compute(shape, element, name=name)


def _outputs(layer: _Layer, out: te.Tensor) -> list[Tiled]:
    """What the node's outputs are of this step: the last step is the one that the states of all stay with."""
    lengths, zero = layer.operands.get("sequence_lens"), literal(0, layer.dtype)
    whole = (layer.directions, layer.batch, layer.hidden)

    def y(*at: Any) -> Expr:
        return layer.lasts(at, _at(out, at, H), zero)

    def last(state: int, name: str) -> te.Tensor:
        def element(*at: Any) -> Expr:
            value = _at(out, at, state)
            return value if lengths is None else tirx.Select(lengths[layer.row(at)] > 0, value, zero)

        return te.compute(layer.shape, element, name=name)

    found = []
    for name in layer.node["outputs"]:
        if name == "Y":
            shape = (layer.node["times"], *whole)
            place = lambda at: (layer.now(at[0]), at[0], layer.row(at), layer.column(at))  # noqa: E731
            found.append(Tiled(te.compute(layer.shape, y, name="y"), shape, place))
        else:
            tensor = last(H if name == "Y_h" else C, name.lower())
            found.append(Tiled(tensor, whole, lambda at: (at[0], layer.row(at), layer.column(at))))
    return found


def _next(layer: _Layer, out: te.Tensor) -> list[Tiled]:
    """The states as the next step reads them, like `_start`."""
    shape = (layer.directions, layer.rows.count, layer.rows.tile, layer.hidden)

    def copy(state: int) -> Tiled:
        tensor = te.compute(layer.shape, lambda *at: _at(out, at, state), name=("next_h", "next_c")[state])
        return Tiled(tensor, shape, lambda at: (at[0], at[1], at[3], layer.column(at)))

    return [copy(state) for state in range(int(out.shape[4]))]


# ---- the operators: "out", (D, B/r, H/w, r, s, w), has the states that a step makes, h and of an LSTM c too ----------


def _rnn(layer: _Layer, h: te.Tensor) -> te.Tensor:
    """h' = f(gate)"""
    sums = _sums(layer, "sum", h, (0,))

    def element(at: Indices) -> Expr:
        value = layer.activation(0, _gate(layer, at, 0) + _at(sums, at, 0), at[0])
        return layer.lasts(at, value, _before(layer, h, at))

    return _out(layer, element)


def _gru(layer: _Layer, h: te.Tensor) -> te.Tensor:
    """h' = (1 − z) · n + z · h, n = g(gate n + R·(r · h)), or g(gate n + r · (R·h + b)) with linear_before_reset."""
    sums = _sums(layer, "sum", h, (0, 1, 2) if layer.node["linear_before_reset"] else (0,))

    def reset_gate(of_h: te.Tensor, place: int, at: Indices) -> Expr:
        return layer.activation(0, _gate(layer, at, 1) + _at(of_h, at, place), at[0])

    if layer.node["linear_before_reset"]:

        def inner(at: Indices) -> Expr:
            product = _biased(layer, _at(sums, at, 2), at, 2, (1,))
            return _gate(layer, at, 2, (0,)) + reset_gate(sums, 1, at) * product

    else:
        reset_sums = _sums(layer, "reset_sum", h, (1,))
        reset = te.compute(layer.shape, lambda *at: reset_gate(reset_sums, 0, at) * _before(layer, h, at), name="reset")
        candidate = _sums(layer, "candidate", reset, (2,))

        def inner(at: Indices) -> Expr:
            return _gate(layer, at, 2) + _at(candidate, at, 0)

    def element(at: Indices) -> Expr:
        let, before = Let(), _before(layer, h, at)
        z = let(layer.activation(0, _gate(layer, at, 0) + _at(sums, at, 0), at[0]))
        new = layer.activation(1, inner(at), at[0])
        return layer.lasts(at, let.within((literal(1, layer.dtype) - z) * new + z * before), before)

    return _out(layer, element)


def _lstm(layer: _Layer, h: te.Tensor, c: te.Tensor) -> te.Tensor:
    """c' = f · c + i · g(gate c), h' = o · h(c'); gates in the order i, o, f, c, peepholes in the order i, o, f."""
    sums, peepholes = _sums(layer, "sum", h, (0, 1, 2, 3)), layer.operands.get("p")

    def gate(at: Indices, place: int, seen: Expr) -> Expr:
        value = _gate(layer, at, place) + _at(sums, at, place)
        if peepholes is not None:
            value = value + peepholes[at[0], place * layer.hidden + layer.column(at)] * seen
        return layer.activation(0, value, at[0])

    def cell(*at: Any) -> Expr:
        before, i = _before(layer, c, at), gate(at, 0, _before(layer, c, at))
        new = layer.activation(1, _gate(layer, at, 3) + _at(sums, at, 3), at[0])
        if layer.node["input_forget"]:
            # f is 1 − i. Written with i once: of a name that stands twice here TVM 0.27 may lose sight.
            return layer.lasts(at, before + i * (new - before), before)
        return layer.lasts(at, gate(at, 2, before) * before + i * new, before)

    cells = te.compute(layer.shape, cell, name="cell")

    def element(at: Indices) -> Expr:
        value = gate(at, 1, cells[at]) * layer.activation(2, cells[at], at[0], clipped=False)
        return layer.lasts(at, value, _before(layer, h, at))

    return _out(layer, element, lambda at: cells[at])


STEPS: dict[str, Callable[..., te.Tensor]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


# ---- their parts ----------------------------------------------------------------------------------------------------


def _out(layer: _Layer, *states: Callable[[Indices], Expr]) -> te.Tensor:
    """The stage "out" of the state h, or of h and c."""
    d, tb, tj, i, j = layer.shape

    def element(d: Any, tb: Any, tj: Any, i: Any, s: Any, j: Any) -> Expr:
        h, *others = (state((d, tb, tj, i, j)) for state in states)
        return tirx.Select(s == H, h, others[0]) if others else h

    return te.compute((d, tb, tj, i, len(states), j), element, name="out")


def _sums(layer: _Layer, name: str, source: te.Tensor, gates: tuple[int, ...]) -> te.Tensor:
    """Σ_k source[k] · R[k, g, j] for neighbouring gates: (D, B/r, H/w, r, gates, w). The source is a state, (D, B/r, r,
    H), or lies by tiles.
    """
    weight, by_tiles = layer.operands["recurrent_weight"], len(source.shape) > STATE_AXES
    rk = te.reduce_axis((0, layer.hidden), "rk")

    def term(d: Any, tb: Any, tj: Any, i: Any, g: Any, j: Any) -> Expr:
        gate = g + gates[0]
        tk, k = layer.columns.place(rk)
        value = source[d, tb, tk, i, k] if by_tiles else source[d, tb, i, rk]
        if len(weight.shape) == PACKED_AXES:
            return te.sum(value * weight[d, tj, rk, gate, j], axis=[rk])
        return te.sum(value * weight[d, rk, gate * layer.hidden + layer.columns.element(tj, j)], axis=[rk])

    d, tb, tj, i, j = layer.shape
    return te.compute((d, tb, tj, i, len(gates), j), term, name=name)


def _at(sums: te.Tensor, at: Indices, place: int) -> Expr:
    """The sum of one gate, or one of the states."""
    return sums[(*at[:4], place, at[4])]


def _gate(layer: _Layer, at: Indices, gate: int, biases: tuple[int, ...] = (0, 1)) -> Expr:
    """What the input adds to a gate at this time, with those of its biases that the product with the input has not."""
    gates = layer.operands["gates"]
    count = int(gates.shape[2]) // layer.directions
    value = gates[layer.now(at[0]), layer.row(at), at[0] * count + gate * layer.hidden + layer.column(at)]
    return _biased(layer, value, at, gate, biases)


def _biased(layer: _Layer, value: Expr, at: Indices, gate: int, biases: tuple[int, ...]) -> Expr:
    """A value and some of a gate's biases, 0 that of W and 1 that of R."""
    b = layer.operands.get("b")
    if b is None:
        return value
    for each in biases:
        value = value + b[at[0], each * (int(b.shape[1]) // 2) + gate * layer.hidden + layer.column(at)]
    return value


def _before(layer: _Layer, state: te.Tensor, at: Indices) -> Expr:
    """The element of a state before the step."""
    return state[at[0], at[1], at[3], layer.column(at)]
