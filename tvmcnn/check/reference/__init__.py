"""The oracle: the original ONNX file, evaluated node by node in NumPy with float64 throughout.

It shares nothing with the importer or the compiler, so that a mistake there cannot hide here. The operators are in
`reference_ops`; here the model is read (`model`), its inputs are checked (`inputs`) and its nodes are walked (`walk`,
`order`, `operate`), into branches and loops (`control`) and functions that it defines itself (`inlined`).

Every float tensor is held as float64 and rounded to its ONNX type only on return, so that the oracle's own error is
that of one rounding. Integers and bools keep their type. Shapes come from the arrays, never from the file.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Collection, Mapping

import numpy as np
import onnx

from tvmcnn.check.reference.half_weights import check_names, in_half
from tvmcnn.check.reference.inlined import inlined_nodes, own_functions, unclear_names
from tvmcnn.check.reference.inputs import checked_inputs, declared_dtype
from tvmcnn.check.reference.model import Source, initializers, read, versions
from tvmcnn.check.reference.narrow import Narrow, multiplying
from tvmcnn.check.reference.walk import run
from tvmcnn.check.reference.words import Context, Follow, Held
from tvmcnn.check.reference_ops import Array
from tvmcnn.errors import ModelError, TvmcnnError

__all__ = ["multiplying_nodes", "reference"]


def reference(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    inputs: Mapping[str, Array] | Array,
    *,
    every_tensor: bool = False,
    external_data: str | os.PathLike[str] | None = None,
    follow: Follow | None = None,
    narrow: Narrow | None = None,
    half_weights: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """Evaluate an ONNX model: its outputs by name in graph order, each in the type that the model declares.

    `inputs` maps names to arrays; a lone array will do where the graph has one input. The arrays' shapes hold, whatever
    the file says of sizes; only the number of axes must agree. With `every_tensor` the result has each tensor of the
    graph by its ONNX name: the inputs, what every node makes and the outputs, but no other initializers; then what the
    nodes of the branches that an If took have made, and those of the model's own functions by the names that
    `onnx.inliner` gives them. Weights in other files are read from the model's folder, and from the folder
    `external_data` too, where the links of a model hub's cache lead.

    `follow` is shown each tensor that a node makes, by its name, floats in float64 and not yet rounded to their type;
    later nodes read what it answers. `narrow` has the nodes whose factors are rounded to bfloat16, see narrow.py.

    `half_weights` has tensors by name that are rounded to "float16" or "bfloat16", ties to even, before they are read:
    the weights of a library that stores them so.

    Raises TvmcnnError and nothing else: UnsupportedError with every node that cannot be evaluated, InputError for
    arrays that do not fit, ModelError for all the rest.
    """
    label = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    try:
        return _evaluate(read(model, external_data), inputs, every_tensor, follow, narrow or {}, half_weights or {})
    except TvmcnnError:
        raise
    except Exception as error:  # a file can be wrong in more ways than are foreseen
        raise ModelError(f"{label} cannot be evaluated: {type(error).__name__}: {error}") from error


def multiplying_nodes(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    made: Collection[str],
    *,
    external_data: str | os.PathLike[str] | None = None,
) -> dict[str, str]:
    """The nodes of a model that multiply, by their outputs, each with that of the tensors `made` which it leads to."""
    source = read(model, external_data)
    functions = own_functions(source.proto, source.label)
    twins = inlined_nodes(source.proto, functions.values(), source.label) if functions else ()
    return multiplying(twins or source.proto.graph.node, {name: name for name in made})


def _evaluate(
    source: Source,
    inputs: Mapping[str, Array] | Array,
    every_tensor: bool,
    follow: Follow | None,
    narrow: Narrow,
    half_weights: Mapping[str, str],
) -> dict[str, Array]:
    graph, label = source.proto.graph, source.label
    made: dict[str, Held | None] = {name: Held(array, array.dtype) for name, array in initializers(graph, source)}
    check_names(half_weights, {*made, *(name for node in graph.node for name in node.output)}, label)
    made |= {name: in_half(held, half_weights[name]) for name, held in made.items() if held and name in half_weights}
    constants = set(made)
    for name, given in checked_inputs(graph, inputs, label).items():
        made[name] = Held(given, declared_dtype(graph, name) or given.dtype)
        constants.discard(name)
    shown: dict[str, Held] = {}
    functions = own_functions(source.proto, label)
    twins = inlined_nodes(source.proto, functions.values(), label) if functions and (every_tensor or follow) else ()
    unclear = unclear_names(twins or graph.node, made)
    opsets = versions(source.proto, label)
    context = Context(
        source, opsets, functions, {}, shown, follow, twins, unclear, narrow=narrow, half_weights=half_weights
    )
    outputs = [output.name for output in graph.output]
    with np.errstate(all="ignore"):  # infinities and nans go through, as they do in the compiled network
        run(graph.node, ChainMap(made), context, outputs)

    missing = [name for name in outputs if made.get(name) is None]
    if missing:
        raise ModelError(f"{label} declares the outputs {missing}, which no node makes.")
    wanted = {name: made[name] for name in outputs}
    if every_tensor:
        wanted = {name: held for name, held in made.items() if name not in constants or name in wanted}
        wanted |= shown
    with np.errstate(over="ignore"):  # what its type has no room for is infinite
        return {name: np.array(held.array, held.dtype) for name, held in wanted.items() if held is not None}
