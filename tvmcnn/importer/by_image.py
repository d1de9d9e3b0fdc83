"""Proof that a network makes of each image of a batch what it makes of that image alone.

Then a library that is compiled for one batch size runs any, in parts. It is proved of a network that was imported at
two batch sizes:

1. In the larger every tensor has an axis along which the images lie one behind the other, and no node mixes them: see
   image_axes.py.
2. Both have the same nodes and constants, and tensors that differ along these axes alone.
3. Whatever is computed of the number of images shapes what is theirs, in proportion: see image_counts.py.

    x  8x3x32x32       axis 0: a graph input
    y  8x16x8x8        axis 0: Conv keeps the axis of its image
    z  8x1024          axis 0: Reshape has as many elements before it
    t  1024x8          axis 1: Transpose moves it
    m  8x1024          none:   Softmax along axis 0 would mix images
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tvmcnn.errors import TvmcnnError
from tvmcnn.importer import image_counts
from tvmcnn.importer.image_axes import RULES, Reader
from tvmcnn.importer.shapes import bound_batch
from tvmcnn.network import Array, Network, Node, dims
from tvmcnn.onnx_file import Opened

Imported = tuple[Network, Opened]


def with_open_batch(network: Network, imported: Callable[[int], Imported]) -> Network:
    """The network whose leading dimensions stay open where the file leaves them so and images are proved to be apart.

    Others are bound to 1, and a note says why. `imported` gives the network for another batch, and its graph.
    """
    if not network.open_batch or {tensor.name for tensor in network.inputs} != network.open_batch.keys():
        return dataclasses.replace(network, open_batch={})
    try:
        why = obstacle(network, *imported(2))
    except TvmcnnError as error:
        why = f"with 2 it is no network: {error}"
    notes = {
        bound_batch(name, symbol): f"{bound_batch(name, symbol)}: {why}" if why else _open(name, symbol)
        for name, symbol in network.open_batch.items()
    }
    told = tuple(notes.get(note, note) for note in network.notes)
    return dataclasses.replace(network, notes=told, open_batch={} if why else network.open_batch)


def _open(name: str, symbol: str) -> str:
    return (
        f"input '{name}': its leading dimension '{symbol}' stays open: batches run image by image"
        " (--batch 1,8,64 adds kernels for several at once)"
    )


def obstacle(small: Network, large: Network, graph: Opened) -> str:
    """Why images cannot be computed one by one, empty where they can.

    Both are one model, imported at two batch sizes: the leading extent of every input. `graph` is the model before
    anything folds, at the second.
    """
    sizes = [{tensor.shape[:1] for tensor in network.inputs} for network in (small, large)]
    if any(len(each) != 1 or () in each for each in sizes):
        return "its inputs have no batch in common"
    (few,), (many,) = (each.pop() for each in sizes)
    axes = {tensor.name: 0 for tensor in large.inputs}
    for node in large.nodes:
        reader, rule = Reader(large, axes, node), RULES.get(node.op)
        if not reader.operands():
            return f"'{node.output}' is made of constants: it has no images of a batch"
        axis = rule(reader) if rule is not None else None
        if axis is None:
            return f"node '{node.name}' ({node.op}) is not known to keep the images of a batch apart"
        axes[node.output] = axis
    for tensor in large.outputs:
        if axes[tensor.name]:
            return f"output '{tensor.name}' has the images of a batch along axis {axes[tensor.name]}, not 0"
    counts = image_counts.obstacle(graph.proto.graph, graph.weights, large, axes)
    return counts or _difference(small, large, axes, few, many)


# ---- two batch sizes ------------------------------------------------------------------------------------------------


def _difference(small: Network, large: Network, axes: Mapping[str, int], few: int, many: int) -> str:
    """What else than the number of images differs, empty for nothing."""
    unlike = f"the network is another for a batch of {few} than for one of {many}"
    if len(small.nodes) != len(large.nodes):
        return unlike
    for one, other in zip(small.nodes, large.nodes, strict=True):
        if one.inputs != other.inputs or one.output != other.output:
            return f"{unlike}: node '{one.name}' ({one.op}) reads or makes other tensors"
        if _is_turned_view(one, other, small):
            continue
        if one.op != other.op:
            return f"{unlike}: node '{one.name}' is {one.op} and {other.op}"
        if _attributes(one, axes) != _attributes(other, axes):
            return f"{unlike}: the attributes of node '{one.name}' ({one.op}) differ"
    for name, axis in axes.items():
        found, wanted = small.tensors[name].shape, list(large.tensors[name].shape)
        wanted[axis] = wanted[axis] // many * few
        if found != tuple(wanted):
            return f"{unlike}: '{name}' is {dims(found)} and {dims(large.tensors[name].shape)}"
    used = {name for node in large.nodes for name in node.inputs if name in large.constants}
    for name in sorted(used):
        if not _same_for_each(small.constants[name], large.constants[name], few, many):
            return f"{unlike}: the constant '{name}' differs"
    return ""


def _is_turned_view(one: Node, other: Node, small: Network) -> bool:
    """Whether the first is the second, a Transpose, of an image whose axes with several elements stay in order."""
    if (one.op, other.op) != ("Reshape", "Transpose"):
        return False
    shape = small.shape(one.inputs[0])
    long = [axis for axis in other["perm"] if shape[axis] != 1]
    return long == sorted(long)


def _attributes(node: Node, axes: Mapping[str, int]) -> str:
    """The attributes that do not count images, written out: NaN is itself."""
    found = dict(node.attributes)
    if node.op in ("Slice", "ScatterBox"):
        axis = next(axes[name] for name in node.inputs if name in axes)
        found["sizes"] = (*node["sizes"][:axis], *node["sizes"][axis + 1 :])
    return repr({name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()})


def _same_for_each(small: Array, large: Array, few: int, many: int) -> bool:
    """Whether both hold the same for each image: once, or again for each along one axis."""
    if small.dtype != large.dtype or small.ndim != large.ndim:
        return False
    longer = [axis for axis in range(small.ndim) if small.shape[axis] != large.shape[axis]]
    if len(longer) > 1:
        return False
    if not longer:
        return _same_bytes(small, large)
    (axis,) = longer
    parts = [_by_image(each, axis, count) for each, count in ((small, few), (large, many))]
    first = parts[0][:1] if parts[0] is not None else None
    return first is not None and all(part is not None and _all_equal(part, first) for part in parts)


def _by_image(array: Array, axis: int, images: int) -> Array | None:
    """The array with an axis of images in front; None where they do not divide it."""
    whole, rest = divmod(array.shape[axis], images)
    if rest:
        return None
    return np.moveaxis(array.reshape(*array.shape[:axis], images, whole, *array.shape[axis + 1 :]), axis, 0)


def _all_equal(parts: Array, first: Array) -> bool:
    return parts.shape[1:] == first.shape[1:] and all(_same_bytes(part, first[0]) for part in parts)


def _same_bytes(one: Array, other: Array) -> bool:
    """Whether arrays of one shape and type have the same bits, NaN among them."""
    if one.strides == other.strides:  # transposed weights of hundreds of MB, say, as they lie in memory
        order = np.argsort(one.strides)[::-1]
        one, other = one.transpose(order), other.transpose(order)
    bits = f"u{one.dtype.itemsize}"
    return bool(np.array_equal(np.ascontiguousarray(one).view(bits), np.ascontiguousarray(other).view(bits)))
