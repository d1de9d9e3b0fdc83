"""Conversion: a model of any opset becomes one of OPSET or later, whose nodes mean what they meant."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx
from onnx import version_converter

from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer.operators.meaning import EXPORT
from tvmcnn.importer.shapes import open_inputs
from tvmcnn.onnx_file import one_line
from tvmcnn.onnx_file.repair import fresh, inner_graphs, node_lists, opset_of, tensor_names, title

OPSET = 21  # older models are converted to it; newer ones stay, for none of our operators has changed since


def remove_initializers_from_inputs(proto: onnx.ModelProto) -> None:
    """Before ir_version 4 every weight was also an input; then nothing would fold."""
    real = open_inputs(proto)
    del proto.graph.input[:]
    proto.graph.input.extend(real)
    proto.ir_version = max(proto.ir_version, 10)


def refuse_training(proto: onnx.ModelProto, label: str, weights: Container[str]) -> None:
    """Refuse BatchNormalization as in training, which folding would take for inference, and by element.

    That of a constant is none: weights are standardised by it, as in a ResNetV2, once.
    """
    opset = opset_of(proto.opset_import)
    constant = {tensor.name for tensor in proto.graph.initializer}
    constant |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    reasons = []
    for _, nodes in node_lists(proto):
        for node in nodes:
            if node.op_type != "BatchNormalization" or node.domain:
                continue
            flags = {attribute.name: attribute.i for attribute in node.attribute}
            statistics = [name for name in node.output[1:] if name] if opset < 14 else []
            once = all(name in constant or name in weights for name in node.input[:1])
            if flags.get("training_mode", 0) and not once:
                reasons.append(f"{title(node)}: its training_mode is 1, not 0 as for inference: {EXPORT}")
            elif statistics:
                reasons.append(f"{title(node)}: its output '{statistics[0]}' is there in training only: {EXPORT}")
            elif not flags.get("spatial", 1):
                reasons.append(f"{title(node)}: its spatial is 0; only one mean and variance a channel is supported")
    if reasons:
        raise UnsupportedError(label, reasons)


def convert_opset(proto: onnx.ModelProto, label: str) -> list[str]:
    """Raise the default domain to OPSET in place."""
    opset = opset_of(proto.opset_import)
    if not 7 <= opset <= onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise ModelError(f"{label} uses opset {opset or 'none'}; allowed are 7 to {newest}, the newest that onnx knows")
    if opset >= OPSET:
        return []
    if opset < 9:
        _refuse_batched_scan(proto, label)
    if opset < 13:
        _flatten_hardmax(proto)
    if not _is_older(proto, opset):
        next(entry for entry in proto.opset_import if entry.domain == "").version = OPSET
        return [f"opset {opset} converted to {OPSET}"]
    try:
        converted = version_converter.convert_version(proto, OPSET)
    except Exception as error:
        reason = one_line(error)
        raise ModelError(f"{label}: opset {opset} cannot be converted to {OPSET}: {reason}") from error
    proto.CopyFrom(converted)
    if opset < 11:
        _keep_upsampling(proto, label)
    return [f"opset {opset} converted to {OPSET}"]


def _is_older(proto: onnx.ModelProto, opset: int) -> bool:
    """Whether some node's operator has changed since the model's opset: the converter takes 20 ms for any model."""

    def version(op: str, at: int) -> int:
        return int(onnx.defs.get_schema(op, at, "").since_version) if onnx.defs.has(op, at, "") else 0

    ops = {node.op_type for _, nodes in node_lists(proto) for node in nodes if not node.domain}
    return any(version(op, opset) != version(op, OPSET) for op in ops)


def _refuse_batched_scan(proto: onnx.ModelProto, label: str) -> None:
    """Refuse the Scan of opset 8, which has an axis for the batch: the converter takes it out of the model's inputs."""
    scans = [node for _, nodes in node_lists(proto) for node in nodes if node.op_type == "Scan" and not node.domain]
    reason = "it is of opset 8, where Scan has a batch; supported is that of opset 9 and later"
    if scans:
        raise UnsupportedError(label, [f"{title(node)}: {reason}" for node in scans])


def _flatten_hardmax(proto: onnx.ModelProto) -> None:
    """Give each Hardmax before opset 13 a matrix, for it took all axes from `axis` on as one: the converter leaves that
    out.

    y = Hardmax(x, axis=1)    -->    y = Reshape(Hardmax(Flatten(x, axis=1), axis=1), Shape(x))
    """
    taken = tensor_names(proto)
    for _, nodes in node_lists(proto):
        made: list[onnx.NodeProto] = []
        for node in nodes:
            if node.op_type != "Hardmax" or node.domain:
                made.append(onnx.NodeProto.FromString(node.SerializeToString()))
                continue
            x, y = node.input[0], node.output[0]
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            rows, greatest, shape = (fresh(f"{y}.{word}", taken) for word in ("rows", "greatest", "shape"))
            made += [
                onnx.helper.make_node("Flatten", [x], [rows], axis=axis),
                onnx.helper.make_node("Hardmax", [rows], [greatest], node.name, axis=1),
                onnx.helper.make_node("Shape", [x], [shape]),
                onnx.helper.make_node("Reshape", [greatest, shape], [y]),
            ]
        del nodes[:]
        nodes.extend(made)


def _keep_upsampling(proto: onnx.ModelProto, label: str) -> None:
    """Say in each Resize that it was an Upsample, or a Resize of opset 10: the converter leaves that out.

    Upsample(x, scales)    -->  Resize(x, , scales, coordinate_transformation_mode=asymmetric, nearest_mode=floor)

    Scales below 1 took the next pixel, not the one before, as ONNX's cases of opset 10 show.
    """
    everything = [node for _, nodes in node_lists(proto) for node in nodes]
    graphs = (proto.graph, *inner_graphs(proto.graph.node))
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in everything if n.op_type == "Constant" and n.attribute}
    for node in everything:
        if node.op_type != "Resize":
            continue
        scales = onnx.numpy_helper.to_array(constants[node.input[2]]) if node.input[2] in constants else np.ones(1)
        if scales.size and scales.min() < 1 < scales.max():
            reason = f"its scales {scales.tolist()} shrink and enlarge at once, which opset 10 does not define"
            raise UnsupportedError(label, [f"node '{node.name}' (Resize): {reason}"])
        nearest = "ceil" if scales.size and scales.min() < 1 else "floor"
        given = (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", nearest))
        node.attribute.extend(onnx.helper.make_attribute(*pair) for pair in given)


def drop_valid(proto: onnx.ModelProto) -> None:
    """Conv with auto_pad VALID --> Conv without padding, into which a Pad before it folds.

    onnxscript's own rule for this forgets the dilations of SAME_UPPER and takes any other word for SAME_LOWER.
    """
    for node in proto.graph.node:
        if node.op_type == "Conv" and any(a.name == "auto_pad" and a.s == b"VALID" for a in node.attribute):
            kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
            del node.attribute[:]
            node.attribute.extend(kept)
