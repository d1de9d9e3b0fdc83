"""One node, compiled, against the reference."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from builders import draw, model_of, node
from onnx import helper

import tvmcnn
from tvmcnn.check.reference import reference

Array = np.ndarray[Any, Any]
U = 2.0**-24
UNIT = {np.dtype(np.float32): U, np.dtype(np.float64): 2.0**-53}


def drawn(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Normal numbers, one in sixteen thirty times as large; integers of a few digits."""
    rng = np.random.default_rng([seed, *shape])
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if not dtype.startswith("float"):
        return rng.integers(0 if dtype.startswith("u") else -99, 99, shape).astype(dtype)
    return draw(rng, *shape, outliers=1 / 16, dtype=dtype)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def model(
    op: str, arrays: list[Array | None], outputs: int, opset: int, known: Collection[int] = (), **attributes: Any
) -> onnx.ModelProto:
    """One node, every operand an input of the graph, but those at the places `known`, which are constants of it."""
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
    made = [f"y{i}" for i in range(outputs)]
    given = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    results = dict.fromkeys(made, (None,))
    nodes = [node(op, names, made, **attributes)]
    weights = {f"x{place}": given.pop(f"x{place}") for place in known}
    proto = model_of(nodes, given, results, weights, opset=opset, name="one")
    inferred = onnx.shape_inference.infer_shapes(proto)
    for value, dtype in zip(inferred.graph.output, _dtypes(op, arrays, outputs), strict=True):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return inferred


def _dtypes(op: str, arrays: list[Array | None], outputs: int) -> list[Any]:
    first = arrays[0].dtype if arrays[0] is not None else np.float32
    if op in ("MaxPool", "TopK"):
        return [first, np.int64][:outputs]
    if op == "OneHot":
        return [arrays[2].dtype]  # type: ignore[union-attr]
    return [first, np.bool_] if op == "Dropout" else [first] * outputs


def agree(
    op: str,
    *arrays: Array | None,
    outputs: int = 1,
    opset: int = 20,
    terms: int = 0,
    known: Collection[int] = (),
    **attributes: Any,
) -> None:
    """The compiled node against the reference. A sum of `terms` products may be off by γ·Σ|a·b|, which the same node
    gives on absolute values.
    """
    proto = model(op, list(arrays), outputs, opset, known, **attributes)
    given = {f"x{i}": array for i, array in enumerate(arrays) if array is not None and i not in known}
    found = tvmcnn.backend.run_model(proto, list(given.values()))
    wanted = reference(proto, given)
    positive = {name: np.abs(array) if array.dtype.kind == "f" else array for name, array in given.items()}
    sizes = reference(proto, positive) if terms else {}
    for ours, (name, theirs) in zip(found, wanted.items(), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
        if not terms or theirs.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
            continue
        bound = (terms + 16) * UNIT[theirs.dtype] * np.abs(sizes[name].astype(np.float64)) + 1e-300
        assert np.all(np.abs(ours.astype(np.float64) - theirs) <= bound), name
