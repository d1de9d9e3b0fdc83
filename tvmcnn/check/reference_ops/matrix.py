"""Matrix products."""

from __future__ import annotations

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, op


@op("Gemm", 7)
def gemm(
    a: Array, b: Array, c: Array | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Array:  # fmt: skip
    """Gemm: y = alpha * A' @ B' + beta * C with A' (M, K), B' (K, N) after transposition, C broadcast to (M, N)."""
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return np.asarray(y if c is None else y + beta * np.broadcast_to(c, y.shape))


@op("Gemm", 1)
def gemm_1(
    a: Array, b: Array, c: Array, *, alpha: float = 1.0, beta: float = 1.0, broadcast: int = 0, transA: int = 0,
    transB: int = 0,
) -> Array:  # fmt: skip
    """Gemm of opset 1 and 6: C has the shape of the product unless `broadcast` is set."""
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    if not broadcast and c.shape != y.shape:
        raise ValueError(f"C of shape {c.shape} for a product of shape {y.shape} without broadcast")
    return y


@op("MatMul")
def matmul(a: Array, b: Array) -> Array:
    """MatMul: a (..., M, K) @ b (..., K, N) -> (..., M, N), as numpy.matmul."""
    return np.asarray(np.matmul(a, b))
