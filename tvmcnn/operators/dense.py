"""Matrix products."""

from __future__ import annotations

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.network import dims
from tvmcnn.operators.words import Meaning, Unsupported, Value, constant, derived, floats, operator


@operator
def gemm(
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (the attribute's ONNX name)
    transB: int = 0,  # noqa: N803
) -> Meaning:
    """ONNX Gemm with constant B and C: alpha folds into the weight, stored (K, N), and beta into the bias (N,)."""
    floats(a, b, c)
    weight = constant("B", b)
    if transA:
        raise Unsupported("attribute transA=1; only transA=0 is supported")
    if len(a.shape) != 2 or weight.ndim != 2:
        raise ModelError(f"A is {dims(a.shape)} and B is {dims(b.shape)}; both must be matrices")
    weight = (weight.T if transB else weight) * np.float32(alpha)
    if a.shape[1] != weight.shape[0]:
        raise ModelError(
            f"A is {dims(a.shape)} and B is {dims(weight.shape)} (K x N): {a.shape[1]} ≠ {weight.shape[0]}"
        )
    inputs: tuple[Value, ...] = (a, derived("weight", weight))
    if c is not None:
        bias = constant("C", c) * np.float32(beta)
        if bias.size != 1 and bias.shape not in ((weight.shape[1],), (1, weight.shape[1])):
            raise Unsupported(f"input C is {dims(c.shape)}; only a bias of {weight.shape[1]} values is supported")
        inputs += (derived("bias", np.broadcast_to(bias.reshape(-1), (weight.shape[1],))),)
    return Meaning("Gemm", inputs, (a.shape[0], weight.shape[1]))


@operator
def mat_mul(a: Value, b: Value) -> Meaning:
    """ONNX MatMul with a constant matrix: (..., K) by (K, N) --> (..., N)."""
    floats(a, b)
    if b.data is None or len(b.shape) != 2 or not a.shape:
        raise Unsupported(
            f"operands {dims(a.shape)} and {dims(b.shape)}; only a constant matrix at the right is supported"
        )
    if a.shape[-1] != b.shape[0]:
        raise ModelError(f"A is {dims(a.shape)} and B is {dims(b.shape)}: {a.shape[-1]} ≠ {b.shape[0]}")
    return Meaning("Gemm", (a, derived("weight", b.data)), (*a.shape[:-1], b.shape[1]))
