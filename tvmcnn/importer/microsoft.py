"""Microsoft: how the operators that onnxruntime writes into the files it has optimised are spelled by those of ONNX.

FusedConv(x, w, b, z, activation=Relu)  -->  Relu(Add(Conv(x, w, b), z))
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from tvmcnn.importer.spelling import New, Spell, Spelled

DOMAIN = "com.microsoft"
PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}  # of FusedConv's activations, as attributes
PLAIN = ("Relu", "Tanh", "Sigmoid")


def _node(op: str, inputs: list[str], output: str, name: str = "") -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, [output], name=name)


def _constant(value: float, name: str, like: str, new: New) -> Spelled:
    """A number in the element type of the tensor `like`."""
    number = new(f"{name}.float32")
    yield onnx.helper.make_node("Constant", [], [number], value_float=value)
    yield onnx.helper.make_node("CastLike", [number, like], [name])


def _attributes(node: onnx.NodeProto, *names: str) -> dict[str, onnx.AttributeProto]:
    found = {attribute.name: attribute for attribute in node.attribute}
    if odd := sorted(set(found) - set(names)):
        raise ValueError(f"its attribute {odd[0]} is none of onnxruntime's schema, which has {', '.join(names)}")
    return found


def _fused_conv(node: onnx.NodeProto, new: New) -> Spelled:
    """Conv, then the addition of a fourth operand, then an activation, each where it is there."""
    window = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    given = _attributes(node, *window, "activation", "activation_params")
    activation = given["activation"].s.decode(errors="replace") if "activation" in given else ""
    numbers = list(given["activation_params"].floats) if "activation_params" in given else []
    wanted = 2 if activation == "Clip" else len(PARAMETERS.get(activation, ()))
    if activation not in ("", *PLAIN, *PARAMETERS, "Clip") or (wanted and len(numbers) != wanted):
        raise ValueError(f"its activation is {activation} with {len(numbers)} activation_params, which is not known")
    output, inputs = node.output[0], list(node.input)
    steps = ["conv", *(["sum"] if len(inputs) > 3 and inputs[3] else []), *(["activation"] if activation else [])]
    names = [*(new(f"{output}.{step}") for step in steps[:-1]), output]
    conv = _node("Conv", inputs[:3], names[0], node.name)
    conv.attribute.extend(given[name] for name in window if name in given)
    yield conv
    if "sum" in steps:
        yield _node("Add", [names[0], inputs[3]], names[1])
    if activation == "Clip":
        bounds = [new(f"{output}.low"), new(f"{output}.high")]
        for bound, number in zip(bounds, numbers, strict=True):
            yield from _constant(number, bound, inputs[0], new)
        yield _node("Clip", [names[-2], *bounds], output)
    elif activation:
        last = _node(activation, [names[-2]], output)
        words = zip(PARAMETERS.get(activation, ()), numbers, strict=False)
        last.attribute.extend(onnx.helper.make_attribute(*pair) for pair in words)
        yield last


def _gelu(node: onnx.NodeProto, new: New) -> Spelled:
    """Gelu by erf, as ONNX's own is by default."""
    _attributes(node)
    yield _node("Gelu", list(node.input), node.output[0], node.name)


def _quick_gelu(node: onnx.NodeProto, new: New) -> Spelled:
    """x · sigmoid(alpha · x)."""
    given = _attributes(node, "alpha")
    x, y = node.input[0], node.output[0]
    alpha, scaled, gate = new(f"{y}.alpha"), new(f"{y}.scaled"), new(f"{y}.gate")
    yield from _constant(given["alpha"].f if "alpha" in given else 1.702, alpha, x, new)
    yield _node("Mul", [x, alpha], scaled)
    yield _node("Sigmoid", [scaled], gate)
    yield _node("Mul", [x, gate], y, node.name)


SPELLINGS: Mapping[tuple[str, str], Spell] = {
    (DOMAIN, "FusedConv"): _fused_conv,
    (DOMAIN, "Gelu"): _gelu,
    (DOMAIN, "QuickGelu"): _quick_gelu,
}
