"""Nodes: what each means is asked of `operators`; together they are the Network."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import onnx

from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer.control_flow import is_control, refuse
from tvmcnn.importer.counted import counts_of, sentence
from tvmcnn.importer.half_weights import round_weights
from tvmcnn.importer.operators import DTYPES, OPERATORS, Meaning, Undecided, Unsupported, Value
from tvmcnn.network import Array, Network, Node, Tensor
from tvmcnn.onnx_file import Opened, one_line

QUANTISED = re.compile("^(Dynamic)?(Quantize|Dequantize)|^QLinear|Integer$")


@dataclass
class _Build:
    """The Network in the making. float16 tensors are held as float32; those of the graph's interface are cast."""

    proto: onnx.ModelProto
    label: str
    constants: dict[str, Array]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    widened: dict[str, str] = field(default_factory=dict)  # float16 tensor -> its float32 copy

    def value(self, name: str, title: str) -> Value | None:
        """The operand `name` of a node."""
        if not name:
            return None  # ONNX's way to leave out an optional input
        if name in self.constants:
            data = self.constants[name]
            return Value(name, tuple(data.shape), str(data.dtype), data)
        name = self.widened.get(name, name)
        if name in self.tensors:
            tensor = self.tensors[name]
            return Value(name, tensor.shape, tensor.dtype, counts=dict(tensor.counts))
        raise ModelError(f"{self.label}: {title} reads '{name}', which no input, initializer or earlier node gives")

    def add(self, node: onnx.NodeProto, output: str, meaning: Meaning, made: dict[int, str]) -> None:
        """The Node that makes `output`, with the constants that its operator derived and the nodes that make operands.

        `made` has the tensors of these nodes by the identity of their meanings, which several outputs may share.
        """
        names = []
        for operand in meaning.inputs:
            if operand.maker is not None:
                if id(operand.maker) not in made:
                    made[id(operand.maker)] = self.unused(f"{output}.{operand.name}")
                    self.add(node, made[id(operand.maker)], operand.maker, made)
                names.append(made[id(operand.maker)])
            elif operand.data is not None and self.constants.get(operand.name) is not operand.data:
                names.append(self.keep(f"{output}.{operand.name}", operand.data))
            else:
                names.append(operand.name)
        dtype = meaning.dtype or (meaning.inputs[0].dtype if meaning.inputs else "float32")
        self.tensors[output] = Tensor(output, meaning.shape, dtype)
        self.nodes.append(Node(meaning.op, node.name or output, tuple(names), output, meaning.attributes))
        made[id(meaning)] = output
        if meaning.counts:
            self.count(node, output, meaning, made)
        if dtype == "float16":  # which a Cast alone makes
            self.widen(self.tensors[output])

    def count(self, node: onnx.NodeProto, output: str, meaning: Meaning, made: dict[int, str]) -> None:
        """The nodes that count the elements of `output` along the axes that are as long as the data says."""
        counts = []
        for axis, value in meaning.counts.items():
            name = self.unused(f"{output}.{value.name}")
            assert value.maker is not None
            self.add(node, name, value.maker, made)
            counts.append((axis, name))
        self.tensors[output] = dataclasses.replace(self.tensors[output], counts=tuple(counts))

    def widen(self, tensor: Tensor) -> None:
        """Let all who read a float16 tensor read its float32 copy."""
        self.widened[tensor.name] = self.cast(tensor, f"{tensor.name}.float32", "float32").name

    def unused(self, key: str) -> str:
        """A name like `key` that nothing of the graph has."""
        graph = self.proto.graph
        taken = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        while key in taken or key in self.tensors or key in self.constants:
            key += "'"
        return key

    def keep(self, key: str, data: Array) -> str:
        """A derived constant under a name that no weight of the file's own happens to have."""
        while key in self.constants:
            key += "'"
        self.constants[key] = data
        return key

    def cast(self, source: Tensor, name: str, dtype: str) -> Tensor:
        """A copy of `source` in another dtype, made by a node."""
        self.tensors[name] = Tensor(name, source.shape, dtype, source.counts)
        self.nodes.append(Node("Cast", name, (source.name,), name, {"to": dtype}))
        return self.tensors[name]


