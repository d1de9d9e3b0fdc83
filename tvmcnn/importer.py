"""Import: an ONNX file becomes a Network with closed shapes, explicit attributes and constant weights.

onnx, onnx-ir and onnxscript do what is ONNX's own (conversion of opsets, folding, shape inference); `operators.py` says
what each node means to tvmcnn. The order of the steps is the one that proved right on 25 trained models:
shapes are bound before anything folds, initializers leave the inputs before they are lifted, and the C++ converter
runs rather than onnxscript's, which only relabels models older than opset 18.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from tvmcnn.affine import fold_affine
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.network import INDEX_LIMIT, Array, Network, Node, Shape, Tensor, dims
from tvmcnn.onnx_file import Model, Opened, one_line, read_model
from tvmcnn.operators import DTYPES, OPERATORS, Meaning, Undecided, Unsupported, Value
from tvmcnn.rehearsal import needs_rehearsal, rehearse
from tvmcnn.transposed import split_transposed
from tvmcnn.wire import LARGE

OPSET = 21  # older models are converted to it; newer ones stay, for none of our operators has changed since
FOLD_LIMIT = 64 << 20  # bytes of one folded constant; more is a bomb, not a weight
FOLD_TOTAL = 1 << 30  # and of all of them
NODE_LIMIT = 100_000  # 30,000 take six seconds; published CNNs have a thousand

QUANTISED = re.compile("^(Dynamic)?(Quantize|Dequantize)|^QLinear|Integer$")

_CONSTANT = "constant: computed at compile time"
_IDENTITY = "an identity: the same values as its input"
_REWRITES = (
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
)


def import_model(
    model: Model,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | None = None,
    values: Mapping[str, Array] | None = None,
    name: str | None = None,
) -> Network:
    """The Network of an ONNX model, every dimension bound and every constant folded.

    `input_shapes` binds open dimensions or overrides fixed ones; `batch` does so for every leading dimension. An open
    leading dimension that nobody binds becomes 1, and `Network.notes` says so. `values` makes inputs constants, which
    may decide shapes and are inputs no more. `name` prefixes the C symbols; the default is the file's stem.

    Raises ModelError for what is no ONNX, is damaged or contradicts itself, UnsupportedError with every node that
    tvmcnn cannot compile.
    """
    label = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    opened = read_model(model)
    if needs_rehearsal(opened.proto):
        rehearse(opened, label, input_shapes or {}, batch, values or {})
    return import_opened(opened, label, input_shapes or {}, batch, values or {}, name)


def import_opened(
    opened: Opened,
    label: str,
    shapes: Mapping[str, Shape],
    batch: int | None,
    values: Mapping[str, Array],
    name: str | None = None,
) -> Network:
    """`import_model` of what has been read, in this process."""
    proto, weights = opened.proto, opened.weights
    if len(proto.graph.node) > NODE_LIMIT:
        raise ModelError(f"{label} has {len(proto.graph.node):,} nodes; allowed are {NODE_LIMIT:,}")
    _bind_values(proto, label, values, weights)
    notes = _bind_inputs(proto, label, shapes, batch, weights)
    _remove_initializers_from_inputs(proto)
    original = {output: node.op_type for node in proto.graph.node for output in node.output if output}
    notes += _convert_opset(proto, label)
    _drop_valid(proto)
    _refuse_bombs(proto, label, weights)
    proto, weights, folded = _fold(proto, label, original, weights)
    proto = _infer_shapes(proto, label)
    stem = name or (Path(label).stem if label != "the model" else proto.graph.name)
    return _network(Opened(proto, weights), label, c_identifier(stem), folded, tuple(notes))


def c_identifier(text: str) -> str:
    """squeezenet-1.1 --> squeezenet_1_1: a name that C and the linker accept."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII) or "model"
    return name if not name[0].isdigit() else f"model_{name}"


def open_inputs(proto: onnx.ModelProto, weights: Collection[str] = ()) -> list[onnx.ValueInfoProto]:
    """The graph inputs that a user must feed: those that neither an initializer nor one of `weights` gives a value."""
    given = {*weights, *(tensor.name for tensor in proto.graph.initializer)}
    return [value for value in proto.graph.input if value.name not in given]


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _bind_values(proto: onnx.ModelProto, label: str, values: Mapping[str, Array], weights: Collection[str]) -> None:
    """Turn inputs into initializers."""
    inputs = {value.name: value for value in open_inputs(proto, weights)}
    for name, array in values.items():
        if name not in inputs:
            raise ModelError(f"{label} has no input '{name}'; its inputs are {', '.join(inputs)}")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        proto.graph.input.remove(inputs[name])


