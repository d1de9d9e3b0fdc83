"""Functions: what a model defines itself is put where it is called, and no node has outputs that nobody reads."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import onnx
from onnx import inliner

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators import DEFINED
from tvmcnn.onnx_file import one_line
from tvmcnn.onnx_file.repair import fresh, inner_graphs, node_lists, opset_of, tensor_names

NODE_LIMIT = 100_000  # 30,000 take six seconds; published CNNs have a thousand


def inline_functions(proto: onnx.ModelProto, label: str) -> None:
    """Put the nodes of each function in the place of its calls. Tensors outside of functions keep their names.

    Raises ModelError for more than NODE_LIMIT nodes, before there are so many: thirty functions of two calls each are
    a thousand million.
    """
    functions = {(f.domain, f.name, f.overload): f.node for f in proto.functions}

    @functools.cache
    def called(key: tuple[str, str, str]) -> int:
        return count(functions[key])

    def count(nodes: Sequence[onnx.NodeProto]) -> int:
        everything = (*nodes, *(node for graph in inner_graphs(nodes) for node in graph.node))
        keys = ((node.domain, node.op_type, node.overload) for node in everything)
        return sum(called(key) if key in functions else 1 for key in keys)

    if (found := count(proto.graph.node)) > NODE_LIMIT:
        raise ModelError(f"{label} has {found:,} nodes; allowed are {NODE_LIMIT:,}")
    if not functions:
        return
    _give_defaults(proto)
    _copy_handed_on(proto)
    try:
        proto.CopyFrom(inliner.inline_local_functions(proto, convert_version=True))
    except Exception as error:
        raise ModelError(f"the functions of {label} cannot be put in their places: {one_line(error)}") from error


def expand_defined(proto: onnx.ModelProto) -> None:
    """Put ONNX's own definition in the place of each node that DEFINED has, where its operands' types lead to one.

    y = RMSNormalization(x, scale)  -->  y = Mul(Div(x, Sqrt(Add(ReduceMean(Mul(x, x)), epsilon))), scale)
    """
    opset = opset_of(proto.opset_import)
    everything = (node for _, nodes in node_lists(proto) for node in nodes if not node.domain)
    found = [node for node in everything if node.op_type in DEFINED and onnx.defs.has(node.op_type, opset)]
    for node in found:  # onnx 1.23 drops the defaults of attributes here too
        known = onnx.defs.get_schema(node.op_type, opset).attributes.values()
        _complete(node, (each.default_value for each in known if each.default_value.type))
    read = {name for node in found for name in node.input} - {value.name for value in proto.graph.value_info}
    proto.graph.value_info.extend(  # nor does it know the types of constants
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.name in read
    )
    for op in sorted({node.op_type for node in found}):
        try:
            proto.CopyFrom(inliner.inline_selected_functions(proto, [("", op)], inline_schema_functions=True))
        except Exception:  # onnx 1.23 asks for the type of an operand that is left out: the node is refused by name
            continue


def _give_defaults(proto: onnx.ModelProto) -> None:
    """Write into each call what its function has as the default of an attribute: onnx 1.23 drops it."""
    defaults = {(f.domain, f.name, f.overload): f.attribute_proto for f in proto.functions}
    for _, nodes in node_lists(proto):
        for node in nodes:
            _complete(node, defaults.get((node.domain, node.op_type, node.overload), ()))


def _copy_handed_on(proto: onnx.ModelProto) -> None:
    """Let each output of an inner graph be made in it: onnx 1.23 gives one that is an input a name that nothing has."""
    taken = tensor_names(proto)
    for _, nodes in node_lists(proto):
        for graph in (graph for node in nodes for graph in inner_graphs([node])):
            made = {name for node in graph.node for name in node.output}
            for value in (value for value in graph.output if value.name not in made):
                name = fresh(f"{value.name}.out", taken)
                graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
                value.name = name


def _complete(node: onnx.NodeProto, defaults: Iterable[onnx.AttributeProto]) -> None:
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(attribute for attribute in defaults if attribute.name not in given)


def drop_unread(proto: onnx.ModelProto) -> list[str]:
    """Leave out optional outputs that nobody reads, such as BatchNormalization's statistics; returns their names."""
    opset = opset_of(proto.opset_import)
    read = {value.name for value in proto.graph.output}
    for _, nodes in node_lists(proto):
        read.update(name for node in nodes for name in node.input)
        read.update(value.name for graph in inner_graphs(nodes) for value in graph.output)
    dropped = []
    for _, nodes in node_lists(proto):
        for node in nodes:
            if len(node.output) < 2 or node.domain or not onnx.defs.has(node.op_type):
                continue
            optional = _optional(node.op_type, opset)
            for place, name in enumerate(node.output):
                if place in optional and name not in read:
                    dropped += [name] if name else []
                    node.output[place] = ""
            while node.output and not node.output[-1]:
                del node.output[-1]
    return dropped


def _optional(op: str, opset: int) -> set[int]:
    """The places of an operator's outputs that a node may leave out."""
    try:
        outputs = onnx.defs.get_schema(op, max_inclusive_version=opset).outputs
    except onnx.defs.SchemaError:  # newer than the opset
        return set()
    return {place for place, output in enumerate(outputs) if output.option == output.option.Optional}
