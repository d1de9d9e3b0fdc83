"""Tables: what depends on one byte alone is a table of 256, made when the network is compiled.

y = QuantizeLinear(Mul(f, Sigmoid(f))), f = DequantizeLinear(x)    -->    y = Table(x, bytes)

The byte of a table at place i is y of the x whose bits are those of i. docs/quantised.md has the contract.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tvmcnn.fuse.added import Additions
from tvmcnn.fuse.dequantised import Finder, Form, Integers
from tvmcnn.fuse.real_functions import FUNCTIONS
from tvmcnn.network import BYTES, Array, Network, Node

REASON = "between integers: computed with the table of {}"
BINARY = ("QLinearAdd", "QLinearMul")


def all_bytes(dtype: str) -> Array:
    """The integers of a type in the order of a table: by their bits, read as an unsigned number."""
    return np.arange(256, dtype=np.uint8).view(dtype)


# ---- floats between a DequantizeLinear and a QuantizeLinear ---------------------------------------------------------


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
    assert given is not None and given.name == root  # or there had been no cone
    return _all_reals(given).astype(np.float64)


def _all_reals(given: Integers) -> Array:
    """What each byte of integers with one scale stands for."""
    return _dequantised(all_bytes(given.dtype), given).reshape(256)


def _dequantised(integers: Array, given: Integers) -> Array:
    """DequantizeLinear: fl((x − zero) · scale)."""
    return ((integers.astype(np.float64) - given.zero) * given.scale.astype(np.float64)).astype(np.float32)


def _quantised(values: Array, to: Integers) -> Array:
    """QuantizeLinear of float32 values: rint(fl(x / scale)) + zero, of NaN the least integer."""
    limits = np.iinfo(to.dtype)
    with np.errstate(all="ignore"):
        steps = np.rint(values.reshape(-1) / to.step).astype(np.float64)
    whole = np.where(np.isnan(steps), -np.inf, steps) + to.shift
    return np.clip(whole, limits.min, limits.max).astype(to.dtype)


# ---- integers of integers -------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """What is known to depend on one byte: by tensor the root, and the table."""

    network: Network
    found: dict[str, tuple[str, Array]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[str, Array] | None:
        """Root and table of an operand, itself its root where it is a function of no other; a constant has no root."""
        array = self.network.constants.get(name)
        if array is not None:
            alike = array.size and array.dtype in BYTES and (array == array.reshape(-1)[0]).all()
            return ("", np.broadcast_to(array.reshape(-1)[:1], (256,))) if alike else None
        tensor = self.network.tensors[name]
        if tensor.dtype not in BYTES:
            return None
        return self.found.get(name) or (name, all_bytes(tensor.dtype))

    def add(self, node: Node) -> bool:
        """Whether a node makes a function of one byte."""
        shape, operands = self.network.shape(node.output), node.inputs[: 2 if node.op in BINARY else 1]
        if node.op not in ("Table", "Reshape", *BINARY):
            return False
        given = [self.of(name) for name in operands]
        roots = {each[0] for each in given if each is not None} - {""}
        if None in given or len(roots) != 1:
            return False
        (root,) = roots
        if self.network.shape(root) != shape or self.network.tensors[root].dtype not in BYTES:
            return False
        tables = [each[1] for each in given if each is not None]
        self.found[node.output] = root, self._table(node, tables)
        return node.op != "Reshape"

    def _table(self, node: Node, tables: Sequence[Array]) -> Array:
        if node.op == "Reshape":
            return tables[0]
        constants = [self.network.constants[name] for name in node.inputs[len(tables) :]]
        if node.op == "Table":
            return constants[0][tables[0].view(np.uint8)]
        steps = _combined(node, [table.astype(np.int32) for table in tables], [array.reshape(()) for array in constants])
        whole = np.clip(np.rint(steps).astype(np.float64) + node["to"], node["low"], node["high"])
        return whole.astype(self.network.tensors[node.output].dtype)


def _combined(node: Node, tables: Sequence[Array], numbers: Sequence[Array]) -> Array:
    """What a sum or product of integers rounds, in the form that it has (tried_forms.py), in float32."""
    first, second, last = numbers
    with np.errstate(all="ignore"):
        if node["form"] == "linear":
            a, b = (table.astype(np.float32) for table in tables)
            return np.asarray(a * first + (b * second + last))
        zeros = node["zero"], node["other"]
        a, b = ((table - zero).astype(np.float32) for table, zero in zip(tables, zeros, strict=True))
        a, b = a * first, b * second
        value = a * b if node.op == "QLinearMul" else a + b
        return np.asarray(value * last if node["form"] == "reciprocal" else value / last)


def composed_tables(network: Network) -> Network:
    """The network with tables of tables as one, and sums and products of a byte with what depends on it.

    t = Table(x, a), y = QLinearMul(x, t)    -->    y = Table(x, b)    and t where others read it
    """
    known, added, nodes = _Known(network), Additions(network), list[Node]()
    for node in network.nodes:
        made = known.add(node)
        root, table = known.found.get(node.output, ("", None))
        if made and table is not None and node.inputs[0] != root or node.op in BINARY and made:
            assert table is not None
            name = added.constant(f"{node.output}.table", np.ascontiguousarray(table))
            node = Node("Table", node.name, (root, name), node.output)
        nodes.append(node)
    if all(node is old for node, old in zip(nodes, network.nodes, strict=True)):
        return network
    return _without_unread(added.applied(network, nodes), network)


def _without_unread(network: Network, before: Network) -> Network:
    """The network without the integers that only tables read that are gone."""
    outputs = {tensor.name for tensor in network.outputs}
    nodes, tensors, folded = list(network.nodes), dict(network.tensors), dict(network.folded)
    readers: dict[str, str] = {name: node.output for node in before.nodes for name in node.inputs}
    read = {name for node in nodes for name in node.inputs}
    for node in reversed(network.nodes):
        if node.output in read | outputs or node.output not in readers or node.op not in ("Table", "Reshape", *BINARY):
            continue
        nodes.remove(node)
        del tensors[node.output]
        folded[node.output] = REASON.format(readers[node.output])
        read = {name for each in nodes for name in each.inputs}
    kept = {name: array for name, array in network.constants.items() if name in read}
    return dataclasses.replace(network, nodes=tuple(nodes), tensors=tensors, folded=folded, constants=kept)