def _bind_inputs(
    proto: onnx.ModelProto,
    label: str,
    shapes: Mapping[str, Shape],
    batch: int | None,
    weights: Mapping[str, Array],
) -> list[str]:
    """Write a number into every dimension of the inputs and forget all shapes that were inferred from older ones."""
    inputs = {value.name: value for value in open_inputs(proto, weights)}
    if batch is not None and batch < 1:
        raise ModelError(f"the batch is {batch}; it must be at least 1")
    if unknown := sorted(set(shapes) - set(inputs)):
        raise ModelError(f"{label} has no input '{unknown[0]}'; its inputs are {', '.join(inputs)}")
    notes: list[str] = []
    for name, value in inputs.items():
        dimensions = value.type.tensor_type.shape.dim
        found = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dimensions]
        wanted = _bound_shape(label, name, found, [d.dim_param for d in dimensions], shapes.get(name), batch, notes)
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
        value.type.tensor_type.ClearField("shape")
    return notes


def _bound_shape(
    label: str,
    name: str,
    found: list[int | None],
    symbols: list[str],
    given: Shape | None,
    batch: int | None,
    notes: list[str],
) -> Shape:
    shown = "x".join(str(extent or symbol or "?") for extent, symbol in zip(found, symbols, strict=True))
    if given is not None:
        if len(given) != len(found) or any(not isinstance(extent, int | np.integer) or extent < 0 for extent in given):
            raise ModelError(f"input '{name}' of {label} is {shown}; the shape {dims(given)} does not fit it")
        if len(given) and batch not in (None, given[0]):
            raise ModelError(f"input '{name}' is given the shape {dims(given)} and the batch {batch}, which contradict")
        if any(extent not in (None, new) for extent, new in zip(found, given, strict=True)):
            notes.append(f"input '{name}': {shown} of the file overridden by {dims(given)}")
        return tuple(int(extent) for extent in given)
    closed = list(found)
    if closed and batch is not None:
        closed[0] = batch
    elif closed and closed[0] is None:
        closed[0] = 1
        notes.append(f"input '{name}': its open leading dimension '{symbols[0] or '?'}' is bound to 1")
    if None in closed:
        hint = "x".join(str(extent or "N") for extent in closed)
        raise ModelError(
            f"input '{name}' of {label} is {shown}: give its open dimensions by --input-shape {name}:{hint}"
        )
    return tuple(extent for extent in closed if extent is not None)


def _infer_shapes(proto: onnx.ModelProto, label: str, *, values: bool = True) -> onnx.ModelProto:
    """Shapes of every tensor, with `values` also those that small computed tensors give.

    Lenient, because operators.py checks each shape and tells more than the inferrer does.
    """
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=values)
    except Exception as error:
        raise ModelError(f"the shapes of {label} do not fit: {one_line(error)}") from error


# ---- rewriting by onnx, onnx-ir and onnxscript ----------------------------------------------------------------------


def _remove_initializers_from_inputs(proto: onnx.ModelProto) -> None:
    """Before ir_version 4 every weight was also an input; then nothing would fold."""
    real = open_inputs(proto)
    del proto.graph.input[:]
    proto.graph.input.extend(real)
    proto.ir_version = max(proto.ir_version, 10)


