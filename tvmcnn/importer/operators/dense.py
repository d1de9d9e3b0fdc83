"""Matrix products."""

from __future__ import annotations

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import Meaning, Value, alike, derived, operator
from tvmcnn.network import Array, dims

NUMBERS = ("float32", "float64", "int32", "int64", "uint32", "uint64")


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
    """ONNX Gemm: alpha·A'·B' + beta·C, with A' (M, K), B' (K, N) and C broadcast to (M, N).

    Where B is constant and C is one value a column, alpha folds into the weight, stored (K, N), and beta into the bias
    (N,); such a Meaning has no attributes.
    """
    alike(NUMBERS, a, b, c)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ModelError(f"A is {dims(a.shape)} and B is {dims(b.shape)}; both must be matrices")
    (m, depth), (k, n) = a.shape[:: -1 if transA else 1], b.shape[:: -1 if transB else 1]
    if depth != k:
        raise ModelError(f"A' is {m}x{depth} and B' is {k}x{n}: {depth} ≠ {k}")
    if c is not None and not _broadcasts(c.shape, (m, n)):
        raise ModelError(f"C is {dims(c.shape)}, which does not broadcast to the product's {m}x{n}")
    bias = None if c is None else c.data
    per_column = c is None or (bias is not None and (bias.size == 1 or bias.shape in ((n,), (1, n))))
    if b.data is None or not per_column or transA or a.dtype != "float32" or depth == 0:
        attributes = {"alpha": alpha, "beta": beta, "transA": bool(transA), "transB": bool(transB)}
        return Meaning("Gemm", (a, b) if c is None else (a, b, c), (m, n), attributes)
    weight = b.data.T if transB else b.data
    weight = weight if alpha == 1.0 else weight * np.float32(alpha)
    return Meaning("Gemm", (a, derived("weight", weight), *_bias(bias, beta, n)), (m, n))


def _bias(bias: Array | None, beta: float, columns: int) -> tuple[Value, ...]:
    if bias is None:
        return ()
    return (derived("bias", np.broadcast_to(bias.reshape(-1) * np.float32(beta), (columns,))),)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """True if NumPy broadcasts `shape` to `target` without changing that."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


@operator
def mat_mul(a: Value, b: Value) -> Meaning:
    """ONNX MatMul: (..., M, K) by (..., K, N) --> (..., M, N), as numpy.matmul.

    The leading axes broadcast; a lone axis of A is a row, one of B a column. With a constant matrix B it is a Gemm.
    """
    alike(NUMBERS, a, b)
    text = f"A is {dims(a.shape)} and B is {dims(b.shape)}"
    if not a.shape or not b.shape:
        raise ModelError(f"{text}; neither may be a scalar")
    depth = b.shape[-2] if len(b.shape) > 1 else b.shape[0]
    if a.shape[-1] != depth:
        raise ModelError(f"{text}: {a.shape[-1]} ≠ {depth}")
    try:
        batch = tuple(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    except ValueError:
        raise ModelError(f"{text}: their leading axes do not broadcast") from None
    shape = (*batch, *a.shape[-2:-1], *(b.shape[-1:] if len(b.shape) > 1 else ()))
    if b.data is not None and len(b.shape) == 2 and a.dtype == "float32" and depth:
        return Meaning("Gemm", (a, derived("weight", b.data)), shape)
    return Meaning("MatMul", (a, b), shape)
