"""The registry: by operator the function that adds it to a draft behind a tensor, and which tensors it may follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx

from graphs.draft import Draft, Held

Grow = Callable[[Draft, str, Held], None]
When = Callable[[Held], bool]


@dataclass(frozen=True)
class Grower:
    """How an operator is added behind a tensor."""

    op: str
    grow: Grow
    when: When

    def fits(self, draft: Draft, held: Held) -> bool:
        """True if ONNX has the operator for this type, and the grower takes such a tensor."""
        return held.dtype in allowed(self.op, draft.opset) and self.when(held)


GROWERS: dict[str, Grower] = {}
NAMES = {"float": "float32", "double": "float64"}


def grows(*ops: str, when: When = lambda held: True) -> Callable[[Grow], Grow]:
    """Register a function that adds each of `ops`."""

    def register(function: Grow) -> Grow:
        for op in ops:
            assert op not in GROWERS, op
            GROWERS[op] = Grower(op, function, when)
        return function

    return register


@cache
def allowed(op: str, opset: int, position: int = 0) -> frozenset[str]:
    """The types that ONNX allows for an operand; none where the opset has no such operator."""
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return frozenset()
    if schema.deprecated:
        return frozenset()
    if not schema.inputs:
        return frozenset(NAMES.values()) | {"int32", "int64", "bool"}
    formal: Any = schema.inputs[min(position, len(schema.inputs) - 1)]
    types = (text.removeprefix("tensor(").removesuffix(")") for text in formal.types)
    return frozenset(NAMES.get(name, name) for name in types)


def finite(held: Held) -> bool:
    return held.finite


def filled(held: Held) -> bool:
    """True for a tensor that has elements, none of them infinite or NaN."""
    return held.finite and held.size > 0


def image(held: Held) -> bool:
    """True for what a window may slide over: N, C and one to three axes."""
    return 3 <= held.rank <= 5 and filled(held)
