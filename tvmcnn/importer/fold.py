"""Folding: what is constant is computed, by onnxscript and within limits; BatchNorm and Pad go into Conv."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx.reference.ops
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from tvmcnn.errors import ModelError
from tvmcnn.importer.budget import FOLD_LIMIT, Budget
from tvmcnn.network import Array
from tvmcnn.onnx_file import one_line
from tvmcnn.onnx_file.large_weights import LARGE

# Operators of several outputs that are computed where they are constant
SEVERAL = ("BatchNormalization", "Split", "TopK", "Unique")

CONTROL = ("If", "Loop", "Scan")  # operators that have graphs

_CONSTANT = "constant: computed at compile time"
_IDENTITY = "an identity: the same values as its input"
_REWRITES = (rules.fuse_pad_into_conv_rule, rules.dropout_zero_rule, rules.dropout_inference_rule)
_BATCHNORMS = (rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_gemm_rule)


def fold(
    proto: onnx.ModelProto, label: str, original: Mapping[str, str], weights: Mapping[str, Array], *, scales: bool
) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, str]]:
    """Fold what is constant, then BatchNorm and Pad into Conv, then fold again; say where each lost tensor went.

    `original` maps the tensors of the user's file to the operators that make them; only those can be lost. The large
    `weights` are initializers here, and inputs again behind it. Without `scales` no weight is multiplied by another
    constant: it is to be rounded as ONNX has it.
    """
    with _quiet():
        return _folded(proto, label, original, weights, scales)


def _folded(
    proto: onnx.ModelProto, label: str, original: Mapping[str, str], weights: Mapping[str, Array], scales: bool
) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, str]]:
    try:
        model = ir.serde.deserialize_model(proto)
        _put_back(model.graph, weights)
    except Exception as error:
        raise ModelError(f"{label} cannot be read: {one_line(error.__cause__ or error)}") from error
    folded: dict[str, str] = {}

    def run(step: Callable[[], object], reason: str) -> None:
        try:
            step()
            passes.RemoveUnusedNodesPass()(model)
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(f"{label} cannot be simplified ({reason}): {one_line(error)}") from error
        left = {value.name for node in model.graph for value in node.outputs}
        for name in original.keys() - left - folded.keys():
            folded[name] = _IDENTITY if original[name] in ("Dropout", "Identity") else reason

    def constants() -> None:
        again = True
        while again:
            optimizer.fold_constants_ir(
                model,
                onnx_shape_inference=True,
                input_size_limit=FOLD_LIMIT // 4,
                output_size_limit=FOLD_LIMIT // 4,
                should_fold=budget.allows,
            )
            again = _fold_several(model, budget)

    outputs, budget = [value.name for value in model.graph.outputs], Budget(label)
    # The rules multiply weights in their own type: in float16 that costs 3e-4. fuse/fold_affine.py does so in float64.
    halves = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    rewrites = [*_REWRITES, *(_BATCHNORMS if scales and not halves else ())]
    run(constants, _CONSTANT)
    for _ in range(2):  # a Conv that a Pad has just gone into is a new node: its BatchNorm goes in the second time
        run(lambda: rewriter.rewrite(model, rewrites), "folded into the weights of the node beside it")
    run(constants, _CONSTANT)
    # In a branch the pass would make an output of what is outside.
    if not any(node.op_type in CONTROL for node in model.graph):
        run(lambda: passes.IdentityEliminationPass()(model), _IDENTITY)
    run(lambda: passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model), _CONSTANT)
    _name_outputs(model.graph, outputs)
    made = {value.name for node in model.graph for value in node.outputs}
    lost = {name: folded[name] for name in original if name in folded and name not in made}
    large = _take_out(model.graph)
    try:
        return ir.serde.serialize_model(model), large, lost
    except Exception as error:
        while error.__cause__ is not None:  # which says more than where it was
            error = error.__cause__  # type: ignore[assignment]
        raise ModelError(f"{label} is damaged: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the user's terminal what others log of nodes that they leave as they are."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fold_several(model: ir.Model, budget: Budget) -> bool:
    """Compute nodes of several outputs, which the optimizer never does; says whether there were any.

    a, b = Split(constant)  -->  constants a and b
    """
    found = False
    for node in list(model.graph):
        operands = [value for value in node.inputs if value is not None]
        if node.domain or node.op_type not in SEVERAL or any(value.const_value is None for value in operands):
            continue
        if budget.allows(node) is False:
            continue
        arrays = [None if value is None else value.const_value.numpy() for value in node.inputs]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        try:
            operator = onnx.reference.ops.load_op("", node.op_type, model.opset_imports[""])
            results = operator.eval(*arrays, n_outputs=len(node.outputs), **attributes)
        except Exception:  # operands that contradict each other: the importer says how
            continue
        for value, result in zip(list(node.outputs), results, strict=False):
            tensor = ir.Tensor(np.asarray(result), name=value.name)
            constant = ir.Value(
                name=value.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            if value.uses():
                model.graph.register_initializer(constant)
            ir.convenience.replace_all_uses_with(value, constant)
        model.graph.remove(node, safe=True)
        found = True
    return found


def _put_back(graph: ir.Graph, weights: Mapping[str, Array]) -> None:
    """Make initializers of the inputs that stand for large weights."""
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = ir.Tensor(weights[value.name], name=value.name)
        graph.register_initializer(value)


def _take_out(graph: ir.Graph) -> dict[str, Array]:
    """The large initializers, as inputs from now on."""
    taken = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes >= LARGE:
            taken[name] = value.const_value.numpy()
            value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    return taken


def _name_outputs(graph: ir.Graph, names: list[str]) -> None:
    """Give the outputs their names back. One that has become another output's value, or an input, is a copy of it."""
    taken = {*graph.inputs}
    for place, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value in taken and value.name != name:
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            graph.append(copy)
            graph.outputs[place] = value = copy.outputs[0]
        taken.add(value)
        value.name = name
