"""Quantised: how operators on quantised tensors are spelled by float ones between DequantizeLinear and QuantizeLinear.

y = QLinearConv(x, …, w, …, y_scale, y_zero_point, b)
  -->
y = QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(b)), y_scale, y_zero_point)

fuse/integers.py computes both alike, in integers. The scale of the bias is the product of those of x and w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from tvmcnn.importer.microsoft import DOMAIN
from tvmcnn.importer.spelling import New, Spell, Spelled, Steps

WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _attributes(node: onnx.NodeProto, *names: str) -> dict[str, Any]:
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if odd := sorted(set(found) - set(names)):
        raise ValueError(f"its attribute {odd[0]} is none of its schema, which has {', '.join(names)}")
    return found


def _operands(node: onnx.NodeProto, least: int, most: int) -> list[str]:
    """The inputs, "" for each that is left out at the end."""
    if not least <= len(node.input) <= most or not all(node.input[place] for place in range(2)):
        raise ValueError(f"it has {len(node.input)} inputs; it must have {least} to {most}")
    return [*node.input, *[""] * (most - len(node.input))]


def _dequantised(steps: Steps, x: str, scale: str, zero: str, **attributes: Any) -> str:
    if not x or not scale:
        raise ValueError("an operand or its scale is left out; only a zero point and a bias may be")
    return steps.add("DequantizeLinear", x, scale, *([zero] if zero else []), **attributes)


def _quantised(steps: Steps, value: str, scale: str, zero: str) -> Spelled:
    """The nodes with the last, which makes the output."""
    if not scale:
        raise ValueError("the scale of its output is left out")
    if not zero:
        raise ValueError("the zero point of its output is left out, which must be there to tell the type")
    steps.add("QuantizeLinear", value, scale, zero, output=steps.node.output[0])
    return steps.nodes


def _qlinear_conv(node: onnx.NodeProto, new: New) -> Spelled:
    """Conv; scale and zero point of w may be one a map."""
    x, xs, xz, w, ws, wz, ys, yz, b = _operands(node, 8, 9)
    steps, window = Steps(node, new), _attributes(node, *WINDOW)
    operands = [_dequantised(steps, x, xs, xz), _dequantised(steps, w, ws, wz, axis=0)]
    if b:
        operands.append(_dequantised(steps, b, steps.add("Mul", xs, ws), "", axis=0))
    return _quantised(steps, steps.add("Conv", *operands, **window), ys, yz)


def _qlinear_matmul(node: onnx.NodeProto, new: New) -> Spelled:
    """MatMul; scale and zero point of b may be one a column."""
    a, a_scale, a_zero, b, b_scale, b_zero, ys, yz = _operands(node, 8, 8)
    _attributes(node)
    steps = Steps(node, new)
    left = _dequantised(steps, a, a_scale, a_zero, axis=0)
    right = _dequantised(steps, b, b_scale, b_zero, axis=-1)
    return _quantised(steps, steps.add("MatMul", left, right), ys, yz)


def _qgemm(node: onnx.NodeProto, new: New) -> Spelled:
    """Gemm; without a scale of the output that is float32."""
    a, a_scale, a_zero, b, b_scale, b_zero, c, ys, yz = _operands(node, 6, 9)
    given = _attributes(node, "alpha", "transA", "transB")
    if given.get("alpha", 1.0) != 1.0:
        raise ValueError(f"its alpha is {given['alpha']:g}; supported is 1")
    turned = {name: given.get(name, 0) for name in ("transA", "transB")}
    steps = Steps(node, new)
    operands = [_dequantised(steps, a, a_scale, a_zero, axis=0)]
    operands.append(_dequantised(steps, b, b_scale, b_zero, axis=0 if turned["transB"] else 1))
    if c:
        operands.append(_dequantised(steps, c, steps.add("Mul", a_scale, b_scale), "", axis=-1))
    if ys:
        return _quantised(steps, steps.add("Gemm", *operands, **turned), ys, yz)
    steps.add("Gemm", *operands, output=node.output[0], **turned)
    return steps.nodes


def _binary(op: str) -> Spell:
    def spelled(node: onnx.NodeProto, new: New) -> Spelled:
        a, a_scale, a_zero, b, b_scale, b_zero, ys, yz = _operands(node, 7, 8)
        _attributes(node)
        steps = Steps(node, new)
        left, right = _dequantised(steps, a, a_scale, a_zero), _dequantised(steps, b, b_scale, b_zero)
        return _quantised(steps, steps.add(op, left, right), ys, yz)

    return spelled


def _unary(op: str, *names: str, given: Mapping[str, Any] | None = None, ignored: Sequence[str] = ()) -> Spell:
    def spelled(node: onnx.NodeProto, new: New) -> Spelled:
        x, xs, xz, ys, yz = _operands(node, 4, 5)
        attributes = _attributes(node, *names, *ignored, "channels_last")
        if attributes.pop("channels_last", 0):
            raise ValueError("its channels_last is 1; supported are channels before the spatial axes")
        steps = Steps(node, new)
        kept = {name: value for name, value in {**(given or {}), **attributes}.items() if name not in ignored}
        return _quantised(steps, steps.add(op, _dequantised(steps, x, xs, xz), **kept), ys, yz)

    return spelled


def _softmax(node: onnx.NodeProto, new: New) -> Spelled:
    """Softmax along one axis, as from opset 13 on."""
    given = _attributes(node, "axis", "opset")
    if given.get("opset", 13) < 13 and given.get("axis", -1) != -1:
        raise ValueError(f"it is a Softmax of opset {given['opset']}, along all axes from {given['axis']} on")
    return _unary("Softmax", "axis", given={"axis": -1}, ignored=["opset"])(node, new)


def _concat(node: onnx.NodeProto, new: New) -> Spelled:
    """Concat of parts with a scale and a zero point each."""
    if len(node.input) < 5 or len(node.input) % 3 != 2:
        raise ValueError(f"it has {len(node.input)} inputs; it must have two, and three for each part")
    ys, yz, *parts = node.input
    given = _attributes(node, "axis")
    if "axis" not in given:
        raise ValueError("it has no axis")
    steps = Steps(node, new)
    floats = [_dequantised(steps, *parts[place : place + 3]) for place in range(0, len(parts), 3)]
    return _quantised(steps, steps.add("Concat", *floats, **given), ys, yz)


def _plain(node: onnx.NodeProto, new: New) -> Spelled:
    """An operator that is ONNX's own in another domain."""
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.domain = ""
    yield copy


