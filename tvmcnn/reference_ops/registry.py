"""The registry of the reference's operators, and the words their modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Op = Callable[..., Any]
F = TypeVar("F", bound=Op)
Ints = Sequence[int]

OPERATORS: dict[str, dict[int, Op]] = {}
"""ONNX operator name -> first opset with that meaning -> function."""

TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""ONNX's type numbers -> NumPy's names, for the types that NumPy has."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def op(name: str, since: int = 1) -> Callable[[F], F]:
    """Register a function as the meaning of ONNX operator `name` from opset `since` on."""

    def register(function: F) -> F:
        OPERATORS.setdefault(name, {})[since] = function
        return function

    return register


def lookup(name: str, opset: int) -> Op | None:
    """The function for an operator at an opset: the newest that is not newer than the opset."""
    versions = [since for since in OPERATORS.get(name, {}) if since <= opset]
    return OPERATORS[name][max(versions)] if versions else None
