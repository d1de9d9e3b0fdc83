"""Elements in other places: shapes, parts, borders, repetitions."""

from __future__ import annotations

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, Ints, op


@op("Identity")
def identity(input: Array) -> Array:
    """Identity: the input."""
    return input


@op("Concat", 4)
def concat(*inputs: Array, axis: int) -> Array:
    """Concat: the inputs one after another along `axis`."""
    return np.concatenate(inputs, axis=axis)


@op("Concat", 1)
def concat_1(*inputs: Array, axis: int = 1) -> Array:
    """Concat of opset 1: `axis` may be left out."""
    return np.concatenate(inputs, axis=axis)


@op("Pad", 11)
def pad(
    data: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """Pad: pads (2 * axes), all the begins and then all the ends; a negative one cuts. Modes as numpy.pad."""
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ValueError(f"mode {mode!r}; ONNX has constant, reflect, edge and wrap")
    chosen = list(range(data.ndim)) if axes is None else [int(axis) % data.ndim for axis in axes]
    if len(pads) != 2 * len(chosen):
        raise ValueError(f"{len(pads)} pads for {len(chosen)} axes")
    width = [(0, 0)] * data.ndim
    for place, axis in enumerate(chosen):
        width[axis] = (int(pads[place]), int(pads[place + len(chosen)]))
    cut = [slice(max(0, -first), n - max(0, -last)) for (first, last), n in zip(width, data.shape, strict=True)]
    grow = [(max(0, first), max(0, last)) for first, last in width]
    if mode == "constant":
        return np.pad(data[tuple(cut)], grow, constant_values=0 if constant_value is None else constant_value.item())
    return np.pad(data[tuple(cut)], grow, mode=mode)  # type: ignore[call-overload, no-any-return]


@op("Pad", 2)
def pad_2(data: Array, *, pads: Ints, mode: str = "constant", value: float = 0.0) -> Array:
    """Pad of opset 2: pads and value are attributes."""
    return pad(data, np.array(pads), np.array(value), mode=mode)


@op("Pad", 1)
def pad_1(data: Array, *, paddings: Ints, mode: str = "constant", value: float = 0.0) -> Array:
    """Pad of opset 1: `pads` was called `paddings`."""
    return pad(data, np.array(paddings), np.array(value), mode=mode)


@op("Flatten")
def flatten(input: Array, *, axis: int = 1) -> Array:
    """Flatten: two axes, the product of those before `axis` and the product of the rest."""
    if not -input.ndim <= axis <= input.ndim:
        raise ValueError(f"axis {axis} of an input with {input.ndim} axes")
    rows = int(np.prod(input.shape[: axis if axis >= 0 else axis + input.ndim], dtype=np.int64))
    columns = int(np.prod(input.shape[axis if axis >= 0 else axis + input.ndim :], dtype=np.int64))
    return input.reshape(rows, columns)


@op("Reshape", 5)
def reshape(data: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """Reshape: -1 is worked out from the rest; 0 keeps the input's size at that place, unless `allowzero`."""
    sizes = [int(size) for size in shape]
    if not allowzero:
        if any(size == 0 for size in sizes[data.ndim :]):
            raise ValueError(f"shape {sizes} has a 0 past the last axis of the input {data.shape}")
        sizes = [data.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return data.reshape(sizes)


@op("Reshape", 1)
def reshape_1(data: Array, *, shape: Ints, consumed_inputs: Ints = ()) -> Array:
    """Reshape of opset 1: the shape is an attribute."""
    return reshape(data, np.array(shape, np.int64))


@op("Transpose")
def transpose(data: Array, *, perm: Ints | None = None) -> Array:
    """Transpose: axis i of the output is axis perm[i] of the input; without perm the axes are reversed."""
    return np.transpose(data, perm)


@op("Squeeze", 13)
def squeeze(data: Array, axes: Array | None = None) -> Array:
    """Squeeze: without the given axes, all of size 1; without any axis of size 1 if none are given."""
    return np.squeeze(data, None if axes is None else tuple(int(axis) for axis in axes))


@op("Squeeze", 1)
def squeeze_1(data: Array, *, axes: Ints | None = None) -> Array:
    """Squeeze of opset 1 and 11: the axes are an attribute."""
    return squeeze(data, None if axes is None else np.array(axes, np.int64))


@op("Unsqueeze", 13)
def unsqueeze(data: Array, axes: Array) -> Array:
    """Unsqueeze: with axes of size 1 at the given places of the output."""
    return np.expand_dims(data, tuple(int(axis) for axis in axes))


@op("Unsqueeze", 1)
def unsqueeze_1(data: Array, *, axes: Ints) -> Array:
    """Unsqueeze of opset 1 and 11: the axes are an attribute."""
    return unsqueeze(data, np.array(axes, np.int64))


@op("Gather")
def gather(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Gather: data at `indices` along `axis`; the axes of indices take that axis's place."""
    return np.take(data, indices, axis=axis)


@op("Slice", 10)
def slice_(data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Slice: data[start:end:step] along each of the axes, with Python's meaning of negative and far numbers, but for
    where a slice that goes backwards begins before the first: there ONNX takes the first."""
    chosen = range(len(starts)) if axes is None else [int(axis) % data.ndim for axis in axes]
    slices = [slice(None)] * data.ndim
    for place, axis in enumerate(chosen):
        step = 1 if steps is None else int(steps[place])
        start = int(starts[place]) if step > 0 else max(int(starts[place]), -data.shape[axis])
        slices[axis] = slice(start, int(ends[place]), step)
    return data[tuple(slices)]


@op("Slice", 1)
def slice_1(data: Array, *, starts: Ints, ends: Ints, axes: Ints | None = None) -> Array:
    """Slice of opset 1: starts, ends and axes are attributes, and the step is 1."""
    return slice_(data, np.array(starts), np.array(ends), None if axes is None else np.array(axes))


@op("Shape")
def shape(data: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Shape: the sizes of the axes from `start` to before `end`, as int64."""
    return np.array(data.shape[start:end], np.int64)


@op("Split", 13)
def split_13(input: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None) -> list[Array]:
    """Split: consecutive parts along `axis`, of the given sizes or alike, where the last may be smaller.

    How many parts there are without either, only the node's outputs tell: `reference` gives that as num_outputs.
    """
    length = input.shape[axis]
    if split is None:
        if num_outputs is None:
            raise ValueError("neither split nor num_outputs is given")
        each = -(-length // num_outputs)
        split = np.diff(np.minimum(np.arange(num_outputs + 1) * each, length))
    if int(split.sum()) != length:
        raise ValueError(f"parts {split.tolist()} of an axis of {length}")
    return np.split(input, np.cumsum(split)[:-1], axis)


@op("Split", 2)
def split_2(input: Array, *, axis: int = 0, split: Ints | None = None, num_outputs: int | None = None) -> list[Array]:
    """Split of opset 2 and 11: the sizes are an attribute."""
    sizes = None if split is None else np.array(split)
    return split_13(input, sizes, axis=axis, num_outputs=num_outputs)


@op("Expand")
def expand(input: Array, shape: Array) -> Array:
    """Expand: broadcast with a shape, both ways."""
    return np.broadcast_to(input, np.broadcast_shapes(input.shape, tuple(int(size) for size in shape)))


@op("Tile", 6)
def tile(input: Array, repeats: Array) -> Array:
    """Tile: the input so many times along each axis."""
    return np.tile(input, [int(count) for count in repeats])


@op("DepthToSpace")
def depth_to_space(input: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """DepthToSpace: (N, C, H, W) -> (N, C/b^2, H*b, W*b); the block's axes come before the channels (DCR) or after."""
    n, c, h, w = input.shape
    b, rest = blocksize, c // blocksize**2
    if mode == "DCR":
        moved = input.reshape(n, b, b, rest, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = input.reshape(n, rest, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, rest, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(input: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """SpaceToDepth: (N, C, H, W) -> (N, C*b^2, H/b, W/b), the other way."""
    n, c, h, w = input.shape
    b = blocksize
    moved = input.reshape(n, c, h // b, b, w // b, b)
    moved = moved.transpose(0, 3, 5, 1, 2, 4) if mode == "DCR" else moved.transpose(0, 1, 3, 5, 2, 4)
    return moved.reshape(n, c * b * b, h // b, w // b)


@op("GatherElements")
def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """GatherElements: each index replaces its own coordinate along `axis`."""
    part = data[tuple(slice(None) if a == axis % data.ndim else slice(n) for a, n in enumerate(indices.shape))]
    return np.take_along_axis(part, indices % data.shape[axis], axis)


@op("GatherND", 11)
def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """GatherND: the last axis of `indices` holds places in the axes after the batch."""
    batch = data.shape[:batch_dims]
    found = [
        data[(*b, *(int(i) for i in place))]
        for b in np.ndindex(*batch)
        for place in indices[b].reshape(-1, indices.shape[-1])
    ]
    return np.array(found, data.dtype).reshape(*indices.shape[:-1], *data.shape[batch_dims + indices.shape[-1] :])


@op("OneHot", 9)
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """OneHot: values[1] where the new axis is at the index, values[0] elsewhere; an index out of range is nowhere."""
    count = int(depth.reshape(()))
    places = np.where(indices < 0, indices + count, indices)
    axis = axis % (indices.ndim + 1)
    line = np.arange(count).reshape(-1, *[1] * (indices.ndim - axis))
    return np.asarray(np.where(np.expand_dims(places, axis) == line, values[1], values[0]))


@op("ReverseSequence")
def reverse_sequence(input: Array, sequence_lens: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    """ReverseSequence: the first so many times of each batch run backwards."""
    y = np.moveaxis(input, (batch_axis, time_axis), (0, 1)).copy()
    for row, count in zip(y, sequence_lens, strict=True):
        row[: int(count)] = row[: int(count)][::-1].copy()
    return np.moveaxis(y, (0, 1), (batch_axis, time_axis))


@op("Trilu", 14)
def trilu(input: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """Trilu: zeros below the k-th diagonal (upper) or above it."""
    diagonal = 0 if k is None else int(k.reshape(()))
    return np.triu(input, diagonal) if upper else np.tril(input, diagonal)


@op("Size")
def size(data: Array) -> Array:
    """Size: the number of elements."""
    return np.array(data.size, np.int64)


@op("Unique", 11)
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, Array, Array, Array]:
    """Unique: the different elements, or parts along `axis`; where each comes first, which each is, how often it comes.

    In order of size, or as they come.
    """
    y, first, which, counts = np.unique(x, True, True, True, axis=axis)
    if not sorted:
        order = np.argsort(first)
        y, first, counts = np.take(y, order, axis or 0), first[order], counts[order]
        which = np.argsort(order)[which]
    return y, first.astype(np.int64), which.reshape(-1).astype(np.int64), counts.astype(np.int64)