def build_network(
    opened: Opened,
    label: str,
    name: str,
    folded: Mapping[str, str],
    notes: tuple[str, ...],
    weights: tuple[str, Set[str]] = ("fp32", frozenset()),
) -> Network:
    """The Network of a graph whose shapes are closed, or every reason why there is none.

    `weights` are of this type, those of these names.
    """
    proto, graph = opened.proto, opened.proto.graph
    constants: dict[str, Array] = {t.name: _widened(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    halves = _has_halves(graph) or any(array.dtype == np.float16 for array in opened.weights.values())
    constants |= {key: _widened(array) for key, array in opened.weights.items()}
    constants, half_weights = round_weights(graph, constants, *weights, label)
    build = _Build(proto, label, constants)
    inputs = [_tensor(value) for value in graph.input if value.name not in opened.weights]
    build.tensors |= {tensor.name: tensor for tensor in inputs}
    reasons = [
        f"input '{t.name}': its type is {t.dtype}; supported are {', '.join(('float16', *DTYPES))}"
        for t in inputs
        if t.dtype not in ("float16", *DTYPES)
    ]
    for tensor in inputs:
        if tensor.dtype == "float16":
            build.widen(tensor)
    undecided: list[str] = []
    for index, node in enumerate(graph.node):
        title = f"node '{node.name or f'#{index}'}' ({node.op_type})"
        try:
            _node(build, node, title)
        except Unsupported as reason:
            reasons.append(f"{title}: {reason}")
            if isinstance(reason, Undecided):  # named as the user knows it, not as the copy that float16 is widened to
                undecided += [next((n for n, copy in build.widened.items() if copy == reason.name), reason.name)]
            _declare_unknown(build, node)
        except ModelError as error:
            if not reasons:  # what follows an unsupported node has no reliable shape
                raise
            raise UnsupportedError(label, reasons, undecided) from error
    if reasons:
        raise UnsupportedError(label, reasons, undecided)
    outputs = tuple(_output(build, value) for value in graph.output)
    counts = dict.fromkeys(name for tensor in outputs for _, name in tensor.counts)
    notes = (*notes, *(sentence(t.name, t.shape, [axis for axis, _ in t.counts]) for t in outputs if t.counts))
    outputs += tuple(build.tensors[name] for name in counts)
    if through := [tensor.name for tensor in outputs if tensor in inputs]:
        raise UnsupportedError(
            label, [f"output '{name}' is an input itself; put an Identity between" for name in through]
        )
    if any(t.dtype == "float16" for t in (*inputs, *outputs)) or halves:
        notes = (*notes, "float16 tensors are computed in float32")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    nodes = tuple(build.nodes)
    parts = (name, tuple(inputs), outputs, nodes, build.tensors, constants, dict(folded), metadata, notes)
    return Network(*parts, half_weights=half_weights)


def _node(build: _Build, node: onnx.NodeProto, title: str) -> None:
    """Ask operators/ what one ONNX node means; register its outputs and its derived constants."""
    domain = node.domain if node.domain not in ("", "ai.onnx") else ""
    function = OPERATORS.get(node.op_type) if not domain else None
    if QUANTISED.search(node.op_type) and any(_is_half(build, name) for name in node.input if name):
        raise Unsupported("its scale or its floats are float16; supported is float32")
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        fed = {value.name for value in build.proto.graph.input} - build.constants.keys()
        for role, name in zip(("scale", "zero point"), node.input[1:], strict=False):
            if name in fed:  # one that DynamicQuantizeLinear computes may come at run time
                raise Undecided(role, name)
    if is_control(node):
        refuse(node, build.label, build.proto)
    if function is None:
        raise Unsupported(f"operator {f'{domain}.' if domain else ''}{node.op_type} is not supported")
    attributes = {a.name: _attribute(a) for a in node.attribute}
    operands = [build.value(name, title) for name in node.input]
    if odd := next((each for each in operands if each is not None and each.dtype.startswith("complex")), None):
        raise Unsupported(f"input '{odd.name}' is {odd.dtype}; complex numbers are not supported")
    if node.op_type == "CastLike" and operands[1] is not None and _is_half(build, node.input[1]):
        operands[1] = dataclasses.replace(operands[1], dtype="float16")
    signature = inspect.signature(function)
    if "outputs_" in signature.parameters:
        attributes["outputs_"] = len(node.output)
    if "wanted_" in signature.parameters:
        attributes["wanted_"] = tuple(map(bool, node.output))
    try:
        signature.bind(*operands, **attributes)
    except TypeError as error:
        raise Unsupported(f"its inputs or attributes are not those of ONNX's schema: {one_line(error)}") from error
    try:
        found = function(*operands, **attributes)
    except ModelError as error:
        raise ModelError(f"{build.label}: {title}: {error}") from error
    meanings = found if isinstance(found, tuple) else (found,)
    if spare := [name for name in node.output[len(meanings) :] if name]:
        raise Unsupported(f"its output '{spare[0]}' is not supported; only the first {len(meanings)} of the node are")
    made: dict[int, str] = {}
    pairs = list(zip(node.output, meanings, strict=False))
    operands_of = {id(value.maker) for _, meaning in pairs for value in meaning.inputs}
    for output, meaning in sorted(pairs, key=lambda pair: id(pair[1]) not in operands_of):  # what others read first
        if output:
            build.add(node, output, meaning, made)
            if any(operand is not None and operand.counts for operand in operands):
                counts = counts_of(node.op_type, operands, meaning)
                build.tensors[output] = dataclasses.replace(build.tensors[output], counts=tuple(counts.items()))


def _declare_unknown(build: _Build, node: onnx.NodeProto) -> None:
    """Give the outputs of a refused node their inferred shapes, so that the nodes after it are still judged."""
    inferred = {value.name: value for value in build.proto.graph.value_info}
    for name in node.output:
        tensor = _tensor(inferred[name]) if name in inferred else Tensor(name, (), "float32")
        build.tensors[name] = Tensor(name, tensor.shape, tensor.dtype.replace("float16", "float32"))


def _output(build: _Build, value: onnx.ValueInfoProto) -> Tensor:
    """The output, of the type that the graph declares; a constant is copied to it."""
    if value.name in build.constants and value.name not in build.tensors:
        data = build.constants[value.name]
        key = build.keep(f"{value.name}.value", data)
        build.tensors[value.name] = Tensor(value.name, tuple(data.shape), str(data.dtype))
        build.nodes.append(Node("Reshape", value.name, (key,), value.name))
    if value.name not in build.tensors:
        raise ModelError(f"{build.label}: its output '{value.name}' is never computed")
    tensor = build.tensors[value.name]
    if tensor.dtype == "float32" and _dtype(value.type.tensor_type.elem_type) == "float16":
        return _narrowed(build, tensor)
    return tensor


def _narrowed(build: _Build, tensor: Tensor) -> Tensor:
    """A float16 output: its node makes a float32 tensor of another name, which is cast at the end."""
    inner = dataclasses.replace(tensor, name=f"{tensor.name}.float32")
    build.tensors[inner.name] = inner

    def renamed(name: str) -> str:
        return inner.name if name == tensor.name else name

    build.nodes = [
        dataclasses.replace(node, inputs=tuple(map(renamed, node.inputs)), output=renamed(node.output))
        for node in build.nodes
    ]
    return build.cast(inner, tensor.name, "float16")


def _is_half(build: _Build, name: str) -> bool:
    """Whether a tensor, held as float32, is float16 in the file."""
    graph = build.proto.graph
    values = (each for each in (*graph.value_info, *graph.input, *graph.output) if each.name == name)
    half = onnx.TensorProto.FLOAT16
    stored = any(tensor.name == name and tensor.data_type == half for tensor in graph.initializer)
    return stored or any(value.type.tensor_type.elem_type == half for value in values)


def _has_halves(graph: onnx.GraphProto) -> bool:
    half = onnx.TensorProto.FLOAT16
    values = any(value.type.tensor_type.elem_type == half for value in graph.value_info)
    return values or any(tensor.data_type == half for tensor in graph.initializer)


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    element = value.type.tensor_type
    return Tensor(value.name, tuple(d.dim_value for d in element.shape.dim), _dtype(element.elem_type))


def _attribute(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [word.decode(errors="replace") for word in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # whatever it is, no word of ONNX's


def _dtype(code: int) -> str:
    if code == onnx.TensorProto.STRING:
        return "string"
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)))
    except (KeyError, TypeError):
        return f"ONNX type {code}"
