"""The registry of the reference's operators, and the words their modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx.helper

Array = npt.NDArray[Any]
Op = Callable[..., Any]
F = TypeVar("F", bound=Op)
Ints = Sequence[int]

OPERATORS: dict[str, dict[int, Op]] = {}
"""ONNX operator name -> first opset with that meaning -> function."""

FOREIGN: dict[str, dict[str, dict[int, Op]]] = {}
"""The same of other domains than ONNX's, by domain."""

TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""ONNX's type numbers -> NumPy's names, for the types that NumPy has."""

BFLOAT16: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(16)
"""The one type that NumPy lacks and the reference has, as ml_dtypes has it."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def known_dtype(number: int) -> np.dtype[Any] | None:
    """The type that ONNX's number means; None for text, 4-bit and 8-bit floats and the like."""
    return BFLOAT16 if number == 16 else np.dtype(TYPES[number]) if number in TYPES else None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is a float, bfloat16 too, for which NumPy says that it is none."""
    return dtype.kind == "f" or dtype == BFLOAT16


def op(name: str, since: int = 1, domain: str = "") -> Callable[[F], F]:
    """Register a function as the meaning of an operator, ONNX's unless a domain is named, from opset `since` on."""

    def register(function: F) -> F:
        _table(domain).setdefault(name, {})[since] = function
        return function

    return register


def lookup(name: str, opset: int, domain: str = "") -> Op | None:
    """The function for an operator at an opset: the newest that is not newer than the opset."""
    versions = _table(domain).get(name, {})
    known = [since for since in versions if since <= opset]
    return versions[max(known)] if known else None


def _table(domain: str) -> dict[str, dict[int, Op]]:
    return FOREIGN.setdefault(domain, {}) if domain else OPERATORS
