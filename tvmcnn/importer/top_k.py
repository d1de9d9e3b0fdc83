"""TopK: its values are gathered by its indices, so that one kernel puts things in order for both outputs."""

from __future__ import annotations

import onnx


def gather_values(proto: onnx.ModelProto) -> None:
    """Leave each TopK its indices alone, in place.

    values, indices = TopK(x, k)    -->    , indices = TopK(x, k); values = GatherElements(x, indices)
    """
    nodes = proto.graph.node
    read = {name for node in nodes for name in node.input} | {value.name for value in proto.graph.output}
    made: list[onnx.NodeProto] = []
    for node in nodes:
        made.append(onnx.NodeProto.FromString(node.SerializeToString()))
        if node.op_type != "TopK" or node.domain:
            continue
        values, indices = node.output
        made[-1].output[0] = ""
        if values in read:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
            made.append(onnx.helper.make_node("GatherElements", [node.input[0], indices], [values], axis=axis))
    del nodes[:]
    nodes.extend(made)
