"""Random inputs for a check, seeded, such as the network can take.

Floats are normal, one in about 64 an outlier: near-uniform data would hide a misplaced tap. Integers are drawn from
what their readers accept: an index from the extent that it indexes, a divisor from 1 on; quantised ones from all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tvmcnn.fuse import RECURRENT
from tvmcnn.network import BYTES, Array, Network, Node, Tensor
from tvmcnn.run.arrays import ArrayInfo, random_array

Range = tuple[float, float]  # the least and the greatest value
ANY: Range = (-math.inf, math.inf)
OUTLIER = 10.0
# Operators that hand elements of these operands on as they are, if perhaps in another type
PASSING: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Transpose", "Slice", "Expand", "Tile", "Cast", "Gather", "GatherElements"), (0,)),
    **dict.fromkeys(("GatherND", "ReverseSequence", "Trilu", "MaxPool", "ReduceMax", "ReduceMin", "Pad"), (0,)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), (0, 2)),
    **dict.fromkeys(("ScatterBox", "ScatterPlaces"), (0, 1)),
    **{"MaxUnpool": (0,), "Where": (1, 2), "Concat": tuple(range(1 << 10))},
}
INDEXED = ("Gather", "ScatterElements", "ScatterND", "MaxUnpool")  # beginnings of operators whose second operand points
OF_BYTES = ("DequantizeLinear", "Centred", "ConvInteger", "MatMulInteger", "Table")
NEGATIVE: Range = (-math.inf, 0)
POSITIVE: Range = (0, math.inf)
USUAL = 9  # the size of integers of which only one end is fixed
DIVISORS: Range = (1, 9)
EXPONENTS: Range = (0, 3)


def drawn_inputs(network: Network, seed: int, *, tame: int = 0) -> dict[str, Array]:
    """The inputs of a network by name. `tame` 1 draws integers from 0 and 1 only, 2 nothing but 0: for a network whose
    demands on them are not seen here."""
    readers: dict[str, list[Node]] = {}
    for node in network.nodes:
        for name in {*node.inputs}:
            readers.setdefault(name, []).append(node)
    found = {}
    for place, tensor in enumerate(network.inputs):
        accepted = _accepted(network, readers, tensor.name, {})
        if tame and tensor.dtype != "bool" and np.dtype(tensor.dtype).kind in "iu":
            accepted = (0, 2 - tame)
        found[tensor.name] = drawn(tensor, seed + place, accepted)
        if _hands_on(readers, tensor.name):
            found[tensor.name] = (found[tensor.name] / math.sqrt(tensor.shape[-1])).astype(tensor.dtype)
        if accepted == ANY and tensor.dtype in BYTES and _is_quantised(readers, tensor.name):
            limits, rng = np.iinfo(tensor.dtype), np.random.default_rng(seed + place)
            found[tensor.name] = rng.integers(limits.min, limits.max, tensor.shape, tensor.dtype, endpoint=True)
        if reader := _region_reader(readers, tensor.name):
            found[tensor.name] = _regions(network, reader, tensor, seed + place)
    return found


def _is_quantised(readers: Mapping[str, list[Node]], name: str) -> bool:
    """True for integers that stand for others, by a scale: all that there are may come."""
    return any(
        node.op.startswith("QLinear")
        or node.op in OF_BYTES
        or (node.op in PASSING and _is_quantised(readers, node.output))
        for node in readers.get(name, ())
    )


def _hands_on(readers: Mapping[str, list[Node]], name: str) -> bool:
    """True for the matrix by which an LSTM, GRU or RNN hands its state on: with numbers so large that states grow from
    step to step, rounding errors would too, and no bound knew."""
    for node in readers.get(name, ()):
        if node.op in RECURRENT and node.inputs[1] == name:
            return True
        if node.op in ("Transpose", "Reshape", "Cast") and _hands_on(readers, node.output):
            return True
    return False


def _region_reader(readers: Mapping[str, list[Node]], name: str) -> Node | None:
    """The operator that takes a tensor, or its copy in another type, as regions of interest."""
    for node in readers.get(name, ()):
        if node.op in ("RoiAlign", "MaxRoiPool") and node.inputs[1] == name:
            return node
        if node.op == "Cast" and (found := _region_reader(readers, node.output)):
            return found
    return None


def _regions(network: Network, node: Node, tensor: Tensor, seed: int) -> Array:
    """Regions (x1, y1, x2, y2), an image before them for MaxRoiPool: most of them around a part of the image."""
    images, _, height, width = network.shape(node.inputs[0])
    rng, count = np.random.default_rng(seed + 2000), tensor.shape[0]
    corners = np.sort(rng.uniform(-0.2, 1.2, (count, 2, 2)), axis=1) * (width, height) / (node["spatial_scale"] or 1)
    image = rng.integers(0, max(images, 1), (count, tensor.shape[1] - 4))
    return np.concatenate([image, corners.reshape(count, 4)], axis=1).astype(tensor.dtype)


def drawn(tensor: Tensor, seed: int, accepted: Range = ANY) -> Array:
    """An array for one input, its elements within `accepted`."""
    values = random_array(ArrayInfo(tensor.name, tensor.shape, tensor.dtype), seed)
    low, high = accepted
    rng = np.random.default_rng(seed + 1000)
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind == "f" and accepted in (NEGATIVE, POSITIVE):
        return np.asarray(np.copysign(values, accepted[0] if accepted == NEGATIVE else accepted[1]))
    if accepted != ANY:
        least = int(low) if low > -math.inf else min(-USUAL, int(high))
        most = int(high) if high < math.inf else max(USUAL, int(low))
        least = max(0, least) if values.dtype.kind == "u" else least
        return np.asarray(rng.integers(least, max(least, most) + 1, tensor.shape)).astype(values.dtype)
    if values.dtype.kind != "f":
        return values
    outliers = rng.random(tensor.shape) < 1 / 64
    return np.where(outliers, OUTLIER * np.sign(values), values).astype(tensor.dtype)


def _accepted(network: Network, readers: Mapping[str, list[Node]], name: str, known: dict[str, Range]) -> Range:
    """What all readers of a tensor accept, those of its copies among them."""
    if name in known:
        return known[name]
    known[name] = ANY  # until it is; a network has no cycles
    low, high = ANY
    for node in readers.get(name, ()):
        for position, operand in enumerate(node.inputs):
            if operand == name:
                least, most = _accepted_by(network, readers, node, position, known)
                low, high = max(low, least), min(high, most)
    known[name] = (low, high)
    return known[name]


def _accepted_by(
    network: Network, readers: Mapping[str, list[Node]], node: Node, position: int, known: dict[str, Range]
) -> Range:
    """What one reader accepts as its operand `position`."""
    if position in PASSING.get(node.op, ()):
        return _accepted(network, readers, node.output, known)
    if position == 1 and node.op.startswith(INDEXED):
        extent = min(_indexed(network, node), default=1)
        return (-extent, extent - 1)
    if node.op == "Clip" and position:  # bounds that cross leave nothing but a constant
        return NEGATIVE if node["arriving"][position - 1] == "min" else POSITIVE
    integers = np.dtype(network.tensors[node.output].dtype).kind in "iu"
    if position == 1 and node.op == "ReverseSequence":
        return (1, network.shape(node.inputs[0])[1 - node["batch_axis"]])
    arriving = node.attributes.get("arriving", ())
    if "sequence_lens" in arriving and position == 2 + arriving.index("sequence_lens"):
        return (1, node["times"])
    if position == 2 and node.op == "RoiAlign":
        return (0, network.shape(node.inputs[0])[0] - 1)
    if position == 1 and integers and node.op in ("Div", "Mod"):
        return DIVISORS
    if position == 1 and node.op == "Pow" and integers:
        return EXPONENTS
    if position == 1 and node.op == "BitShift":
        return (0, 8 * np.dtype(network.tensors[node.output].dtype).itemsize - 1)
    if (
        integers
        and node.op in ("Add", "Sub")
        and (constant := network.constants.get(node.inputs[1 - position])) is not None
    ):
        low, high = _accepted(network, readers, node.output, known)
        shift = constant.astype(np.float64)
        if node.op == "Add":
            return (low - float(shift.min()), high - float(shift.max()))
        if position == 0:
            return (low + float(shift.max()), high + float(shift.min()))
    return ANY


def _indexed(network: Network, node: Node) -> tuple[int, ...]:
    """The extents that the indices of a Gather or a scatter point into."""
    shape = network.shape(node.inputs[0])
    if node.op == "MaxUnpool":
        return (math.prod(node["pooled"]),)
    if "along" in node.attributes:
        first, last = node["along"]
        return shape[first:last]
    if node.op == "GatherND":
        first = node["batch_dims"]
        return shape[first : first + network.shape(node.inputs[1])[-1]]
    return (shape[node["axis"]],)