LSTM = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")


def _lstm(node: onnx.NodeProto, new: New) -> Spelled:
    """LSTM with its weights dequantised: D x I x 4H, the other way round, with a scale a direction or a column.

    onnxruntime quantises x and h too, anew at each time, by rules that no text defines; what the network was trained
    as is closer to float32.
    """
    if len(node.input) != 12 or not all(node.input[place] for place in (0, 1, 2, *range(8, 12))):
        raise ValueError(f"it has {len(node.input)} inputs; it must have 12, its weights and their scales among them")
    x, w, r, *others = node.input[:8]
    steps, given = Steps(node, new), _attributes(node, *LSTM)
    form = steps.constant([0, 1, -1])

    def weight(integers: str, scale: str, zero: str) -> str:
        real, shift = (steps.add("Cast", name, to=onnx.TensorProto.FLOAT) for name in (integers, zero))
        centred = steps.add("Sub", real, steps.add("Reshape", shift, form))
        return steps.add("Transpose", steps.add("Mul", centred, steps.add("Reshape", scale, form)), perm=[0, 2, 1])

    weights = weight(w, *node.input[8:10]), weight(r, *node.input[10:12])
    if "activations" in given:
        given["activations"] = [name.decode() for name in given["activations"]]
    last = onnx.helper.make_node("LSTM", [x, *weights, *others], list(node.output), name=node.name, **given)
    steps.nodes.append(last)
    return steps.nodes


POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
SPELLINGS: Mapping[tuple[str, str], Spell] = {
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    (DOMAIN, "QLinearConv"): _qlinear_conv,
    (DOMAIN, "QGemm"): _qgemm,
    (DOMAIN, "QLinearAdd"): _binary("Add"),
    (DOMAIN, "QLinearMul"): _binary("Mul"),
    (DOMAIN, "QLinearAveragePool"): _unary("AveragePool", *POOL),
    (DOMAIN, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (DOMAIN, "QLinearSigmoid"): _unary("Sigmoid"),
    (DOMAIN, "QLinearLeakyRelu"): _unary("LeakyRelu", "alpha"),
    (DOMAIN, "QLinearSoftmax"): _softmax,
    (DOMAIN, "QLinearConcat"): _concat,
    (DOMAIN, "DynamicQuantizeLSTM"): _lstm,
    (DOMAIN, "QuantizeLinear"): _plain,
    (DOMAIN, "DequantizeLinear"): _plain,
}
