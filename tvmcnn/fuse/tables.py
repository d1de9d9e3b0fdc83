"""Tables: what depends on one byte alone is a table of 256, made when the network is compiled.

y = QuantizeLinear(Mul(f, Sigmoid(f))), f = DequantizeLinear(x)    -->    y = Table(x, bytes)

The byte of a table at place i is y of the x whose bits are those of i. docs/quantised.md has the contract.
"""

from __future__ import annotations

import numpy as np

from tvmcnn.fuse.dequantised import Finder, Form, Integers
from tvmcnn.fuse.real_functions import FUNCTIONS
from tvmcnn.network import BYTES, Array, Node


def all_bytes(dtype: str) -> Array:
    """The integers of a type in the order of a table: by their bits, read as an unsigned number."""
    return np.arange(256, dtype=np.uint8).view(dtype)


def requantised(given: Integers, to: Integers) -> Array | None:
    """The table that makes integers of others that mean the same, up to a rounding; None if either are no bytes."""
    if not (given.one_scale and to.one_scale and given.dtype in BYTES and to.dtype in BYTES):
        return None
    return _quantised(_all_reals(given), to)


def tabled(finder: Finder, last: Node, to: Integers, form: Form) -> bool:
    """Whether what a QuantizeLinear ends depends on one byte; then `form` has its table."""
    found = _cone(finder, last)
    if found is None:
        return False
    root, nodes = found
    with np.errstate(all="ignore"):
        values: dict[str, Array] = {}
        for node in nodes:
            operands = [_value(finder, root, name, values) for name in node.inputs]
            values[node.output] = np.broadcast_to(FUNCTIONS[node.op](node, *operands), (256,))
        table = _quantised(values[nodes[-1].output].astype(np.float32), to)
    name = form.keep(f"{last.output}.table", table)
    form.nodes.append(Node("Table", nodes[-1].name, (root, name), last.output))
    form.parts |= {node.output for node in nodes}
    return True


def _cone(finder: Finder, last: Node) -> tuple[str, list[Node]] | None:
    """The tensor of bytes that a QuantizeLinear's operand is a function of, and the nodes between, in order.

    None where there are two such tensors or floats that arrive, and where others read what is between.
    """
    network = finder.network
    between, roots = dict[str, Node](), set[str]()
    waiting = [last.inputs[0]]
    while waiting:
        name = waiting.pop()
        if name in between or _constant(finder, name) is not None:
            continue
        node = finder.makers.get(name)
        if node is None or name in finder.outputs:
            return None
        if (given := finder.integers(name)) is not None:
            if not given.one_scale or given.dtype not in BYTES or given.name not in network.tensors:
                return None
            roots.add(given.name)
        elif node.op in FUNCTIONS and "arriving" not in node.attributes:
            between[name] = node
            waiting += node.inputs
        else:
            return None
        if len(roots) > 1:
            return None
    if not between or not roots:
        return None
    (root,) = roots
    shape = network.shape(root)
    inside = sum(name in between for node in (last, *between.values()) for name in {*node.inputs})
    alone = inside == sum(finder.readers[name] for name in between)
    if not alone or any(network.shape(name) != shape for name in between):
        return None
    return root, sorted(between.values(), key=lambda node: finder.places[node.output])


def _constant(finder: Finder, name: str) -> Array | None:
    """A constant of floats, or of integers behind a DequantizeLinear, all of whose elements are alike: one of them."""
    array, given = finder.network.constants.get(name), finder.integers(name)
    if given is not None and (integers := finder.array(given)) is not None:
        array = _dequantised(integers, given)
    if array is None or array.dtype != np.float32 or not array.size:
        return None
    alike = np.array_equal(array, np.full_like(array, array.flat[0]), equal_nan=True)
    return np.asarray(array.flat[0], np.float64) if alike else None


def _value(finder: Finder, root: str, name: str, values: dict[str, Array]) -> Array:
    """An operand of a node between, for all bytes of the root."""
    if name in values:
        return values[name]
    if (constant := _constant(finder, name)) is not None:
        return constant
    given = finder.integers(name)
    assert given is not None  # or there had been no cone
    assert given.name == root
    return _all_reals(given).astype(np.float64)


def _all_reals(given: Integers) -> Array:
    """What each byte of integers with one scale stands for."""
    return _dequantised(all_bytes(given.dtype), given).reshape(256)


def _dequantised(integers: Array, given: Integers) -> Array:
    """DequantizeLinear: fl((x − zero) · scale)."""
    wide = (integers.astype(np.float64) - given.zero) * given.scale.astype(np.float64)
    return np.asarray(wide, np.float32)


def _quantised(values: Array, to: Integers) -> Array:
    """QuantizeLinear of float32 values: rint(fl(x / scale)) + zero, of NaN the least integer."""
    limits = np.iinfo(to.dtype)
    with np.errstate(all="ignore"):
        steps = np.rint(values.reshape(-1) / to.step).astype(np.float64)
    whole = np.where(np.isnan(steps), -np.inf, steps) + to.shift
    return np.asarray(np.clip(whole, limits.min, limits.max), to.dtype)
