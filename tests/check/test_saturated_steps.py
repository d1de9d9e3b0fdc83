"""Steps behind what saturates: float32 has ones where float64 has numbers just below, and ties are no chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model_of, node

import tvmcnn
from tvmcnn.check.jumps import of_stored
from tvmcnn.network import Node

Array = np.ndarray[Any, Any]

# What reads Tanh(12·x), of which most are ±1
STEPS = {
    "the first": ([node("ArgMax", "t", "y", axis=2)], {}),
    "the last": ([node("ArgMax", "t", "y", axis=1, select_last_index=1, keepdims=0)], {}),
    "the least": ([node("ArgMin", "t", "y", axis=-1)], {}),
    "in order": ([node("TopK", "t k", "v y", axis=2, largest=0)], {"k": np.array([5])}),
    "in a window": ([node("MaxPool", "t", "v y", kernel_shape=[2, 3], strides=[1, 2], pads=[1, 0, 0, 1])], {}),
    "a remainder": ([node("Mod", "t one", "y", fmod=1)], {"one": np.float32([1])}),
    "shrunk": ([node("Shrink", "t", "y", lambd=0.9999999, bias=0.5)], {}),
    "above": ([node("ThresholdedRelu", "t", "y", alpha=0.9999999)], {}),
    "rounded": ([node("Floor", "t", "y")], {}),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_right_library_is_written(name: str, tmp_path: Path) -> None:
    """The library's answer is that to the numbers that it has: none of it is excused."""
    nodes, constants = STEPS[name]
    weights = {"s": np.float32([12]), **constants}
    model = model_of([node("Mul", "x s", "m"), node("Tanh", "m", "t"), *nodes], {"x": (2, 3, 19, 17)}, "t y", weights)
    made = tvmcnn.compile(model, output=tmp_path / "net.so")
    assert made.verdict is not None and made.verdict.passed
    assert made.verdict.excused <= 4, "those of which Tanh itself is a rounding error beside a one"


def by_loops(name: str, x: Array) -> Any:
    """What a step answers to a row of numbers, told in another way."""
    places = range(len(x))
    return {
        "ArgMax": lambda last: max(places, key=lambda i: (x[i], i if last else -i)),
        "ArgMin": lambda last: min(places, key=lambda i: (x[i], -i if last else i)),
        "TopK": lambda largest: sorted(places, key=lambda i: (-x[i] if largest else x[i], i))[:3],
    }[name]


@pytest.mark.parametrize(("op", "flag"), [(op, flag) for op in ("ArgMax", "ArgMin", "TopK") for flag in (False, True)])
def test_of_equal_ones(op: str, flag: bool) -> None:
    x = np.float64([1, 1 - 1e-9, -1, 0.5, 1 + 1e-9, -1 - 1e-9, 0.5])  # in float32 1, 1, -1, 0.5, 1, -1, 0.5
    attributes = {"axes": (0,), "last": flag} if op != "TopK" else {"along": (0, 1), "largest": flag}
    found = of_stored(Node(op, "n", ("x",), "y", attributes), [x], ["float32"], (3,) if op == "TopK" else (1,))
    assert found is not None
    np.testing.assert_array_equal(found.reshape(-1), np.reshape(by_loops(op, x.astype(np.float32))(flag), -1))


def test_infinite() -> None:
    x = np.float64([1e39, -1e39, 3e38, np.nan])
    for negative, positive in ((True, False), (False, True), (True, True)):
        node_ = Node("IsInf", "n", ("x",), "y", {"negative": negative, "positive": positive})
        found = of_stored(node_, [x], ["float32"], x.shape)
        np.testing.assert_array_equal(found, [positive, negative, False, False])
