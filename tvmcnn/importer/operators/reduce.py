"""Operators that reduce along axes."""

from __future__ import annotations

from collections.abc import Sequence

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    DTYPES,
    FLOATS,
    NUMBERS,
    OPERATORS,
    Meaning,
    Value,
    axes_of,
    integers,
    operator,
    typed,
)
from tvmcnn.network import Shape

WIDE = (*FLOATS, "int32", "int64", "uint32", "uint64")  # the dtypes that ONNX sums


def _reduce(op: str, formula: str, allowed: Sequence[str]) -> None:
    def function(
        data: Value, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Meaning:
        typed(allowed, data)
        _check(keepdims)
        rank = len(data.shape)
        chosen = axes_of(integers("axes", axes), rank) if axes is not None else []
        if not chosen and not noop_with_empty_axes:
            chosen = list(range(rank))
        chosen.sort()
        shape = _reduced(data.shape, chosen, bool(keepdims))
        spatial = list(range(2, rank))
        if pool := _POOLS.get(op) if keepdims and rank > 2 and chosen == spatial and data.dtype in FLOATS else None:
            return Meaning(pool, (data,), shape)  # which has schedules of its own
        return Meaning(op, (data,), shape, {"axes": tuple(chosen)})

    function.__doc__ = f"ONNX {op}: {formula} along constant axes, all by default."
    OPERATORS[op] = function


def _check(keepdims: int) -> None:
    if keepdims not in (0, 1):
        raise ModelError(f"keepdims is {keepdims}; allowed are 0 and 1")


_POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}


def _reduced(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    return tuple(extent for axis, extent in enumerate(shape) if axis not in axes)


for _op, _formula in (
    *(("ReduceSum", "Σ x"), ("ReduceMean", "the mean"), ("ReduceProd", "Π x"), ("ReduceSumSquare", "Σ x²")),
    *(("ReduceL1", "Σ |x|"), ("ReduceL2", "√(Σ x²)"), ("ReduceLogSum", "ln Σ x"), ("ReduceLogSumExp", "ln Σ e^x")),
):
    _reduce(_op, _formula, WIDE)
_reduce("ReduceMax", "the greatest", DTYPES)
_reduce("ReduceMin", "the least", DTYPES)


def _arg(op: str, data: Value, axis: int, keepdims: int, select_last_index: int) -> Meaning:
    typed(NUMBERS, data)
    _check(keepdims)
    (along,) = axes_of([axis], len(data.shape))
    shape = _reduced(data.shape, [along], bool(keepdims))
    return Meaning(op, (data,), shape, {"axes": (along,), "last": bool(select_last_index)}, "int64")


@operator
def arg_max(data: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Meaning:
    """ONNX ArgMax: the index of the greatest element along an axis, of equal ones the first, or the last."""
    return _arg("ArgMax", data, axis, keepdims, select_last_index)


@operator
def arg_min(data: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Meaning:
    """ONNX ArgMin: the index of the least element along an axis, of equal ones the first, or the last."""
    return _arg("ArgMin", data, axis, keepdims, select_last_index)
