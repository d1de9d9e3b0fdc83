"""Integers: what stands between DequantizeLinear and QuantizeLinear is computed in integers where that has a form.

y = QuantizeLinear(Relu(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(b))))
  -->
y = QLinearConv(x, w - its zero point, scale of x · scale of w / scale of y, b)    with the zero points, and bounds

The sums of products are exact, then there is one product in float32 and one rounding: docs/quantised.md has the
contract. What has no such form stays as it is, DequantizeLinear, float32, QuantizeLinear; of products this is told.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmcnn.fuse.added import Additions
from tvmcnn.fuse.byte_moves import moved
from tvmcnn.fuse.dequantised import LIMIT, Finder, Form, Integers, NoForm, bounds, less_zeros
from tvmcnn.fuse.moved_integers import ALONE, moved_integers
from tvmcnn.fuse.tables import tabled
from tvmcnn.fuse.tried_forms import tried_form
from tvmcnn.fuse.whole_bias import factor_and_bias, norm_of
from tvmcnn.network import BYTES, Array, Network, Node

REASON = "between integers: computed with the kernel of {}"
PRODUCTS = ("Conv", "Gemm", "MatMul")


def integers(network: Network) -> Network:
    """The network with the nodes that have a form in integers in that form."""
    network = moved_integers(network, tuple(FORMS))
    finder, added, notes = Finder(network), Additions(network), list[str]()
    forms: dict[str, Form] = {}
    for node in network.nodes:
        to = finder.described(node, node.output) if node.op == "QuantizeLinear" else None
        if to is not None and to.one_scale and (form := _form(finder, added, node, to, notes)) is not None:
            forms[node.output] = form
    return _unread(_replaced(network, added, forms), notes)


def _replaced(network: Network, added: Additions, forms: dict[str, Form]) -> Network:
    """The network with forms in the place of their last nodes, and without their parts."""
    nodes, tensors, folded = list[Node](), dict(network.tensors), dict(network.folded)
    parts = {name: output for output, form in forms.items() for name in form.parts}
    for node in network.nodes:
        form = forms.get(node.output)
        if form is not None:
            nodes += form.nodes
            tensors |= {each.output: added.tensors[each.output] for each in form.nodes}
        elif node.output not in parts:
            nodes.append(node)
    for name, output in parts.items():
        del tensors[name]
        folded[name] = REASON.format(output)
    return dataclasses.replace(network, nodes=tuple(nodes), tensors=tensors, folded=folded, constants=added.constants)


def _unread(network: Network, notes: list[str]) -> Network:
    """The network without what only float nodes read that are gone, and with what is to be told."""
    nodes, tensors, folded = list(network.nodes), dict(network.tensors), dict(network.folded)
    read = {name for node in nodes for name in node.inputs} | {tensor.name for tensor in network.outputs}
    for node in network.nodes:
        if node.op == "DequantizeLinear" and node.output not in read:
            nodes.remove(node)
            del tensors[node.output]
            folded[node.output] = "dequantised for kernels that read the integers"
    kept = {name for node in nodes for name in node.inputs}
    constants = {name: array for name, array in network.constants.items() if name in kept}
    told = (*network.notes, *notes)
    return dataclasses.replace(
        network, nodes=tuple(nodes), tensors=tensors, folded=folded, constants=constants, notes=told
    )


# ---- a form of what ends in a QuantizeLinear ------------------------------------------------------------------------


def _form(finder: Finder, added: Additions, last: Node, to: Integers, notes: list[str]) -> Form | None:
    """The form of all that a QuantizeLinear ends."""
    form = Form(added)
    if moved(finder, last.inputs[0], to, last.output, form):
        return form
    if to.dtype not in BYTES:
        return None
    form = Form(added)
    if tabled(finder, last, to, form):
        return form
    mover = finder.alone(last.inputs[0])
    if mover is not None and mover.op in ALONE:
        return _moved_behind(finder, added, last, mover, to, notes)
    found = _between(finder, last.inputs[0])
    if found is None:
        return None
    node, norm, activation = found
    form = Form(added, parts={each.output for each in found if each is not None})
    if norm is not None and (numbers := norm_of(finder, norm)) is not None:
        form.norm = numbers
    elif norm is not None:
        return None
    low, high = bounds(activation, to)
    try:
        op, inputs, attributes = FORMS[node.op](finder, node, to, form, last.output)
    except NoForm as reason:
        if node.op in PRODUCTS:
            notes.append(f"'{node.name}' ({node.op}) is computed in float32, though it is quantised: {reason}")
        return None
    attributes |= {"to": to.shift, "low": low, "high": high}
    form.nodes.append(Node(op, node.name, inputs, last.output, attributes))
    return form


def _moved_behind(
    finder: Finder, added: Additions, last: Node, mover: Node, to: Integers, notes: list[str]
) -> Form | None:
    """The form of what is moved between its last operator and a QuantizeLinear, which reverses no order.

    y = QuantizeLinear(MaxPool(Conv(…)))    -->    y = MaxPool(QuantizeLinear(Conv(…)))
    """
    source = mover.inputs[0]
    before = added.tensor(f"{last.output}.before", finder.network.shape(source), to.dtype)
    quantised = dataclasses.replace(last, inputs=(source, *last.inputs[1:]), output=before)
    form = _form(finder, added, quantised, to, notes)
    if form is not None:
        form.nodes.append(dataclasses.replace(mover, inputs=(before, *mover.inputs[1:]), output=last.output))
        form.parts.add(mover.output)
    return form


def _between(finder: Finder, name: str) -> tuple[Node, Node | None, Node | None] | None:
    """The operator that a float tensor comes from, a BatchNormalization behind it and the activation behind that."""
    norm, activation, node = None, None, finder.alone(name)
    if node is not None and (node.op == "Relu" or (node.op == "Clip" and len(node.inputs) == 1)):
        activation, node = node, finder.alone(node.inputs[0])
    if node is not None and node.op == "BatchNormalization":
        norm, node = node, finder.alone(node.inputs[0])
    if node is None or node.op not in FORMS or (norm is not None and node.op != "Conv"):
        return None
    return (node, norm, activation) if any(finder.integers(name) for name in node.inputs) else None


Made = tuple[str, tuple[str, ...], dict[str, Any]]  # operator, operands and attributes


def _conv(finder: Finder, node: Node, to: Integers, form: Form, output: str) -> Made:
    """QLinearConv."""
    x, w = _operands(finder, node)
    if finder.array(w) is not None:
        weight = _weight(finder, w, 0)
        attributes = {**node.attributes, "zero": x.shift, "other": 0}
        return "QLinearConv", (x.name, *_constants(finder, node, x, w, weight, to, form, output)), attributes
    maps, *window = finder.network.shape(w.name)
    operands = _computed(finder, node, x, w, to, form, output, math.prod(window), maps)
    return "QLinearConv", (x.name, *operands), {**node.attributes, "zero": x.shift, "other": w.shift}


def _matmul(finder: Finder, node: Node, to: Integers, form: Form, output: str) -> Made:
    """QLinearMatMul; a constant matrix may have a scale a column."""
    x, w = _operands(finder, node)
    if (array := finder.array(w)) is not None:
        weight = _weight(finder, w, 1 if array.ndim == 2 else None)
        operands = _constants(finder, node, x, w, weight, to, form, output)
        return "QLinearMatMul", (x.name, *operands), {"zero": x.shift, "other": 0}
    operands = _computed(finder, node, x, w, to, form, output, finder.network.shape(x.name)[-1], 1)
    return "QLinearMatMul", (x.name, *operands), {"zero": x.shift, "other": w.shift}


def _gemm(finder: Finder, node: Node, to: Integers, form: Form, output: str) -> Made:
    """QLinearMatMul of a constant matrix, turned where it is."""
    given = node.attributes
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", False):
        raise NoForm("its alpha and beta must be 1, and A not transposed")
    x, w = _operands(finder, node)
    turned = bool(given.get("transB", False))
    weight = _weight(finder, w, 0 if turned else 1)
    weight = weight.T if turned else weight
    operands = _constants(finder, node, x, w, weight, to, form, output)
    return "QLinearMatMul", (x.name, *operands), {"zero": x.shift, "other": 0}


def _operands(finder: Finder, node: Node) -> tuple[Integers, Integers]:
    """What a product multiplies: quantised both, the first with one scale and computed."""
    x, w = (finder.integers(name) for name in node.inputs[:2])
    for name, found in zip(node.inputs, (x, w), strict=False):
        if found is None:
            raise NoForm(f"its operand '{name}' is not quantised")
        if found.dtype not in BYTES:
            raise NoForm(f"its operand '{name}' is {found.dtype}")
    assert x is not None
    assert w is not None
    if not x.one_scale:
        raise NoForm(f"its operand '{node.inputs[0]}' has more than one scale")
    if x.name in finder.network.constants:
        raise NoForm(f"its operand '{node.inputs[0]}' is constant")
    return x, w


def _weight(finder: Finder, w: Integers, axis: int | None) -> Array:
    """Constant integers less their zero points, of which each index of `axis` may have one."""
    array = finder.array(w)
    if array is None:
        raise NoForm("its weight is computed")
    for each in (w.scale, w.zero):
        if each.size > 1 and (axis is None or each.size != each.shape[axis]):
            raise NoForm("the scales of its weight are not one an output channel")
    return less_zeros(array, w.zero.reshape(w.zero.shape if w.zero.size > 1 else ()))


def _constants(
    finder: Finder, node: Node, x: Integers, w: Integers, weight: Array, to: Integers, form: Form, output: str
) -> list[str]:
    """The weight, the factor and the bias, an int32 of the scale that a sum has."""
    is_conv = node.op == "Conv"
    maps = weight.shape[0 if is_conv else -1] if weight.ndim > 1 else 1
    scale = x.step * w.scale.reshape(-1)  # in float32
    sums = np.abs(weight.astype(np.int64)).sum(axis=tuple(range(1, weight.ndim)) if is_conv else -2 % weight.ndim)
    factor, bias = factor_and_bias(finder, node, scale, maps, to, form.norm)
    most = sums * x.reach + (0 if bias is None else np.abs(bias.astype(np.int64)))
    if most.size and int(most.max()) >= LIMIT:
        raise NoForm(f"sums of {math.prod(weight.shape[1:]) if is_conv else weight.shape[0]} products may leave int32")
    names = [form.keep(f"{output}.weight", weight), form.keep(f"{output}.multiplier", factor)]
    return names if bias is None else [*names, form.keep(f"{output}.bias", bias)]


def _computed(
    finder: Finder, node: Node, x: Integers, w: Integers, to: Integers, form: Form, output: str, depth: int, maps: int
) -> list[str]:
    """The weight, the factor and the bias, where the weight comes at run time: with one scale and zero point."""
    if not w.one_scale:
        raise NoForm(f"its operand '{node.inputs[1]}' is computed, and has more than one scale")
    scale = np.reshape(x.step * w.step, (1,))
    factor, bias = factor_and_bias(finder, node, scale, maps, to, form.norm)
    most = 0 if bias is None else int(np.abs(bias.astype(np.int64)).max(initial=0))
    if depth * x.reach * w.reach + most >= LIMIT:
        raise NoForm(f"sums of {depth} products may leave int32")
    names = [w.name, form.keep(f"{output}.multiplier", factor)]
    return names if bias is None else [*names, form.keep(f"{output}.bias", bias)]


def _binary(finder: Finder, node: Node, to: Integers, form: Form, output: str) -> Made:
    """QLinearAdd, also of a Sum of two, or QLinearMul."""
    op = "Add" if node.op == "Sum" else node.op
    given = [finder.integers(name) for name in node.inputs]
    found = [each for each in given if each is not None and each.one_scale and each.dtype in BYTES]
    if len(found) != len(node.inputs) or len(found) != 2:
        raise NoForm("both operands must be quantised with one scale")
    tried = tried_form(op, found[0], found[1], to)
    numbers = zip(("a", "b", "y"), tried.numbers, strict=True)
    operands = [form.keep(f"{output}.{word}_scale", each.reshape(1)) for word, each in numbers]
    attributes = {"zero": found[0].shift, "other": found[1].shift, "form": tried.name}
    return f"QLinear{op}", (*(each.name for each in found), *operands), attributes


def _pool(finder: Finder, node: Node, to: Integers, form: Form, output: str) -> Made:
    """QLinearAveragePool, whose factor knows how many elements each window counts."""
    x = finder.integers(node.inputs[0])
    if x is None or not x.one_scale or x.dtype not in BYTES:
        raise NoForm("its operand must be quantised with one scale")
    shape = finder.network.shape(x.name)
    rank, spatial = len(shape) - 2, shape[2:]
    window = {
        **{"kernel_shape": spatial, "strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank},
        **{key: value for key, value in node.attributes.items() if key != "count_include_pad"},
    }
    counts = _window_counts(node, window, spatial, finder.network.shape(node.output)[2:])
    if not counts.all() or math.prod(window["kernel_shape"]) * x.reach >= LIMIT:
        raise NoForm("a window holds nothing, or more than an int32 can count")
    counts = counts.reshape(-1)[:1].reshape((1,) * rank) if len(set(counts.reshape(-1).tolist())) == 1 else counts
    factor = x.step / (to.step * counts.astype(np.float32))
    return "QLinearAveragePool", (x.name, form.keep(f"{output}.multiplier", factor)), {**window, "zero": x.shift}


def _window_counts(node: Node, window: dict[str, Any], spatial: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """How many elements each window counts: those in the image, or in its padding too."""
    counts: Array = np.ones((), np.int64)
    for axis, (extent, size) in enumerate(zip(spatial, sizes, strict=True)):
        begin, end = window["pads"][axis], window["pads"][axis + len(spatial)]
        low, high = (-begin, extent + end) if node.attributes.get("count_include_pad") else (0, extent)
        first = np.arange(size) * window["strides"][axis] - begin
        at = first[:, None] + np.arange(window["kernel_shape"][axis]) * window["dilations"][axis]
        counts = np.multiply.outer(counts, ((at >= low) & (at < high)).sum(axis=1))
    return counts


FORMS: dict[str, Callable[[Finder, Node, Integers, Form, str], Made]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _binary,
    "Sum": _binary,
    "Mul": _binary,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
}
