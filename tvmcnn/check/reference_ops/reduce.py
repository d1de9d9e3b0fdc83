"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


def _reduction(name: str, inputs_since: int, combine: Callable[..., Any]) -> None:
    """An operator whose axes are an attribute, from opset `inputs_since` on an input; without any it takes them all."""

    def by_attribute(data: Array, *, axes: Ints | None = None, keepdims: int = 1) -> Array:
        chosen = tuple(range(data.ndim)) if axes is None else tuple(axes)
        return np.asarray(combine(data, axis=chosen, keepdims=bool(keepdims))).astype(data.dtype)

    def by_input(data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        given = None if axes is None or not axes.size else [int(axis) for axis in axes]
        return by_attribute(data, axes=() if given is None and noop_with_empty_axes else given, keepdims=keepdims)

    by_attribute.__doc__ = by_input.__doc__ = f"{name}: of each group of elements that differ along `axes` only."
    op(name, 1)(by_attribute)
    op(name, inputs_since)(by_input)


def _log_sum_exp(x: Array, **where: Any) -> Any:
    top = np.max(x.astype(np.float64), initial=-np.inf, axis=where["axis"], keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(x - top), **where))
    return total + top.reshape(np.shape(total))


def _least(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else False if dtype.kind == "b" else np.iinfo(dtype).min


def _greatest(dtype: np.dtype[Any]) -> Any:
    return np.inf if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).max


_reduction("ReduceSum", 13, np.sum)
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": np.mean,
    "ReduceProd": np.prod,
    "ReduceMax": lambda x, **where: np.max(x, initial=_least(x.dtype), **where),
    "ReduceMin": lambda x, **where: np.min(x, initial=_greatest(x.dtype), **where),
    "ReduceL1": lambda x, **where: np.sum(np.abs(x), **where),
    "ReduceL2": lambda x, **where: np.sqrt(np.sum(x * x, **where)),
    "ReduceSumSquare": lambda x, **where: np.sum(x * x, **where),
    "ReduceLogSum": lambda x, **where: np.log(np.sum(x, **where)),
    "ReduceLogSumExp": _log_sum_exp,
}
for _name, _combine in REDUCTIONS.items():
    _reduction(_name, 18, _combine)


def _arg(pick: Callable[..., Any], data: Array, axis: int, keepdims: int, last: int) -> Array:
    found = pick(np.flip(data, axis) if last else data, axis=axis)
    found = data.shape[axis] - 1 - found if last else found
    return np.asarray(np.expand_dims(found, axis) if keepdims else found, np.int64)


@op("ArgMax")
def arg_max(data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """ArgMax: the place of the greatest element along `axis`, of equal ones the first, or the last."""
    return _arg(np.argmax, data, axis, keepdims, select_last_index)


@op("ArgMin")
def arg_min(data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """ArgMin: the place of the least element along `axis`, of equal ones the first, or the last."""
    return _arg(np.argmin, data, axis, keepdims, select_last_index)
