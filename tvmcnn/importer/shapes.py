"""Shapes: inputs are bound, and the rest follows by inference."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import onnx

from tvmcnn.errors import ModelError
from tvmcnn.network import INDEX_LIMIT, Array, Asked, Shape, dims
from tvmcnn.onnx_file import one_line


def open_inputs(proto: onnx.ModelProto, weights: Collection[str] = ()) -> list[onnx.ValueInfoProto]:
    """The graph inputs that a user must feed: those that neither an initializer nor one of `weights` gives a value."""
    given = {*weights, *(tensor.name for tensor in proto.graph.initializer)}
    return [value for value in proto.graph.input if value.name not in given]


def bind_values(proto: onnx.ModelProto, label: str, values: Mapping[str, Array], weights: Collection[str]) -> None:
    """Turn inputs into initializers."""
    inputs = {value.name: value for value in open_inputs(proto, weights)}
    for name, array in values.items():
        if name not in inputs:
            raise ModelError(f"{label} has no input '{name}'; its inputs are {', '.join(inputs)}")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        proto.graph.input.remove(inputs[name])


def bind_inputs(
    proto: onnx.ModelProto,
    label: str,
    shapes: Mapping[str, Asked],
    batch: int | None,
    weights: Mapping[str, Array],
) -> tuple[list[str], dict[str, str]]:
    """Write a number into every dimension of the inputs and forget all shapes that were inferred from older ones.

    Returns notes of what was overridden, and the names of the leading dimensions that became 1, by input.
    """
    inputs = {value.name: value for value in open_inputs(proto, weights)}
    if batch is not None and batch < 1:
        raise ModelError(f"the batch is {batch}; it must be at least 1")
    if unknown := sorted(set(shapes) - set(inputs)):
        raise ModelError(f"{label} has no input '{unknown[0]}'; its inputs are {', '.join(inputs)}")
    notes, opened = list[str](), dict[str, str]()
    for name, value in inputs.items():
        dimensions = value.type.tensor_type.shape.dim
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            if name not in shapes:
                raise ModelError(f"input '{name}' of {label} has no shape: give it by --input-shape {name}:1x3x224x224")
            dimensions.extend(onnx.TensorShapeProto.Dimension() for _ in shapes[name])
        found = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dimensions]
        wanted = _bound_shape(
            label, name, found, [d.dim_param for d in dimensions], shapes.get(name), batch, notes, opened
        )
        del dimensions[:]
        if math.prod(wanted) > INDEX_LIMIT:
            raise ModelError(f"input '{name}' of {label} would be {dims(wanted)}, more than {INDEX_LIMIT:,} elements")
        for extent in wanted:
            dimensions.add().dim_value = extent
    for value in proto.graph.input:
        if value.name in weights:  # an old file may say anything of the shape of what it also initializes
            code = onnx.helper.np_dtype_to_tensor_dtype(weights[value.name].dtype)
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, code, weights[value.name].shape))
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return notes, opened


def bound_batch(name: str, symbol: str) -> str:
    """The note that an input's open leading dimension is bound."""
    return f"input '{name}': its open leading dimension '{symbol}' is bound to 1"


def _bound_shape(
    label: str,
    name: str,
    found: list[int | None],
    symbols: list[str],
    given: Asked | None,
    batch: int | None,
    notes: list[str],
    opened: dict[str, str],
) -> Shape:
    shown = "x".join(str(extent or symbol or "?") for extent, symbol in zip(found, symbols, strict=True))
    if given is not None:
        whole = [extent for place, extent in enumerate(given) if place or extent is not None]
        if len(given) != len(found) or any(not isinstance(n, int | np.integer) or n < 0 for n in whole):
            raise ModelError(f"input '{name}' of {label} is {shown}; the shape {dims(given)} does not fit it")
        if len(given) and batch is not None and given[0] not in (None, batch):
            raise ModelError(f"input '{name}' is given the shape {dims(given)} and the batch {batch}, which contradict")
        if any(extent not in (None, new) for extent, new in zip(found, given, strict=True)):
            notes.append(f"input '{name}': {shown} of the file overridden by {dims(given)}")
    wanted = list(found if given is None else given)
    if wanted and batch is not None:
        wanted[0] = batch
    elif wanted and wanted[0] is None:
        wanted[0], opened[name] = 1, symbols[0] or "?"
        notes.append(bound_batch(name, opened[name]))
    if None in wanted:
        shape = [None, *wanted[1:]] if name in opened else wanted
        hint = "x".join(str(n or ("N" if place == 0 else symbols[place] or "?")) for place, n in enumerate(shape))
        raise ModelError(
            f"input '{name}' of {label} is {shown}: give its open dimensions by --input-shape {name}:{hint}"
        )
    return tuple(int(extent) for extent in wanted if extent is not None)


def infer_shapes(proto: onnx.ModelProto, label: str, *, values: bool = True) -> onnx.ModelProto:
    """Shapes of every tensor, with `values` also those that small computed tensors give.

    Lenient, because operators/ checks each shape and tells more than the inferrer does.
    """
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=values)
    except Exception as error:
        raise ModelError(f"the shapes of {label} do not fit: {one_line(error)}") from error