def _convert_opset(proto: onnx.ModelProto, label: str) -> list[str]:
    """Raise the default domain to OPSET in place."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if not 7 <= opset <= onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise ModelError(f"{label} uses opset {opset or 'none'}; allowed are 7 to {newest}, the newest that onnx knows")
    if opset >= OPSET:
        return []
    try:
        converted = version_converter.convert_version(proto, OPSET)
    except Exception as error:
        reason = one_line(error)
        raise ModelError(f"{label}: opset {opset} cannot be converted to {OPSET}: {reason}") from error
    proto.CopyFrom(converted)
    if opset < 11:
        _keep_upsampling(proto, label)
    return [f"opset {opset} converted to {OPSET}"]


def _keep_upsampling(proto: onnx.ModelProto, label: str) -> None:
    """Say in each Resize that it was an Upsample, or a Resize of opset 10: the converter leaves that out.

    Upsample(x, scales)    -->  Resize(x, , scales, coordinate_transformation_mode=asymmetric, nearest_mode=floor)

    Scales below 1 took the next pixel, not the one before, as ONNX's cases of opset 10 show.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant" and n.attribute}
    for node in proto.graph.node:
        if node.op_type != "Resize":
            continue
        scales = onnx.numpy_helper.to_array(constants[node.input[2]]) if node.input[2] in constants else np.ones(1)
        if scales.size and scales.min() < 1 < scales.max():
            reason = f"its scales {scales.tolist()} shrink and enlarge at once, which opset 10 does not define"
            raise UnsupportedError(label, [f"node '{node.name}' (Resize): {reason}"])
        nearest = "ceil" if scales.size and scales.min() < 1 else "floor"
        given = (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", nearest))
        node.attribute.extend(onnx.helper.make_attribute(*pair) for pair in given)


def _drop_valid(proto: onnx.ModelProto) -> None:
    """Conv with auto_pad VALID --> Conv without padding, into which a Pad before it folds.

    onnxscript's own rule for this forgets the dilations of SAME_UPPER and takes any other word for SAME_LOWER.
    """
    for node in proto.graph.node:
        if node.op_type == "Conv" and any(a.name == "auto_pad" and a.s == b"VALID" for a in node.attribute):
            kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
            del node.attribute[:]
            node.attribute.extend(kept)


def _refuse_bombs(proto: onnx.ModelProto, label: str, weights: Mapping[str, Array]) -> None:
    """Refuse a constant larger than FOLD_LIMIT before anything folds: the optimizer computes it, then sees its size."""
    sizes = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
    sizes |= {name: array.nbytes for name, array in weights.items()}
    known = set(sizes)
    graph = _infer_shapes(proto, label, values=False).graph
    inferred = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    for node in proto.graph.node:
        if not known.issuperset(name for name in node.input if name):
            continue
        known.update(node.output)
        given = sum(sizes.get(name, 0) for name in node.input)
        for name in node.output:
            shape = tuple(d.dim_value for d in inferred[name].shape.dim) if name in inferred else ()
            if 4 * math.prod(shape) > max(FOLD_LIMIT, given):  # a large weight may still be reshaped or transposed
                raise ModelError(
                    f"{label}: node '{node.name or name}' ({node.op_type}) makes a constant of {dims(shape)}:"
                    f" allowed are {FOLD_LIMIT >> 20} MB, and {FOLD_TOTAL >> 20} MB of all constants"
                )


def _fold(
    proto: onnx.ModelProto, label: str, original: Mapping[str, str], weights: Mapping[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, str]]:
    """Fold what is constant, then BatchNorm and Pad into Conv, then fold again; say where each lost tensor went.

    `original` maps the tensors of the user's file to the operators that make them; only those can be lost. The large
    `weights` are initializers here, and inputs again behind it.
    """
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
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{label} cannot be simplified ({reason}): {one_line(error)}") from error
        left = {value.name for node in model.graph for value in node.outputs}
        for name in original.keys() - left - folded.keys():
            folded[name] = _IDENTITY if original[name] in ("Dropout", "Identity") else reason

    def constants() -> None:
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLD_LIMIT // 4,
            output_size_limit=FOLD_LIMIT // 4,
            should_fold=budget.allows,
        )

    outputs, budget = [value.name for value in model.graph.outputs], _Budget(label)
    run(constants, _CONSTANT)
    for _ in range(2):  # a Conv that a Pad has just gone into is a new node: its BatchNorm goes in the second time
        run(lambda: rewriter.rewrite(model, list(_REWRITES)), "folded into the weights of the node beside it")
    run(constants, _CONSTANT)
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


# Operators that make much of little, as a value says that folding may have made; if inference cannot tell how much,
# they stay, and the importer tells.
_GROWING = ("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample")


@dataclass
class _Budget:
    """What folding may still make. An output of the graph comes from a kernel, whatever its operands are."""

    label: str
    left: int = FOLD_TOTAL

    def allows(self, node: ir.Node) -> bool | None:
        """False to keep a node, None to let the optimizer decide. Raises ModelError for too large a constant."""
        if any(value.is_graph_output() for value in node.outputs):
            return False
        given = sum(v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None)
        for value in node.outputs:
            shape = [extent if isinstance(extent, int) else None for extent in value.shape or (None,)]
            if None in shape:
                if node.op_type in _GROWING:
                    return False
                continue
            size = 4 * math.prod(extent for extent in shape if extent is not None)
            self.left -= max(0, size - given)  # a reshaped weight is no more than it was
            if size > max(FOLD_LIMIT, given) or self.left < 0:
                found = dims(tuple(extent for extent in shape if extent is not None))
                raise ModelError(
                    f"{self.label}: node '{node.name or value.name}' ({node.op_type}) makes a constant of {found}:"
                    f" allowed are {FOLD_LIMIT >> 20} MB, and {FOLD_TOTAL >> 20} MB of all constants"
                )
        return None


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


# ---- nodes ----------------------------------------------------------------------------------------------------------


