"""If, Loop and Scan, by the ONNX text; a subgraph is a function from tensors to tensors here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from tvmcnn.check.reference.words import Held
from tvmcnn.check.reference_ops import Array, Ints, known_dtype

Body = Callable[[Sequence[Held]], list[Held]]

LONGEST = 10_000  # turns of a Loop; one that never ends would hang the check


def truth(condition: Held | None) -> bool:
    """The one element of a condition; a condition that is left out holds."""
    return condition is None or bool(condition.array.reshape(()))


def loop(
    body: Body, graph: onnx.GraphProto, trip: Held | None, condition: Held | None, carried: Sequence[Held]
) -> list[Held]:
    """Loop: the body on (turn, condition, carried...) gives (condition, carried..., what is stacked...).

    It ends after `trip` turns, or before the turn whose condition does not hold.
    """
    turns = None if trip is None else int(trip.array.reshape(()))
    stacks: list[list[Held]] = [[] for _ in graph.output[1 + len(carried) :]]
    goes_on, turn, state = truth(condition), 0, list(carried)
    while goes_on and (turns is None or turn < turns):
        if turn == LONGEST:
            raise NotImplementedError(f"more than {LONGEST:,} turns")
        answer = body([_scalar(np.int64(turn)), _scalar(np.bool_(True)), *state])
        goes_on, state = truth(answer[0]), answer[1 : 1 + len(state)]
        for stack, part in zip(stacks, answer[1 + len(state) :], strict=True):
            stack.append(part)
        turn += 1
    outputs = graph.output[1 + len(carried) :]
    return [*state, *(_stacked(stack, output, 0, 0) for stack, output in zip(stacks, outputs, strict=True))]


def scan(
    body: Body,
    graph: onnx.GraphProto,
    given: Sequence[Held],
    *,
    num_scan_inputs: int,
    scan_input_axes: Ints = (),
    scan_input_directions: Ints = (),
    scan_output_axes: Ints = (),
    scan_output_directions: Ints = (),
) -> list[Held]:
    """Scan: the body on (state..., one slice of each scanned input) gives (state..., one slice of each stack)."""
    state, scanned = list(given[:-num_scan_inputs]), given[-num_scan_inputs:]
    axes, backwards = scan_input_axes or [0] * len(scanned), scan_input_directions or [0] * len(scanned)
    slices = [
        np.flip(np.moveaxis(held.array, axis, 0), 0) if back else np.moveaxis(held.array, axis, 0)
        for held, axis, back in zip(scanned, axes, backwards, strict=True)
    ]
    if len({len(array) for array in slices}) != 1:
        raise ValueError(f"scanned inputs of the lengths {[len(array) for array in slices]}")
    outputs = graph.output[len(state) :]
    stacks: list[list[Held]] = [[] for _ in outputs]
    for parts in zip(*slices, strict=True):
        taken = [Held(np.asarray(part), held.dtype) for part, held in zip(parts, scanned, strict=True)]
        answer = body([*state, *taken])
        for stack, part in zip(stacks, answer[len(state) :], strict=True):
            stack.append(part)
        state = answer[: len(state)]
    axes, backwards = scan_output_axes or [0] * len(stacks), scan_output_directions or [0] * len(stacks)
    return [*state, *map(_stacked, stacks, outputs, axes, backwards)]


def _scalar(value: np.generic) -> Held:
    return Held(np.asarray(value), value.dtype)


def _stacked(parts: list[Held], output: onnx.ValueInfoProto, axis: int, backwards: int) -> Held:
    """The parts along a new axis; of no parts what the body's output declares."""
    if parts:
        arrays: list[Array] = [part.array for part in parts]
        return Held(np.stack(arrays[::-1] if backwards else arrays, axis), parts[0].dtype)
    tensor = output.type.tensor_type
    dtype = known_dtype(tensor.elem_type)
    if dtype is None:
        raise ValueError(f"no turn is taken, and {output.name!r} declares no type")
    return Held(np.zeros((0, *(dim.dim_value for dim in tensor.shape.dim)), dtype), dtype)
