"""Tables of 256 integers, one for each byte: all that a chain of operators of one quantised operand makes of it."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Node, Tensor


def table(node: Node, output: Tensor, x: te.Tensor, entries: te.Tensor) -> te.Tensor:
    """y = entries[x], an int8 by its bits, as an unsigned number."""

    def element(*i: Any) -> Expr:
        return entries[tirx.reinterpret("uint8", x[i]).astype("int32")]

    return te.compute(output.shape, element, name="out", attrs={"run": min(2, len(output.shape)), "lookups": 1})