@dataclass
class _Build:
    """The Network in the making. float16 tensors are held as float32; those of the graph's interface are cast."""

    proto: onnx.ModelProto
    label: str
    constants: dict[str, Array]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    widened: dict[str, str] = field(default_factory=dict)  # float16 input -> its float32 copy

    def value(self, name: str, title: str) -> Value | None:
        """The operand `name` of a node."""
        if not name:
            return None  # ONNX's way to leave out an optional input
        if name in self.constants:
            data = self.constants[name]
            return Value(name, tuple(data.shape), str(data.dtype), data)
        name = self.widened.get(name, name)
        if name in self.tensors:
            return Value(name, self.tensors[name].shape, self.tensors[name].dtype)
        raise ModelError(f"{self.label}: {title} reads '{name}', which no input, initializer or earlier node gives")

    def add(self, node: onnx.NodeProto, output: str, meaning: Meaning) -> None:
        """The Node that makes `output`, and the constants that its operator derived."""
        names = []
        for operand in meaning.inputs:
            if operand.data is not None and self.constants.get(operand.name) is not operand.data:
                names.append(self.keep(f"{output}.{operand.name}", operand.data))
            else:
                names.append(operand.name)
        dtype = meaning.dtype or (meaning.inputs[0].dtype if meaning.inputs else "float32")
        self.tensors[output] = Tensor(output, meaning.shape, dtype)
        self.nodes.append(Node(meaning.op, node.name or output, tuple(names), output, meaning.attributes))

    def keep(self, key: str, data: Array) -> str:
        """A derived constant under a name that no weight of the file's own happens to have."""
        while key in self.constants:
            key += "'"
        self.constants[key] = data
        return key

    def cast(self, source: Tensor, name: str, dtype: str) -> Tensor:
        """A copy of `source` in another dtype, made by a node."""
        self.tensors[name] = Tensor(name, source.shape, dtype)
        self.nodes.append(Node("Cast", name, (source.name,), name, {"to": dtype}))
        return self.tensors[name]


def _network(opened: Opened, label: str, name: str, folded: Mapping[str, str], notes: tuple[str, ...]) -> Network:
    proto, graph = opened.proto, opened.proto.graph
    constants: dict[str, Array] = {t.name: _widened(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    halves = _has_halves(graph) or any(array.dtype == np.float16 for array in opened.weights.values())
    constants |= {key: _widened(array) for key, array in opened.weights.items()}
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
            build.widened[tensor.name] = build.cast(tensor, f"{tensor.name}.float32", "float32").name
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
    if through := [tensor.name for tensor in outputs if tensor in inputs]:
        raise UnsupportedError(
            label, [f"output '{name}' is an input itself; put an Identity between" for name in through]
        )
    if any(t.dtype == "float16" for t in (*inputs, *outputs)) or halves:
        notes = (*notes, "float16 tensors are computed in float32")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    nodes = tuple(build.nodes)
    network = Network(name, tuple(inputs), outputs, nodes, build.tensors, constants, dict(folded), metadata, notes)
    return fold_affine(split_transposed(network))


def _node(build: _Build, node: onnx.NodeProto, title: str) -> None:
    """Ask operators.py what one ONNX node means; register its outputs and its derived constants."""
    domain = node.domain if node.domain not in ("", "ai.onnx") else ""
    function = OPERATORS.get(node.op_type) if not domain else None
    if function is None and QUANTISED.search(node.op_type):
        raise Unsupported(f"operator {node.op_type}: quantised networks are not supported yet, only float ones")
    if function is None:
        raise Unsupported(f"operator {f'{domain}.' if domain else ''}{node.op_type} is not supported")
    attributes = {a.name: _attribute(a) for a in node.attribute}
    operands = [build.value(name, title) for name in node.input]
    if odd := next((each for each in operands if each is not None and each.dtype.startswith("complex")), None):
        raise Unsupported(f"input '{odd.name}' is {odd.dtype}; complex numbers are not supported")
    signature = inspect.signature(function)
    if "outputs_" in signature.parameters:
        attributes["outputs_"] = len(node.output)
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
    for output, meaning in zip(node.output, meanings, strict=False):
        if output:
            build.add(node, output, meaning)


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
    inner = Tensor(f"{tensor.name}.float32", tensor.shape, "float32")
    build.tensors[inner.name] = inner

    def renamed(name: str) -> str:
        return inner.name if name == tensor.name else name

    build.nodes = [
        dataclasses.replace(node, inputs=tuple(map(renamed, node.inputs)), output=renamed(node.output))
        for node in build.nodes
    ]
    return build.cast(inner, tensor.name, "float16")


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
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # whatever it is, no word of ONNX's


def _dtype(code: int) -> str:
    if code == onnx.TensorProto.STRING:
        return "string"
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)))
    except (KeyError, TypeError):
        return f"ONNX type {code}"
